//! A word that says "this process lives", in the care of a thread that never ends before the process does.
//!
//! It is a [`RawLock`] that is taken by one thread and kept by another: the *keeper* ([`crate::sys::keeper`]), or the taking
//! thread itself where that is the process's main thread and the word is never given back. Invariant: at every instruction from
//! the first CAS on, the TID in the word is that of a thread whose pending slot or list names the word, so a kill leaves 0 or
//! OWNER_DIED, never a stale TID. Checked in `models/`.

use super::lock::{Linked, RawLock, is_free};
use crate::error::Result;
use crate::primitive::Ordering;
use crate::sys::clock::Deadline;
use crate::sys::{keeper, robust};

/// Takes `word` for this process, if it is free or its owner has died, and hangs it in the keeper's list.
///
/// # Errors
///
/// If there is no keeper and none can be made.
pub(crate) fn claim(word: &RawLock) -> Result<bool> {
    keeper::with(|keeper| {
        robust::with(|thread| {
            thread.set_pending(word.node());
            let seen = word.word().load(Ordering::Relaxed);
            let claimed = is_free(seen)
                && word
                    .word()
                    .compare_exchange(seen, thread.tid(), Ordering::Acquire, Ordering::Relaxed)
                    .is_ok();
            if claimed {
                keeper.link(word.node());
                word.word().store(keeper.tid(), Ordering::Release);
            }
            thread.clear_pending();
            claimed
        })
    })
}

/// Takes `word` for this process into the list of this thread, for good: for a main thread and a segment that is never detached.
pub(crate) fn claim_for_good(word: &RawLock) -> bool {
    word.lock::<Linked>(Deadline::Now).is_ok()
}

/// Gives back a word that [`claim`] took.
///
/// # Errors
///
/// If this process has no keeper any more; then it is a fork's child and the word is not its own.
pub(crate) fn release(word: &RawLock) -> Result<()> {
    keeper::with(|keeper| {
        robust::with(|thread| {
            thread.set_pending(word.node());
            word.word().store(thread.tid(), Ordering::Relaxed);
            keeper.unlink(word.node());
            word.word().store(0, Ordering::Release);
            thread.clear_pending();
        });
    })
}

/// Whether somebody's TID stands in the word: false is certain, true may change at once.
pub(crate) fn is_claimed(word: &RawLock) -> bool {
    !is_free(word.word().load(Ordering::Acquire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlives_the_thread_that_claimed_it() {
        let word: &'static RawLock = Box::leak(Box::new(RawLock::new()));
        std::thread::spawn(move || assert!(claim(word).unwrap())).join().unwrap();
        assert!(is_claimed(word));
        assert!(!claim(word).unwrap());
        release(word).unwrap();
        assert!(!is_claimed(word));
        assert!(claim(word).unwrap());
        release(word).unwrap();
    }

    #[test]
    fn ends_with_a_thread_that_claimed_it_for_good() {
        let word: &'static RawLock = Box::leak(Box::new(RawLock::new()));
        std::thread::spawn(move || assert!(claim_for_good(word))).join().unwrap();
        assert!(!is_claimed(word));
        assert!(claim(word).unwrap());
        release(word).unwrap();
    }
}
