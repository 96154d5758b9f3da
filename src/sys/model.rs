//! The kernel, for loom: stand-ins for what the machines of `raw` ask of it, with the meaning of the real calls.
//!
//! Each thread of a model stands for a process. Only the lock's words are loom's; what the kernel keeps for itself, its queue of
//! sleepers and its robust lists, lies in std's cells, out of loom's sight. So nothing here orders memory that the real kernel
//! would not order; the two exceptions it does have are a wake-up, which orders the waker before the woken, and the mark on
//! a dead owner's word, whose compare-and-swap is a full barrier.
//!
//! Invariant: each look at the queue of a word, and each change of it, directly follows a read-modify-write of that word. Loom
//! switches threads only before its own operations, so the two are one step, as they are under the kernel's bucket lock; and loom
//! orders what it explores by the operations it knows, so the write tells it that two steps on one queue depend on each other.
//!
//! Deaths: a [`mortal`] thread vanishes at one of its kill points, which lie at each call that changes what the kernel
//! knows and before each change of a lock word. It unwinds, and then the kernel's walk runs for it, as `handle_futex_death` in
//! [kernel/futex/core.c](https://elixir.bootlin.com/linux/v6.12/source/kernel/futex/core.c) does it.
//!
//! Not here: spurious wake-ups, bounded sleeps (they would hide every lost wake-up), and sleepers that overtake each other: the
//! first to come is the first to be woken. The state-by-state checker in `models/` has them.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use crate::primitive::{AtomicU32, Ordering};

std::thread_local! {
    /// Loom runs all threads of an execution on the one that called [`check`], in turns.
    static KERNEL: Kernel = Kernel::default();
}

#[derive(Default)]
struct Kernel {
    /// In the order of their coming.
    sleepers: RefCell<Vec<Sleeper>>,
    /// The addresses of words that were marked OWNER_DIED and not asked about since.
    marked: RefCell<Vec<usize>>,
    last_tid: Cell<u32>,
    /// Not 0 once the time of [`clock::Deadline::Alarm`] has come.
    alarm: RefCell<Option<Rc<AtomicU32>>>,
    tally: Cell<Tally>,
}

struct Sleeper {
    /// Its address.
    word: usize,
    tid: u32,
    is_timed: bool,
    thread: loom::thread::Thread,
}

/// What happened in all executions of one [`check`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) executions: u32,
    /// In how many a mortal thread reached its kill point.
    pub(crate) vanished: u32,
    /// How many words the walk found with a dead owner.
    pub(crate) marked: u32,
    /// How often somebody really slept.
    pub(crate) slept: u32,
}

/// Runs `model` in every order that loom finds, with at most `preemptions` of them where a thread could have gone on; `None` is
/// no bound. `LOOM_MAX_PREEMPTIONS` overrides a bound.
pub(crate) fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) -> Tally {
    let tally = explore(preemptions, model);
    eprintln!("{tally:?}");
    tally
}

fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) -> Tally {
    KERNEL.with(|kernel| kernel.tally.take());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions.and(builder.preemption_bound).or(preemptions);
    builder.check(move || {
        KERNEL.with(Kernel::boot);
        model();
    });
    KERNEL.with(|kernel| kernel.tally.get())
}

/// Checks `model(nth)` for the first kill point, the second and so on, until nobody gets as far as the `nth`.
pub(crate) fn check_each_kill_point(
    preemptions: Option<usize>,
    model: impl Fn(u32) + Copy + Send + Sync + 'static,
) -> Tally {
    let mut total = Tally::default();
    for nth in 1.. {
        let tally = explore(preemptions, move || model(nth));
        total.executions += tally.executions;
        total.vanished += tally.vanished;
        total.marked += tally.marked;
        total.slept += tally.slept;
        if tally.vanished == 0 {
            break;
        }
    }
    eprintln!("{total:?}");
    total
}

/// Runs `body` on this thread, which vanishes at its `nth` kill point from now: `None` if it did. `locks` are those that
/// it may touch; the real kernel finds a node's word by its distance.
pub(crate) fn mortal<R>(
    nth: u32,
    locks: &[(&robust::Node, &AtomicU32)],
    body: impl FnOnce() -> R,
) -> Option<R> {
    robust::with(|thread| thread.kill_points_left.set(nth));
    let result = catch_unwind(AssertUnwindSafe(body));
    robust::with(|thread| {
        thread.kill_points_left.set(0);
        match result {
            Ok(result) => Some(result),
            Err(payload) if payload.is::<Vanished>() => {
                count(|tally| tally.vanished += 1);
                thread.walk(locks);
                None
            }
            // A failed assertion, a deadlock that loom found, or the end of its thread after one.
            Err(payload) => resume_unwind(payload),
        }
    })
}

/// A mortal thread may vanish here. Models put it where the machines' own calls leave a gap.
pub(crate) fn kill_point() {
    robust::with(|thread| {
        let left = thread.kill_points_left.get();
        thread.kill_points_left.set(left.saturating_sub(1));
        if left == 1 {
            // Without the panic hook: it is no failure.
            resume_unwind(Box::new(Vanished));
        }
    });
}

/// Whether the kernel found an owner of `word` dead since this was last asked. To be asked by the owner.
pub(crate) fn take_mark(word: &AtomicU32) -> bool {
    KERNEL.with(|kernel| {
        let mut marked = kernel.marked.borrow_mut();
        let before = marked.len();
        marked.retain(|&other| other != address_of(word));
        marked.len() < before
    })
}

/// The payload of an unwinding that is a death.
struct Vanished;

impl Kernel {
    /// Forgets the last execution.
    fn boot(&self) {
        self.sleepers.borrow_mut().clear();
        self.marked.borrow_mut().clear();
        self.last_tid.set(0);
        self.alarm.replace(Some(Rc::new(AtomicU32::new(0))));
        count(|tally| tally.executions += 1);
    }

    /// Wakes the first `count` sleepers on a word. Only directly after a write of it.
    fn wake(&self, word: &AtomicU32, count: usize) {
        let mut sleepers = self.sleepers.borrow_mut();
        for _ in 0..count {
            let Some(first) = sleepers.iter().position(|sleeper| sleeper.word == address_of(word)) else {
                return;
            };
            sleepers.remove(first).thread.unpark();
        }
    }

    fn is_asleep(&self, tid: u32) -> bool {
        self.sleepers.borrow().iter().any(|sleeper| sleeper.tid == tid)
    }
}

fn address_of<T>(shared: &T) -> usize {
    std::ptr::from_ref(shared).addr()
}

fn count(add: impl FnOnce(&mut Tally)) {
    KERNEL.with(|kernel| {
        let mut tally = kernel.tally.get();
        add(&mut tally);
        kernel.tally.set(tally);
    });
}

/// The write that tells loom of a step on the word's queue, and reads the newest value. It changes nothing and orders nothing.
fn read_for_queue(word: &AtomicU32) -> u32 {
    word.fetch_or(0, Ordering::Relaxed)
}

pub(crate) mod clock {
    //! Time: it passes when [`ring_alarm`] is called.

    use super::{AtomicU32, KERNEL, Ordering, Rc};

    /// Until when a call may wait.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Deadline {
        /// It may not wait at all.
        Now,
        /// Until the alarm rings.
        Alarm,
        /// For ever.
        Never,
    }

    impl Deadline {
        pub(crate) fn has_passed(self) -> bool {
            match self {
                Deadline::Now => true,
                // A write, for the reader of a clock sees the newest time.
                Deadline::Alarm => alarm().fetch_or(0, Ordering::Relaxed) != 0,
                Deadline::Never => false,
            }
        }
    }

    /// Lets the time of [`Deadline::Alarm`] come, and wakes who sleeps until then.
    pub(crate) fn ring_alarm() {
        alarm().swap(1, Ordering::Relaxed);
        KERNEL.with(|kernel| {
            // They stay in the queue until they run: a wake-up in between may still fall to them.
            kernel
                .sleepers
                .borrow()
                .iter()
                .filter(|sleeper| sleeper.is_timed)
                .for_each(|sleeper| sleeper.thread.unpark());
        });
    }

    fn alarm() -> Rc<AtomicU32> {
        KERNEL.with(|kernel| kernel.alarm.borrow().clone()).expect("`check` makes one for each execution")
    }
}

pub(crate) mod futex {
    //! Sleeping on a word, and changing it and waking in one step.

    use super::clock::Deadline;
    use super::{KERNEL, Sleeper, address_of, count, kill_point, read_for_queue, robust};
    use crate::primitive::{AtomicU32, Ordering, fence};

    /// The highest bit of a futex word: sleepers are possible.
    pub(crate) const WAITERS: u32 = 0x8000_0000;

    /// Sleeps while `word` holds `expected`: until a wake-up or the deadline.
    ///
    /// A death asleep is no kill point of its own. Nobody can tell it from one before the sleep; after a wake-up, from
    /// one at the next kill point.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Deadline) {
        kill_point();
        let is_timed = deadline == Deadline::Alarm;
        let tid = robust::with(|thread| thread.tid);
        let thread = loom::thread::current();
        if deadline == Deadline::Now || read_for_queue(word) != expected {
            return;
        }
        let sleeper = Sleeper { word: address_of(word), tid, is_timed, thread };
        KERNEL.with(|kernel| kernel.sleepers.borrow_mut().push(sleeper));
        count(|tally| tally.slept += 1);
        loop {
            if deadline.has_passed() {
                read_for_queue(word);
                KERNEL.with(|kernel| kernel.sleepers.borrow_mut().retain(|sleeper| sleeper.tid != tid));
                return;
            }
            if !KERNEL.with(|kernel| kernel.is_asleep(tid)) {
                return;
            }
            loom::thread::park();
        }
    }

    /// Sets `word` to [`WAITERS`] and wakes one sleeper, in one step.
    pub(crate) fn set_waiters_and_wake_one(word: &AtomicU32) {
        set_and_wake(word, WAITERS, 1);
    }

    /// Sets `word` to 0 and wakes every sleeper, in one step.
    pub(crate) fn set_zero_and_wake_all(word: &AtomicU32) {
        set_and_wake(word, 0, usize::MAX);
    }

    /// The call's own ordering is not promised on every architecture: the fence before it is part of the real function too.
    fn set_and_wake(word: &AtomicU32, value: u32, count: usize) {
        kill_point();
        fence(Ordering::Release);
        word.swap(value, Ordering::Relaxed);
        KERNEL.with(|kernel| kernel.wake(word, count));
    }

    pub(crate) fn pause(_count: u32) {}

    pub(crate) fn yield_now() {
        loom::thread::yield_now();
    }

    pub(crate) fn yield_for(_ns: u64) {
        yield_now();
    }
}

pub(crate) mod robust {
    //! Each thread's TID and robust list.

    use super::futex::WAITERS;
    use super::{AtomicU32, Cell, KERNEL, Ordering, RefCell, address_of, count, kill_point, read_for_queue};
    use crate::primitive::compiler_fence;

    const OWNER_DIED: u32 = 0x4000_0000;
    const OWNER: u32 = 0x3fff_ffff;

    loom::thread_local! {
        static THREAD: Thread = Thread::new();
    }

    /// A lock's place in its owner's list, which holds addresses: only a node with a size has one of its own.
    pub(crate) struct Node {
        _links: [usize; 2],
    }

    impl Node {
        pub(crate) fn new() -> Node {
            Node { _links: [0; 2] }
        }
    }

    /// What the kernel knows of a thread.
    pub(crate) struct Thread {
        pub(super) tid: u32,
        pending: Cell<Option<usize>>,
        linked: RefCell<Vec<usize>>,
        /// It vanishes when this falls to 0; 0 is never.
        pub(super) kill_points_left: Cell<u32>,
    }

    /// Runs `f` with this thread's record.
    pub(crate) fn with<R>(f: impl FnOnce(&Thread) -> R) -> R {
        THREAD.with(f)
    }

    pub(crate) fn is_own_thread(tid: u32) -> bool {
        with(|thread| thread.tid == tid)
    }

    impl Thread {
        fn new() -> Thread {
            let tid = KERNEL.with(|kernel| {
                kernel.last_tid.set(kernel.last_tid.get() + 1);
                kernel.last_tid.get()
            });
            Thread {
                tid,
                pending: Cell::new(None),
                linked: RefCell::new(Vec::new()),
                kill_points_left: Cell::new(0),
            }
        }

        /// A kill point, for the lock asks it just before it puts the TID into a word or takes it out.
        pub(crate) fn tid(&self) -> u32 {
            kill_point();
            self.tid
        }

        pub(crate) fn has_room(&self) -> bool {
            true
        }

        pub(crate) fn set_pending(&self, node: &Node) {
            kill_point();
            self.pending.set(Some(address_of(node)));
            compiler_fence(Ordering::SeqCst);
        }

        pub(crate) fn clear_pending(&self) {
            kill_point();
            compiler_fence(Ordering::SeqCst);
            self.pending.set(None);
        }

        /// For the models: nothing may be left pending for long. The slot would outlive the lock's memory.
        pub(crate) fn has_pending(&self) -> bool {
            self.pending.get().is_some()
        }

        pub(crate) fn link(&self, node: &Node) {
            kill_point();
            let mut linked = self.linked.borrow_mut();
            assert!(!linked.contains(&address_of(node)), "a node was put in twice");
            linked.push(address_of(node));
        }

        pub(crate) fn unlink(&self, node: &Node) {
            kill_point();
            let mut linked = self.linked.borrow_mut();
            let place = linked.iter().position(|&other| other == address_of(node));
            linked.remove(place.expect("a node that is taken out is in the list"));
        }

        /// The end of the thread: every lock in the list, the newest first, and the pending one after them.
        pub(super) fn walk(&self, locks: &[(&Node, &AtomicU32)]) {
            let word_of = |entry: usize| {
                let lock = locks.iter().find(|(node, _)| address_of(*node) == entry);
                lock.expect("a mortal thread names the locks it may touch").1
            };
            let pending = self.pending.take();
            for entry in self.linked.take().into_iter().rev().filter(|&entry| Some(entry) != pending) {
                self.bury(word_of(entry), false);
            }
            if let Some(entry) = pending {
                self.bury(word_of(entry), true);
            }
        }

        /// Several steps, as in the kernel: look, mark, and then wake.
        fn bury(&self, word: &AtomicU32, is_pending: bool) {
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                // It died on its way to the word or away from it, and a wake-up may have died with it.
                if is_pending && seen & OWNER == 0 {
                    return wake_one(word);
                }
                if seen & OWNER != self.tid {
                    return;
                }
                let marked = seen & WAITERS | OWNER_DIED;
                match word.compare_exchange(seen, marked, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(newer) => seen = newer,
                }
            }
            KERNEL.with(|kernel| kernel.marked.borrow_mut().push(address_of(word)));
            count(|tally| tally.marked += 1);
            if seen & WAITERS != 0 {
                wake_one(word);
            }
        }
    }

    fn wake_one(word: &AtomicU32) {
        read_for_queue(word);
        KERNEL.with(|kernel| kernel.wake(word, 1));
    }
}
