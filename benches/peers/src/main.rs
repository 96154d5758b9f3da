//! Locks and values of other crates beside ours: alone, and wanted by two threads all the time.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml`
//!
//! NB: parking_lot's and std's mutexes serve the threads of one process only and know nothing of a dead owner; raw_sync's forgets the data
//! when an owner dies. They are what the speed is measured by.

#[path = "../../harness/mod.rs"]
mod harness;

use harness::contest::{Board, Player};
use harness::{Contender, compare};
use multiproc::{Mutex, Value};
use raw_sync::locks::{LockImpl, LockInit, Mutex as PthreadOfRawSync};

const NAMES: [&str; 4] =
    ["multiproc::Mutex", "parking_lot::Mutex", "std::sync::Mutex", "raw_sync::locks::Mutex"];

/// raw_sync's mutex over one number, in memory that stays.
struct RawSync(Box<dyn LockImpl>);

// SAFETY: it is a process-shared pthread mutex over leaked memory.
unsafe impl Send for RawSync {}
// SAFETY: as above.
unsafe impl Sync for RawSync {}

impl RawSync {
    fn new() -> RawSync {
        #[repr(align(64))]
        struct Memory([u8; 128]);
        let memory = Box::leak(Box::new(Memory([0; 128])));
        let base = memory.0.as_mut_ptr();
        // SAFETY: the number's place is inside the memory: the mutex takes less than 64 bytes.
        let number = unsafe { base.add(64) };
        // SAFETY: memory that is aligned, zeroed, large enough, and leaked.
        let (mutex, size) = unsafe { PthreadOfRawSync::new(base, number) }.expect("memory for a mutex");
        assert!(size <= 64);
        RawSync(mutex)
    }

    #[inline]
    fn section(&self) {
        let guard = self.0.lock().expect("nobody dies here");
        // SAFETY: the guard gives the address of the number, which is ours while it lives.
        unsafe { *(*guard).cast::<u64>() += 1 };
    }

    fn count(&self) -> u64 {
        let guard = self.0.lock().expect("nobody dies here");
        // SAFETY: as in `section`.
        unsafe { *(*guard).cast::<u64>() }
    }
}

struct Locks {
    ours: Mutex<u64>,
    parking_lot: parking_lot::Mutex<u64>,
    std: std::sync::Mutex<u64>,
    raw_sync: RawSync,
}

impl Locks {
    fn new() -> multiproc::Result<Locks> {
        Ok(Locks {
            ours: Mutex::new(0)?,
            parking_lot: parking_lot::Mutex::new(0),
            std: std::sync::Mutex::new(0),
            raw_sync: RawSync::new(),
        })
    }

    fn counts(&self) -> multiproc::Result<[u64; 4]> {
        let std = *self.std.lock().expect("nobody panics");
        Ok([*self.ours.lock()?, *self.parking_lot.lock(), std, self.raw_sync.count()])
    }
}

fn main() -> multiproc::Result<()> {
    harness::introduce();
    alone()?;
    two_threads()?;
    values()
}

fn alone() -> multiproc::Result<()> {
    let locks = Locks::new()?;
    compare(
        "lock + unlock",
        1001,
        vec![
            Contender::each(NAMES[0], || *locks.ours.lock().unwrap() += 1),
            Contender::each(NAMES[1], || *locks.parking_lot.lock() += 1),
            Contender::each(NAMES[2], || *locks.std.lock().unwrap() += 1),
            Contender::each(NAMES[3], || locks.raw_sync.section()),
        ],
    );
    let counts = locks.counts()?;
    assert!(counts.iter().all(|&count| count >= counts[0] / 1_000_000), "a lock lost something: {counts:?}");
    Ok(())
}

fn two_threads() -> multiproc::Result<()> {
    let locks = Locks::new()?;
    let board = Board::new()?;
    let totals = std::thread::scope(|scope| {
        for number in [0, 1] {
            let (locks, board) = (&locks, &board);
            scope.spawn(move || {
                let players = vec![
                    Player::each(|| *locks.ours.lock().unwrap() += 1),
                    Player::each(|| *locks.parking_lot.lock() += 1),
                    Player::each(|| *locks.std.lock().unwrap() += 1),
                    Player::each(|| locks.raw_sync.section()),
                ];
                board.work(number, players);
            });
        }
        board.direct("two threads, sections per second", &NAMES, 101)
    });
    assert_eq!(totals, locks.counts()?);
    Ok(())
}

/// A value that is no number, beside what a program of threads would take.
fn values() -> multiproc::Result<()> {
    let (zero, other) = ([0_u64; 8], [1; 8]);
    let ours = Value::new(zero)?;
    let lock = parking_lot::RwLock::new(zero);
    ours.set(other);
    *lock.write() = other;
    assert_eq!(ours.get(), *lock.read());
    compare(
        "get of 64 bytes",
        1001,
        vec![
            Contender::each("Value::get", || ours.get()),
            Contender::each("parking_lot::RwLock, read and copy", || *lock.read()),
        ],
    );
    compare(
        "set of 64 bytes",
        1001,
        vec![
            Contender::each("Value::set", || ours.set(std::hint::black_box(other))),
            Contender::each("parking_lot::RwLock, copy and write", || {
                *lock.write() = std::hint::black_box(other)
            }),
        ],
    );
    Ok(())
}
