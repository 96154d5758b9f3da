//! What a lock costs when two want it all the time: two processes and two threads, each on a CPU of its own, one increment a section.
//!
//! `cargo bench --bench contended`
//!
//! NB: as a privileged user on a machine that others use as well: then the workers go before the others, which are stopped for as long as a
//! play takes. Else judge by a run on a quiet machine.

#![allow(unsafe_code, reason = "the peers are the C library's mutexes over plain memory")]

mod harness;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use harness::contest::{Board, Player};
use harness::pthread::Pthread;
use multiproc::{Mutex, Process, RawArray, Value};

const ROUNDS: usize = 101;

/// A pthread mutex and the number it protects, as far from each other as those of [`Mutex`]: 64 bytes.
#[derive(Clone, Copy)]
struct Guarded {
    mutex: Pthread,
    number: NonNull<u64>,
}

impl Guarded {
    /// One in elements that stay, made if `robust` says which kind.
    fn in_elements(array: &RawArray<u64>, robust: Option<bool>) -> Guarded {
        assert!(array.len() >= 16);
        let mut handle = array.clone();
        // SAFETY: the slice is given up at once for its address, and from then on the elements are the mutex's.
        let first = NonNull::from(unsafe { handle.as_mut_slice() }).cast::<u64>();
        // SAFETY: of 16 elements this is the ninth.
        let number = unsafe { first.add(8) };
        let place = first.cast();
        let mutex = match robust {
            // SAFETY: elements are aligned to 128 bytes, there are enough, they stay, and whoever calls this has told nobody yet.
            Some(robust) => unsafe { Pthread::init(place, robust) },
            // SAFETY: the one who has the array first made it before it was sent.
            None => unsafe { Pthread::at(place) },
        };
        Guarded { mutex, number }
    }

    fn section(self) {
        self.mutex.with(|| {
            // SAFETY: a number in elements that stay, and others come to it under the mutex only.
            unsafe { *self.number.as_ptr() += 1 };
        });
    }

    fn count(self) -> u64 {
        // SAFETY: as in `section`; the workers have ended.
        self.mutex.with(|| unsafe { *self.number.as_ptr() })
    }
}

/// What the workers of two processes share.
type Shared = (Mutex<u64>, RawArray<u64>, RawArray<u64>, Value<u64>);

const SHARED_NAMES: [&str; 4] = [
    "multiproc::Mutex",
    "pthread, process-shared",
    "pthread, process-shared, robust",
    "(the hardware) one fetch_add",
];

fn worker(number: usize, board: RawArray<u64>, (ours, plain, robust, bare): Shared) {
    let [plain_mutex, robust_mutex] = [&plain, &robust].map(|array| Guarded::in_elements(array, None));
    let players = vec![
        Player::each(|| *ours.lock().unwrap() += 1),
        Player::each(|| plain_mutex.section()),
        Player::each(|| robust_mutex.section()),
        Player::each(|| {
            bare.fetch_add(1, Relaxed);
        }),
    ];
    Board(board).work(number, players);
}

fn two_processes() -> multiproc::Result<()> {
    let shared: Shared = (Mutex::new(0)?, RawArray::new(16)?, RawArray::new(16)?, Value::new(0)?);
    let plain = Guarded::in_elements(&shared.1, Some(false));
    let robust = Guarded::in_elements(&shared.2, Some(true));
    let board = Board::new()?;
    let workers = [0, 1].map(|number| {
        // They end with this process, whatever happens to it: they go before others.
        Process::builder().daemon().spawn(worker, (number, board.0.clone(), shared.clone()))
    });
    let totals = board.direct("two processes, sections per second", &SHARED_NAMES, ROUNDS);
    for worker in workers {
        worker?.join()?;
    }
    assert_eq!(totals, [*shared.0.lock()?, plain.count(), robust.count(), shared.3.get()]);
    Ok(())
}

fn two_threads() -> multiproc::Result<()> {
    let (ours, array) = (Mutex::new(0)?, RawArray::new(16)?);
    let (std, bare) = (std::sync::Mutex::new(0), AtomicU64::new(0));
    let board = Board::new()?;
    let totals = std::thread::scope(|scope| {
        let plain = Guarded::in_elements(&array, Some(false));
        let (ours, std, bare, board) = (&ours, &std, &bare, &board);
        for number in [0, 1] {
            let array = array.clone();
            scope.spawn(move || {
                let plain = Guarded::in_elements(&array, None);
                let players = vec![
                    Player::each(|| *ours.lock().unwrap() += 1),
                    Player::each(|| *std.lock().unwrap() += 1),
                    Player::each(|| plain.section()),
                    Player::each(|| {
                        bare.fetch_add(1, Relaxed);
                    }),
                ];
                board.work(number, players);
            });
        }
        let names = ["multiproc::Mutex", "std::sync::Mutex", SHARED_NAMES[1], SHARED_NAMES[3]];
        let totals = board.direct("two threads, sections per second", &names, ROUNDS);
        (totals, plain.count())
    });
    let std_count = *std.lock().unwrap();
    assert_eq!(totals.0, [*ours.lock()?, std_count, totals.1, bare.into_inner()]);
    Ok(())
}

fn main() -> multiproc::Result<()> {
    harness::introduce();
    two_processes()?;
    two_threads()
}
