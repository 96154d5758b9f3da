//! How a process ended, in words for those who joined it.

use std::fmt;

use nix::sys::signal::Signal;
use serde::ser::{self, Impossible, Serialize, Serializer};

use crate::error::{Error, ErrorKind};
use crate::sys::spawn::Ending;

/// Why a process gave no value to the one who joined it.
///
/// The text names the process: `process "Process-3" (pid 4711) was killed by signal 9 (SIGKILL)`.
/// [`join`](crate::Process::join) never answers `WouldBlock` or `TimedOut`.
///
/// # Examples
///
/// ```
/// use multiproc::{Process, ProcessError};
///
/// fn fail() {
///     panic!("no luck");
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// match Process::spawn(fail, ())?.join() {
///     Err(ProcessError::Panicked { message, .. }) => assert_eq!(message, "no luck"),
///     other => unreachable!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ProcessError {
    /// Its function panicked, or another panic of it aborted the process.
    Panicked {
        /// The name of the process.
        name: String,
        /// Its pid; another process may have it by now.
        pid: u32,
        /// What the panic said. Empty if its payload was not text.
        message: String,
        /// Where it happened, as `src/main.rs:7:5`; `None` if the function installed a panic hook of its own, or the panic was
        /// carried over from another thread.
        location: Option<String>,
    },
    /// It called `exit` before its function returned.
    Exited {
        /// The name of the process.
        name: String,
        /// Its pid; another process may have it by now.
        pid: u32,
        /// The exit code, 0 to 255.
        code: i32,
    },
    /// A signal ended it before its function returned.
    Signaled {
        /// The name of the process.
        name: String,
        /// Its pid; another process may have it by now.
        pid: u32,
        /// The signal's number.
        signal: i32,
        /// Whether the system kept an image of its memory.
        core_dumped: bool,
    },
    /// Its function returned, but the value could not be turned into bytes there or into a value here.
    Undecodable {
        /// The name of the process.
        name: String,
        /// Its pid; another process may have it by now.
        pid: u32,
        /// What is wrong with the value.
        error: Error,
    },
    /// It ended, but how is not known here: something else in this program collected its exit status (a `waitpid` for any
    /// child, an ignored SIGCHLD), or this process is a fork of the one that started it.
    Lost {
        /// The name of the process.
        name: String,
        /// Its pid; another process may have it by now.
        pid: u32,
    },
    /// It still runs, and the call was not to wait.
    WouldBlock,
    /// It still ran at the deadline.
    TimedOut,
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessError::Panicked { name, pid, message, location } => {
                write!(f, "process {name:?} (pid {pid}) panicked")?;
                if let Some(location) = location {
                    write!(f, " at {location}")?;
                }
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            ProcessError::Exited { name, pid, code } => {
                write!(f, "process {name:?} (pid {pid}) exited with code {code} before its function returned")
            }
            ProcessError::Signaled { name, pid, signal, core_dumped } => {
                write!(f, "process {name:?} (pid {pid}) was killed by {}", SignalName(*signal))?;
                f.write_str(if *core_dumped { ", and dumped its core" } else { "" })
            }
            ProcessError::Undecodable { name, pid, error } => {
                write!(f, "process {name:?} (pid {pid}) returned a value that did not arrive: {error}")
            }
            ProcessError::Lost { name, pid } => {
                write!(f, "process {name:?} (pid {pid}) ended, but its exit status was collected elsewhere")
            }
            ProcessError::WouldBlock => f.write_str("the process is still running"),
            ProcessError::TimedOut => f.write_str("the process was still running at the deadline"),
        }
    }
}

impl std::error::Error for ProcessError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its text is part of ours; what lies under it is not.
            ProcessError::Undecodable { error, .. } => error.source(),
            _ => None,
        }
    }
}

impl From<ProcessError> for Error {
    fn from(error: ProcessError) -> Error {
        let kind = match error {
            ProcessError::WouldBlock => ErrorKind::WouldBlock,
            ProcessError::TimedOut => ErrorKind::TimedOut,
            _ => ErrorKind::ProcessFailed,
        };
        Error::new(kind, error.to_string())
    }
}

/// `signal 9 (SIGKILL)`.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => write!(f, "signal {} ({signal})", self.0),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

/// An ending as Python's exit code: the code itself, or minus the signal.
pub(crate) fn exit_code(ending: Ending) -> i32 {
    match ending {
        Ending::Exited(code) => code,
        Ending::Signaled { signal, .. } => -signal,
    }
}

/// `exit code 1`, `-SIGKILL`: how the `Debug` forms and the errors of a start show an ending.
pub(crate) struct Shown(pub(crate) Option<Ending>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("an exit status that was collected elsewhere"),
            Some(Ending::Exited(code)) => write!(f, "exit code {code}"),
            Some(Ending::Signaled { signal, .. }) => SignalName(signal).fmt(f),
        }
    }
}

/// Whether a function's output is the `Err` of a `Result`, so that the process is to end with exit code 1.
///
/// The only thing known of the output is that it can be serialised, and serde's own `Result` announces its variant before
/// anything else. So a serializer looks at that announcement and refuses to go on: nothing of the value is visited. A type
/// of the user that serialises as a `Result` would is taken for one.
pub(crate) fn is_err<T: Serialize + ?Sized>(output: &T) -> bool {
    matches!(output.serialize(Probe), Err(Seen { err: true }))
}

/// What the probe saw; always an error, for it never goes on.
#[derive(Debug)]
struct Seen {
    err: bool,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only the outermost shape is looked at")
    }
}

impl std::error::Error for Seen {}

impl ser::Error for Seen {
    fn custom<T: fmt::Display>(_: T) -> Seen {
        Seen { err: false }
    }
}

struct Probe;

/// Everything but a newtype variant is not a `Result`.
macro_rules! not_a_result {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<$ok, Seen> { Err(Seen { err: false }) })*
    };
}

impl Serializer for Probe {
    type Ok = ();
    type Error = Seen;
    type SerializeSeq = Impossible<(), Seen>;
    type SerializeTuple = Impossible<(), Seen>;
    type SerializeTupleStruct = Impossible<(), Seen>;
    type SerializeTupleVariant = Impossible<(), Seen>;
    type SerializeMap = Impossible<(), Seen>;
    type SerializeStruct = Impossible<(), Seen>;
    type SerializeStructVariant = Impossible<(), Seen>;

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        _: &T,
    ) -> Result<(), Seen> {
        Err(Seen { err: (name, index, variant) == ("Result", 1, "Err") })
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), Seen> {
        Err(Seen { err: false })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Result<(), Seen> {
        Err(Seen { err: false })
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, _: &T) -> Result<(), Seen> {
        Err(Seen { err: false })
    }

    not_a_result! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_i128(i128) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_u128(u128) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_seq(Option<usize>) -> Self::SerializeSeq;
        serialize_tuple(usize) -> Self::SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> Self::SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Self::SerializeTupleVariant;
        serialize_map(Option<usize>) -> Self::SerializeMap;
        serialize_struct(&'static str, usize) -> Self::SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Self::SerializeStructVariant;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_the_outermost_err_counts() {
        assert!(is_err(&Err::<(), _>("no")));
        assert!(is_err(&Err::<u8, ()>(())));
        assert!(is_err(&&Err::<u8, ()>(())));
        assert!(!is_err(&Ok::<_, ()>(7)));
        assert!(!is_err(&Ok::<Result<(), ()>, ()>(Err(()))));
        assert!(!is_err(&Some(Err::<(), ()>(()))));
        assert!(!is_err(&(Err::<(), ()>(()),)));
        assert!(!is_err(&vec![Err::<(), ()>(())]));
        assert!(!is_err(&BTreeMap::from([(1, Err::<(), ()>(()))])));
        assert!(!is_err("Err"));
        assert!(!is_err(&()));
    }

    #[test]
    fn texts_name_the_process() {
        let name = "Process-3".to_owned();
        let killed = ProcessError::Signaled { name: name.clone(), pid: 4711, signal: 9, core_dumped: false };
        assert_eq!(killed.to_string(), "process \"Process-3\" (pid 4711) was killed by signal 9 (SIGKILL)");
        let real_time =
            ProcessError::Signaled { name: name.clone(), pid: 4711, signal: 40, core_dumped: true };
        assert_eq!(
            real_time.to_string(),
            "process \"Process-3\" (pid 4711) was killed by signal 40, and dumped its core"
        );
        let exited = ProcessError::Exited { name: name.clone(), pid: 4711, code: 0 };
        assert_eq!(
            exited.to_string(),
            "process \"Process-3\" (pid 4711) exited with code 0 before its function returned"
        );
        let location = Some("src/main.rs:7:5".to_owned());
        let panicked = ProcessError::Panicked { name, pid: 4711, message: "no luck".to_owned(), location };
        assert_eq!(
            panicked.to_string(),
            "process \"Process-3\" (pid 4711) panicked at src/main.rs:7:5: no luck"
        );
        assert_eq!(Error::from(panicked).kind(), ErrorKind::ProcessFailed);
        assert_eq!(Error::from(ProcessError::TimedOut).kind(), ErrorKind::TimedOut);
        assert_eq!(Error::from(ProcessError::WouldBlock).kind(), ErrorKind::WouldBlock);
    }
}
