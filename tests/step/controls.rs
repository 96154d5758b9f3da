//! Scenarios that test the tool: objects that are known to break must be seen breaking, sound ones must hold.
//!
//! They use nothing of the crate.

#![expect(unsafe_code, reason = "calls the C library's mutex")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::campaign::Campaign;
use crate::scenario::{Blow, Expect, Fate, Inside, Role, Scenario};
use crate::shared::{InPlace, Shared, futex_wait, futex_wake};
use crate::tracer::Section;

/// Long against a wake-up, short enough to be used up.
const CONTROL_WATCHDOG: Duration = Duration::from_secs(1);

pub(crate) fn scenarios() -> Vec<Box<dyn Campaign>> {
    #[cfg_attr(not(target_env = "gnu"), expect(unused_mut, reason = "the C library's mutex adds more"))]
    let mut all: Vec<Box<dyn Campaign>> =
        vec![Box::new(Increment), Box::new(TornPair), Box::new(Unrecovered)];
    #[cfg(target_env = "gnu")]
    all.extend(glibc::scenarios());
    all
}

/// One atomic instruction takes effect at one step.
struct Increment;

impl Scenario for Increment {
    type Stage = Shared<AtomicU64>;

    fn name(&self) -> String {
        "control-atomic-increment".into()
    }

    fn cast(&self) -> Vec<Role> {
        vec![Role::Idle]
    }

    fn phases(&self) -> &'static [&'static str] {
        &["before", "after"]
    }

    fn prepare(&self) -> Self::Stage {
        Shared::new(AtomicU64::new(0))
    }

    fn victim(&self, counter: &Self::Stage, section: &Section) -> Result<(), String> {
        section.run(|| counter.fetch_add(1, Ordering::Relaxed));
        Ok(())
    }

    fn turn(&self, counter: &Self::Stage, _: Role, _: &Inside<'_>) -> Result<(), String> {
        counter.fetch_add(10, Ordering::Relaxed);
        Ok(())
    }

    fn oracle(&self, counter: &Self::Stage, fate: &Fate) -> Result<&'static str, String> {
        match counter.load(Ordering::Relaxed) {
            10 if !fate.finished => Ok("before"),
            11 => Ok("after"),
            other => Err(format!("{other} after one increment and ten")),
        }
    }
}

/// Two stores that belong together: the oracle must object between them.
struct TornPair;

impl Scenario for TornPair {
    type Stage = Shared<[AtomicU64; 2]>;

    fn name(&self) -> String {
        "control-torn-pair".into()
    }

    fn expect(&self) -> Expect {
        Expect::Violates
    }

    fn prepare(&self) -> Self::Stage {
        Shared::new([const { AtomicU64::new(0) }; 2])
    }

    fn victim(&self, pair: &Self::Stage, section: &Section) -> Result<(), String> {
        section.run(|| {
            pair[0].store(1, Ordering::Relaxed);
            pair[1].store(1, Ordering::Relaxed);
        });
        Ok(())
    }

    fn oracle(&self, pair: &Self::Stage, _: &Fate) -> Result<&'static str, String> {
        match (pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed)) {
            (0, 0) => Ok("old"),
            (1, 1) => Ok("new"),
            other => Err(format!("torn: {other:?}")),
        }
    }
}

/// A futex lock that nobody takes back from the dead: whoever comes after a killed holder must hang.
struct Unrecovered;

const UNLOCKED: u32 = 0;
const LOCKED: u32 = 1;
const CONTENDED: u32 = 2;

fn lock(word: &AtomicU32) {
    if word.compare_exchange(UNLOCKED, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_err() {
        while word.swap(CONTENDED, Ordering::Acquire) != UNLOCKED {
            futex_wait(word, CONTENDED, None);
        }
    }
}

fn unlock(word: &AtomicU32) {
    if word.swap(UNLOCKED, Ordering::Release) == CONTENDED {
        futex_wake(word, 1);
    }
}

impl Scenario for Unrecovered {
    type Stage = Shared<AtomicU32>;

    fn name(&self) -> String {
        "control-lock-without-recovery".into()
    }

    fn cast(&self) -> Vec<Role> {
        vec![Role::Idle]
    }

    fn expect(&self) -> Expect {
        Expect::Hangs
    }

    fn watchdog(&self) -> Duration {
        CONTROL_WATCHDOG
    }

    fn prepare(&self) -> Self::Stage {
        Shared::new(AtomicU32::new(UNLOCKED))
    }

    fn victim(&self, word: &Self::Stage, section: &Section) -> Result<(), String> {
        section.run(|| {
            lock(word);
            unlock(word);
        });
        Ok(())
    }

    fn turn(&self, word: &Self::Stage, _: Role, inside: &Inside<'_>) -> Result<(), String> {
        lock(word);
        inside.here();
        unlock(word);
        Ok(())
    }

    fn oracle(&self, _: &Self::Stage, _: &Fate) -> Result<&'static str, String> {
        Ok("free")
    }
}

/// The C library's robust, process-shared mutex: right in most respects, so it tries the tool's other paths; and wrong
/// in one, which is the control that matters.
#[cfg(target_env = "gnu")]
mod glibc {
    use super::*;

    pub(super) fn scenarios() -> Vec<Box<dyn Campaign>> {
        let plain = |name, operation, cast: &[Role], blow, phases: &'static [&'static str]| Pthread {
            name,
            operation,
            cast: cast.to_vec(),
            blow,
            expect: Expect::Holds,
            phases,
        };
        use Operation::{Lock, Unlock};
        let lost = Pthread {
            expect: Expect::Hangs,
            ..plain("glibc-unlock-loses-wake-up", Unlock, &[Role::Sleeper, Role::Intruder], Blow::Kill, &[])
        };
        let passers = [Role::Sleeper, Role::Passer, Role::Passer];
        vec![
            Box::new(lost),
            Box::new(plain("glibc-lock-free", Lock, &[], Blow::Kill, &["clean", "owner died"])),
            Box::new(plain("glibc-unlock-alone", Unlock, &[], Blow::Kill, &["owner died", "clean"])),
            Box::new(plain("glibc-lock-contended", Lock, &[Role::Owner, Role::Sleeper], Blow::Kill, &[])),
            Box::new(plain("glibc-lock-contended-stalled", Lock, &[Role::Owner], Blow::Stall, &[])),
            Box::new(plain("glibc-lock-barged", Lock, &[Role::Barger], Blow::Kill, &[])),
            Box::new(plain("glibc-unlock-passed", Unlock, &passers, Blow::Kill, &[])),
            Box::new(plain("glibc-unlock-passed-stalled", Unlock, &passers, Blow::Stall, &[])),
        ]
    }

    struct Pthread {
        name: &'static str,
        operation: Operation,
        cast: Vec<Role>,
        blow: Blow,
        expect: Expect,
        phases: &'static [&'static str],
    }

    /// What the victim does in its section.
    #[derive(PartialEq)]
    enum Operation {
        Lock,
        Unlock,
    }

    /// The mutex, and how often its lockers were told of a death.
    struct Robust {
        mutex: UnsafeCell<libc::pthread_mutex_t>,
        told: AtomicU32,
    }

    // SAFETY: a pthread mutex may be used by several threads at once, that is what it is for.
    unsafe impl Sync for Robust {}
    // SAFETY: initialised as process-shared, it lies in place (its list links are addresses, which are the same in all
    // processes forked from the one that mapped it).
    unsafe impl InPlace for Robust {}

    impl Robust {
        fn create() -> Shared<Self> {
            let robust = Shared::new(Self {
                mutex: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
                told: AtomicU32::new(0),
            });
            let mut attributes = std::mem::MaybeUninit::uninit();
            let attributes = attributes.as_mut_ptr();
            // SAFETY: `attributes` is writable.
            check(unsafe { libc::pthread_mutexattr_init(attributes) });
            // SAFETY: initialised above.
            check(unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) });
            // SAFETY: initialised above.
            check(unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) });
            // SAFETY: nobody else has the mutex yet; the attributes are initialised.
            check(unsafe { libc::pthread_mutex_init(robust.mutex.get(), attributes) });
            robust
        }

        fn lock(&self) {
            // SAFETY: initialised in `create`, and this thread does not hold it.
            let code = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
            if code == libc::EOWNERDEAD {
                self.told.fetch_add(1, Ordering::Relaxed);
                // SAFETY: taken from a dead owner by the call above.
                check(unsafe { libc::pthread_mutex_consistent(self.mutex.get()) });
            } else {
                check(code);
            }
        }

        fn unlock(&self) {
            // SAFETY: the callers hold it.
            check(unsafe { libc::pthread_mutex_unlock(self.mutex.get()) });
        }
    }

    fn check(code: i32) {
        assert_eq!(code, 0, "pthread: {}", std::io::Error::from_raw_os_error(code));
    }

    impl Scenario for Pthread {
        type Stage = Shared<Robust>;

        fn name(&self) -> String {
            format!("control-{}", self.name)
        }

        fn cast(&self) -> Vec<Role> {
            self.cast.clone()
        }

        fn blow(&self) -> Blow {
            self.blow
        }

        fn expect(&self) -> Expect {
            self.expect
        }

        fn watchdog(&self) -> Duration {
            if self.expect == Expect::Holds { Duration::from_secs(30) } else { CONTROL_WATCHDOG }
        }

        fn phases(&self) -> &'static [&'static str] {
            self.phases
        }

        fn prepare(&self) -> Self::Stage {
            Robust::create()
        }

        fn victim(&self, robust: &Self::Stage, section: &Section) -> Result<(), String> {
            match self.operation {
                Operation::Lock => {
                    section.run(|| robust.lock());
                    robust.unlock();
                }
                Operation::Unlock => {
                    robust.lock();
                    section.run(|| robust.unlock());
                }
            }
            Ok(())
        }

        fn turn(&self, robust: &Self::Stage, _: Role, inside: &Inside<'_>) -> Result<(), String> {
            robust.lock();
            inside.here();
            robust.unlock();
            Ok(())
        }

        fn oracle(&self, robust: &Self::Stage, fate: &Fate) -> Result<&'static str, String> {
            robust.lock();
            robust.unlock();
            let told = robust.told.load(Ordering::Relaxed);
            // The one who was let go released it. One who was killed at the end held it or not; before, it may have.
            let certain = match fate {
                Fate { killed: false, .. } => Some(0),
                Fate { finished: true, .. } => Some(u32::from(self.operation == Operation::Lock)),
                Fate { finished: false, .. } => None,
            };
            match told {
                _ if certain.is_some_and(|certain| told != certain) => Err(format!("{told} deaths reported")),
                0 => Ok("clean"),
                1 => Ok("owner died"),
                _ => Err(format!("{told} deaths reported")),
            }
        }
    }
}
