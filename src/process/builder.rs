//! A process with more to say about it than its function.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::Result;
use crate::process::entry;
use crate::process::handle::Process;
use crate::process::start::{self, Order};
use crate::process::task::Task;

/// How long a child may take to come up. Under a debugger, or on a machine that swaps, it may take seconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Says how a process is to be started, and [starts](Builder::spawn) it; from [`Process::builder`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use multiproc::Process;
///
/// # fn main() -> multiproc::Result<()> {
/// fn tick() {
///     loop {
///         std::thread::park();
///     }
/// }
///
/// let ticker = Process::builder()
///     .name("ticker")
///     .daemon()
///     .start_timeout(Duration::from_secs(5))
///     .spawn(tick, ())?;
/// assert!(ticker.is_daemon());
/// ticker.kill()?;
/// # ticker.join().unwrap_err();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing runs until `spawn`"]
pub struct Builder {
    name: Option<String>,
    is_daemon: bool,
    start_timeout: Duration,
}

impl Process<()> {
    /// Runs `function(args…)` in a new process, and returns when that is about to call it.
    ///
    /// The function is an item or a closure that captures nothing; what it needs are its arguments, a tuple of up to eight
    /// values that serde can encode, handles of shared objects among them. Its return value comes back the same way. If that
    /// is a `Result`, an `Err` makes the exit code 1; a panic makes it 101. A function that never returns is declared to return `()`: there is
    /// nothing that `!` could be sent as.
    ///
    /// In the child, stdin is the null device, and stdout and stderr are this process's. SIGPIPE is ignored, no signal is
    /// blocked, SIGTERM and SIGCHLD have their default action.
    ///
    /// # Errors
    ///
    /// - [`Encode`](crate::ErrorKind::Encode): an argument cannot be encoded.
    /// - [`Decode`](crate::ErrorKind::Decode): the child could not decode one; its text says why.
    /// - [`StartFailed`](crate::ErrorKind::StartFailed): the child ended before it called the function, or did not within 30 s
    ///   ([`start_timeout`](Builder::start_timeout)); it is killed then.
    /// - [`LimitReached`](crate::ErrorKind::LimitReached), [`NoRoom`](crate::ErrorKind::NoRoom): too many descriptors or
    ///   processes, too little memory. At its best a child takes three descriptors until it is collected, then one.
    /// - [`Incompatible`](crate::ErrorKind::Incompatible): the program's file was replaced, at this very moment, by another one.
    /// - [`Unsupported`](crate::ErrorKind::Unsupported): the function, or this crate, lies in a shared library.
    /// - [`NotInitialised`](crate::ErrorKind::NotInitialised): this process was announced as a child to an entry that it does
    ///   not have.
    ///
    /// Whatever fails, no process and no descriptor is left behind.
    ///
    /// # Blocking
    ///
    /// Until the child has unpacked its arguments.
    ///
    /// # Examples
    ///
    /// ```
    /// use multiproc::Process;
    ///
    /// # fn main() -> multiproc::Result<()> {
    /// let words = vec!["to".to_owned(), "be".to_owned()];
    /// let child = Process::spawn(|words: Vec<String>| words.join(" "), (words,))?;
    /// assert_eq!(child.join()?, "to be");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "start")]
    pub fn spawn<F, Args>(function: F, args: Args) -> Result<Process<F::Output>>
    where
        F: Task<Args, Output: Serialize + DeserializeOwned>,
        Args: Serialize + DeserializeOwned,
    {
        Process::builder().spawn(function, args)
    }

    /// Says more about a process than its function: its name, whether it is a daemon.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder { name: None, is_daemon: false, start_timeout: START_TIMEOUT }
    }

    /// Names the process, for errors, logs and `ps` (which shows 15 bytes). Names need not be unique. Default: `Process-N`.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// Has the process end when its parent ends, however that goes: with SIGTERM, and a second later with SIGKILL.
    ///
    /// It watches a descriptor of the parent *process*: that the thread which spawned it ends does not matter. The children
    /// of a daemon are daemons (Python forbids a daemon to have any). This is not a Unix daemon: it stays in its session.
    /// A hidden thread of the daemon does the watching, so `unshare(CLONE_NEWUSER)` fails there.
    pub fn daemon(mut self) -> Builder {
        self.is_daemon = true;
        self
    }

    /// How long [`spawn`](Builder::spawn) waits for the process to unpack its arguments. Default: 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Builder {
        self.start_timeout = timeout;
        self
    }

    /// Starts the process: [`Process::spawn`] with these options.
    ///
    /// # Errors
    ///
    /// Those of [`Process::spawn`].
    pub fn spawn<F, Args>(self, function: F, args: Args) -> Result<Process<F::Output>>
    where
        F: Task<Args, Output: Serialize + DeserializeOwned>,
        Args: Serialize + DeserializeOwned,
    {
        // Only its type counts: it has no bytes.
        let _ = function;
        let routine = entry::routine_of::<F, Args>();
        let order = Order { name: self.name, is_daemon: self.is_daemon, timeout: self.start_timeout };
        let child = start::start(&order, routine, &args)?;
        Ok(Process::of(child))
    }
}
