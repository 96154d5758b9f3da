//! Sleeping on a word of shared memory, and changing it and waking in one system call.
//!
//! No `FUTEX_PRIVATE_FLAG`: the words lie in memory that several processes map. Sources:
//! [futex(2)](https://man7.org/linux/man-pages/man2/futex.2.html),
//! [FUTEX_WAKE_OP(2const)](https://man7.org/linux/man-pages/man2/FUTEX_WAKE_OP.2const.html).

#![expect(unsafe_code, reason = "the futex calls have no safe wrapper")]

use std::ptr::null;
use std::sync::OnceLock;

use super::clock::{Deadline, now_ns, timespec};
use crate::primitive::{AtomicU32, AtomicU64, Ordering, fence};

/// The highest bit of a futex word: sleepers are possible.
pub(crate) const WAITERS: u32 = 0x8000_0000;

/// The longest sleep without another look at the word, in nanoseconds; 0 is no bound.
///
/// It is the remedy for kernels before 6.2, for a waiter that is stopped between its wake-up and its next step, and for
/// surprises. Tests that prove the protocols switch it off, for it masks every lost wake-up.
static SLEEP_BOUND_NS: AtomicU64 = AtomicU64::new(100_000_000);

/// Sets the longest sleep without another look, in nanoseconds; 0 is no bound.
pub fn set_sleep_bound_ns(bound_ns: u64) {
    SLEEP_BOUND_NS.store(bound_ns, Ordering::Relaxed);
}

/// Sleeps while `word` holds `expected`: until a wake-up, the deadline, the sleep bound, a signal, or for no reason.
///
/// Nothing is reported, for nothing may be concluded: the caller looks at the word again. `Deadline::Now` returns at once.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Deadline) {
    let bound_ns = match SLEEP_BOUND_NS.load(Ordering::Relaxed) {
        0 => u64::MAX,
        bound_ns => bound_ns,
    };
    let until_ns = match deadline {
        Deadline::Now => return,
        Deadline::At(at_ns) => at_ns.min(now_ns().saturating_add(bound_ns)),
        Deadline::Never if bound_ns == u64::MAX => u64::MAX,
        Deadline::Never => now_ns().saturating_add(bound_ns),
    };
    let until = timespec(until_ns);
    let until = if until_ns == u64::MAX { null() } else { &raw const until };
    // SAFETY: FUTEX_WAIT_BITSET reads the word, which the reference keeps alive, and `until`, a live timespec or null (no
    // time-out, absolute on CLOCK_MONOTONIC). The result is ignored: whatever ended the sleep, the caller looks again.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            expected,
            until,
            null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
}

/// Sets `word` to [`WAITERS`] and wakes one sleeper, in one step against every other futex call and every kill.
pub(crate) fn set_waiters_and_wake_one(word: &AtomicU32) {
    // The operand has 12 bits; bit 31 is reached by shifting 1 by 31.
    let set_waiters = (libc::FUTEX_OP_SET | libc::FUTEX_OP_OPARG_SHIFT) << 28 | 31 << 12;
    set_and_wake(word, set_waiters, WAITERS, 1);
}

/// Sets `word` to 0 and wakes every sleeper, in one step against every other futex call and every kill.
pub(crate) fn set_zero_and_wake_all(word: &AtomicU32) {
    set_and_wake(word, libc::FUTEX_OP_SET << 28, 0, i32::MAX);
}

/// `operation` makes the word `value`. The caller owns a word that is not 0, so that the comparison part of the call
/// ("was it 0?", all its bits zero) cannot hold; a comparison that holds would wake one more, whatever its count says.
fn set_and_wake(word: &AtomicU32, operation: i32, value: u32, wake_count: i32) {
    // The call's own ordering is not promised on every architecture. Pairs with the Acquire of the next owner's CAS.
    fence(Ordering::Release);
    // SAFETY: FUTEX_WAKE_OP changes the word and wakes sleepers on it. Both addresses are that of a live, aligned word that the
    // reference keeps alive; the fourth argument is the second wake count, 0.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE_OP,
            wake_count,
            0_usize,
            word.as_ptr(),
            operation,
        )
    };
    if woken < 0 {
        set_then_wake(word, value, wake_count);
    }
}

/// Where a filter or an emulator refuses FUTEX_WAKE_OP: two steps. A kill between them is what bounded sleeps are for.
#[cold]
fn set_then_wake(word: &AtomicU32, value: u32, wake_count: i32) {
    word.store(value, Ordering::Release);
    // SAFETY: FUTEX_WAKE does not read through the address; it is that of a live word. If even this is refused, sleepers
    // find the word changed when their sleep bound ends.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, wake_count) };
}

/// Whether there is another CPU on which a lock's owner could be running while we spin: by this thread's affinity, which is one system
/// call; what std counts reads the control groups' files.
pub(crate) fn has_other_cpus() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| {
        let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: 0 is this thread; the kernel writes at most the set's size.
        let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
        // SAFETY: all zero is a set, and the kernel has written another.
        let set = unsafe { set.assume_init() };
        // SAFETY: it counts the bits of a live set.
        let count = unsafe { libc::CPU_COUNT(&set) };
        // The call fails on machines with more CPUs than the set has bits.
        failed != 0 || count > 1
    })
}

/// A pause of `count` spin-loop hints.
pub(crate) fn pause(count: u32) {
    for _ in 0..count {
        core::hint::spin_loop();
    }
}

/// Lets another thread of this CPU run.
pub(crate) fn yield_now() {
    std::thread::yield_now();
}

/// Lets other threads of this CPU run, again and again for so long. It is a clock's time, not a number of yields: where others do run, one
/// yield may take a scheduler's slice.
pub(crate) fn yield_for(ns: u64) {
    let until_ns = now_ns().saturating_add(ns);
    loop {
        yield_now();
        if now_ns() >= until_ns {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn wait_returns_when_the_word_is_another_or_the_deadline_passes() {
        let word = AtomicU32::new(7);
        wait(&word, 8, Deadline::Never);
        wait(&word, 7, Deadline::Now);
        let before = now_ns();
        wait(&word, 7, Deadline::after(Duration::from_millis(5)));
        // A signal may end the sleep early, but nothing in this test sends one to this thread.
        assert!(now_ns() - before >= 5_000_000);
    }

    #[test]
    fn one_call_changes_the_word_and_wakes() {
        for (wake, left) in
            [(set_waiters_and_wake_one as fn(&AtomicU32), WAITERS), (set_zero_and_wake_all, 0)]
        {
            let word = Arc::new(AtomicU32::new(77 | WAITERS));
            let sleeper = {
                let word = Arc::clone(&word);
                std::thread::spawn(move || {
                    while word.load(Ordering::Acquire) == 77 | WAITERS {
                        wait(&word, 77 | WAITERS, Deadline::Never);
                    }
                })
            };
            wake(&word);
            assert_eq!(word.load(Ordering::Relaxed), left);
            sleeper.join().unwrap();
        }
    }

    #[test]
    fn the_two_step_form_leaves_the_same_word() {
        let word = AtomicU32::new(77 | WAITERS);
        set_then_wake(&word, WAITERS, 1);
        assert_eq!(word.load(Ordering::Relaxed), WAITERS);
        set_then_wake(&word, 0, i32::MAX);
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }
}
