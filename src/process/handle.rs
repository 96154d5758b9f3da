//! A child, as its parent holds it.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::process::child::Child;
use crate::process::children;
use crate::process::current::{self, ProcessRef};
use crate::process::outcome::{self, ProcessError};
use crate::sys::clock::Deadline;

/// A function that runs in a process of its own, and will return an `R`.
///
/// Dropping it does not end the process, which goes on by itself; at the exit of this process it is waited for, or, if it is
/// a [daemon](crate::process::Builder::daemon), ended. All calls take `&self`, from any number of threads.
///
/// # When a process dies
///
/// A child that is killed leaves no value or a whole one, and `join` says by which signal it was killed. What it held of
/// anonymous shared objects is given back when it is collected: by `join`, `is_alive`, the next `spawn`.
///
/// # Examples
///
/// ```
/// use multiproc::Process;
///
/// fn area(width: u32, height: u32) -> u32 {
///     width * height
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// let child = Process::spawn(area, (6, 7))?;
/// assert_eq!(child.join()?, 42);
/// # Ok(())
/// # }
/// ```
///
/// Neither a closure that captures something nor a function pointer is known to another process:
///
/// ```compile_fail,E0080
/// let factor = 7;
/// multiproc::Process::spawn(move |x: u32| x * factor, (6,)).unwrap();
/// ```
///
/// ```compile_fail,E0080
/// fn double(x: u32) -> u32 { 2 * x }
/// multiproc::Process::spawn(double as fn(u32) -> u32, (6,)).unwrap();
/// ```
///
/// Nor is a function whose arguments do not fit, or cannot be sent:
///
/// ```compile_fail,E0277
/// fn double(x: u32) -> u32 { 2 * x }
/// multiproc::Process::spawn(double, ("six".to_owned(),)).unwrap();
/// ```
pub struct Process<R = ()> {
    child: Arc<Child>,
    returns: PhantomData<fn() -> R>,
}

impl<R> Process<R> {
    pub(crate) fn of(child: Arc<Child>) -> Process<R> {
        Process { child, returns: PhantomData }
    }

    /// The name: `Process-1` for the first child of the main process, `Process-1:2` for the second child of that one, unless
    /// the builder gave another.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.child.name
    }

    /// The pid. When the process has been collected, another one may have it.
    #[must_use]
    #[doc(alias = "ident")]
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// Whether it ends with its parent.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.child.is_daemon
    }

    /// Whether it runs. `true` may be out of date at once, `false` stays. Takes one system call.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.child.end().is_none()
    }

    /// Its exit code, or minus the signal that ended it; `None` while it runs, and if something else in this program collected
    /// its exit status.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::Process;
    ///
    /// # fn main() -> multiproc::Result<()> {
    /// fn give_up() {
    ///     std::process::exit(7)
    /// }
    /// let child = Process::spawn(give_up, ())?;
    /// assert!(child.join().is_err());
    /// assert_eq!(child.exit_code(), Some(7));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_code(&self) -> Option<i32> {
        self.child.end()?.ending.map(outcome::exit_code)
    }

    /// Asks it to end: SIGTERM. No destructors run, and its own children are not told, unless they are daemons.
    ///
    /// # Errors
    ///
    /// If the system refuses, because the process runs under another user by now. One that has ended is no error.
    pub fn terminate(&self) -> Result<()> {
        self.child.signal(libc::SIGTERM)
    }

    /// Ends it at once: SIGKILL.
    ///
    /// # Errors
    ///
    /// Those of [`terminate`](Process::terminate).
    pub fn kill(&self) -> Result<()> {
        self.child.signal(libc::SIGKILL)
    }

    /// The same process without its return type, as the functions of this module show processes.
    #[must_use]
    pub fn to_ref(&self) -> ProcessRef {
        ProcessRef::child(Arc::clone(&self.child))
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits until it has ended, and gives what its function returned. It may be called again, and decodes it again.
    ///
    /// # Errors
    ///
    /// Why there is no value: a panic, an `exit`, a signal, a value that cannot be encoded or decoded.
    ///
    /// # When a process dies
    ///
    /// A child that was killed after its function's value was committed gives the value.
    ///
    /// # Blocking
    ///
    /// For as long as the process runs, and that is until its function has returned and its exit handlers and its own
    /// children that are no daemons are done.
    pub fn join(&self) -> Result<R, ProcessError> {
        self.wait(Deadline::Never)
    }

    /// [`join`](Process::join) without waiting.
    ///
    /// # Errors
    ///
    /// Those of `join`, and [`ProcessError::WouldBlock`] while it runs.
    pub fn try_join(&self) -> Result<R, ProcessError> {
        self.wait(Deadline::Now)
    }

    /// [`join`](Process::join) for at most so long. Zero means try.
    ///
    /// # Errors
    ///
    /// Those of `join`, [`ProcessError::TimedOut`], and for zero [`ProcessError::WouldBlock`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use multiproc::{Process, ProcessError};
    ///
    /// # fn main() -> multiproc::Result<()> {
    /// let child = Process::spawn(|| std::thread::park(), ())?;
    /// let patience = Duration::from_millis(10);
    /// assert!(matches!(child.join_timeout(patience), Err(ProcessError::TimedOut)));
    /// child.kill()?;
    /// assert!(matches!(child.join(), Err(ProcessError::Signaled { signal: 9, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<R, ProcessError> {
        self.wait(Deadline::after(timeout))
    }

    /// [`join`](Process::join) until then. What has passed means try.
    ///
    /// # Errors
    ///
    /// Those of [`join_timeout`](Process::join_timeout).
    pub fn join_deadline(&self, deadline: Instant) -> Result<R, ProcessError> {
        self.wait(Deadline::at(deadline))
    }

    fn wait(&self, deadline: Deadline) -> Result<R, ProcessError> {
        let end = self.child.wait(deadline)?;
        children::forget(&self.child);
        self.child.value(&end)
    }
}

/// The process's pidfd, readable when it has ended: for `poll` and its kin. (Python's `sentinel`.)
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        Child::as_fd(&self.child)
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        current::fmt_child(f, "Process", &self.child)
    }
}
