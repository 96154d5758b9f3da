//! Who this process is, who started it, and whom it started.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::process::child::Child;
use crate::process::children;
use crate::process::outcome::{self, ProcessError, Shown};
use crate::sys::clock::Deadline;
use crate::sys::spawn;

/// What the first process of a program is called.
const MAIN_PROCESS: &str = "MainProcess";

/// What this process was told of itself.
struct Own {
    name: String,
    /// The counts on the way from the main process, as `2:1`; empty there.
    lineage: String,
    is_daemon: bool,
    parent: Option<Arc<Parent>>,
}

struct Parent {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
}

static OWN: OnceLock<Own> = OnceLock::new();

fn own() -> &'static Own {
    OWN.get_or_init(|| Own {
        name: MAIN_PROCESS.to_owned(),
        lineage: String::new(),
        is_daemon: false,
        parent: None,
    })
}

/// Settles that this process is a child. For the entry, before any user code runs.
///
/// # Errors
///
/// If the process has been taken for a main process before.
pub(crate) fn become_child(
    name: String,
    lineage: String,
    is_daemon: bool,
    (parent_name, parent_pid, parent): (String, u32, OwnedFd),
) -> Result<()> {
    let parent = Some(Arc::new(Parent { name: parent_name, pid: parent_pid, pidfd: parent }));
    OWN.set(Own { name, lineage, is_daemon, parent }).map_err(|_| {
        Error::new(ErrorKind::NotInitialised, "the process asked for its name before it was told")
    })
}

/// A pidfd of the parent, while this process lives.
pub(crate) fn parent_pidfd() -> Option<BorrowedFd<'static>> {
    own().parent.as_ref().map(|parent| parent.pidfd.as_fd())
}

/// A pidfd of this process, to be handed to its children.
pub(crate) fn own_pidfd() -> Result<Arc<OwnedFd>> {
    /// Opened once for each process: a fork is another one.
    static OPENED: Mutex<Option<(u32, Arc<OwnedFd>)>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    match &*opened {
        Some((owner, pidfd)) if *owner == pid => Ok(Arc::clone(pidfd)),
        _ => {
            let pidfd =
                spawn::pidfd(pid).map_err(|source| Error::os("this process cannot be watched", source))?;
            let pidfd = Arc::new(pidfd);
            *opened = Some((pid, Arc::clone(&pidfd)));
            Ok(pidfd)
        }
    }
}

/// The number of the next child, and its lineage.
pub(crate) fn next_child() -> (u64, String) {
    let number = children::next_number();
    let lineage = match own().lineage.as_str() {
        "" => number.to_string(),
        lineage => format!("{lineage}:{number}"),
    };
    (number, lineage)
}

/// Whether this process is a daemon, and so are its children.
pub(crate) fn is_daemon() -> bool {
    own().is_daemon
}

/// The name of this process.
pub(crate) fn name() -> &'static str {
    &own().name
}

/// A process of this program's family, seen from outside: this one, its parent, or one of its children.
///
/// What it returns is not known here; for that there is the [`Process`](crate::Process) that `spawn` gave. Cloning is cheap.
///
/// # Examples
///
/// ```
/// use multiproc::{current_process, parent_process};
///
/// assert_eq!(current_process().name(), "MainProcess");
/// assert!(parent_process().is_none());
/// ```
#[derive(Clone)]
pub struct ProcessRef(Relation);

#[derive(Clone)]
enum Relation {
    Own,
    Parent(Arc<Parent>),
    Child(Arc<Child>),
}

impl ProcessRef {
    pub(crate) fn child(child: Arc<Child>) -> ProcessRef {
        ProcessRef(Relation::Child(child))
    }

    /// The name: `Process-1` for the first child of the main process, `Process-1:2` for the second child of that one, and
    /// `MainProcess`, unless the builder gave another.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0 {
            Relation::Own => name(),
            Relation::Parent(parent) => &parent.name,
            Relation::Child(child) => &child.name,
        }
    }

    /// The pid. When the process has ended, another one may have it.
    #[must_use]
    #[doc(alias = "ident")]
    pub fn pid(&self) -> u32 {
        match &self.0 {
            Relation::Own => std::process::id(),
            Relation::Parent(parent) => parent.pid,
            Relation::Child(child) => child.pid,
        }
    }

    /// Whether the process ends with its parent. Of a parent that is not known: `false`.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        match &self.0 {
            Relation::Own => is_daemon(),
            Relation::Parent(_) => false,
            Relation::Child(child) => child.is_daemon,
        }
    }

    /// Whether the process runs. `true` may be out of date at once, `false` stays; that the pid was given to another process
    /// does not matter. Takes one system call.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match &self.0 {
            Relation::Own => true,
            Relation::Parent(parent) => {
                !matches!(spawn::wait_readable([parent.pidfd.as_fd()], Deadline::Now), Ok([true]))
            }
            Relation::Child(child) => child.end().is_none(),
        }
    }

    /// A child's exit code, or minus the signal that ended it; `None` while it runs, and of a process that is no child.
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_code(&self) -> Option<i32> {
        match &self.0 {
            Relation::Own | Relation::Parent(_) => None,
            Relation::Child(child) => child.end()?.ending.map(outcome::exit_code),
        }
    }

    /// Asks the process to end: SIGTERM.
    ///
    /// # Errors
    ///
    /// If the system refuses, because the process runs under another user. One that has ended is no error.
    pub fn terminate(&self) -> Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Ends the process at once: SIGKILL.
    ///
    /// # Errors
    ///
    /// If the system refuses, because the process runs under another user. One that has ended is no error.
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let refused =
            |source| Error::os("the system refuses", source).attempting("signal", "process", self.name());
        match &self.0 {
            Relation::Own => spawn::signal(own_pidfd()?.as_fd(), signal).map_err(refused),
            Relation::Parent(parent) => spawn::signal(parent.pidfd.as_fd(), signal).map_err(refused),
            Relation::Child(child) => child.signal(signal),
        }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    ///
    /// Of a child: why its function gave no value. Of a parent nothing is known but its end.
    ///
    /// # Panics
    ///
    /// If the process is this one.
    ///
    /// # Blocking
    ///
    /// For as long as the process runs.
    pub fn join(&self) -> Result<(), ProcessError> {
        self.wait(Deadline::Never)
    }

    /// [`join`](ProcessRef::join) without waiting.
    ///
    /// # Errors
    ///
    /// Those of `join`, and [`ProcessError::WouldBlock`] while the process runs.
    ///
    /// # Panics
    ///
    /// If the process is this one.
    pub fn try_join(&self) -> Result<(), ProcessError> {
        self.wait(Deadline::Now)
    }

    /// [`join`](ProcessRef::join) for at most so long. Zero means try.
    ///
    /// # Errors
    ///
    /// Those of `join`, and [`ProcessError::TimedOut`].
    ///
    /// # Panics
    ///
    /// If the process is this one.
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), ProcessError> {
        self.wait(Deadline::after(timeout))
    }

    /// [`join`](ProcessRef::join) until then. What has passed means try.
    ///
    /// # Errors
    ///
    /// Those of `join`, and [`ProcessError::TimedOut`].
    ///
    /// # Panics
    ///
    /// If the process is this one.
    pub fn join_deadline(&self, deadline: Instant) -> Result<(), ProcessError> {
        self.wait(Deadline::at(deadline))
    }

    fn wait(&self, deadline: Deadline) -> Result<(), ProcessError> {
        match &self.0 {
            Relation::Own => panic!("a process cannot join itself"),
            Relation::Parent(parent) => match spawn::wait_readable([parent.pidfd.as_fd()], deadline) {
                Ok([true]) => Ok(()),
                Ok([false]) if deadline == Deadline::Now => Err(ProcessError::WouldBlock),
                Ok([false]) => Err(ProcessError::TimedOut),
                Err(_) => Err(ProcessError::Lost { name: parent.name.clone(), pid: parent.pid }),
            },
            Relation::Child(child) => {
                let end = child.wait(deadline)?;
                children::forget(child);
                child.failure(&end).map_or(Ok(()), Err)
            }
        }
    }
}

impl fmt::Debug for ProcessRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Relation::Child(child) => fmt_child(f, "ProcessRef", child),
            Relation::Own | Relation::Parent(_) => {
                let mut out = f.debug_struct("ProcessRef");
                out.field("name", &self.name()).field("pid", &self.pid());
                let status = if self.is_alive() { "started" } else { "stopped" };
                out.field("status", &format_args!("{status}")).finish()
            }
        }
    }
}

/// A child as Python shows one: name, pid, parent, `started` or `stopped` with the exit code, and whether it is a daemon.
pub(crate) fn fmt_child(f: &mut fmt::Formatter<'_>, title: &str, child: &Child) -> fmt::Result {
    let mut out = f.debug_struct(title);
    out.field("name", &child.name).field("pid", &child.pid).field("parent", &child.owner());
    match child.end() {
        None => out.field("status", &format_args!("started")),
        Some(end) => out.field("status", &format_args!("stopped, {}", Shown(end.ending))),
    };
    out.field("daemon", &child.is_daemon).finish()
}

/// This process.
///
/// # Examples
///
/// ```
/// use multiproc::{Process, current_process};
///
/// # fn main() -> multiproc::Result<()> {
/// let child = Process::builder().name("worker").spawn(|| current_process().name().to_owned(), ())?;
/// assert_eq!(child.join()?, "worker");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn current_process() -> ProcessRef {
    ProcessRef(Relation::Own)
}

/// The process that spawned this one; `None` in a process that was started otherwise, such as the main one.
///
/// Whether it [lives](ProcessRef::is_alive) is asked of a descriptor of it that the child was handed at its start, so neither
/// a parent that ended early nor a pid that was given out again deceives it.
///
/// # Examples
///
/// ```
/// use multiproc::{Process, parent_process};
///
/// # fn main() -> multiproc::Result<()> {
/// let child = Process::spawn(|| parent_process().map(|parent| parent.pid()), ())?;
/// assert_eq!(child.join()?, Some(std::process::id()));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn parent_process() -> Option<ProcessRef> {
    own().parent.as_ref().map(|parent| ProcessRef(Relation::Parent(Arc::clone(parent))))
}

/// The children of this process that run now, the oldest first, whether or not their [`Process`](crate::Process) is still
/// held. A fresh child has none.
///
/// Those that have ended are collected first. The list may be out of date at once.
///
/// # Examples
///
/// ```
/// use multiproc::{Process, active_children};
///
/// # fn main() -> multiproc::Result<()> {
/// let child = Process::spawn(|| std::thread::park(), ())?;
/// assert_eq!(active_children()[0].pid(), child.pid());
/// child.kill()?;
/// child.join().unwrap_err();
/// assert!(active_children().is_empty());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn active_children() -> Vec<ProcessRef> {
    children::active().into_iter().map(ProcessRef::child).collect()
}

/// How many logical CPUs the machine has.
///
/// As in Python, this is not how many this process may use: the affinity mask and the limits of its control group do not
/// count. [`std::thread::available_parallelism`] counts them, and is what a number of workers should be taken from.
#[must_use]
pub fn cpu_count() -> usize {
    spawn::cpus_online()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_the_main_one() {
        let own = current_process();
        assert_eq!(own.name(), "MainProcess");
        assert_eq!(own.pid(), std::process::id());
        assert!(own.is_alive() && !own.is_daemon() && own.exit_code().is_none());
        assert!(parent_process().is_none());
        assert!(format!("{own:?}").contains("status: started"));
    }

    #[test]
    fn a_restricted_process_counts_all_cpus() {
        assert!(cpu_count() >= std::thread::available_parallelism().unwrap().get());
    }
}
