//! Two workers at one lock, each on a CPU of its own, for a few milliseconds a round: two processes, or two threads.
//!
//! The parent calls the rounds and sleeps meanwhile; the workers start together and time themselves. All contenders stay alive and take
//! turns, as in [`compare`](super::compare).
//!
//! On a machine that others use as well, a waiter that yields gives its CPU to them, and one of two workers often plays alone. So the workers
//! ask to go before all others, and a play in which one of them had to wait for its CPU nevertheless is played again.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use multiproc::Ordering::{AcqRel, Acquire, Relaxed, Release};
use multiproc::RawArray;

use super::{go_before_others, median, pin, report_rates, rounds};

const WORKERS: usize = 2;
/// How long a play takes.
const PLAY: Duration = Duration::from_millis(4);
/// The most of a play that a worker may have waited for its CPU, and how often it is played again for that.
const DISTURBED: f64 = 0.03;
const ATTEMPTS: usize = 10;
const POLL: Duration = Duration::from_micros(50);
/// No round takes as long: a worker is gone.
const GONE: Duration = Duration::from_secs(20);

/// Words of the board, each on cache lines of its own.
const CALLED: usize = 0;
const PLAYER: usize = 16;
const ARRIVED: usize = 32;
const STOPPED: usize = 48;
const FINISHED: usize = 64;
/// A worker's count, its nanoseconds, and those that it waited for its CPU.
const RESULTS: usize = 80;
const WORDS: usize = RESULTS + 16 * WORKERS;
/// Instead of a player: go home.
const END: u64 = u64::MAX;

/// One contender, as a worker plays it.
pub(crate) struct Player<'a>(Box<dyn FnMut(&Board) -> u64 + 'a>);

impl<'a> Player<'a> {
    pub(crate) fn each(mut section: impl FnMut() + 'a) -> Player<'a> {
        Player(Box::new(move |board| {
            let mut count = 0;
            while board.0.load(STOPPED, Relaxed) == 0 {
                section();
                count += 1;
            }
            count
        }))
    }
}

/// Shared words by which the parent calls the rounds. To be sent as its handle.
pub(crate) struct Board(pub(crate) RawArray<u64>);

impl Board {
    pub(crate) fn new() -> multiproc::Result<Board> {
        Ok(Board(RawArray::new(WORDS)?))
    }

    /// Plays whatever is called, on CPU `worker`, until the end.
    pub(crate) fn work(&self, worker: usize, mut players: Vec<Player<'_>>) {
        pin(worker);
        go_before_others(1);
        for round in 1.. {
            self.wait(CALLED, round);
            let player = self.0.load(PLAYER, Relaxed);
            if player == END {
                return;
            }
            self.0.fetch_add(ARRIVED, 1, AcqRel);
            while self.0.load(ARRIVED, Acquire) < round * WORKERS as u64 {
                std::thread::yield_now();
            }
            let delayed_before = delayed_ns();
            let start = Instant::now();
            let count = (players[player as usize].0)(self);
            let ns = start.elapsed().as_nanos() as u64;
            let delayed = delayed_ns() - delayed_before;
            for (index, result) in [count, ns, delayed].into_iter().enumerate() {
                self.0.store(RESULTS + 16 * worker + index, result, Relaxed);
            }
            self.0.fetch_add(FINISHED, 1, Release);
        }
    }

    /// Calls all rounds, prints what became of them, and gives how many sections each contender ran.
    pub(crate) fn direct(&self, title: &str, names: &[&str], most_rounds: usize) -> Vec<u64> {
        // Before the workers: they do not end a play by themselves.
        go_before_others(2);
        let mut totals = vec![0; names.len()];
        let mut rates = vec![Vec::new(); names.len()];
        let mut least_shares = vec![Vec::new(); names.len()];
        let mut disturbed = 0;
        for round in 0..rounds(most_rounds) {
            for step in 0..names.len() {
                let player = (step + round) % names.len();
                for attempt in 1..=ATTEMPTS {
                    let results = self.call(player);
                    totals[player] += results.iter().map(|[count, ..]| count).sum::<u64>();
                    let is_disturbed =
                        results.iter().any(|&[_, ns, delayed]| delayed as f64 > DISTURBED * ns as f64);
                    if is_disturbed && attempt < ATTEMPTS {
                        continue;
                    }
                    disturbed += usize::from(is_disturbed);
                    let of_workers = results.map(|[count, ns, _]| count as f64 * 1e9 / ns as f64);
                    let rate: f64 = of_workers.iter().sum();
                    rates[player].push(rate);
                    least_shares[player].push(of_workers[0].min(of_workers[1]) / rate);
                    break;
                }
            }
        }
        self.0.store(PLAYER, END, Relaxed);
        self.0.fetch_add(CALLED, 1, Release);
        go_before_others(0);
        report_rates(title, names, &rates);
        let shares: Vec<String> =
            least_shares.iter().map(|shares| format!("{:.0} %", 100.0 * median(shares))).collect();
        println!("  share of the worker that got less, in the same order: {}", shares.join(", "));
        if disturbed > 0 {
            let plays = rates.iter().map(Vec::len).sum::<usize>();
            println!("  NB: in {disturbed} of {plays} plays a worker had to wait for its CPU");
        }
        totals
    }

    fn call(&self, player: usize) -> [[u64; 3]; WORKERS] {
        self.0.store(PLAYER, player as u64, Relaxed);
        self.0.store(STOPPED, 0, Relaxed);
        let round = self.0.fetch_add(CALLED, 1, Release) + 1;
        self.wait(ARRIVED, round * WORKERS as u64);
        sleep(PLAY);
        self.0.store(STOPPED, 1, Relaxed);
        self.wait(FINISHED, round * WORKERS as u64);
        [0, 1].map(|worker| [0, 1, 2].map(|index| self.0.load(RESULTS + 16 * worker + index, Relaxed)))
    }

    fn wait(&self, word: usize, value: u64) {
        let start = Instant::now();
        while self.0.load(word, Acquire) < value {
            assert!(start.elapsed() < GONE, "the other side is gone");
            sleep(POLL);
        }
    }
}

/// For how long this thread could have run and another one did ([proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html), `schedstat`).
fn delayed_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0)
}
