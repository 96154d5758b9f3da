//! The mutex.

use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};
use std::time::Duration;

use multiproc::sync::MutexGuard;
use multiproc::{Mutex, TryLockError};

use super::{ensure, in_one_that_dies, said};
use crate::campaign::Campaign;
use crate::scenario::{Blow, Fate, Inside, Role, Scenario};
use crate::shared::Shared;
use crate::tracer::Section;

/// Long enough that one who waits for it falls asleep.
const SHORT: Duration = Duration::from_millis(2);
/// Longer than [`SHORT`].
const LINGER: Duration = Duration::from_millis(5);

const ENTERED: &[&str] = &["clean", "owner died"];
const LEFT: &[&str] = &["owner died", "clean"];

pub(super) fn scenarios() -> Vec<Box<dyn Campaign>> {
    use Operation::{Lock, LockTimeout, Repair, Section, TryLock, Unlock};
    use Role::{Barger, Idle, Intruder, Owner, Passer, Sleeper};
    let mut all: Vec<Box<dyn Campaign>> = Vec::new();
    let mut add = |name, operation, cast: &[Role], blow, phases| {
        let cast = cast.to_vec();
        all.push(Box::new(Locking { name, operation, cast, blow, phases }));
    };
    let (kill, stall) = (Blow::Kill, Blow::Stall);
    add("lock-free", Lock, &[Idle], kill, ENTERED);
    add("lock-contended", Lock, &[Owner, Sleeper], kill, &[]);
    add("lock-contended-stalled", Lock, &[Owner, Sleeper], stall, &[]);
    add("lock-barged", Lock, &[Barger], kill, &[]);
    add("unlock-alone", Unlock, &[], kill, LEFT);
    add("unlock-wakes", Unlock, &[Sleeper], kill, &[]);
    add("unlock-wakes-one-of-two", Unlock, &[Sleeper, Sleeper], kill, &[]);
    // The case that the C library's mutex loses.
    add("unlock-intruded", Unlock, &[Sleeper, Intruder], kill, &[]);
    add("unlock-passed", Unlock, &[Sleeper, Passer, Passer], kill, &[]);
    add("unlock-passed-stalled", Unlock, &[Sleeper, Passer, Passer], stall, &[]);
    add("unlock-barged", Unlock, &[Sleeper, Barger], kill, &[]);
    add("section", Section, &[], kill, &["old", "old, told", "half, told", "new, told", "new"]);
    add("repair", Repair, &[], kill, LEFT);
    add("try-lock", TryLock, &[Owner, Sleeper], kill, &["clean"]);
    add("lock-timeout", LockTimeout, &[Owner, Sleeper], kill, &[]);
    add("lock-timeout-stalled", LockTimeout, &[Owner, Sleeper], stall, &[]);
    all
}

struct Locking {
    name: &'static str,
    operation: Operation,
    cast: Vec<Role>,
    blow: Blow,
    phases: &'static [&'static str],
}

/// What the victim does in its section.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Lock,
    Unlock,
    /// Lock, change, unlock.
    Section,
    /// `lock_or_repair` after an earlier death, and unlock.
    Repair,
    TryLock,
    LockTimeout,
}

/// A mutex over two numbers that are equal whenever nobody is inside.
struct Twins {
    mutex: Mutex<[u64; 2]>,
    /// How often somebody was told of a death.
    told: Shared<AtomicU64>,
}

impl Twins {
    /// Whoever is told of a death puts things in order.
    fn enter(&self) -> Result<MutexGuard<'_, [u64; 2]>, String> {
        match self.mutex.lock() {
            Ok(guard) => {
                ensure(guard[0] == guard[1], || format!("torn, and nobody was told: {:?}", *guard))?;
                Ok(guard)
            }
            Err(died) => {
                self.told.fetch_add(1, Ordering::Relaxed);
                let mut guard = died.into_guard();
                guard[1] = guard[0];
                guard.recover();
                Ok(guard)
            }
        }
    }
}

fn change(twins: &mut [u64; 2]) {
    twins[0] += 1;
    compiler_fence(Ordering::SeqCst);
    twins[1] += 1;
}

impl Scenario for Locking {
    type Stage = Twins;

    fn name(&self) -> String {
        format!("mutex-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn phases(&self) -> &'static [&'static str] {
        self.phases
    }

    fn prepare(&self) -> Twins {
        let mutex = Mutex::new([0, 0]).expect("there is room");
        if self.operation == Operation::Repair {
            in_one_that_dies(|| {
                std::mem::forget(mutex.lock()?);
                Ok(())
            });
        }
        Twins { mutex, told: Shared::new(AtomicU64::new(0)) }
    }

    fn victim(&self, stage: &Twins, section: &Section) -> Result<(), String> {
        let mutex = &stage.mutex;
        match self.operation {
            Operation::Lock => drop(section.run(|| mutex.lock()).map_err(|died| said(&died))?),
            Operation::Unlock => {
                let guard = mutex.lock().map_err(|died| said(&died))?;
                section.run(|| drop(guard));
            }
            Operation::Section => {
                section.run(|| change(&mut mutex.lock().unwrap_or_else(|_| unreachable!())))
            }
            Operation::Repair => section.run(|| drop(mutex.lock_or_repair(|twins| twins[1] = twins[0]))),
            Operation::TryLock => match section.run(|| mutex.try_lock()) {
                Err(TryLockError::WouldBlock) => {}
                other => return Err(format!("it is held, and try_lock says {other:?}")),
            },
            Operation::LockTimeout => match section.run(|| mutex.lock_timeout(SHORT)) {
                Ok(_) | Err(TryLockError::TimedOut) => {}
                Err(other) => return Err(format!("lock_timeout says {other:?}")),
            },
        }
        Ok(())
    }

    fn turn(&self, stage: &Twins, role: Role, inside: &Inside<'_>) -> Result<(), String> {
        let mut guard = stage.enter()?;
        // Not equal while we are inside: whoever comes in too would notice.
        guard[0] += 1;
        compiler_fence(Ordering::SeqCst);
        inside.here();
        if self.operation == Operation::LockTimeout && role == Role::Owner {
            std::thread::sleep(LINGER);
        }
        guard[1] += 1;
        Ok(())
    }

    fn oracle(&self, stage: &Twins, fate: &Fate) -> Result<&'static str, String> {
        let before = match stage.mutex.lock() {
            Ok(guard) => (false, *guard),
            Err(died) => (true, *died.into_guard()),
        };
        drop(stage.enter()?);
        // Recovered is recovered.
        let guard = stage.mutex.lock().map_err(|died| said(&died))?;
        ensure(guard[0] == guard[1], || format!("torn: {:?}", *guard))?;
        let told = stage.told.load(Ordering::Relaxed);
        let certain = match (self.operation, fate) {
            (Operation::TryLock, _) | (_, Fate { killed: false, .. }) => Some(0),
            (Operation::Lock, Fate { finished: true, .. }) => Some(1),
            (Operation::Unlock | Operation::Section | Operation::Repair, Fate { finished: true, .. }) => {
                Some(0)
            }
            _ => None,
        };
        ensure(told <= 1 && certain.is_none_or(|certain| certain == told), || {
            format!("{told} deaths reported")
        })?;
        Ok(match (self.operation, before) {
            (Operation::Section, (false, [0, 0])) => "old",
            (Operation::Section, (true, [0, 0])) => "old, told",
            (Operation::Section, (true, [1, 0])) => "half, told",
            (Operation::Section, (true, [1, 1])) => "new, told",
            (Operation::Section, (false, [1, 1])) => "new",
            (Operation::Section, before) => return Err(format!("{before:?}")),
            _ if told == 0 => "clean",
            _ => "owner died",
        })
    }
}
