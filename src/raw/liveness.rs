//! A word that says "this process lives".
//!
//! It is a [`RawLock`] that is taken once and never given back, by a thread that ends no sooner than the process: the main thread, or the
//! [keeper]. The kernel marks it when that thread ends, at whatever instruction the process is killed. Checked in
//! `models/`.

use super::lock::{Linked, RawLock, is_free};
use crate::error::Result;
use crate::primitive::Ordering;
use crate::sys::clock::Deadline;
use crate::sys::{keeper, robust};

/// Takes `word` for this process, if it is free or its owner has died, and keeps it if `is_vacant`.
///
/// # Errors
///
/// If this is not the main thread, and there is no keeper and none can be made.
pub(crate) fn claim(word: &'static RawLock, is_vacant: impl Fn() -> bool + Send + 'static) -> Result<bool> {
    let claim = move || match word.lock::<Linked>(Deadline::Now) {
        Ok(held) if !is_vacant() => {
            word.unlock::<Linked>(held);
            false
        }
        locked => locked.is_ok(),
    };
    let is_main = robust::with(|thread| thread.tid() == std::process::id());
    if is_main { Ok(claim()) } else { keeper::run(claim) }
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
        assert!(!claim(word, || false).unwrap());
        assert!(!is_claimed(word));
        std::thread::spawn(move || assert!(claim(word, || true).unwrap())).join().unwrap();
        assert!(is_claimed(word));
        assert!(!claim(word, || true).unwrap());
    }
}
