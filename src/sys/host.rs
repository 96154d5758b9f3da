//! What this process may know of the machine, of itself and of others: boot, namespace, users, who lives.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use crate::primitive::{AtomicU64, Ordering};
use crate::sys::robust;

/// This boot of the machine, 0 where `/proc` is not mounted.
pub(crate) fn boot_id() -> u128 {
    static BOOT_ID: OnceLock<u128> = OnceLock::new();
    *BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok())
            .unwrap_or(0)
    })
}

/// The PID namespace of this process, 0 where `/proc` is not mounted. TIDs mean nothing outside it.
pub(crate) fn pid_namespace() -> u64 {
    /// The namespace, for the process that asked: a fork may land in another one.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    static KNOWN_FORKS: AtomicU64 = AtomicU64::new(u64::MAX);
    let forks = u64::from(robust::forks());
    if KNOWN_FORKS.load(Ordering::Acquire) == forks {
        return KNOWN.load(Ordering::Relaxed);
    }
    let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
    KNOWN.store(namespace, Ordering::Relaxed);
    KNOWN_FORKS.store(forks, Ordering::Release);
    namespace
}

/// The user whose files this process makes.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// When a process was started, in clock ticks since the boot; `None` if there is no such process, or it has ended with all its threads and
/// only waits for its parent. A process whose main thread alone has ended lives.
/// ([proc_pid_stat(5)](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html), fields 3, 20 and 22.)
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    started_and_alive(&stat).filter(|&(_, is_alive)| is_alive).map(|(started, _)| started)
}

fn started_and_alive(stat: &str) -> Option<(u64, bool)> {
    // The second field is the name in parentheses, which may hold anything; what follows the last one is numbers.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let thread_count: u32 = fields.nth(16)?.parse().ok()?;
    let is_alive = !matches!(state, "Z" | "X" | "x") || thread_count > 1;
    Some((fields.nth(1)?.parse().ok()?, is_alive))
}

/// Whether a process that was started then has ended for certain, with all its threads. What cannot be found out counts as alive.
pub(crate) fn has_ended(pid: u32, started: u64) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => match started_and_alive(&stat) {
            Some((now_started, is_alive)) => !is_alive || (started != 0 && now_started != started),
            None => false,
        },
        // Gone, or /proc is not mounted: then the kernel is asked, which does not tell a zombie from the living.
        Err(_) => {
            let Ok(pid) = i32::try_from(pid) else { return true };
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(nix::Error::ESRCH)
        }
    }
}

/// When this process was started.
pub(crate) fn own_start_time() -> u64 {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    static KNOWN_FORKS: AtomicU64 = AtomicU64::new(u64::MAX);
    let forks = u64::from(robust::forks());
    if KNOWN_FORKS.load(Ordering::Acquire) == forks {
        return KNOWN.load(Ordering::Relaxed);
    }
    let started = start_time(std::process::id()).unwrap_or(0);
    KNOWN.store(started, Ordering::Relaxed);
    KNOWN_FORKS.store(forks, Ordering::Release);
    started
}

/// How much memory could be had now without swapping, in bytes; `None` where `/proc` is not mounted.
pub(crate) fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself() {
        assert_ne!(boot_id(), 0);
        assert_ne!(pid_namespace(), 0);
        assert_eq!(start_time(std::process::id()), Some(own_start_time()));
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        while start_time(pid).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }
}
