//! A forked process that answers for itself and never outlives the driver.
//!
//! Forking is only sound because the driver has one thread: in the child every lock of the C library and of Rust's
//! runtime is free. [`assert_single_threaded`] is asked before each run, since a library under test may start threads.

#![expect(unsafe_code, reason = "fork, kill, waitpid")]

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::shared::{Slot, futex_wait, state};

/// Between the two looks that tell a sleeper from a process that is just passing through a lock of the kernel.
const SECOND_LOOK: Duration = Duration::from_micros(300);

/// How a process stands, as `waitpid` tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Killed(i32),
    Stopped(i32),
}

/// A forked process; killed and reaped when dropped.
pub(crate) struct Child {
    pid: libc::pid_t,
    /// Its end, once it was reaped: the pid is nobody's from then on.
    end: Option<Status>,
}

impl Child {
    /// Forks; the child runs `body`, leaves its answer (or its panic) in `slot`, and exits without running anything
    /// that belongs to the driver: no destructors, no `atexit`.
    pub(crate) fn fork(slot: &Slot, body: impl FnOnce() -> Result<String, String>) -> Self {
        let driver = std::process::id();
        // SAFETY: the caller's process has one thread, so the child may do whatever its parent could.
        let pid = unsafe { libc::fork() };
        assert_ne!(pid, -1, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            live_no_longer_than(driver);
            slot.answer(&catch(body));
            // SAFETY: ends the process; there is nothing after it.
            unsafe { libc::_exit(0) }
        }
        Self { pid, end: None }
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// What has happened to it since the last look, without waiting.
    pub(crate) fn poll(&mut self) -> Option<Status> {
        self.wait_with(libc::WNOHANG)
    }

    /// Waits for the next thing that happens to it. Only for what is bound to happen soon.
    pub(crate) fn wait(&mut self) -> Status {
        loop {
            if let Some(status) = self.wait_with(0) {
                return status;
            }
        }
    }

    fn wait_with(&mut self, flags: i32) -> Option<Status> {
        if self.end.is_some() {
            return self.end;
        }
        let mut raw = 0;
        // `__WALL` has no effect on a plain fork's child and spares a thought about traced ones.
        // SAFETY: `raw` is writable for the length of the call.
        let got = unsafe { libc::waitpid(self.pid, &raw mut raw, flags | libc::WUNTRACED | libc::__WALL) };
        if got != self.pid {
            return None;
        }
        let status = if libc::WIFEXITED(raw) {
            Status::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            Status::Killed(libc::WTERMSIG(raw))
        } else {
            Status::Stopped(libc::WSTOPSIG(raw))
        };
        if !matches!(status, Status::Stopped(_)) {
            self.end = Some(status);
        }
        Some(status)
    }

    pub(crate) fn signal(&self, signal: i32) {
        if self.end.is_none() {
            // The error can be ignored: the process is our unreaped child, so that it exists, if only as a zombie.
            // SAFETY: not reaped yet, hence the pid is still this child's.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Kills it and waits until the kernel is through with it. The robust list is walked before the parent is told,
    /// so after this call the marks of the dead are in their words.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        while matches!(self.wait(), Status::Stopped(_)) {}
    }

    /// Whether it sleeps in the kernel where a signal could reach it, at two looks.
    pub(crate) fn is_asleep(&self) -> bool {
        self.run_state() == Some('S') && {
            std::thread::sleep(SECOND_LOOK);
            self.run_state() == Some('S')
        }
    }

    /// The letter of `/proc/PID/stat`: R running, S asleep, D asleep and deaf, t traced, T stopped, Z dead.
    fn run_state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The command's name may hold anything, a parenthesis too: the last one ends it.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    /// Sleeps a little, or until `slot` no longer says `seen`.
    pub(crate) fn doze(slot: &Slot, seen: u32) {
        futex_wait(slot.state_word(), seen, Some(Duration::from_millis(1)));
    }

    /// Waits for the answer, or for the death that prevents it.
    pub(crate) fn answer(&mut self, slot: &Slot, deadline: Instant) -> Answer {
        loop {
            // The order matters: one that is dead now left its answer before, or never will.
            let dead = self.poll().filter(|status| !matches!(status, Status::Stopped(_)));
            match (slot.state(), dead) {
                (state::DONE, _) => return Answer::Good(slot.text()),
                (state::FAILED, _) => return Answer::Bad(slot.text()),
                (_, Some(Status::Killed(signal))) => {
                    return Answer::Bad(format!("died of signal {signal}"));
                }
                (_, Some(_)) => return Answer::Bad("exited without an answer".into()),
                (_, None) if Instant::now() >= deadline => return Answer::Late,
                (seen, None) => Self::doze(slot, seen),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process had to say.
pub(crate) enum Answer {
    Good(String),
    Bad(String),
    /// Nothing, by the deadline.
    Late,
}

/// Undoes what a parent may have left us: with SIGCHLD ignored the kernel reaps children unasked.
pub(crate) fn keep_dead_children() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Panics unless this process has one thread.
pub(crate) fn assert_single_threaded() {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    assert!(
        matches!(threads, Ok(1)),
        "the driver must have one thread to fork safely, it has {threads:?}: `prepare` started one"
    );
}

/// Asks the kernel to kill this process with the driver, whichever way the driver goes.
fn live_no_longer_than(driver: u32) {
    // The error can be ignored: it would leave a stray process behind a killed driver, and nothing worse.
    // SAFETY: sets an attribute of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if std::os::unix::process::parent_id() != driver {
        // SAFETY: ends the process. The driver died before it was watched.
        unsafe { libc::_exit(1) }
    }
}

/// Runs `body`, and turns a panic into an error that says where.
fn catch(body: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
    thread_local! {
        static LAST: RefCell<String> = const { RefCell::new(String::new()) };
    }
    panic::set_hook(Box::new(|panic| {
        LAST.with_borrow_mut(|last| *last = panic.to_string().replace('\n', " "));
    }));
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err(LAST.with_borrow(String::clone)))
}
