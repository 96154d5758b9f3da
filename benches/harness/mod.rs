//! Interleaved rounds and ratios: what is measured and its reference run in turn, so that a machine that changes its mind between two
//! rounds changes both, and the ratio is taken round by round.
//!
//! Every figure is a median over rounds; a ratio is the median of the rounds' quotients. Nothing here asserts a time.

#![allow(dead_code, reason = "each bench uses its part of it")]
#![allow(clippy::disallowed_methods, reason = "a bench has a clock of its own")]
#![allow(unsafe_code, reason = "pinning is the C library's")]

use std::hint::black_box;
use std::time::Instant;

/// One contender: a name, and a function that runs the operation `iterations` times.
pub(crate) struct Contender<'a> {
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn FnMut(u64) + 'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(name: &'static str, run: impl FnMut(u64) + 'a) -> Contender<'a> {
        Contender { name, run: Box::new(run) }
    }

    /// One that does `operation` once an iteration.
    pub(crate) fn each<R>(name: &'static str, mut operation: impl FnMut() -> R + 'a) -> Contender<'a> {
        Contender::new(name, move |iterations| {
            for _ in 0..iterations {
                black_box(operation());
            }
        })
    }
}

/// Runs all contenders in turn, `rounds` times, and prints nanoseconds per operation, and the first one's ratio to each other.
pub(crate) fn compare(title: &str, iterations: u64, rounds: usize, mut contenders: Vec<Contender<'_>>) {
    for contender in &mut contenders {
        (contender.run)(iterations / 10 + 1);
    }
    let mut ns: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for step in 0..contenders.len() {
            // Not always in the same order: what runs after what is part of the weather.
            let index = (step + round) % contenders.len();
            let start = Instant::now();
            (contenders[index].run)(iterations);
            ns[index].push(start.elapsed().as_nanos() as f64 / iterations as f64);
        }
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    report(title, &names, &ns);
}

/// Prints the medians of figures that were taken elsewhere, a row a contender, a column a round.
pub(crate) fn report(title: &str, names: &[&str], ns: &[Vec<f64>]) {
    println!("\n{title}");
    for (index, name) in names.iter().enumerate() {
        let (low, high) = extremes(&ns[index]);
        print!("  {name:<44} {:>12} ({} .. {})", time(median(&ns[index])), time(low), time(high));
        if index > 0 {
            let quotients: Vec<f64> =
                ns[0].iter().zip(&ns[index]).map(|(ours, theirs)| ours / theirs).collect();
            print!("   {} is {:.2} x of it", names[0], median(&quotients));
        }
        println!();
    }
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn extremes(figures: &[f64]) -> (f64, f64) {
    figures.iter().fold((f64::INFINITY, 0.0), |(low, high), &figure| (low.min(figure), high.max(figure)))
}

fn time(ns: f64) -> String {
    if ns < 1e3 {
        format!("{ns:.2} ns")
    } else if ns < 1e6 {
        format!("{:.2} us", ns / 1e3)
    } else {
        format!("{:.2} ms", ns / 1e6)
    }
}

/// Pins this thread to one CPU, if the machine has it.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: an all-zero set is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the set's size on any machine of less than 1024 CPUs.
    unsafe { libc::CPU_SET(cpu % 1024, &mut set) };
    // SAFETY: 0 is this thread; the set is alive. A machine that does not have the CPU leaves the thread where it was.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

/// A quick run was asked for: `cargo bench -- --quick`.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// `rounds`, or few of them for a quick run.
pub(crate) fn rounds(rounds: usize) -> usize {
    if is_quick() { 3 } else { rounds }
}
