//! What sharing costs when nobody else is there: locks, atomics and values beside std's, the C library's and the bare instruction.
//!
//! `cargo bench --bench uncontended`

#![allow(unsafe_code, reason = "the peers are the C library's mutexes and plain memory")]

mod harness;

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use harness::{Contender, compare, rounds};
use multiproc::{Array, Mutex, Value};

const ITERATIONS: u64 = 1_000_000;

/// A pthread mutex on the heap.
struct Pthread(Box<UnsafeCell<libc::pthread_mutex_t>>);

impl Pthread {
    fn new(robust: bool) -> Pthread {
        let mutex = Pthread(Box::new(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)));
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: memory for one.
        unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: initialised.
        unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        if robust {
            // SAFETY: initialised.
            unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
        }
        // SAFETY: both are live, and nobody uses the mutex yet.
        unsafe { libc::pthread_mutex_init(mutex.0.get(), attributes) };
        mutex
    }

    fn lock_unlock(&self) {
        // SAFETY: initialised, and lives as long as `self`.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
        // SAFETY: this thread has just locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

fn main() -> multiproc::Result<()> {
    let rounds = rounds(31);
    let ours = Mutex::new(0_u64)?;
    let std = std::sync::Mutex::new(0_u64);
    let (robust, shared) = (Pthread::new(true), Pthread::new(false));
    compare(
        "lock + unlock",
        ITERATIONS,
        rounds,
        vec![
            Contender::each("multiproc::Mutex", || *ours.lock().unwrap() += 1),
            Contender::each("std::sync::Mutex", || *std.lock().unwrap() += 1),
            Contender::each("pthread, process-shared, robust", || robust.lock_unlock()),
            Contender::each("pthread, process-shared", || shared.lock_unlock()),
        ],
    );

    let ours = Value::new(0_u64)?;
    let bare = AtomicU64::new(0);
    compare(
        "fetch_add",
        ITERATIONS,
        rounds,
        vec![
            Contender::each("Value<u64>::fetch_add", || ours.fetch_add(1, Relaxed)),
            Contender::each("AtomicU64::fetch_add", || bare.fetch_add(1, Relaxed)),
        ],
    );
    compare(
        "get",
        ITERATIONS * 4,
        rounds,
        vec![
            Contender::each("Value<u64>::get", || ours.get()),
            Contender::each("AtomicU64::load", || bare.load(Relaxed)),
        ],
    );

    let ours = Value::new([0_u8; 64])?;
    let by_hand = Mutex::new([0_u8; 64])?;
    let mut written = [1_u8; 64];
    let mut by_hand_written = [1_u8; 64];
    compare(
        "set + get of 64 bytes",
        ITERATIONS / 4,
        rounds,
        vec![
            Contender::each("Value<[u8; 64]>", || {
                ours.set(std::hint::black_box(written));
                written = ours.get();
            }),
            Contender::each("lock + copy in, lock + copy out", || {
                *by_hand.lock().unwrap() = std::hint::black_box(by_hand_written);
                by_hand_written = *by_hand.lock().unwrap();
            }),
        ],
    );

    let elements: Vec<f64> = (0..8 << 20).map(f64::from).collect();
    let array = Array::from_slice(&elements)?;
    compare(
        "sum of 64 MiB of f64",
        1,
        rounds,
        vec![
            Contender::each("Array<f64>, locked", || array.lock().unwrap().iter().sum::<f64>()),
            Contender::each("native slice", || elements.iter().sum::<f64>()),
        ],
    );
    compare(
        "sum of 64 MiB of f64, sixteen at a time",
        1,
        rounds,
        vec![
            Contender::each("Array<f64>, locked", || sum(&array.lock().unwrap())),
            Contender::each("native slice", || sum(&elements)),
        ],
    );
    Ok(())
}

/// A sum that memory bounds, not the latency of an addition.
fn sum(elements: &[f64]) -> f64 {
    let mut sums = [0.0; 16];
    for chunk in elements.chunks_exact(16) {
        for (sum, element) in sums.iter_mut().zip(chunk) {
            *sum += element;
        }
    }
    sums.iter().sum()
}
