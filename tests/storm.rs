//! Many processes, killed and stopped at random; whatever they leave must be as promised.
//!
//! ```text
//! cargo test --test storm                            quick: some seconds
//! cargo test --test storm -- --minutes 10            longer
//! cargo test --test storm -- --seed 7                other choices
//! ```
//!
//! Workers create, open and drop objects by name, lock them, change them in steps and commit them, make anonymous ones,
//! and start processes of their own, while one thread of the driver kills and stops any of them. Everything shared has an
//! invariant that whoever comes by checks; after a death the damage must be what one interrupted change can do. Every
//! now and then there is a calm, in which everybody must get on: a hang ends the storm with a look at everybody. At the
//! end the counters must add up, and no name, no process and no descriptor may be left.
//!
//! The seed decides what everybody tries, the scheduler who meets whom: the same seed gives a similar storm.
//! The bounded sleeps are switched off: they would mask every lost wake-up.

#![expect(
    clippy::disallowed_methods,
    reason = "the judge does not share the clock of the crate that it judges"
)]

#[path = "storm/chaos.rs"]
mod chaos;
#[path = "storm/worker.rs"]
mod worker;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use multiproc::segment::reap;
use multiproc::{Array, Error, ErrorKind, Mutex, Process, ProcessError, Segment, Value};

use chaos::{Chaos, Target, Watchdog, descendants, kill_all};
use worker::{Bank, Common, TOTAL, Wide, check_wide, repair_bank, repair_halves, work};

/// Workers at a time, not counting what they start.
const WORKERS: usize = 6;
/// The length of a quick run.
const QUICK: Duration = Duration::from_secs(12);
fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if options.list {
        println!("storm: test");
    }
    if options.list || !options.chosen || cfg!(miri) {
        return ExitCode::SUCCESS;
    }
    println!("storm: seed {}, {} s, pid {}", options.seed, options.length.as_secs(), std::process::id());
    match weather(&options) {
        Ok(report) => {
            println!("ok   storm: {report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAIL storm: {error} (seed {})", options.seed);
            kill_all();
            remove_names();
            ExitCode::FAILURE
        }
    }
}

/// Our own options, and those of the usual harness that cargo passes to every test.
struct Options {
    length: Duration,
    seed: u64,
    list: bool,
    chosen: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
        let mut options = Options { length: QUICK, seed, list: false, chosen: true };
        let number = |value: Option<String>| {
            value.and_then(|value| value.parse::<u64>().ok()).ok_or("it needs a number".to_owned())
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--minutes" => options.length = Duration::from_secs(60 * number(arguments.next())?),
                "--seconds" => options.length = Duration::from_secs(number(arguments.next())?),
                "--seed" => options.seed = number(arguments.next())?,
                "--list" => options.list = true,
                // Only tests marked "ignored" are asked for, and there are none.
                "--ignored" => options.chosen = false,
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {
                    drop(arguments.next());
                }
                "--skip" => {
                    options.chosen &= !arguments.next().is_some_and(|word| "storm".contains(&word));
                }
                _ if argument.starts_with('-') => {}
                _ => options.chosen &= "storm".contains(&argument),
            }
        }
        Ok(options)
    }
}

/// Random enough, and the same for the same seed.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// One worker after the other.
struct Place {
    process: Option<Process<u64>>,
    beat: Value<u64>,
    /// The beat at the beginning of a calm.
    before: u64,
}

impl Place {
    /// Starts a worker if there is none, and takes note of one that has ended. The answer is how much it did.
    fn tend(&mut self, common: &Common, dice: &mut Dice) -> Result<u64, String> {
        let Some(process) = &self.process else {
            let builder = Process::builder().name("worker");
            match builder.spawn(work, (common.clone(), self.beat.clone(), dice.next())) {
                Ok(process) => self.process = Some(process),
                // Killed at its start.
                Err(error) if error.kind() == ErrorKind::StartFailed => {}
                Err(error) => return Err(error.to_string()),
            }
            return Ok(0);
        };
        match process.try_join() {
            Err(ProcessError::WouldBlock) => return Ok(0),
            Ok(_) | Err(ProcessError::Signaled { signal: libc::SIGKILL, .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.process = None;
        Ok(1)
    }
}

/// Collects those whose parents have died. The places' own processes are left to them.
fn collect_adopted(places: &[Place]) {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let own =
        |pid| places.iter().any(|place| place.process.as_ref().is_some_and(|process| process.pid() == pid));
    for one in descendants() {
        if one.state == 'Z' && one.parent == std::process::id() && !own(one.pid) {
            // It cannot fail: it is a dead child of ours, and nobody else waits for it.
            let _ = waitpid(nix::unistd::Pid::from_raw(one.pid as i32), Some(WaitPidFlag::WNOHANG));
        }
    }
}

fn weather(options: &Options) -> Result<String, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    multiproc::__private::set_sleep_bound_ns(0);
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| text(&error))?;
    // What a process opens once and keeps is there from now on.
    warm_up().map_err(|error| text(&error))?;
    let descriptors = descriptor_count();
    let watchdog = Watchdog::start();

    let common = Common::new().map_err(|error| text(&error))?;
    let mut dice = Dice(options.seed);
    let mut places = Vec::new();
    for _ in 0..WORKERS {
        places.push(Place { process: None, beat: Value::new(0).map_err(|error| text(&error))?, before: 0 });
    }
    let chaos = Arc::new(Chaos::default());
    let rage = {
        let (chaos, dice) = (Arc::clone(&chaos), Dice(dice.next()));
        thread::spawn(move || chaos.rage(dice))
    };

    let (mut lives, mut calms) = (0, 0);
    let end = Instant::now() + options.length;
    while Instant::now() < end && common.violations.get() == 0 {
        let until = Instant::now() + Duration::from_millis(100 + dice.below(600));
        while Instant::now() < until {
            for place in &mut places {
                watchdog.pat("tending the workers");
                lives += place.tend(&common, &mut dice)?;
            }
            collect_adopted(&places);
            thread::sleep(Duration::from_millis(2));
        }
        watchdog.pat("waiting for calm");
        chaos.calm_down();
        await_progress(&mut places, &common, &mut dice, &watchdog)?;
        chaos.rage_again();
        calms += 1;
    }

    // The end: everybody is asked to come home, or nobody gets there.
    chaos.calm_down();
    chaos.is_over.store(true, Ordering::Release);
    rage.join().map_err(|_| "the chaos panicked")?;
    if dice.below(2) == 0 {
        for target in descendants().iter().filter_map(|one| Target::new(one.pid)) {
            chaos.kills.fetch_add(1, Ordering::Relaxed);
            target.signal(libc::SIGKILL);
        }
    }
    common.stop.set(1);
    let beats: u64 = places.iter().map(|place| place.beat.get()).sum();
    await_end(places, &watchdog)?;
    watchdog.pat("looking at what is left");
    let found = judge(&common, chaos.kills.load(Ordering::Relaxed))?;
    let left = clean_up(&common)?;
    drop(common);
    let now = descriptor_count();
    if now != descriptors {
        return Err(format!("{descriptors} descriptors were open before, {now} are now"));
    }
    let (kills, stops) = (chaos.kills.load(Ordering::Relaxed), chaos.stops.load(Ordering::Relaxed));
    Ok(format!(
        "{kills} kills, {stops} stops, {calms} calms, {lives} lives, {beats} steps, {found}, {left} left names"
    ))
}

fn warm_up() -> Result<(), Error> {
    fn nothing(value: Value<u32>) -> Value<u32> {
        value
    }
    let value = Value::new(1_u32)?;
    let back = Process::spawn(nothing, (value,))?.join()?;
    assert_eq!(back.get(), 1);
    Ok(())
}

/// Nobody is killed or stopped now: whoever is there must get on.
fn await_progress(
    places: &mut [Place],
    common: &Common,
    dice: &mut Dice,
    watchdog: &Watchdog,
) -> Result<(), String> {
    watchdog.pat("waiting for progress");
    places.iter_mut().for_each(|place| place.before = place.beat.get());
    loop {
        let mut waits = false;
        for place in places.iter_mut() {
            if place.process.is_some() && place.beat.get() == place.before {
                place.tend(common, dice)?;
                waits |= place.process.is_some();
            }
        }
        if !waits {
            return Ok(());
        }
        collect_adopted(places);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Until no process of the storm is left.
fn await_end(mut places: Vec<Place>, watchdog: &Watchdog) -> Result<(), String> {
    watchdog.pat("waiting for everybody's end");
    for place in &mut places {
        if let Some(process) = place.process.take() {
            match process.join() {
                Ok(_) | Err(ProcessError::Signaled { signal: libc::SIGKILL, .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
    while !descendants().is_empty() {
        collect_adopted(&places);
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What all of them did must add up.
fn judge(common: &Common, kills: u64) -> Result<String, String> {
    let violations = common.violations.get();
    if violations > 0 {
        return Err(format!("{violations} workers found something wrong, see above"));
    }
    let doubts = kills + common.other_deaths.get();
    let bank = *common.bank.lock_or_repair(repair_bank);
    if bank[0] + bank[1] != TOTAL {
        return Err(format!("money is lost: {bank:?}"));
    }
    drop(common.array.lock_or_repair(repair_halves));
    let counted = &common.counted;
    let counts = [
        ("added", counted.added.get(), counted.added_committed.get()),
        ("banked", bank[3] as u64, counted.banked_committed.get()),
        ("updated", check_wide(&common.wide.get()), counted.updated_committed.get()),
    ];
    for (what, found, committed) in counts {
        if found < committed || found > committed + doubts {
            return Err(format!("{found} {what}, {committed} committed, {doubts} in doubt"));
        }
    }
    Ok(counts.map(|(what, found, _)| format!("{found} {what}")).join(", "))
}

/// Nobody is attached any more: what has a name was left by the killed, must be whole, and must go. Answers how many there were.
fn clean_up(common: &Common) -> Result<usize, String> {
    let names = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir("/dev/shm")? {
            names.extend(
                entry?.file_name().into_string().ok().filter(|name| name.starts_with(&common.prefix)),
            );
        }
        Ok(names)
    };
    let left = names().map_err(|error| error.to_string())?;
    for (index, name) in left.iter().enumerate() {
        let kind = name[common.prefix.len()..].trim_end_matches(|digit: char| digit.is_ascii_digit());
        if index % 2 == 0 {
            open_left(kind, name).map_err(|error| format!("{name} cannot be opened: {error}"))?;
        } else if !reap(name).map_err(|error| error.to_string())? {
            return Err(format!("{name} cannot be reaped, and nobody is attached"));
        }
    }
    match names().map_err(|error| error.to_string())?.as_slice() {
        [] => Ok(left.len()),
        rest => Err(format!("names are left: {}", rest.join(", "))),
    }
}

/// After a failure: what was left is not to be found by others.
fn remove_names() {
    let prefix = worker::prefix();
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            // There is nobody to tell: the failure was reported.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn open_left(kind: &str, name: &str) -> Result<(), Error> {
    match kind {
        "value" => drop(check_wide(&Value::<Wide>::open(name)?.get())),
        "array" => drop(Array::<u64>::open(name)?.lock_or_repair(repair_halves)),
        "bank" => drop(Mutex::<Bank>::open(name)?.lock_or_repair(repair_bank)),
        _ => drop(Segment::open(name)?.objects()?),
    }
    Ok(())
}

fn descriptor_count() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
