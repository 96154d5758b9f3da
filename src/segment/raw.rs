//! Plain bytes under a name: what Python's `SharedMemory`, the `shared_memory` crate and C programs make.

#![expect(unsafe_code, reason = "bytes of a mapping are copied")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::life::cannot_open_file;
use super::name::check_segment;
use super::named::Segment;
use super::options::SegmentOptions;
use super::preamble::is_ours;
use super::room::reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::raw::copy;
use crate::sys::memory::{Access, Mapping};
use crate::sys::shm::{self, Status, Unnamed};

/// Plain shared memory under a name, without a header: Python's `SharedMemory`.
///
/// It is for sharing bytes with programs that know nothing of this crate; between programs that do, a [`Segment`] checks what
/// it holds. The name stays until somebody [unlinks](RawSegment::unlink) it: nothing in such a file says whether it is in use.
///
/// Reads and writes copy, at any offset; they race with those of other processes as the bytes do, which may be torn and is never
/// undefined. [`view`](RawSegment::view) gives typed elements.
///
/// NB: a program that shortens the file while it is mapped makes every access behind its end a SIGBUS; neither this crate nor
/// Python ever does so.
///
/// # Examples
///
/// ```
/// use multiproc::Segment;
///
/// # fn main() -> multiproc::Result<()> {
/// # let name = format!("doc-raw-{}", std::process::id());
/// let shared = Segment::create_raw(&name, 4096)?;
/// shared.write(16, b"hello")?;
///
/// let other = Segment::open_raw(&name)?;
/// let mut hello = [0; 5];
/// other.read(16, &mut hello)?;
/// assert_eq!(&hello, b"hello");
/// other.unlink()?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "SharedMemory")]
#[derive(Clone)]
pub struct RawSegment {
    pub(crate) bytes: Arc<Bytes>,
    name: Arc<str>,
    status: Status,
}

/// The mapping of a raw segment.
pub(crate) struct Bytes {
    mapping: Mapping,
    pub(crate) is_writable: bool,
}

impl Segment {
    /// Makes plain shared memory of exactly `size` bytes, all zero, that programs without this crate can open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if the name is taken, [`ErrorKind::InvalidName`], [`ErrorKind::InvalidInput`] for no bytes,
    /// [`ErrorKind::NoRoom`].
    pub fn create_raw(name: &str, size: usize) -> Result<RawSegment> {
        Segment::options().create_raw(name, size)
    }

    /// Opens the bytes of any shared-memory object, whoever made it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], [`ErrorKind::InvalidName`], [`ErrorKind::PermissionDenied`], and [`ErrorKind::Foreign`] if it is no
    /// regular file or has no bytes.
    pub fn open_raw(name: &str) -> Result<RawSegment> {
        Segment::options().open_raw(name)
    }
}

impl SegmentOptions {
    /// Makes plain shared memory; see [`Segment::create_raw`].
    ///
    /// # Errors
    ///
    /// As [`Segment::create_raw`].
    pub fn create_raw(&self, name: &str, size: usize) -> Result<RawSegment> {
        let make = || {
            check_segment(name)?;
            self.check(true)?;
            self.check_creating()?;
            if size == 0 {
                return Err(Error::new(ErrorKind::InvalidInput, "it must have at least one byte"));
            }
            let unnamed = Unnamed::create(self.mode)
                .map_err(|source| Error::os("no file can be made in /dev/shm", source))?;
            reserve(&unnamed.file, size)?;
            let mapping = Mapping::new(&unnamed.file, 0, size, self.map_options())
                .map_err(|source| Error::os(format!("its {size} bytes cannot be mapped"), source))?;
            let status =
                shm::status(&unnamed.file).map_err(|source| Error::os("its file cannot be asked", source))?;
            unnamed.link(name).map_err(|source| Error::os("the name is taken", source))?;
            Ok(RawSegment {
                bytes: Arc::new(Bytes { mapping, is_writable: true }),
                name: name.into(),
                status,
            })
        };
        make().map_err(|error| error.attempting("create", "raw segment", name))
    }

    /// Opens the bytes of any shared-memory object; see [`Segment::open_raw`].
    ///
    /// # Errors
    ///
    /// As [`Segment::open_raw`].
    pub fn open_raw(&self, name: &str) -> Result<RawSegment> {
        let open = || {
            check_segment(name)?;
            self.check(true)?;
            let map = self.map_options();
            let is_writable = map.access == Access::ReadWrite;
            let file = shm::open(name, is_writable).map_err(|source| cannot_open_file(source, self))?;
            let status =
                shm::status(&file).map_err(|source| Error::os("its file cannot be asked", source))?;
            if !status.is_regular || status.size == 0 {
                return Err(Error::new(ErrorKind::Foreign, "it is no regular file with bytes in it"));
            }
            if is_writable && is_ours(&file, &status) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "it is a segment of this crate: `Segment::open` opens it, and as plain bytes it is read-only",
                ));
            }
            let size = usize::try_from(status.size)
                .map_err(|_| Error::new(ErrorKind::NoRoom, "its size cannot be addressed"))?;
            let mapping = Mapping::new(&file, 0, size, map)
                .map_err(|source| Error::os(format!("its {size} bytes cannot be mapped"), source))?;
            Ok(RawSegment { bytes: Arc::new(Bytes { mapping, is_writable }), name: name.into(), status })
        };
        open().map_err(|error| error.attempting("open", "raw segment", name))
    }
}

impl RawSegment {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes it has.
    #[doc(alias = "len")]
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.mapping.size()
    }

    /// Copies the bytes from `offset` on into `target`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if they do not all lie inside.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<()> {
        let source =
            self.bytes.range(offset, target.len()).map_err(|error| self.attempting("read", error))?;
        // SAFETY: the range is inside the mapping; other processes' writes are the hardware's, ours are atomic.
        unsafe { copy::load(source.as_ptr(), target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    /// Copies `source` to the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if they do not all lie inside, [`ErrorKind::ReadOnly`] if it was opened read-only.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<()> {
        if !self.bytes.is_writable {
            return Err(self.attempting("write", Error::new(ErrorKind::ReadOnly, "it was opened read-only")));
        }
        let target =
            self.bytes.range(offset, source.len()).map_err(|error| self.attempting("write", error))?;
        // SAFETY: the range is inside the mapping, which may be written.
        unsafe { copy::store(source.as_ptr(), target.as_ptr(), source.len()) };
        Ok(())
    }

    /// Removes its name, if it still has it. Those that have it open keep it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if the name is gone.
    pub fn unlink(&self) -> Result<()> {
        let unlink = || match shm::status_of_name(&self.name) {
            Ok(named) if !named.is_same_file(&self.status) => {
                Err(Error::new(ErrorKind::NotFound, "its name leads to another segment"))
            }
            _ => shm::unlink(&self.name).map_err(|source| Error::os("its name cannot be removed", source)),
        };
        unlink().map_err(|error| self.attempting("unlink", error))
    }

    fn attempting(&self, verb: &str, error: Error) -> Error {
        error.attempting(verb, "raw segment", &self.name)
    }
}

impl Bytes {
    /// The address of `size` bytes at `offset`, all of which lie inside.
    pub(crate) fn range(&self, offset: usize, size: usize) -> Result<NonNull<u8>> {
        let has = self.mapping.size();
        if offset.checked_add(size).is_none_or(|end| end > has) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("bytes {offset} to {offset} + {size} do not lie inside: it has {has}"),
            ));
        }
        // SAFETY: inside the mapping, as just checked.
        Ok(unsafe { self.mapping.base().add(offset) })
    }
}

impl fmt::Debug for RawSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSegment").field("name", &self.name).field("size", &self.size()).finish()
    }
}
