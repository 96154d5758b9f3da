//! What the processes of the storm do, and what must be true of all that they share.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{Ordering, compiler_fence};
use std::thread;
use std::time::Duration;

use multiproc::Ordering::Relaxed;
use multiproc::segment::reap;
use multiproc::{Array, Error, ErrorKind, Mutex, Process, ProcessError, Segment, TryLockError, Value};
use serde::{Deserialize, Serialize};

use crate::Dice;

/// Names of each kind: few, so that everybody meets.
const NAMES: u64 = 3;
/// Half an array.
const HALF: usize = 24;
/// What the two accounts of a [`Bank`] hold together.
pub(crate) const TOTAL: i64 = 1_000_000;

/// Two accounts whose sum stays, what is on its way between them, and how often something was.
pub(crate) type Bank = [i64; 4];
/// A number and seven others that follow from it.
pub(crate) type Wide = [u64; 8];

/// What every process of the storm shares, and takes along to those that it starts.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Common {
    pub(crate) prefix: String,
    /// Not 0 is the sign to come to an end.
    pub(crate) stop: Value<u32>,
    /// What somebody found wrong; he has told on stderr.
    pub(crate) violations: Value<u32>,
    /// Deaths that the driver did not deal out itself: those of daemons, which end with their parents.
    pub(crate) other_deaths: Value<u64>,
    pub(crate) counted: Counted,
    pub(crate) bank: Mutex<Bank>,
    pub(crate) array: Array<u64>,
    pub(crate) wide: Value<Wide>,
}

/// Each is raised first, and its fellow in `committed` after: a death in between leaves a doubt of one.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) added: Value<u64>,
    pub(crate) added_committed: Value<u64>,
    pub(crate) banked_committed: Value<u64>,
    pub(crate) updated_committed: Value<u64>,
}

/// What the names of the driver's storm begin with. To be asked by the driver.
pub(crate) fn prefix() -> String {
    format!("mp-storm-{}-", std::process::id())
}

impl Common {
    pub(crate) fn new() -> Result<Common, Error> {
        let counter = || Value::new(0_u64);
        Ok(Common {
            prefix: prefix(),
            stop: Value::new(0)?,
            violations: Value::new(0)?,
            other_deaths: counter()?,
            counted: Counted {
                added: counter()?,
                added_committed: counter()?,
                banked_committed: counter()?,
                updated_committed: counter()?,
            },
            bank: Mutex::new([TOTAL, 0, 0, 0])?,
            array: Array::new(2 * HALF)?,
            wide: Value::new(wide_of(0))?,
        })
    }

    fn name(&self, kind: &str, number: u64) -> String {
        format!("{}{kind}{number}", self.prefix)
    }
}

fn wide_of(number: u64) -> Wide {
    std::array::from_fn(|index| number.wrapping_mul(2 * index as u64 + 1))
}

pub(crate) fn check_wide(wide: &Wide) -> u64 {
    assert_eq!(*wide, wide_of(wide[0]), "a value is torn");
    wide[0]
}

/// Moves money in steps, each of which a kill may be the last of.
fn move_money(bank: &mut Bank, amount: i64) {
    assert!(bank[0] + bank[1] == TOTAL && bank[2] == 0, "a bank that nobody died in: {bank:?}");
    bank[2] = amount;
    step();
    bank[0] -= amount;
    step();
    bank[1] += amount;
    step();
    bank[3] += 1;
    step();
    bank[2] = 0;
}

pub(crate) fn repair_bank(bank: &mut Bank) {
    let missing = TOTAL - bank[0] - bank[1];
    assert!(missing == 0 || missing == bank[2], "more than one move was lost: {bank:?}");
    bank[1] += missing;
    step();
    bank[2] = 0;
}

fn change_halves(elements: &mut [u64], dice: &mut Dice) {
    let (left, right) = elements.split_at_mut(HALF);
    assert_eq!(left, right, "an array that nobody died in");
    for index in 0..HALF {
        left[index] = dice.next();
        step();
        right[index] = left[index];
        step();
    }
}

pub(crate) fn repair_halves(elements: &mut [u64]) {
    let (left, right) = elements.split_at_mut(HALF);
    let differ = left.iter().zip(&*right).filter(|(left, right)| left != right).count();
    assert!(differ <= 1, "{differ} pairs differ where one change was interrupted");
    right.copy_from_slice(left);
}

/// Keeps the order of the stores around it: a kill shows what the program says.
fn step() {
    compiler_fence(Ordering::SeqCst);
}

/// What a worker has at hand.
struct Worker {
    common: Common,
    beat: Value<u64>,
    dice: Dice,
    values: BTreeMap<u64, (Value<Wide>, u64)>,
    arrays: BTreeMap<u64, Array<u64>>,
    banks: BTreeMap<u64, Mutex<Bank>>,
    segments: BTreeMap<u64, Market>,
    private: Vec<(Value<Wide>, Array<u64>, u64)>,
    seen: u64,
}

/// A segment and what lies in it.
struct Market {
    segment: Segment,
    wide: Value<Wide>,
    array: Array<u64>,
    bank: Mutex<Bank>,
}

/// A worker's whole life. Its answer is how much it did.
pub(crate) fn work(common: Common, beat: Value<u64>, seed: u64) -> u64 {
    multiproc::__private::set_sleep_bound_ns(0);
    let violations = common.violations.clone();
    let stop = common.stop.clone();
    let life = AssertUnwindSafe(move || {
        let mut worker = Worker::new(common, beat, seed);
        let mut done = 0;
        while stop.get() == 0 && done < 200_000 {
            worker.act();
            worker.beat.fetch_add(1, Relaxed);
            done += 1;
        }
        done
    });
    panic::catch_unwind(life).unwrap_or_else(|violation| {
        violations.fetch_add(1, Relaxed);
        panic::resume_unwind(violation)
    })
}

/// A short life, for those that workers start: it looks at what it was given, works a little, gives something back.
fn help(common: Common, given: Value<Wide>, seed: u64) -> Value<Wide> {
    let number = check_wide(&given.get());
    let beat = Value::new(0).expect("there is room");
    let violations = common.violations.clone();
    multiproc::__private::set_sleep_bound_ns(0);
    let life = AssertUnwindSafe(move || {
        let mut worker = Worker::new(common, beat, seed);
        for _ in 0..worker.dice.below(300) {
            if worker.common.stop.get() == 0 {
                worker.act();
            }
        }
    });
    panic::catch_unwind(life).unwrap_or_else(|violation| {
        violations.fetch_add(1, Relaxed);
        panic::resume_unwind(violation)
    });
    Value::new(wide_of(number.wrapping_add(1))).expect("there is room")
}

impl Worker {
    fn new(common: Common, beat: Value<u64>, seed: u64) -> Worker {
        Worker {
            common,
            beat,
            dice: Dice(seed),
            values: BTreeMap::new(),
            arrays: BTreeMap::new(),
            banks: BTreeMap::new(),
            segments: BTreeMap::new(),
            private: Vec::new(),
            seen: 0,
        }
    }

    fn act(&mut self) {
        let number = self.dice.below(NAMES);
        match self.dice.below(100) {
            0..10 => self.come_and_go(number),
            10..20 => self.use_value(number),
            20..30 => self.use_array(number),
            30..40 => self.use_bank(number),
            40..50 => self.use_segment(number),
            50..60 => self.count(),
            60..75 => self.use_private(),
            75..95 => self.use_common(),
            95..98 => self.clean(number),
            98 => thread::sleep(Duration::from_micros(self.dice.below(2_000))),
            _ => {
                if self.dice.below(25) == 0 {
                    self.start_helper();
                }
            }
        }
    }

    /// Forgets a handle: the last one removes the name.
    fn come_and_go(&mut self, number: u64) {
        match self.dice.below(4) {
            0 => drop(self.values.remove(&number)),
            1 => drop(self.arrays.remove(&number)),
            2 => drop(self.banks.remove(&number)),
            _ => drop(self.segments.remove(&number)),
        }
    }

    fn use_value(&mut self, number: u64) {
        let name = self.common.name("value", number);
        let first = self.dice.next() >> 1;
        if !self.values.contains_key(&number) {
            let opened = match self.dice.below(3) {
                0 => Value::create(&name, wide_of(first)),
                1 => Value::open(&name),
                _ => Value::open_or_create(&name, wide_of(first)),
            };
            let Some(value) = allowed(opened) else { return };
            self.values.insert(number, (value, 0));
        }
        let Some((value, seen)) = self.values.get_mut(&number) else { return };
        let now = match self.dice.below(5) {
            0 => {
                value.set(wide_of(first));
                *seen = 0;
                check_wide(&value.get())
            }
            1 => check_wide(&value.update(|wide| wide_of(check_wide(&wide).wrapping_add(1)))),
            2 => match value.lock_timeout(Duration::from_micros(self.dice.below(300))) {
                Ok(mut guard) => check_wide(&guard.update(|wide| wide_of(check_wide(&wide) ^ 1))),
                Err(error) => {
                    assert!(!matches!(error, TryLockError::OwnerDied(_)), "a value tells nobody of deaths");
                    return;
                }
            },
            _ => check_wide(&value.get()),
        };
        *seen = now;
    }

    fn use_array(&mut self, number: u64) {
        let name = self.common.name("array", number);
        if !self.arrays.contains_key(&number) {
            let opened = match self.dice.below(3) {
                0 => Array::create_from_slice(&name, &[number; 2 * HALF]),
                1 => Array::open(&name),
                _ => Array::open_or_create(&name, 2 * HALF),
            };
            let Some(array) = allowed(opened) else { return };
            self.arrays.insert(number, array);
        }
        let array = self.arrays[&number].clone();
        use_halves(&array, &mut self.dice);
    }

    fn use_bank(&mut self, number: u64) {
        let name = self.common.name("bank", number);
        if !self.banks.contains_key(&number) {
            let opened = match self.dice.below(3) {
                0 => Mutex::create(&name, [TOTAL, 0, 0, 0]),
                1 => Mutex::open(&name),
                _ => Mutex::open_or_create(&name, [0, TOTAL, 0, 0]),
            };
            let Some(bank) = allowed(opened) else { return };
            self.banks.insert(number, bank);
        }
        let bank = self.banks[&number].clone();
        use_money(&bank, &mut self.dice);
    }

    fn use_segment(&mut self, number: u64) {
        let name = self.common.name("segment", number);
        if !self.segments.contains_key(&number) {
            let opened = match self.dice.below(3) {
                0 => Segment::create(&name, 12 << 10),
                1 => Segment::open(&name),
                _ => Segment::open_or_create(&name, 12 << 10),
            };
            let Some(segment) = allowed(opened) else { return };
            let wide = get_or_make(|| segment.get("wide"), || segment.value("wide", wide_of(3)));
            let array = get_or_make(|| segment.get("array"), || segment.array("array", 2 * HALF));
            let bank = get_or_make(|| segment.get("bank"), || segment.mutex("bank", [TOTAL, 0, 0, 0]));
            let (Some(wide), Some(array), Some(bank)) = (wide, array, bank) else { return };
            self.segments.insert(number, Market { segment, wide, array, bank });
        }
        let Some(market) = self.segments.get(&number) else { return };
        match self.dice.below(5) {
            0 => drop(check_wide(&market.wide.update(|wide| wide_of(check_wide(&wide) + 2)))),
            1 => use_halves(&market.array.clone(), &mut self.dice),
            2 => use_money(&market.bank.clone(), &mut self.dice),
            3 => {
                // An array made of litter would show it: nobody ever writes to these.
                let extra = format!("extra{}", self.dice.below(40));
                let array: Option<Array<u64>> =
                    get_or_make(|| market.segment.get(&extra), || market.segment.array(&extra, 11));
                if let Some(array) = array {
                    assert_eq!(array.to_vec().expect("nobody writes there"), [0; 11], "litter");
                }
            }
            _ => {
                let objects = market.segment.objects().expect("the directory is whole");
                let names: BTreeSet<&str> = objects.iter().map(|object| object.name.as_str()).collect();
                assert_eq!(names.len(), objects.len(), "an object is there twice");
                assert!(["wide", "array", "bank"].iter().all(|name| names.contains(name)), "one is lost");
            }
        }
    }

    fn count(&mut self) {
        let counted = &self.common.counted;
        counted.added.fetch_add(1, Relaxed);
        counted.added_committed.fetch_add(1, Relaxed);
    }

    /// Objects that nobody else knows must keep what is in them: a place given away twice would show.
    fn use_private(&mut self) {
        if self.private.len() < 12 {
            let number = self.dice.next();
            let wide = Value::new(wide_of(number)).expect("there is room");
            // Small ones, and now and then one with chunks of its own.
            let len = if self.dice.below(20) == 0 { 20_000 } else { 1 + number as usize % 40 };
            let array = Array::new(len).expect("there is room");
            assert!(array.lock().expect("new").iter().all(|&element| element == 0), "it is not zero");
            array.fill(number).expect("new");
            self.private.push((wide, array, number));
        } else {
            let index = self.dice.below(12) as usize;
            let (wide, array, number) = self.private.swap_remove(index);
            assert_eq!(check_wide(&wide.get()), number, "somebody wrote to my value");
            assert!(
                array.lock().expect("mine").iter().all(|&element| element == number),
                "somebody wrote to my array"
            );
        }
    }

    fn use_common(&mut self) {
        match self.dice.below(4) {
            0 => use_halves(&self.common.array.clone(), &mut self.dice),
            1 => {
                let amount = self.dice.below(100) as i64;
                let mut bank = self.common.bank.lock_or_repair(repair_bank);
                move_money(&mut bank, amount);
                drop(bank);
                self.common.counted.banked_committed.fetch_add(1, Relaxed);
            }
            2 => {
                self.common.wide.update(|wide| wide_of(check_wide(&wide) + 1));
                self.common.counted.updated_committed.fetch_add(1, Relaxed);
            }
            _ => {
                let now = check_wide(&self.common.wide.get());
                assert!(now >= self.seen, "a value went back from {} to {now}", self.seen);
                self.seen = now;
            }
        }
    }

    /// Tries to remove names, which must not harm those who use them.
    fn clean(&mut self, number: u64) {
        let (kind, is_attached) = match self.dice.below(4) {
            0 => ("value", self.values.contains_key(&number)),
            1 => ("array", self.arrays.contains_key(&number)),
            2 => ("bank", self.banks.contains_key(&number)),
            _ => ("segment", self.segments.contains_key(&number)),
        };
        let name = self.common.name(kind, number);
        let reaped = reap(&name).expect("it is ours, or not there");
        assert!(!(reaped && is_attached), "{name} was removed while I use it");
    }

    fn start_helper(&mut self) {
        let number = self.dice.next();
        let given = Value::new(wide_of(number)).expect("there is room");
        let seed = self.dice.next();
        let is_daemon = self.dice.below(3) == 0;
        if is_daemon {
            self.common.other_deaths.fetch_add(1, Relaxed);
        }
        let builder = Process::builder().name("helper");
        let builder = if is_daemon { builder.daemon() } else { builder };
        let started = builder.spawn(help, (self.common.clone(), given, seed));
        let child = match started {
            Ok(child) => child,
            // Killed at its start.
            Err(error) if error.kind() == ErrorKind::StartFailed => return,
            Err(error) => panic!("{error}"),
        };
        if self.dice.below(3) == 0 {
            return; // Whoever is left behind joins it: this process's end, or nobody.
        }
        match child.join() {
            Ok(back) => {
                assert_eq!(check_wide(&back.get()), number.wrapping_add(1), "something else came back");
            }
            Err(ProcessError::Signaled { signal: libc::SIGKILL, .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a control-plane call may say while others come and go; anything else is a violation.
fn allowed<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Busy) =>
        {
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

fn get_or_make<T>(get: impl Fn() -> Result<T, Error>, make: impl Fn() -> Result<T, Error>) -> Option<T> {
    loop {
        match get() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return Some(found.expect("it is there")),
        }
        match make() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == ErrorKind::NoRoom => return None,
            made => return Some(made.expect("it can be made")),
        }
    }
}

fn use_halves(array: &Array<u64>, dice: &mut Dice) {
    match dice.below(4) {
        0 => match array.to_vec() {
            Ok(elements) => assert_eq!(elements[..HALF], elements[HALF..], "a copy is torn"),
            Err(_died) => drop(array.lock_or_repair(repair_halves)),
        },
        1 => match array.try_lock() {
            Ok(mut elements) => change_halves(&mut elements, dice),
            Err(TryLockError::OwnerDied(died)) => {
                // Looks, and leaves it to the next one.
                repair_halves(&mut died.into_guard());
            }
            Err(_) => {}
        },
        _ => change_halves(&mut array.lock_or_repair(repair_halves), dice),
    }
}

fn use_money(bank: &Mutex<Bank>, dice: &mut Dice) {
    let amount = dice.below(100) as i64;
    match dice.below(3) {
        0 => match bank.lock_timeout(Duration::from_micros(dice.below(500))) {
            Ok(mut bank) => move_money(&mut bank, amount),
            Err(TryLockError::OwnerDied(died)) => {
                let mut guard = died.into_guard();
                repair_bank(&mut guard);
                guard.recover();
            }
            Err(_) => {}
        },
        _ => move_money(&mut bank.lock_or_repair(repair_bank), amount),
    }
}
