//! The flip under loom: what a reader may see while versions are written, and while a writer vanishes.
//!
//! Run with `cargo loom`. Both have been seen to fail with each of: a relaxed commit, no release fence, no acquire fence, a relaxed
//! first look at the version, a second look at its parity only, no second look, the commit before the words, one copy.
//!
//! A kill point does not lie between the last word and the commit: the flip calls nobody there. A death there leaves one word
//! more in the copy that does not count than a death before the last word.

use std::cell::RefCell;
use std::rc::Rc;

use loom::thread;

use super::*;
use crate::raw::lock::{Form, Linked, PendingOnly, RawLock};
use crate::sys::clock::Deadline;
use crate::sys::model::{check, check_each_kill_point, kill_point, mortal};

/// A value of two words that are equal in every version. `Rc`, for all threads of a model are one to std.
struct Shared {
    lock: RawLock,
    version: AtomicU64,
    copies: [[AtomicU64; 2]; 2],
    /// What was committed, in its order; the first version is 0. Known to the models, not to loom.
    history: RefCell<Vec<u64>>,
}

impl Shared {
    fn new() -> Rc<Shared> {
        let copy = || [AtomicU64::new(0), AtomicU64::new(0)];
        Rc::new(Shared {
            lock: RawLock::new(),
            version: AtomicU64::new(0),
            copies: [copy(), copy()],
            history: RefCell::new(vec![0]),
        })
    }

    fn flip(&self) -> Flip<'_> {
        Flip { version: &self.version, copies: [&self.copies[0], &self.copies[1]] }
    }

    /// Alone, or under the lock.
    fn write(&self, value: u64) {
        self.flip().store(|_| {
            kill_point();
            value
        });
        self.history.borrow_mut().push(value);
    }

    fn write_locked<F: Form>(&self, value: u64) {
        let held = self.lock.lock::<F>(Deadline::Never).unwrap();
        // A dead writer left nothing to repair.
        self.lock.recover();
        self.write(value);
        self.lock.unlock::<F>(held);
    }

    fn read(&self) -> u64 {
        let mut words = [u64::MAX; 2];
        self.flip().load(|index, word| words[index] = word);
        assert_eq!(words[0], words[1], "torn");
        words[0]
    }

    /// These values were read one after the other: each was committed, and none before the one read ahead of it.
    fn assert_in_order(&self, values: &[u64]) {
        let history = self.history.borrow();
        let place =
            |value| history.iter().position(|&committed| committed == value).expect("it was committed");
        assert!(values.iter().copied().map(place).is_sorted(), "{values:?} were read of {history:?}");
    }
}

#[test]
fn a_reader_sees_whole_versions_and_none_twice_the_older() {
    check(None, || {
        let shared = Shared::new();
        let writer = {
            let shared = Rc::clone(&shared);
            thread::spawn(move || (1..=2).for_each(|value| shared.write(value)))
        };
        let values = [shared.read(), shared.read()];
        writer.join().unwrap();
        shared.assert_in_order(&values);
        assert_eq!(shared.read(), 2);
    });
}

fn a_writer_vanishes<F: Form>(nth: u32) {
    let shared = Shared::new();
    let victim = {
        let shared = Rc::clone(&shared);
        thread::spawn(move || {
            mortal(nth, &[shared.lock.as_the_kernel_sees_it()], || shared.write_locked::<F>(1)).is_none()
        })
    };
    let reader = {
        let shared = Rc::clone(&shared);
        thread::spawn(move || [shared.read(), shared.read()])
    };
    shared.write_locked::<F>(2);
    let has_vanished = victim.join().unwrap();
    let values = reader.join().unwrap();
    shared.assert_in_order(&values);
    let last = shared.read();
    assert_eq!(shared.history.borrow().last(), Some(&last));
    assert!(has_vanished || shared.history.borrow().len() == 3);
}

/// Fails too when the lock no longer orders one writer before the next.
#[test]
fn a_writer_vanishes_and_the_next_takes_over() {
    for tally in [
        check_each_kill_point(Some(2), a_writer_vanishes::<Linked>),
        check_each_kill_point(Some(2), a_writer_vanishes::<PendingOnly>),
    ] {
        assert!(tally.marked > 0);
    }
}
