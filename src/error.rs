//! What can go wrong, in words that need no other part of the crate.
//!
//! The control plane (create, open, spawn) answers with [`Error`]: what was attempted, on which object, what was
//! expected and what was found. The data plane (lock, get) has small enums beside its types that hand back the guard;
//! [`OwnerDied`] and [`TryLockError`] are the two that all locks share.

use std::borrow::Cow;
use std::fmt;
use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The result of an operation of the control plane.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the control plane failed.
///
/// Its text names the object, what was expected and what was found; [`kind`](Error::kind) is for programs, and the
/// operating system's error, if there was one, is the [`source`](std::error::Error::source). It is `Send + Sync`,
/// one pointer wide, and can travel to another process (the source is then flattened into its code and text).
///
/// # Examples
///
/// ```
/// use multiproc::{Array, ErrorKind};
///
/// let missing = Array::<u32>::open("no-such-array").unwrap_err();
/// assert_eq!(missing.kind(), ErrorKind::NotFound);
/// assert!(missing.to_string().starts_with("cannot open array \"no-such-array\": "));
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What was attempted, on what: `cannot open array "book"`. Added by the room that knows the object.
    attempt: Option<String>,
    /// What was expected and what was found.
    detail: Cow<'static, str>,
    source: Option<io::Error>,
}

/// What sort of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No segment, or no object in the segment, has that name.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The name cannot be one: empty, too long, with a `/` or NUL in it, or with a leading dot.
    InvalidName,
    /// An argument has no meaning: a size that overflows, an option that does not go with another.
    InvalidInput,
    /// The bytes were not written by this crate, or belong to another user.
    Foreign,
    /// The segment has another layout version, pointer width or libc than this program.
    Incompatible,
    /// The object is of another kind, or its elements are of another type or number.
    TypeMismatch,
    /// The segment is shorter than its header says, or holds what no correct peer writes.
    Corrupted,
    /// Another PID namespace or boot of the machine made the segment; its locks mean nothing here.
    OtherNamespace,
    /// The operating system refuses access.
    PermissionDenied,
    /// Writing was asked of a segment that is attached read-only.
    ReadOnly,
    /// There is no room: on the shared-memory file system, in the segment, or in memory.
    NoRoom,
    /// A limit is reached: descriptors, processes, participants of a segment.
    LimitReached,
    /// Something is in use for longer than the operation could wait.
    Busy,
    /// A handle was serialised or deserialised outside a transfer to another process.
    NotInTransfer,
    /// A value could not be turned into bytes.
    Encode,
    /// Bytes could not be turned into a value.
    Decode,
    /// The previous owner of a lock died while it held it, and nobody has recovered the data since.
    OwnerDied,
    /// The operation would have had to wait.
    WouldBlock,
    /// The deadline passed.
    TimedOut,
    /// The child could not be started, or ended before its function was entered.
    StartFailed,
    /// The child's function did not return a value: it panicked, exited or was killed.
    ProcessFailed,
    /// This process has not passed through the crate's entry, so it may not spawn others.
    NotInitialised,
    /// This system cannot do it.
    Unsupported,
    /// The operating system said no for a reason of its own.
    Os,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Inner { kind, attempt: None, detail: detail.into(), source: None }))
    }

    /// From the operating system's error; the kind follows from its code.
    pub(crate) fn os(detail: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        Error(Box::new(Inner {
            kind: kind_of(&source),
            attempt: None,
            detail: detail.into(),
            source: Some(source),
        }))
    }

    /// Says what was attempted, and on what: `attempting("open", "array", "book")`. The innermost attempt is replaced: it is
    /// the outermost that the caller knows.
    pub(crate) fn attempting(mut self, verb: &str, what: &str, name: &str) -> Error {
        self.0.attempt = Some(if name.is_empty() {
            format!("cannot {verb} {what}")
        } else {
            format!("cannot {verb} {what} {name:?}")
        });
        self
    }

    /// The same error under another kind, where the caller knows better than the code of the operating system.
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.0.kind = kind;
        self
    }

    /// What sort of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operating system's code, if it had one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(io::Error::raw_os_error)
    }
}

fn kind_of(source: &io::Error) -> ErrorKind {
    match source.raw_os_error() {
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(libc::EEXIST) => ErrorKind::AlreadyExists,
        Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
        Some(libc::EROFS) => ErrorKind::ReadOnly,
        Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoRoom,
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN) => ErrorKind::LimitReached,
        Some(libc::ENAMETOOLONG) => ErrorKind::InvalidName,
        Some(libc::ENOSYS | libc::EOPNOTSUPP) => ErrorKind::Unsupported,
        Some(libc::ETIMEDOUT) => ErrorKind::TimedOut,
        _ => ErrorKind::Os,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.attempt {
            Some(attempt) => write!(f, "{attempt}: {}", self.0.detail),
            None => f.write_str(&self.0.detail),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("message", &self.to_string());
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// What an [`Error`] is on its way to another process.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Error")]
struct Flat {
    kind: ErrorKind,
    attempt: Option<String>,
    detail: String,
    os_code: Option<i32>,
    source: Option<String>,
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Flat {
            kind: self.0.kind,
            attempt: self.0.attempt.clone(),
            detail: self.0.detail.clone().into_owned(),
            os_code: self.raw_os_error(),
            source: self.0.source.as_ref().map(ToString::to_string),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        let flat = Flat::deserialize(deserializer)?;
        let source = match (flat.os_code, flat.source) {
            (Some(code), _) => Some(io::Error::from_raw_os_error(code)),
            (None, Some(text)) => Some(io::Error::other(text)),
            (None, None) => None,
        };
        Ok(Error(Box::new(Inner {
            kind: flat.kind,
            attempt: flat.attempt,
            detail: flat.detail.into(),
            source,
        })))
    }
}

/// So that `?` works on both in one function. What was attempted is not known.
impl From<io::Error> for Error {
    fn from(source: io::Error) -> Error {
        Error::os(source.to_string(), source)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error.kind() {
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
            ErrorKind::InvalidName | ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::Foreign
            | ErrorKind::Incompatible
            | ErrorKind::TypeMismatch
            | ErrorKind::Corrupted
            | ErrorKind::Decode => io::ErrorKind::InvalidData,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::NoRoom => io::ErrorKind::StorageFull,
            ErrorKind::WouldBlock => io::ErrorKind::WouldBlock,
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The lock is yours, but its previous owner died while holding it: the data may be half-changed.
///
/// It still holds the guard. Look at the data, repair it, and call the guard's `recover`; until somebody does,
/// everybody who locks gets this answer. By-value calls (`Array::get`, …) answer with an `OwnerDied` that holds nothing.
///
/// # Examples
///
/// ```
/// use multiproc::{Mutex, OwnerDied};
///
/// # fn main() -> multiproc::Result<()> {
/// let ledger = Mutex::new([0_i64; 2])?;
/// let balance = match ledger.lock() {
///     Ok(ledger) => ledger[0],
///     Err(died) => {
///         let mut ledger = died.into_guard();
///         ledger[1] = -ledger[0];
///         ledger.recover();
///         ledger[0]
///     }
/// };
/// # assert_eq!(balance, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OwnerDied<G = ()> {
    guard: G,
}

impl<G> OwnerDied<G> {
    pub(crate) fn new(guard: G) -> OwnerDied<G> {
        OwnerDied { guard }
    }

    /// The guard: the lock is held, and the data has to be looked at.
    #[doc(alias = "into_inner")]
    pub fn into_guard(self) -> G {
        self.guard
    }
}

impl<G> fmt::Debug for OwnerDied<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerDied").finish_non_exhaustive()
    }
}

impl<G> fmt::Display for OwnerDied<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the lock's previous owner died while holding it, and nobody has recovered the data")
    }
}

impl<G> std::error::Error for OwnerDied<G> {}

/// Drops the guard that the answer held, which unlocks: the next one who locks is told again.
impl<G> From<OwnerDied<G>> for Error {
    fn from(died: OwnerDied<G>) -> Error {
        Error::new(ErrorKind::OwnerDied, died.to_string())
    }
}

/// Why a `try_lock`, `lock_timeout` or `lock_deadline` did not simply give the guard.
pub enum TryLockError<G> {
    /// The lock is yours, but its previous owner died while holding it.
    OwnerDied(OwnerDied<G>),
    /// Somebody else holds the lock, and the call was not to wait.
    WouldBlock,
    /// Somebody else held the lock until the deadline.
    TimedOut,
}

impl<G> fmt::Debug for TryLockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryLockError::OwnerDied(_) => "OwnerDied(..)",
            TryLockError::WouldBlock => "WouldBlock",
            TryLockError::TimedOut => "TimedOut",
        })
    }
}

impl<G> fmt::Display for TryLockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TryLockError::OwnerDied(died) => died.fmt(f),
            TryLockError::WouldBlock => f.write_str("the lock is held by another thread or process"),
            TryLockError::TimedOut => {
                f.write_str("the lock was held by another thread or process until the deadline")
            }
        }
    }
}

impl<G> std::error::Error for TryLockError<G> {}

impl<G> From<OwnerDied<G>> for TryLockError<G> {
    fn from(died: OwnerDied<G>) -> TryLockError<G> {
        TryLockError::OwnerDied(died)
    }
}

/// Drops the guard, if the answer held one.
impl<G> From<TryLockError<G>> for Error {
    fn from(error: TryLockError<G>) -> Error {
        let kind = match error {
            TryLockError::OwnerDied(_) => ErrorKind::OwnerDied,
            TryLockError::WouldBlock => ErrorKind::WouldBlock,
            TryLockError::TimedOut => ErrorKind::TimedOut,
        };
        Error::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_attempt_object_and_finding() {
        let error = Error::os("no segment of that name", io::Error::from_raw_os_error(libc::ENOENT))
            .attempting("open", "array", "book");
        assert_eq!(error.to_string(), "cannot open array \"book\": no segment of that name");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn travels_with_kind_text_and_code() {
        let error = Error::os("it is full", io::Error::from_raw_os_error(libc::ENOSPC))
            .attempting("create", "segment", "big");
        let bytes = postcard::to_stdvec(&error).unwrap();
        let back: Error = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back.to_string(), error.to_string());
        assert_eq!(back.kind(), ErrorKind::NoRoom);
        assert_eq!(back.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn fits_a_boxed_error() {
        fn boxed() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Err(Error::new(ErrorKind::Busy, "busy"))?
        }
        assert_eq!(boxed().unwrap_err().to_string(), "busy");
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
