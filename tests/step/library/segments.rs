//! Names, and objects in segments.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use multiproc::segment::{reap, unlink};
use multiproc::{Array, Error, ErrorKind, Mutex, Segment, Value};

use super::{Wide, ensure, in_one_that_dies, said, whole};
use crate::campaign::Campaign;
use crate::scenario::{Blow, Fate, Inside, Role, Scenario};
use crate::shared::Shared;
use crate::tracer::Section;

const VICTIMS: u8 = 1;
const LEFT_BY_THE_DEAD: u8 = 2;
const PEERS: u8 = 3;
const ORACLES: u8 = 4;

/// So many objects the peers add at most: every oracle looks at all.
const MOST_ADDED: u64 = 12;

pub(super) fn scenarios() -> Vec<Box<dyn Campaign>> {
    use Operation::{Create, Detach, Open, OpenOrCreate, Reap};
    use Role::{Barger, Intruder, Owner};
    let mut all: Vec<Box<dyn Campaign>> = Vec::new();
    let mut add = |name, operation, was_left, cast: &[Role], blow, words| {
        let cast = cast.to_vec();
        all.push(Box::new(Naming { name, operation, was_left, cast, blow, words }));
    };
    let kill = Blow::Kill;
    add("create", Create, false, &[], kill, &["absent", "the victim's"]);
    add("create-over-left", Create, true, &[], kill, &["left", "absent", "the victim's"]);
    add("open-left", Open, true, &[], kill, &["left"]);
    add("open-attached", Open, false, &[Owner], kill, &["a peer's", "absent"]);
    add("detach", Detach, false, &[], kill, &["the victim's", "absent"]);
    add("detach-attached", Detach, false, &[Owner], kill, &["absent"]);
    add("detach-intruded", Detach, false, &[Intruder], kill, &["absent"]);
    add("detach-stalled", Detach, false, &[Intruder], Blow::Stall, &["absent"]);
    add("reap", Reap, true, &[], kill, &["left", "absent"]);
    add("reap-attached", Reap, false, &[Owner], kill, &["absent"]);
    add(
        "open-or-create-barged",
        OpenOrCreate,
        false,
        &[Barger, Barger],
        kill,
        &["absent", "a peer's", "the victim's"],
    );
    all.push(Box::new(Building));
    let mut add = |name, cast: &[Role], blow| {
        let cast = cast.to_vec();
        all.push(Box::new(Adding { name, cast, blow }));
    };
    add("alone", &[], kill);
    add("barged", &[Barger], kill);
    add("stalled", &[Barger], Blow::Stall);
    all
}

/// A name of this run, which is gone afterwards.
struct Name(String);

impl Name {
    fn new() -> Name {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Name(format!("mp-step-{}-{count:06}", std::process::id()))
    }

    fn is_there(&self) -> bool {
        Path::new("/dev/shm").join(&self.0).symlink_metadata().is_ok()
    }

    /// Nobody is attached any more: after a reap nothing of this run may be left, and the name is free.
    fn ensure_free(&self) -> Result<(), String> {
        // Also of what has no name of its own yet.
        let prefix = self.0.rsplit_once('-').map_or("", |(prefix, _)| prefix);
        for entry in fs::read_dir("/dev/shm").map_err(|error| said(&error))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure(!name.starts_with(prefix), || format!("{name} is left"))?;
        }
        let mine = Value::create(&self.0, [ORACLES; 64]).map_err(|error| said(&error))?;
        let again = Value::<Wide>::open(&self.0).map_err(|error| said(&error))?;
        ensure(again.get() == [ORACLES; 64], || "it is another's".into())?;
        drop((mine, again));
        ensure(!self.is_there(), || "the last one has detached, and the name is there".into())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Only there after a failure, which was reported.
        let _ = unlink(&self.0);
    }
}

/// What a call says that found no such name.
fn unless_absent<T>(result: Result<T, Error>) -> Result<Option<T>, String> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(said(&error)),
    }
}

/// A value in a segment of its own: making the name, using it and removing it.
struct Naming {
    name: &'static str,
    operation: Operation,
    /// Whether one that died has left the name behind.
    was_left: bool,
    cast: Vec<Role>,
    blow: Blow,
    /// What may be found, the last when the operation is done. No phases: allocations make its length vary.
    words: &'static [&'static str],
}

/// What the victim does in its section.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Create,
    Open,
    OpenOrCreate,
    Detach,
    Reap,
}

impl Scenario for Naming {
    type Stage = Name;

    fn name(&self) -> String {
        format!("name-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn prepare(&self) -> Name {
        let name = Name::new();
        if self.was_left {
            in_one_that_dies(|| {
                std::mem::forget(Value::create(&name.0, [LEFT_BY_THE_DEAD; 64])?);
                Ok(())
            });
        }
        name
    }

    fn victim(&self, name: &Name, section: &Section) -> Result<(), String> {
        let (name, mine) = (name.0.as_str(), [VICTIMS; 64]);
        let made = match self.operation {
            Operation::Create => section.run(|| Value::create(name, mine)),
            Operation::Open => section.run(|| Value::open(name)),
            Operation::OpenOrCreate => section.run(|| Value::open_or_create(name, mine)),
            Operation::Detach => {
                let held = Value::create(name, mine).map_err(|error| said(&error))?;
                section.run(|| drop(held));
                return Ok(());
            }
            Operation::Reap => {
                let reaped = section.run(|| reap(name)).map_err(|error| said(&error))?;
                return ensure(reaped == self.was_left, || format!("reap says {reaped}"));
            }
        };
        let held = match made {
            // To one that is stepped, bargers come and go a thousand times faster than it can look.
            Err(error) if error.kind() == ErrorKind::Busy && self.cast.contains(&Role::Barger) => {
                return Ok(());
            }
            made => made.map_err(|error| said(&error))?,
        };
        whole(&held.get())?;
        // One that was to be killed and got too far must not undo it.
        std::mem::forget(held);
        Ok(())
    }

    /// Attaches, and while it is attached nobody removes the name.
    fn turn(&self, name: &Name, _: Role, inside: &Inside<'_>) -> Result<(), String> {
        let held = Value::open_or_create(&name.0, [PEERS; 64]).map_err(|error| said(&error))?;
        whole(&held.get())?;
        inside.here();
        whole(&held.get())?;
        ensure(name.is_there(), || "somebody removed the name while a peer is attached".into())
    }

    fn oracle(&self, name: &Name, fate: &Fate) -> Result<&'static str, String> {
        let is_there = name.is_there();
        let found = unless_absent(Value::<Wide>::open(&name.0))?;
        ensure(found.is_some() == is_there, || "the name is there, and what it names is not".into())?;
        let word = match found.as_ref().map(|value| whole(&value.get())).transpose()? {
            None => "absent",
            Some(VICTIMS) => "the victim's",
            Some(LEFT_BY_THE_DEAD) => "left",
            Some(PEERS) => "a peer's",
            Some(other) => return Err(format!("a value of {other}")),
        };
        drop(found);
        // Bargers may be the last to detach, whatever the victim did.
        let is_certain = fate.killed && fate.finished && !self.cast.contains(&Role::Barger);
        let expected = if is_certain { &self.words[self.words.len() - 1..] } else { self.words };
        ensure(expected.contains(&word), || format!("{word}, not {}", expected.join(" or ")))?;
        name.ensure_free()?;
        Ok(word)
    }
}

/// A segment with several objects, from nothing.
struct Building;

impl Scenario for Building {
    type Stage = Name;

    fn name(&self) -> String {
        "segment-create".into()
    }

    fn prepare(&self) -> Name {
        Name::new()
    }

    fn victim(&self, name: &Name, section: &Section) -> Result<(), String> {
        let build = || {
            let segment = Segment::create(&name.0, 8 << 10)?;
            let value = segment.value("value", [VICTIMS; 64])?;
            let array = segment.array::<u64>("array", 9)?;
            let mutex = segment.mutex("mutex", [VICTIMS; 64])?;
            Ok((segment, value, array, mutex))
        };
        std::mem::forget(section.run(build).map_err(|error: Error| said(&error))?);
        Ok(())
    }

    fn oracle(&self, name: &Name, fate: &Fate) -> Result<&'static str, String> {
        let Some(segment) = unless_absent(Segment::open(&name.0))? else {
            name.ensure_free()?;
            ensure(!fate.finished, || "it is gone, and the call had returned".into())?;
            return Ok("absent");
        };
        let count = segment.objects().map_err(|error| said(&error))?.len();
        let value = unless_absent(segment.get::<Value<Wide>>("value"))?;
        let array = unless_absent(segment.get::<Array<u64>>("array"))?;
        let mutex = unless_absent(segment.get::<Mutex<Wide>>("mutex"))?;
        let there = [value.is_some(), array.is_some(), mutex.is_some()];
        ensure(there == [count > 0, count > 1, count > 2], || format!("of {count} there are {there:?}"))?;
        ensure(value.is_none_or(|value| value.get() == [VICTIMS; 64]), || "the value is not whole".into())?;
        ensure(array.is_none_or(|array| array.to_vec() == Ok(vec![0; 9])), || {
            "the array is not zero".into()
        })?;
        if let Some(mutex) = mutex {
            let guard = mutex.lock().map_err(|died| said(&died))?;
            ensure(*guard == [VICTIMS; 64], || "the mutex is not whole".into())?;
        }
        add_one(&segment, "oracle's")?;
        drop(segment);
        name.ensure_free()?;
        Ok(["none", "one", "two", "three"][count])
    }
}

/// Adds an array, which must be zero whatever an unfinished creator has left there.
fn add_one(segment: &Segment, name: &str) -> Result<(), String> {
    let array = segment.array::<u64>(name, 40).map_err(|error| said(&error))?;
    ensure(array.to_vec() == Ok(vec![0; 40]), || "a new array is made of litter".into())?;
    array.fill(u64::MAX).map_err(|died| said(&died))
}

/// One more object in a segment that others use.
struct Adding {
    name: &'static str,
    cast: Vec<Role>,
    blow: Blow,
}

/// A segment that the driver is attached to, and so is everybody that it forks.
struct Market {
    segment: Segment,
    value: Value<Wide>,
    mutex: Mutex<u64>,
    added: Shared<AtomicU64>,
    /// Dropped last.
    name: Name,
}

impl Scenario for Adding {
    type Stage = Market;

    fn name(&self) -> String {
        format!("segment-add-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn prepare(&self) -> Market {
        let name = Name::new();
        let make = || {
            let segment = Segment::create(&name.0, 64 << 10)?;
            let value = segment.value("value", [PEERS; 64])?;
            let mutex = segment.mutex("mutex", 5)?;
            Ok::<_, Error>((segment, value, mutex))
        };
        let (segment, value, mutex) = make().expect("there is room");
        Market { segment, value, mutex, added: Shared::new(AtomicU64::new(0)), name }
    }

    fn victim(&self, market: &Market, section: &Section) -> Result<(), String> {
        let added = section.run(|| market.segment.value("victim's", [VICTIMS; 64]));
        ensure(added.map_err(|error| said(&error))?.get() == [VICTIMS; 64], || "it is another's".into())
    }

    fn turn(&self, market: &Market, _: Role, inside: &Inside<'_>) -> Result<(), String> {
        let number = market.added.fetch_add(1, Ordering::Relaxed);
        inside.here();
        if number < MOST_ADDED {
            add_one(&market.segment, &format!("peer's {number}"))?;
        } else {
            // Nothing more to do, and the victim needs the CPU.
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    fn oracle(&self, market: &Market, fate: &Fate) -> Result<&'static str, String> {
        // As one who knows nothing yet.
        let segment = Segment::open(&market.name.0).map_err(|error| said(&error))?;
        let objects = segment.objects().map_err(|error| said(&error))?;
        let added = unless_absent(segment.get::<Value<Wide>>("victim's"))?;
        let peers = market.added.load(Ordering::Relaxed).min(MOST_ADDED) as usize;
        let expected = 2 + peers + usize::from(added.is_some());
        ensure(objects.len() == expected, || format!("{} objects, not {expected}", objects.len()))?;
        for number in 0..peers {
            let array: Array<u64> = segment.get(&format!("peer's {number}")).map_err(|error| said(&error))?;
            ensure(array.to_vec() == Ok(vec![u64::MAX; 40]), || {
                format!("that of peer's {number} is damaged")
            })?;
        }
        let value: Value<Wide> = segment.get("value").map_err(|error| said(&error))?;
        ensure(value.get() == [PEERS; 64] && market.value.get() == [PEERS; 64], || {
            "the value is damaged".into()
        })?;
        let is_five = market.mutex.lock().is_ok_and(|guard| *guard == 5);
        ensure(is_five, || "the mutex is damaged".into())?;
        add_one(&segment, "oracle's")?;
        match added {
            Some(added) => ensure(added.get() == [VICTIMS; 64], || "the new one is not whole".into())?,
            None if fate.finished => return Err("it is gone, and the call had returned".into()),
            None => {
                let made = segment.value("victim's", [ORACLES; 64]).map_err(|error| said(&error))?;
                ensure(made.get() == [ORACLES; 64], || "another one cannot be made".into())?;
                return Ok("two");
            }
        }
        Ok("three")
    }
}
