//! Segments: where things lie in shared memory, who is attached, and how a process gets hold of an object.

mod attachment;
mod directory;
pub(crate) mod family;
pub(crate) mod layout;
mod life;
mod name;
pub(crate) mod named;
pub(crate) mod object;
mod options;
mod participant;
mod preamble;
pub(crate) mod raw;
mod room;

pub(crate) use attachment::Attachment;
pub use options::SegmentOptions;

use crate::error::{Error, Result};
use crate::sys::shm;

/// An object in a segment's directory, as [`Segment::objects`](crate::Segment::objects) lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// What it is: `value`, `array`, `mutex` …
    pub kind: &'static str,
    /// The type of its value or elements, without the path.
    pub type_name: String,
    /// Its NumPy dtype, if the type's fields are known.
    pub dtype: Option<String>,
    /// How many elements it has.
    pub count: u64,
    /// Where it begins, in bytes from the segment's start.
    pub offset: usize,
    /// How many bytes it takes.
    pub size: usize,
}

/// A handle type that can be opened by name in a [`Segment`](crate::Segment): `Value<T>`, `Array<T>`, `Mutex<T>` and the raw forms.
///
/// It cannot be implemented outside this crate.
pub trait Handle: Sized + sealed::Handle {}

pub(crate) mod sealed {
    use super::{Attachment, Result};
    use std::sync::Arc;

    pub trait Handle: Sized {
        #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
        fn open_in(attachment: &Arc<Attachment>, name: &str) -> Result<Self>;
    }
}

/// Removes a name, whoever is attached: they keep the segment, and the name is free for another.
///
/// It removes segments of this crate only, those that are to [persist](SegmentOptions::persist) among them.
///
/// # Errors
///
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is none, [`ErrorKind::Foreign`](crate::ErrorKind::Foreign) if it was not made by this crate.
pub fn unlink(name: &str) -> Result<()> {
    life::unlink(name).map_err(|error| error.attempting("unlink", "segment", name))
}

/// Removes the name of a segment that nobody is attached to: what is left when the last process was killed.
///
/// Returns `false` if it is in use, is to [persist](SegmentOptions::persist), or is not there.
///
/// # Errors
///
/// [`ErrorKind::Foreign`](crate::ErrorKind::Foreign) if it was not made by this crate, or belongs to another user.
pub fn reap(name: &str) -> Result<bool> {
    let reaped = life::reap(name).map_err(|error| error.attempting("reap", "segment", name))?;
    Ok(reaped == life::Reaped::Removed)
}

/// Reaps every segment of this user's that nobody is attached to, and returns their names.
///
/// # Errors
///
/// If the shared-memory file system cannot be listed. What cannot be reaped is passed over.
pub fn reap_all() -> Result<Vec<String>> {
    let names =
        shm::names().map_err(|source| Error::os("cannot list the shared-memory file system", source))?;
    Ok(names.into_iter().filter(|name| life::is_reaped(name)).collect())
}
