//! Who is killed and stopped, and the watch over the whole.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::Dice;

/// Nobody who runs is without progress for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one is stopped at most.
const LONGEST_STOP_MS: u64 = 60;
/// One who is descended from the driver: whoever loses his parent is adopted by it.
pub(crate) struct Descendant {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// As `/proc/PID/stat` has it: R, S, D, T, Z …
    pub(crate) state: char,
}

pub(crate) fn descendants() -> Vec<Descendant> {
    let mut everybody = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(found) = pid.and_then(look_at) {
            everybody.push(found);
        }
    }
    let mut family = BTreeSet::from([std::process::id()]);
    loop {
        let before = family.len();
        family.extend(
            everybody
                .iter()
                .filter(|one| family.contains(&one.parent))
                .map(|one| one.pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    everybody.retain(|one| family.contains(&one.parent));
    everybody
}

fn look_at(pid: u32) -> Option<Descendant> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, a parenthesis too: the last one ends it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Descendant { pid, state, parent: fields.next()?.parse().ok()? })
}

/// A hold on a process, so that no signal meets another one that got its number.
pub(crate) struct Target(OwnedFd);

impl Target {
    #[expect(unsafe_code, reason = "the descriptor of a process has no safe wrapper")]
    pub(crate) fn new(pid: u32) -> Option<Target> {
        // SAFETY: takes two numbers and makes a descriptor, or fails.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = i32::try_from(descriptor).ok().filter(|&descriptor| descriptor >= 0)?;
        // SAFETY: the kernel has just made it for us.
        let target = Target(unsafe { OwnedFd::from_raw_fd(descriptor) });
        // Looked at again: what the descriptor holds is what the number means now.
        descendants().iter().any(|one| one.pid == pid).then_some(target)
    }

    #[expect(unsafe_code, reason = "the descriptor of a process has no safe wrapper")]
    pub(crate) fn signal(&self, signal: i32) {
        // It fails only for one that has ended.
        // SAFETY: an open descriptor and numbers.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, 0_usize, 0) };
    }
}

/// The thread that kills and stops.
#[derive(Default)]
pub(crate) struct Chaos {
    pub(crate) is_over: AtomicBool,
    /// While it is calm, nobody is killed or stopped.
    is_calm: AtomicBool,
    /// It has seen that it is to be calm, and nobody is stopped any more.
    has_calmed: AtomicBool,
    pub(crate) kills: AtomicU64,
    pub(crate) stops: AtomicU64,
}

impl Chaos {
    pub(crate) fn rage(&self, mut dice: Dice) {
        let mut stopped: Vec<(Target, Instant)> = Vec::new();
        while !self.is_over.load(Ordering::Acquire) {
            thread::sleep(Duration::from_micros(dice.below(20_000)));
            let is_calm = self.is_calm.load(Ordering::Acquire);
            stopped.retain(|(target, until)| {
                let stays = !is_calm && Instant::now() < *until;
                if !stays {
                    target.signal(libc::SIGCONT);
                }
                stays
            });
            self.has_calmed.store(is_calm, Ordering::Release);
            if is_calm {
                continue;
            }
            let living: Vec<u32> =
                descendants().iter().filter(|one| one.state != 'Z').map(|one| one.pid).collect();
            if living.is_empty() {
                continue;
            }
            let chosen = living[dice.below(living.len() as u64) as usize];
            let Some(target) = Target::new(chosen) else { continue };
            if dice.below(3) > 0 {
                // Counted first: it is the upper bound of the doubts.
                self.kills.fetch_add(1, Ordering::Relaxed);
                target.signal(libc::SIGKILL);
            } else {
                self.stops.fetch_add(1, Ordering::Relaxed);
                target.signal(libc::SIGSTOP);
                let length = Duration::from_millis(dice.below(LONGEST_STOP_MS));
                stopped.push((target, Instant::now() + length));
            }
        }
        stopped.iter().for_each(|(target, _)| target.signal(libc::SIGCONT));
    }

    /// No more kills and stops from here on, until `rage_again`.
    pub(crate) fn calm_down(&self) {
        self.is_calm.store(true, Ordering::Release);
        while !self.has_calmed.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn rage_again(&self) {
        self.has_calmed.store(false, Ordering::Release);
        self.is_calm.store(false, Ordering::Release);
    }
}

/// Ends the whole storm when the driver makes no progress itself.
pub(crate) struct Watchdog(Arc<Mutex<(Instant, &'static str)>>);

impl Watchdog {
    pub(crate) fn start() -> Watchdog {
        let word = Arc::new(Mutex::new((Instant::now(), "starting")));
        let seen = Arc::clone(&word);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_millis(500));
                let (since, what) = *seen.lock().expect("nobody panics with it");
                if since.elapsed() > PATIENCE {
                    abandon(&format!("the driver hangs while {what}"));
                }
            }
        });
        Watchdog(word)
    }

    pub(crate) fn pat(&self, what: &'static str) {
        *self.0.lock().expect("nobody panics with it") = (Instant::now(), what);
    }
}

/// Shows what everybody is doing, kills them all, and ends the driver.
fn abandon(why: &str) -> ! {
    println!("FAIL storm: {why}");
    for one in descendants() {
        println!("--- process {} of {}, {}", one.pid, one.parent, one.state);
        let threads = fs::read_dir(format!("/proc/{}/task", one.pid));
        for thread in threads.into_iter().flatten().flatten() {
            for file in ["comm", "wchan", "syscall", "stack", "status"] {
                let text = fs::read_to_string(thread.path().join(file)).unwrap_or_default();
                let text = text.lines().take(12).collect::<Vec<_>>().join(" | ");
                println!("    {} {file}: {text}", thread.file_name().to_string_lossy());
            }
        }
    }
    kill_all();
    std::process::exit(1)
}

/// After a failure: nobody stays behind. Twice, for those who were just being started.
pub(crate) fn kill_all() {
    for _ in 0..2 {
        descendants()
            .iter()
            .filter_map(|one| Target::new(one.pid))
            .for_each(|target| target.signal(libc::SIGKILL));
        thread::sleep(Duration::from_millis(50));
    }
}
