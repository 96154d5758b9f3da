//! The hold that every typed handle is built on: an object's address, and what keeps it there.

#![expect(
    unsafe_code,
    reason = "an address in a mapping is given to the header that the layout says lies there"
)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::attachment::{self, Attachment};
use super::directory::{self, Entry};
use super::family::{self, Hold, Place};
use super::layout::{DATA_OFFSET, ObjectHeader, Shape, WORD_OFFSET};
use super::options::SegmentOptions;
use super::{life, preamble};
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::AtomicU64;
use crate::raw::lock::RawLock;
use crate::sys::memory::Mapping;

/// One object that this process holds. Cloning is cheap; dropping the last clone lets go.
///
/// Invariant: from `base` on, the object's whole size is mapped for as long as a clone lives, and the header there was checked
/// against the shape of the handle's type.
#[derive(Clone)]
pub(crate) struct Object {
    base: NonNull<u8>,
    count: usize,
    is_writable: bool,
    home: Arc<Home>,
}

// SAFETY: the address stays valid whichever thread uses it; what lies there is reached by atomics or under its lock, which the
// handles see to.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

/// What keeps the object where it is.
enum Home {
    Anonymous { hold: Option<Hold>, mapping: Option<Mapping>, lock: NonNull<RawLock> },
    Named { attachment: Arc<Attachment>, entry_offset: usize, lock: NonNull<RawLock> },
}

// SAFETY: as for `Object`.
unsafe impl Send for Home {}
// SAFETY: as above.
unsafe impl Sync for Home {}

/// Where an object can be found by another process.
pub(crate) enum Whereabouts<'a> {
    /// In the family, by relatives.
    Family(&'a Hold),
    /// In a segment, by whoever attaches to it: the offset of its directory entry.
    Segment(&'a Arc<Attachment>, usize),
}

impl Object {
    /// Builds an anonymous object in the family segment. `init` writes its bytes, which are zero.
    pub(crate) fn new(shape: &Shape, init: impl FnOnce(NonNull<u8>)) -> Result<Object> {
        let attempt = |error: Error| error.attempting("create", shape.kind.name(), "");
        let made = family::build(shape, init).map_err(attempt)?;
        Object::anonymous(made, shape, shape.count)
    }

    /// Finds an anonymous object that a relative sent.
    pub(crate) fn resolve(place: Place, shape: &Shape) -> Result<Object> {
        Object::anonymous(family::resolve(place, shape)?, shape, None)
    }

    fn anonymous(made: family::Anonymous, shape: &Shape, count: Option<u64>) -> Result<Object> {
        let family::Anonymous { base, hold, mapping } = made;
        let mut object = Object {
            base,
            count: 1,
            is_writable: true,
            home: Arc::new(Home::Anonymous { hold: Some(hold), mapping, lock: base.cast() }),
        };
        if shape.kind.is_array() {
            // Written when the array was built, never again; an array in the family is as large as its length says.
            let count = count.unwrap_or_else(|| object.word().load(crate::primitive::Ordering::Acquire));
            object.count = object.checked_count(count, shape)?;
        }
        Ok(object)
    }

    /// The length of an array whose elements must lie in the room that the family gave it.
    fn checked_count(&self, count: u64, shape: &Shape) -> Result<usize> {
        let damaged = || Error::new(ErrorKind::Corrupted, "the array that was sent is damaged");
        let elements = count.checked_mul(shape.identity.size).ok_or_else(damaged)?;
        let room = match &*self.home {
            Home::Anonymous { mapping: Some(mapping), .. } => mapping.size(),
            Home::Anonymous { hold: Some(hold), .. } => family::room_of(hold),
            _ => 0,
        };
        let needed = elements.checked_add(super::layout::ELEMENTS_OFFSET as u64).ok_or_else(damaged)?;
        if needed > room as u64 {
            return Err(damaged());
        }
        usize::try_from(count).map_err(|_| damaged())
    }

    /// Makes a named segment with this one object in it, under the segment's name.
    pub(crate) fn create(name: &str, shape: &Shape, init: impl FnOnce(NonNull<u8>)) -> Result<Object> {
        let make = || {
            let options = SegmentOptions::new();
            super::name::check_segment(name)?;
            let room = directory::room_for(name, shape, preamble::objects_offset(options.participants))?;
            let (attachment, entry) = Attachment::create(Some(name), room, &options, |attachment| {
                attachment.build(name, shape, init)
            })?;
            Ok(Object::named(attachment, &entry))
        };
        make().map_err(|error: Error| error.attempting("create", shape.kind.name(), name))
    }

    /// Opens the object that [`create`](Object::create) made under this name.
    pub(crate) fn open(name: &str, shape: &Shape) -> Result<Object> {
        let find = || {
            let attachment = Attachment::open(name, &SegmentOptions::new())?;
            let entry = attachment.find(name, shape)?;
            Ok(Object::named(attachment, &entry))
        };
        find().map_err(|error: Error| error.attempting("open", shape.kind.name(), name))
    }

    /// Opens the object, or creates it if there is none. `init` is called at most once.
    pub(crate) fn open_or_create(
        name: &str,
        shape: &Shape,
        mut init: impl FnMut(NonNull<u8>),
    ) -> Result<Object> {
        let create = || Object::create(name, shape, &mut init);
        life::open_or_create(name, || Object::open(name, shape), create)
            .unwrap_or_else(|error| Err(error.attempting("open or create", shape.kind.name(), name)))
    }

    /// Builds an object in a segment.
    pub(crate) fn build_in(
        attachment: &Arc<Attachment>,
        name: &str,
        shape: &Shape,
        init: impl FnOnce(NonNull<u8>),
    ) -> Result<Object> {
        let entry = attachment
            .build(name, shape, init)
            .map_err(|error| error.attempting("create", shape.kind.name(), name))?;
        Ok(Object::named(Arc::clone(attachment), &entry))
    }

    /// Opens an object in a segment.
    pub(crate) fn open_in(attachment: &Arc<Attachment>, name: &str, shape: &Shape) -> Result<Object> {
        let entry = attachment
            .find(name, shape)
            .map_err(|error| error.attempting("open", shape.kind.name(), name))?;
        Ok(Object::named(Arc::clone(attachment), &entry))
    }

    /// Opens an object in a segment, by the offset of its directory entry.
    pub(crate) fn open_at(attachment: &Arc<Attachment>, offset: usize, shape: &Shape) -> Result<Object> {
        let entry = attachment.find_at(offset, shape)?;
        Ok(Object::named(Arc::clone(attachment), &entry))
    }

    fn named(attachment: Arc<Attachment>, entry: &Entry) -> Object {
        let base = attachment.at(entry.object_offset);
        Object {
            base,
            // Checked against the object's size when the entry was.
            count: usize::try_from(entry.count).unwrap_or(0),
            is_writable: attachment.is_writable(),
            home: Arc::new(Home::Named { attachment, entry_offset: entry.offset, lock: base.cast() }),
        }
    }

    /// How many elements an array has.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether this process may write it.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// The lock that every object begins with.
    #[inline]
    pub(crate) fn lock(&self) -> &RawLock {
        // SAFETY: every object begins with a header of atomics, mapped as long as `self` lives.
        unsafe { &self.base.cast::<ObjectHeader>().as_ref().lock }
    }

    /// Says that a guard over this object's lock is about to be handed out.
    #[inline]
    pub(crate) fn set_guarded(&self) {
        self.lock().set_guarded_by(Arc::as_ptr(&self.home).addr() as u64);
    }

    /// Somebody died while it held this object's lock.
    #[cold]
    pub(crate) fn note_death(&self) {
        if let Home::Named { attachment, .. } = &*self.home {
            attachment.note_death();
        }
    }

    /// The word behind the header, of objects that have one: a version, a length.
    #[inline]
    pub(crate) fn word(&self) -> &AtomicU64 {
        // SAFETY: objects are at least 64 bytes and aligned to as much; the word lies at 56 and is reached atomically.
        unsafe { self.at(WORD_OFFSET).cast::<AtomicU64>().as_ref() }
    }

    /// `words` atomics of a value's copies, from `offset` behind [`DATA_OFFSET`] on.
    ///
    /// The caller stays inside what the shape says.
    #[inline]
    pub(crate) fn words(&self, offset: usize, words: usize) -> &[AtomicU64] {
        let first = self.at(DATA_OFFSET + offset).cast::<AtomicU64>();
        // SAFETY: inside the object, whose shape was checked; copies begin at multiples of 32 bytes.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), words) }
    }

    /// The address `offset` bytes into the object. The caller stays inside what the shape says.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: inside the object, for callers take offsets from the shape that was checked.
        unsafe { self.base.add(offset) }
    }

    pub(crate) fn whereabouts(&self) -> Whereabouts<'_> {
        match &*self.home {
            Home::Anonymous { hold, .. } => {
                Whereabouts::Family(hold.as_ref().expect("held until it is dropped"))
            }
            Home::Named { attachment, entry_offset, .. } => Whereabouts::Segment(attachment, *entry_offset),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let (Home::Anonymous { lock, .. } | Home::Named { lock, .. }) = &*self;
        // SAFETY: still mapped, for what maps it is dropped after this.
        let lock = unsafe { lock.as_ref() };
        if !lock.is_guarded_by(std::ptr::from_ref(self).addr() as u64) {
            return;
        }
        // A guard was forgotten. Its lock hangs in a thread's robust list: were it unmapped or given to somebody else, that thread's
        // next lock would fault. It stays.
        match self {
            Home::Anonymous { hold, mapping, .. } => {
                std::mem::forget(hold.take());
                std::mem::forget(mapping.take());
            }
            Home::Named { attachment, .. } => attachment::leak(attachment),
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.home {
            Home::Anonymous { .. } => f.write_str("anonymous"),
            Home::Named { attachment, .. } => f.write_str(attachment.name().unwrap_or("anonymous segment")),
        }
    }
}
