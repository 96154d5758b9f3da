//! The robust lock under everything: a futex word that holds its owner's TID, hung in the owner's robust list.
//!
//! Invariant: whoever's TID stands in the word owns the lock, and from the CAS that put it there to the one that takes it out the
//! kernel knows of it, first by the thread's *pending* slot and then by its list. So the end of the owner, at any
//! instruction, turns the word into OWNER_DIED and wakes a sleeper. The protocol is explained, with what breaks its
//! variants, in `ARCHITECTURE.md`, and checked state by state in `models/`.
//!
//! Deliberately not here: priority inheritance, fairness, recursion, use in signal handlers.
//!
//! Sources: Ulrich Drepper, [Futexes Are Tricky](https://www.akkadia.org/drepper/futex.pdf); the kernel's
//! [robust-futexes](https://docs.kernel.org/locking/robust-futexes.html).
//!
//! Orderings: each `Acquire` that takes the word pairs with the `Release` that gave it back (the CAS to 0, or the fence before
//! the system call), and so orders everything else here, `status` included; the rest is `Relaxed`.

use crate::primitive::{AtomicU32, AtomicU64, Ordering};
use crate::sys::clock::Deadline;
use crate::sys::futex::{self, WAITERS};
use crate::sys::robust::{self, Node, Thread};

/// The word is one of: `0` free · `tid` · `tid|WAITERS` · `WAITERS` released, sleepers possible ·
/// `OWNER_DIED[|WAITERS]` free, and the kernel took it from a dead owner.
const UNLOCKED: u32 = 0;
/// Set by the kernel when it finds the owner dead.
const OWNER_DIED: u32 = 0x4000_0000;
/// The owner's TID; 0 is free.
const OWNER: u32 = 0x3fff_ffff;

/// `status`: the data are as the last owner meant them to be.
const CLEAN: u32 = 0;
/// `status`: an owner died in its section, and nobody has recovered since. The word cannot say it: the kernel and every owner
/// overwrite that.
const INCONSISTENT: u32 = 1;

/// Pauses before the first `sched_yield`, each twice the last: 2, 4, 8.
const PAUSE_ROUNDS: u32 = 3;
/// How long a waiter that yields leaves the word alone: each look takes the cache line from the owner, whose unlock has to fetch it back.
const YIELD_NS: u64 = 2_000;
/// Looks at the word before the first sleep, some 20 µs: what it costs to be woken. In a model one more look is one more of the same.
const SPIN_ROUNDS: u32 = if cfg!(loom) { 1 } else { 13 };

/// Forty bytes of shared memory. All zero is a free lock over clean data.
#[repr(C, align(8))]
pub(crate) struct RawLock {
    #[cfg(target_env = "musl")]
    status: AtomicU32,
    word: AtomicU32,
    #[cfg(not(target_env = "musl"))]
    status: AtomicU32,
    /// What the guard that was handed out last belongs to, in its process's own terms. A hint: see [`RawLock::is_guarded_by`].
    guarded_by: AtomicU64,
    /// Where libc's mutex keeps what we have no use for: the node's distance from the word is libc's choice.
    reserved: AtomicU64,
    node: Node,
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<RawLock>() == 40);
    assert!(std::mem::offset_of!(RawLock, node) == 24);
    // From the list entry, the node's second word, back to the futex word.
    let entry = std::mem::offset_of!(RawLock, node) as isize + 8;
    assert!(std::mem::offset_of!(RawLock, word) as isize - entry == robust::FUTEX_OFFSET);
};

/// Proof of a lock that is held, to be given to [`RawLock::unlock`].
#[derive(Debug)]
pub(crate) struct Held {
    /// WAITERS stood in the word, and this owner never slept for it: perhaps nobody sleeps any more, and the next unlock may
    /// clear it. A matter of cost only.
    bare: bool,
}

/// Somebody else has the lock and the deadline has passed.
#[derive(Debug)]
pub(crate) struct Busy;

/// How the kernel is told of a lock while it is held.
pub(crate) trait Form {
    fn begin(thread: &Thread);
    fn hold(thread: &Thread, node: &Node);
    fn release(thread: &Thread, node: &Node);
}

/// In the list: for sections that hold user code or other locks.
#[derive(Debug)]
pub(crate) struct Linked;

/// By the pending slot alone, throughout: for short sections of our own, without user code or another robust lock inside.
#[derive(Debug)]
pub(crate) struct PendingOnly;

impl Form for Linked {
    #[inline]
    fn begin(thread: &Thread) {
        if !thread.has_room() {
            too_many_held();
        }
    }

    #[inline]
    fn hold(thread: &Thread, node: &Node) {
        thread.link(node);
        thread.clear_pending();
    }

    #[inline]
    fn release(thread: &Thread, node: &Node) {
        thread.set_pending(node);
        thread.unlink(node);
    }
}

impl Form for PendingOnly {
    #[inline]
    fn begin(_: &Thread) {}

    #[inline]
    fn hold(_: &Thread, _: &Node) {}

    #[inline]
    fn release(_: &Thread, _: &Node) {}
}

impl RawLock {
    /// Takes the lock, waiting until `deadline`.
    ///
    /// # Panics
    ///
    /// If this thread holds it already and may wait, or holds as many locks as the kernel looks after.
    #[inline]
    pub(crate) fn lock<F: Form>(&self, deadline: Deadline) -> Result<Held, Busy> {
        robust::with(|thread| {
            F::begin(thread);
            thread.set_pending(&self.node);
            let held = match self.word.compare_exchange(
                UNLOCKED,
                thread.tid(),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => Held { bare: false },
                Err(_) => self.lock_contended(thread, deadline)?,
            };
            F::hold(thread, &self.node);
            Ok(held)
        })
    }

    /// The pending slot names this lock throughout, asleep too: a sleeper that is woken and killed passes the wake-up on.
    #[cold]
    fn lock_contended(&self, thread: &Thread, deadline: Deadline) -> Result<Held, Busy> {
        let mut spins = 0;
        let mut has_slept = false;
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            if is_free(seen) {
                // WAITERS is kept, and set by one that slept: others may be asleep still.
                let waiters = if has_slept { WAITERS } else { seen & WAITERS };
                let taken = thread.tid() | waiters;
                if self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed).is_err() {
                    continue;
                }
                if seen & OWNER_DIED != 0 {
                    self.status.store(INCONSISTENT, Ordering::Relaxed);
                }
                return Ok(Held { bare: seen & WAITERS != 0 && !has_slept });
            }
            // Only here, before a foreign owner, may a waiter leave: one that was woken and left without looking would take
            // the wake-up with it.
            if deadline.has_passed() {
                thread.clear_pending();
                return Err(Busy);
            }
            if seen & OWNER == thread.tid() {
                thread.clear_pending();
                relocked();
            }
            if spins < SPIN_ROUNDS {
                spin(spins);
                spins += 1;
                continue;
            }
            let asleep = seen | WAITERS;
            if seen != asleep
                && self.word.compare_exchange(seen, asleep, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            futex::wait(&self.word, asleep, deadline);
            has_slept = true;
            spins = 0;
        }
    }

    /// Gives the lock back. Does nothing if this thread does not own it: the guard was copied by a fork.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "the proof is used up")]
    pub(crate) fn unlock<F: Form>(&self, held: Held) {
        robust::with(|thread| {
            if self.word.load(Ordering::Relaxed) & OWNER != thread.tid() {
                return;
            }
            F::release(thread, &self.node);
            if self
                .word
                .compare_exchange(thread.tid(), UNLOCKED, Ordering::Release, Ordering::Relaxed)
                .is_err()
            {
                self.unlock_contended(&held);
            }
            thread.clear_pending();
        });
    }

    /// WAITERS is set, so the word changes by the very call that wakes: a kill falls before both or after both. Setting is
    /// right whatever the word has become: it is ours, and others can only have set WAITERS.
    #[cold]
    fn unlock_contended(&self, held: &Held) {
        if held.bare {
            futex::set_zero_and_wake_all(&self.word);
        } else {
            futex::set_waiters_and_wake_one(&self.word);
        }
    }

    /// Whether an owner died in its section and nobody has recovered since. To be asked by the owner.
    #[inline]
    pub(crate) fn is_inconsistent(&self) -> bool {
        self.status.load(Ordering::Relaxed) != CLEAN
    }

    /// The data are in order again. To be called by the owner.
    #[inline]
    pub(crate) fn recover(&self) {
        self.status.store(CLEAN, Ordering::Relaxed);
    }

    /// Says what the guard belongs to that is about to be handed out. To be called by the owner.
    #[inline]
    pub(crate) fn set_guarded_by(&self, holder: u64) {
        self.guarded_by.store(holder, Ordering::Relaxed);
    }

    /// Whether a guard that belongs to `holder` holds the lock. When the holder is dropped that is one that was forgotten, for guards
    /// borrow. (A section of our own, of another holder, ends within the looks that this takes.)
    pub(crate) fn is_guarded_by(&self, holder: u64) -> bool {
        const LOOKS: u32 = 64;
        (0..LOOKS).all(|look| {
            if look > 0 {
                futex::yield_now();
            }
            let owner = self.word.load(Ordering::Relaxed) & OWNER;
            owner != 0 && self.guarded_by.load(Ordering::Relaxed) == holder && robust::is_own_thread(owner)
        })
    }

    pub(super) fn word(&self) -> &AtomicU32 {
        &self.word
    }
}

/// No owner: free, released to sleepers, or left by a dead one.
#[inline]
pub(super) fn is_free(word: u32) -> bool {
    word & OWNER == 0
}

/// Waiting decides the contended speed: a few pauses while the owner may be in the middle of a tiny section on another CPU, then
/// yields, which let it run on this one and act as a back-off.
fn spin(round: u32) {
    if round >= PAUSE_ROUNDS {
        futex::yield_for(YIELD_NS);
    } else if has_other_cpus() {
        futex::pause(2 << round);
    }
}

#[cfg(not(loom))]
fn has_other_cpus() -> bool {
    futex::has_other_cpus()
}

#[cfg(loom)]
fn has_other_cpus() -> bool {
    false
}

#[cold]
fn relocked() -> ! {
    panic!("this thread holds the lock already: locking it again would wait for ever");
}

#[cold]
fn too_many_held() -> ! {
    panic!("this thread holds 2048 locks: another one would not be released when the thread dies");
}

#[cfg(test)]
impl RawLock {
    pub(crate) fn new() -> RawLock {
        RawLock {
            word: AtomicU32::new(UNLOCKED),
            status: AtomicU32::new(CLEAN),
            guarded_by: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            node: Node::new(),
        }
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn smoke() {
        let lock = RawLock::new();
        for _ in 0..3 {
            let held = lock.lock::<Linked>(Deadline::Never).unwrap();
            lock.set_guarded_by(7);
            assert!(lock.is_guarded_by(7) && !lock.is_guarded_by(8));
            lock.unlock::<Linked>(held);
            let held = lock.lock::<PendingOnly>(Deadline::Never).unwrap();
            lock.unlock::<PendingOnly>(held);
        }
        assert!(!lock.is_guarded_by(7));
        assert_eq!(lock.word.load(Ordering::Relaxed), UNLOCKED);
    }

    #[test]
    fn a_held_lock_is_busy_for_others_and_not_for_ever() {
        let lock = Arc::new(RawLock::new());
        let held = lock.lock::<Linked>(Deadline::Never).unwrap();
        let other = Arc::clone(&lock);
        std::thread::spawn(move || {
            assert!(other.lock::<Linked>(Deadline::Now).is_err());
            assert!(other.lock::<PendingOnly>(Deadline::after(Duration::from_millis(3))).is_err());
        })
        .join()
        .unwrap();
        lock.unlock::<Linked>(held);
        // WAITERS was set by the one that gave up; the next owner clears it without leaving anybody behind.
        let held = lock.lock::<Linked>(Deadline::Now).unwrap();
        lock.unlock::<Linked>(held);
        assert_eq!(lock.word.load(Ordering::Relaxed), UNLOCKED);
    }

    #[test]
    fn an_owner_that_ended_is_reported_until_somebody_recovers() {
        for linked in [true, false] {
            let lock = Arc::new(RawLock::new());
            let other = Arc::clone(&lock);
            std::thread::spawn(move || {
                // Never given back: the thread ends as the owner. The kernel treats a thread's end as a process's.
                if linked {
                    other.lock::<Linked>(Deadline::Never).unwrap();
                } else {
                    other.lock::<PendingOnly>(Deadline::Never).unwrap();
                }
            })
            .join()
            .unwrap();
            for round in 0..3 {
                let held = lock.lock::<Linked>(Deadline::Never).unwrap();
                assert_eq!(lock.is_inconsistent(), round < 2);
                if round == 1 {
                    lock.recover();
                }
                lock.unlock::<Linked>(held);
            }
        }
    }

    #[test]
    #[should_panic(expected = "holds the lock already")]
    fn relocking_panics() {
        let lock = RawLock::new();
        let _held = lock.lock::<Linked>(Deadline::Never).unwrap();
        let unlock = Unlock(&lock);
        let _ = lock.lock::<Linked>(Deadline::Never);
        drop(unlock);

        struct Unlock<'a>(&'a RawLock);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.unlock::<Linked>(Held { bare: false });
            }
        }
    }

    #[test]
    fn one_owner_at_a_time() {
        let lock = Arc::new((RawLock::new(), AtomicU64::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    for _ in 0..5_000 {
                        let held = lock.0.lock::<Linked>(Deadline::Never).unwrap();
                        let count = lock.1.load(Ordering::Relaxed);
                        lock.1.store(count + 1, Ordering::Relaxed);
                        lock.0.unlock::<Linked>(held);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(lock.1.load(Ordering::Relaxed), 20_000);
    }

    #[test]
    fn the_2049th_lock_of_a_thread_is_refused_before_it_is_taken() {
        std::thread::spawn(|| {
            let locks: Vec<RawLock> = (0..2_049).map(|_| RawLock::new()).collect();
            let held: Vec<Held> =
                locks[..2_048].iter().map(|lock| lock.lock::<Linked>(Deadline::Never).unwrap()).collect();
            let last = std::panic::AssertUnwindSafe(&locks[2_048]);
            let refused = std::panic::catch_unwind(|| last.lock::<Linked>(Deadline::Never).map(|_| ()));
            assert!(refused.is_err());
            assert_eq!(locks[2_048].word.load(Ordering::Relaxed), UNLOCKED);
            locks.iter().zip(held).for_each(|(lock, held)| lock.unlock::<Linked>(held));
        })
        .join()
        .unwrap();
    }
}
