//! What sharing costs when nobody else is there: locks, atomics and values beside std's, the C library's and the bare instruction.
//!
//! `cargo bench --bench uncontended`

mod harness;

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use harness::pthread::Pthread;
use harness::{Contender, compare};
use multiproc::plain::Plain;
use multiproc::{Array, Mutex, Ordering::Relaxed, Value};

const ROUNDS: usize = 1001;

fn main() -> multiproc::Result<()> {
    harness::introduce();
    locks()?;
    numbers()?;
    larger_values("64 bytes", [0_u8; 64], [1; 64])?;
    larger_values("1 KiB", [0_u8; 1 << 10], [1; 1 << 10])?;
    arrays()
}

fn locks() -> multiproc::Result<()> {
    let ours = Mutex::new(0_u64)?;
    let std = std::sync::Mutex::new(0_u64);
    let (robust, shared) = (Pthread::leaked(true), Pthread::leaked(false));
    let [mut robust_count, mut shared_count, mut bare_count] = [0_u64; 3];
    let bare = AtomicU32::new(0);
    compare(
        "lock + unlock",
        ROUNDS,
        vec![
            Contender::each("multiproc::Mutex", || *ours.lock().unwrap() += 1),
            Contender::each("std::sync::Mutex", || *std.lock().unwrap() += 1),
            Contender::each("pthread, process-shared, robust", || robust.with(|| robust_count += 1)),
            Contender::each("pthread, process-shared", || shared.with(|| shared_count += 1)),
            Contender::each("(the hardware) two compare-exchanges", || {
                let _ = bare.compare_exchange(0, 1, Ordering::Acquire, Relaxed);
                bare_count += 1;
                let _ = bare.compare_exchange(1, 0, Ordering::Release, Relaxed);
            }),
        ],
    );
    let std_count = *std.lock().unwrap();
    let counts = [*ours.lock()?, std_count, robust_count, shared_count];
    assert!(counts.iter().all(|&count| count >= bare_count / 2), "a lock lost something: {counts:?}");
    Ok(())
}

fn numbers() -> multiproc::Result<()> {
    let ours = Value::new(0_u64)?;
    let bare = AtomicU64::new(0);
    compare(
        "fetch_add",
        ROUNDS,
        vec![
            Contender::each("Value<u64>::fetch_add", || ours.fetch_add(1, Relaxed)),
            Contender::each("AtomicU64::fetch_add", || bare.fetch_add(1, Relaxed)),
        ],
    );
    assert!(ours.get() > 0);
    compare(
        "get",
        ROUNDS,
        vec![
            Contender::each("Value<u64>::get", || ours.get()),
            Contender::each("AtomicU64::load", || bare.load(Ordering::Acquire)),
        ],
    );
    Ok(())
}

/// Values that are no numbers, beside a mutex over the same bytes.
fn larger_values<T>(size: &str, zero: T, other: T) -> multiproc::Result<()>
where
    T: Plain + multiproc::plain::Element + PartialEq + std::fmt::Debug,
{
    let ours = Value::new(zero)?;
    let by_hand = Mutex::new(zero)?;
    ours.set(other);
    *by_hand.lock()? = other;
    assert_eq!(ours.get(), *by_hand.lock()?);
    compare(
        &format!("set of {size}"),
        ROUNDS,
        vec![
            Contender::each("Value::set", || ours.set(black_box(other))),
            Contender::each("lock + copy in", || *by_hand.lock().unwrap() = black_box(other)),
        ],
    );
    compare(
        &format!("get of {size}"),
        ROUNDS,
        vec![
            Contender::each("Value::get", || ours.get()),
            Contender::each("lock + copy out", || *by_hand.lock().unwrap()),
        ],
    );
    let (mut written, mut by_hand_written) = (other, other);
    compare(
        &format!("set + get of {size}"),
        ROUNDS,
        vec![
            Contender::each("Value", || {
                ours.set(black_box(written));
                written = ours.get();
            }),
            Contender::each("lock + copy in, lock + copy out", || {
                *by_hand.lock().unwrap() = black_box(by_hand_written);
                by_hand_written = *by_hand.lock().unwrap();
            }),
        ],
    );
    assert_eq!(written, other);
    Ok(())
}

fn arrays() -> multiproc::Result<()> {
    /// Elements of one piece: 1 MiB, so that a round is short.
    const PIECE: usize = 128 << 10;
    let elements: Vec<f64> = (0..8 << 20).map(f64::from).collect();
    let array = Array::from_slice(&elements)?;
    assert_eq!(array.lock()?[..], elements[..]);
    for (title, sum) in [
        ("sum of 64 MiB of f64, a MiB at a time", one_by_one as fn(&[f64]) -> f64),
        ("sum of 64 MiB of f64, a MiB at a time, in sixteen sums", sixteen_at_a_time),
    ] {
        let next = |piece: &mut usize| {
            *piece = (*piece + PIECE) % elements.len();
            *piece..*piece + PIECE
        };
        let (mut ours, mut bare) = (0, 0);
        compare(
            title,
            ROUNDS,
            vec![
                Contender::each("Array<f64>, locked", || sum(&array.lock().unwrap()[next(&mut ours)])),
                Contender::each("native slice", || sum(&elements[next(&mut bare)])),
            ],
        );
    }
    Ok(())
}

fn one_by_one(elements: &[f64]) -> f64 {
    elements.iter().sum()
}

/// A sum that memory bounds, not the latency of an addition.
fn sixteen_at_a_time(elements: &[f64]) -> f64 {
    let mut sums = [0.0; 16];
    for chunk in elements.chunks_exact(16) {
        for (sum, element) in sums.iter_mut().zip(chunk) {
            *sum += element;
        }
    }
    sums.iter().sum()
}
