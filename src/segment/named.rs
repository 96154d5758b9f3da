//! The segment as people hold it.

use std::fmt;
use std::sync::Arc;

use super::attachment::Attachment;
use super::life;
use super::{Handle, ObjectInfo, SegmentOptions};
use crate::error::Result;

/// A piece of shared memory that holds named objects: values, arrays, mutexes.
///
/// A named segment is a POSIX shared-memory object, so a program that was built apart can open it by its name. It lives as long as
/// a process is attached: the last one to detach removes the name, unless the segment is to
/// [persist](SegmentOptions::persist). A process that only attached never destroys what others use.
///
/// Cloning is cheap; dropping the last clone, and the last handle of an object in it, detaches.
///
/// It costs its size in shared memory, plus 256 bytes and 64 for each of its [participants](SegmentOptions::participants), reserved
/// when it is created. Each object takes a header of 56 bytes and a directory entry of about 100.
///
/// # When a process dies
///
/// Every other process goes on. A creator that is killed before the segment is whole leaves nothing; one that is killed while it adds
/// an object leaves the others as they were. If the last process is killed, the name stays until somebody creates a segment of that
/// name, opens it and closes it again, or calls [`reap`](super::reap).
///
/// # Examples
///
/// ```
/// use multiproc::{Segment, Value};
///
/// # fn main() -> multiproc::Result<()> {
/// # let name = format!("doc-segment-{}", std::process::id());
/// let market = Segment::create(&name, 1 << 20)?;
/// let last = market.value("last", 101.25)?;
/// let book = market.array::<u32>("book", 1024)?;
///
/// // In another program:
/// let market = Segment::open(&name)?;
/// let last = market.get::<Value<f64>>("last")?;
/// assert_eq!(last.get(), 101.25);
/// # drop(book);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Segment {
    pub(crate) attachment: Arc<Attachment>,
}

impl Segment {
    /// Makes a segment with room for `size` bytes of objects, their headers and directory entries included.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the name is taken, [`ErrorKind::InvalidName`](crate::ErrorKind::InvalidName) if it cannot be one, [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if
    /// `/dev/shm` or the memory has no room for it; then nothing was written.
    pub fn create(name: &str, size: usize) -> Result<Segment> {
        Segment::options().create(name, size)
    }

    /// Attaches to the segment of this name.
    ///
    /// Costs an open, a lock, a few questions to the file system and a map, some 10 µs. Each attached segment takes one descriptor and one
    /// mapping, and opening it twice attaches twice.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is none, [`ErrorKind::Foreign`](crate::ErrorKind::Foreign) if it is not this crate's or another user's,
    /// [`ErrorKind::Incompatible`](crate::ErrorKind::Incompatible), [`ErrorKind::Corrupted`](crate::ErrorKind::Corrupted), [`ErrorKind::OtherNamespace`](crate::ErrorKind::OtherNamespace), [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied).
    pub fn open(name: &str) -> Result<Segment> {
        Segment::options().open(name)
    }

    /// Attaches to the segment of this name, or makes it.
    ///
    /// One that exists may have another size.
    ///
    /// # Errors
    ///
    /// As [`open`](Segment::open) and [`create`](Segment::create).
    pub fn open_or_create(name: &str, size: usize) -> Result<Segment> {
        Segment::options().open_or_create(name, size)
    }

    /// How a segment is made or opened otherwise.
    #[doc(alias = "builder")]
    pub fn options() -> SegmentOptions {
        SegmentOptions::new()
    }

    /// The object of this name: `segment.get::<Value<f64>>("last")`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is none, [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) if it is another kind of object or of another type.
    #[doc(alias = "open")]
    pub fn get<H: Handle>(&self, name: &str) -> Result<H> {
        H::open_in(&self.attachment, name)
    }

    /// The objects in it, in the order in which they were made.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupted`](crate::ErrorKind::Corrupted) if the directory is damaged.
    pub fn objects(&self) -> Result<Vec<ObjectInfo>> {
        let entries = self.attachment.entries()?;
        Ok(entries
            .into_iter()
            .rev()
            .map(|entry| ObjectInfo {
                name: entry.name,
                kind: entry.kind.name(),
                type_name: entry.identity.name,
                dtype: Some(entry.identity.dtype).filter(|dtype| !dtype.is_empty()),
                count: entry.count,
                offset: entry.object_offset,
                size: entry.object_size,
            })
            .collect())
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.attachment.name()
    }

    /// Bytes for objects: at least what was asked for when it was made.
    #[must_use]
    pub fn size(&self) -> usize {
        self.attachment.room()
    }

    /// Bytes for objects that are still free. Another process may take them at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupted`](crate::ErrorKind::Corrupted) if the directory is damaged.
    pub fn available(&self) -> Result<usize> {
        self.attachment.room_left()
    }

    /// Whether its name still leads to it. Somebody may remove the name at once; those attached keep the segment.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.attachment.is_linked()
    }

    /// Removes its name now. Those attached keep the segment, and the name is free for another.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if the name leads nowhere or to another segment.
    pub fn unlink(&self) -> Result<()> {
        self.attachment
            .unlink()
            .map_err(|error| error.attempting("unlink", "segment", self.attachment.label()))
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.attachment.fmt(f)
    }
}

impl SegmentOptions {
    /// Makes a segment with room for `size` bytes of objects; see [`Segment::create`].
    ///
    /// # Errors
    ///
    /// As [`Segment::create`], and [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for options that do not go together.
    pub fn create(&self, name: &str, size: usize) -> Result<Segment> {
        let created = Attachment::create(Some(name), size, self, |_| Ok(()));
        let (attachment, ()) = created.map_err(|error| error.attempting("create", "segment", name))?;
        Ok(Segment { attachment })
    }

    /// Attaches to the segment of this name; see [`Segment::open`].
    ///
    /// # Errors
    ///
    /// As [`Segment::open`].
    pub fn open(&self, name: &str) -> Result<Segment> {
        let attachment =
            Attachment::open(name, self).map_err(|error| error.attempting("open", "segment", name))?;
        Ok(Segment { attachment })
    }

    /// Attaches to the segment of this name, or makes it; see [`Segment::open_or_create`].
    ///
    /// # Errors
    ///
    /// As [`Segment::open_or_create`].
    pub fn open_or_create(&self, name: &str, size: usize) -> Result<Segment> {
        self.check_creating().map_err(|error| error.attempting("open or create", "segment", name))?;
        life::open_or_create(name, || self.open(name), || self.create(name, size))
            .unwrap_or_else(|error| Err(error.attempting("open or create", "segment", name)))
    }

    /// Makes a segment without a name, for this process and those it sends handles to. It goes with the last of them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if there is no memory for it, or no huge pages.
    pub fn anonymous(&self, size: usize) -> Result<Segment> {
        let created = Attachment::create(None, size, self, |_| Ok(()));
        let (attachment, ()) =
            created.map_err(|error| error.attempting("create", "anonymous segment", ""))?;
        Ok(Segment { attachment })
    }
}
