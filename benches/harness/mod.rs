//! Interleaved rounds and ratios: what is measured and its reference run in turn, so that a machine that changes its mind between two
//! rounds changes both, and the ratio is taken round by round.
//!
//! A round is short, less than a scheduler's slice: on a machine that others use, most rounds then see nobody, and the median passes by the
//! others. Every figure is a median over rounds with its quartiles; a ratio is the median of the rounds' quotients. Nothing here asserts a
//! time.

#![allow(dead_code, reason = "each bench uses its part of it")]
#![allow(clippy::disallowed_methods, reason = "a bench has a clock of its own")]
#![allow(unsafe_code, reason = "pinning is the C library's")]

pub(crate) mod contest;
pub(crate) mod pthread;

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long a contender's part of a round takes, if its operation is no longer than that.
const PART: Duration = Duration::from_micros(300);
/// How long a comparison takes at most, one part of each contender apart.
const COMPARISON: Duration = Duration::from_secs(3);
const COMPARISON_QUICK: Duration = Duration::from_millis(300);

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

/// Runs all contenders in turn, for at most `most_rounds` rounds, and prints the time per operation, and the first one's ratio to each
/// other.
pub(crate) fn compare(title: &str, most_rounds: usize, mut contenders: Vec<Contender<'_>>) {
    let iterations = iterations_of(&mut contenders);
    let mut ns: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    let limit = if is_quick() { COMPARISON_QUICK } else { COMPARISON };
    let begin = Instant::now();
    for round in 0..rounds(most_rounds) {
        if round > 2 && begin.elapsed() > limit {
            break;
        }
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

/// As many as the slowest contender does in one part; everything is warm afterwards.
fn iterations_of(contenders: &mut [Contender<'_>]) -> u64 {
    let mut least = u64::MAX;
    for contender in contenders {
        let mut iterations = 1;
        loop {
            let start = Instant::now();
            (contender.run)(iterations);
            let taken = start.elapsed();
            if taken >= PART || iterations >= 1 << 24 {
                break;
            }
            iterations *= 2;
        }
        least = least.min(iterations);
    }
    least
}

/// Prints the medians of figures that were taken elsewhere, a row a contender, a column a round: nanoseconds, of which less is better.
pub(crate) fn report(title: &str, names: &[&str], ns: &[Vec<f64>]) {
    table(title, names, ns, time);
}

/// The same of operations per second, of which more is better.
pub(crate) fn report_rates(title: &str, names: &[&str], per_second: &[Vec<f64>]) {
    table(title, names, per_second, |rate| format!("{:.2} M/s", rate / 1e6));
}

fn table(title: &str, names: &[&str], figures: &[Vec<f64>], show: impl Fn(f64) -> String) {
    println!("\n{title} ({} rounds)", figures.iter().map(Vec::len).min().unwrap_or(0));
    for (index, name) in names.iter().enumerate() {
        let [low, middle, high] = quartiles(&figures[index]).map(&show);
        print!("  {name:<44} {middle:>12}  ({low} .. {high})");
        if index > 0 {
            let quotients: Vec<f64> =
                figures[0].iter().zip(&figures[index]).map(|(ours, theirs)| ours / theirs).collect();
            let [low, middle, high] = quartiles(&quotients);
            print!("   {} is {middle:.2} x of it ({low:.2} .. {high:.2})", names[0]);
        }
        println!();
    }
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    quartiles(figures)[1]
}

fn quartiles(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

pub(crate) fn time(ns: f64) -> String {
    if ns < 1e3 {
        format!("{ns:.2} ns")
    } else if ns < 1e6 {
        format!("{:.2} us", ns / 1e3)
    } else {
        format!("{:.2} ms", ns / 1e6)
    }
}

/// Says where the figures come from: machine, load, commit.
pub(crate) fn introduce() {
    let first_of = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.rsplit_once(": ").map_or(line, |(_, value)| value).to_owned()
    };
    let commit = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!(
        "{}, {} CPUs, Linux {}, load {}, commit {}",
        first_of("/proc/cpuinfo", "model name"),
        std::thread::available_parallelism().map_or(1, usize::from),
        first_of("/proc/sys/kernel/osrelease", ""),
        first_of("/proc/loadavg", "").split(' ').next().unwrap_or_default(),
        commit.unwrap_or_default(),
    );
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

/// Asks that this thread runs before those of others, and before such threads of a lower rank; 0 is like everybody. Only a privileged user
/// is heard.
pub(crate) fn go_before_others(rank: i32) {
    let policy = if rank == 0 { libc::SCHED_OTHER } else { libc::SCHED_FIFO };
    let parameters = libc::sched_param { sched_priority: rank };
    // SAFETY: 0 is this thread, the parameters are alive; whatever becomes of it, the bench goes on.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}

/// A quick run was asked for: `cargo bench -- --quick`.
pub(crate) fn is_quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// `rounds`, or few of them for a quick run.
pub(crate) fn rounds(rounds: usize) -> usize {
    if is_quick() { rounds.min(5) } else { rounds }
}
