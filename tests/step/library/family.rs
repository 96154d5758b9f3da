//! Anonymous objects, among relatives.
//!
//! Every forked process is a new member of the driver's family. It can use the driver's handles, not give them back.

use std::fs;
use std::os::unix::fs::MetadataExt;

use multiproc::{Array, Process, Value};
use nix::sys::signal::{SigSet, Signal};

use super::{Wide, ensure, in_one_that_dies, said, whole};
use crate::campaign::Campaign;
use crate::scenario::{Blow, Fate, Inside, Role, Scenario};
use crate::tracer::Section;

/// What the driver's objects hold.
const DRIVERS: u8 = 200;
/// Elements of an array that takes chunks of its own.
const LARGE: usize = 9_000;
/// What everybody may keep of the family's memory, and what one death may leak: a few chunks of 64 KiB.
const SLACK: u64 = 12 * (64 << 10);

pub(super) fn scenarios() -> Vec<Box<dyn Campaign>> {
    use Operation::{Join, Large, Receive, Release, Small};
    use Role::{Idle, Intruder, Owner, Passer};
    let add = |name, operation, cast: &[Role], blow| {
        let cast = cast.to_vec();
        Box::new(Relatives { name, operation, cast, blow }) as Box<dyn Campaign>
    };
    let mut all = vec![
        add("value", Small, &[Owner, Idle], Blow::Kill),
        add("large", Large, &[Owner], Blow::Kill),
        add("receive", Receive, &[Owner], Blow::Kill),
        add("release", Release, &[], Blow::Kill),
    ];
    // Two million instructions where nothing is inlined: a ledger has thousands of entries.
    if !cfg!(debug_assertions) {
        all.push(add("join", Join, &[Owner], Blow::Kill));
        all.push(add("join-intruded", Join, &[Intruder, Idle], Blow::Kill));
        all.push(add("join-stalled", Join, &[Passer], Blow::Stall));
    }
    all
}

/// Making and dropping an object in the family segment.
struct Relatives {
    name: &'static str,
    operation: Operation,
    cast: Vec<Role>,
    blow: Blow,
}

/// What the victim does in its section.
#[derive(PartialEq)]
enum Operation {
    /// A value, by a member.
    Small,
    /// An array in chunks of its own, by a member.
    Large,
    /// A value, by one who has to become a member first, and to bury those that died before.
    Join,
    /// A handle comes from a child, and is dropped.
    Receive,
    /// Only the dropping.
    Release,
}

/// What the driver holds throughout: nobody else may free it.
struct Held {
    value: Value<Wide>,
    array: Array<u64>,
    /// The family's memory at the beginning.
    size: u64,
}

/// Makes objects, looks whether they are its own alone, and drops them.
fn make_and_use(count: u8, pause: impl FnOnce()) -> Result<(), String> {
    let make = |number: u8| {
        let value = Value::new([number; 64])?;
        let small = Array::<u64>::new(12)?;
        let large = if number == 0 { Some(Array::<u64>::new(LARGE)?) } else { None };
        Ok((number, value, small, large))
    };
    let made: Vec<_> =
        (0..count).map(make).collect::<Result<_, _>>().map_err(|error: multiproc::Error| said(&error))?;
    for (number, _, small, large) in &made {
        for array in [Some(small), large.as_ref()].into_iter().flatten() {
            let mut elements = array.lock().map_err(|died| said(&died))?;
            ensure(elements.iter().all(|element| *element == 0), || "a new array is not zero".into())?;
            elements.fill((*number).into());
        }
    }
    pause();
    for (number, value, small, large) in &made {
        ensure(whole(&value.get())? == *number, || "two have the same place".into())?;
        for array in [Some(small), large.as_ref()].into_iter().flatten() {
            let elements = array.lock().map_err(|died| said(&died))?;
            ensure(elements.iter().all(|element| *element == u64::from(*number)), || {
                "two have the same place".into()
            })?;
        }
    }
    Ok(())
}

/// Bytes of memory that the family takes now.
fn family_size() -> u64 {
    let files = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let is_family = |path: &std::path::Path| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("multiproc-family"))
    };
    let mut sizes = files
        .filter(|file| is_family(&file.path()))
        .filter_map(|file| Some(fs::metadata(file.path()).ok()?.blocks() * 512));
    sizes.next().unwrap_or(0)
}

impl Held {
    fn check(&self) -> Result<(), String> {
        ensure(self.value.get() == [DRIVERS; 64], || "the driver's value is damaged".into())?;
        let elements = self.array.lock().map_err(|died| said(&died))?;
        ensure(elements.iter().all(|element| *element == u64::from(DRIVERS)), || {
            "the driver's array is damaged".into()
        })
    }
}

impl Scenario for Relatives {
    type Stage = Held;

    fn name(&self) -> String {
        format!("family-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn phases(&self) -> &'static [&'static str] {
        &["whole"]
    }

    fn prepare(&self) -> Held {
        let make = || {
            let value = Value::new([DRIVERS; 64])?;
            let array = Array::from_slice(&[DRIVERS.into(); LARGE])?;
            // The last member before the victim: it buries those of the run before, and is there to be buried.
            in_one_that_dies(|| {
                std::mem::forget((Value::new(1_u8)?, Array::<u64>::new(LARGE)?));
                Ok(())
            });
            Ok(Held { value, array, size: family_size() })
        };
        make().unwrap_or_else(|error: multiproc::Error| panic!("the stage cannot be set: {error}"))
    }

    fn victim(&self, held: &Held, section: &Section) -> Result<(), String> {
        let join = || Value::new(0_u64).map_err(|error| said(&error));
        match self.operation {
            Operation::Small => {
                let _member = join()?;
                section.run(|| Value::new([1; 64]).map(drop)).map_err(|error| said(&error))
            }
            Operation::Large => {
                let _member = join()?;
                section.run(|| Array::<u64>::new(LARGE).map(drop)).map_err(|error| said(&error))
            }
            Operation::Join => section.run(|| Value::new([1; 64]).map(drop)).map_err(|error| said(&error)),
            Operation::Receive | Operation::Release => {
                let _member = join()?;
                // The end of the child would stop a traced process.
                let mut signals = SigSet::empty();
                signals.add(Signal::SIGCHLD);
                signals.thread_block().map_err(|error| said(&error))?;
                let child = Process::spawn(back, (held.value.clone(),)).map_err(|error| said(&error))?;
                while child.is_alive() {
                    std::thread::yield_now();
                }
                if self.operation == Operation::Receive {
                    return section.run(|| child.join().map(drop)).map_err(|error| said(&error));
                }
                let received = child.join().map_err(|error| said(&error))?;
                // What has arrived is kept by the child's handle too.
                drop(child);
                section.run(|| drop(received));
                Ok(())
            }
        }
    }

    fn turn(&self, held: &Held, _: Role, inside: &Inside<'_>) -> Result<(), String> {
        make_and_use(4, || inside.here())?;
        held.check()
    }

    fn oracle(&self, held: &Held, _: &Fate) -> Result<&'static str, String> {
        make_and_use(6, || ())?;
        held.check()?;
        if matches!(self.operation, Operation::Receive | Operation::Release) {
            // One that was freed cannot be sent any more.
            let child = Process::spawn(back, (held.value.clone(),)).map_err(|error| said(&error))?;
            ensure(child.join().map_err(|error| said(&error))?.get() == [DRIVERS; 64], || "damaged".into())?;
        }
        let size = family_size();
        ensure(size <= held.size + SLACK, || format!("{} bytes were {} before", size, held.size))?;
        Ok("whole")
    }
}

fn back(value: Value<Wide>) -> Value<Wide> {
    value
}
