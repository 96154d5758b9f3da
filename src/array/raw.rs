//! An array without a lock.

#![expect(unsafe_code, reason = "elements are copied atomically, or handed out on the caller's word")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use super::locked::init;
use super::{any_length, check_index, check_range, shape_of};
use crate::error::{Error, ErrorKind, Result};
use crate::plain::{Element, Number};
use crate::primitive::Ordering;
use crate::raw::copy;
use crate::segment::layout::{ELEMENTS_OFFSET, Kind};
use crate::segment::named::Segment;
use crate::segment::object::Object;
use crate::segment::raw::{Bytes, RawSegment};

/// An array that processes share, without a lock: Python's `RawArray`, and the typed view of a [`RawSegment`].
///
/// Elements are copied in and out. Copies of aligned integers and floats are whole; of anything larger, a copy that races with a write
/// may be a mixture of old and new words. Numbers have [atomic operations](RawArray::fetch_add). Slices are handed out only to those
/// who promise that nobody writes.
///
/// It takes as much shared memory as an [`Array`](crate::Array). It can be used in a segment that was made in
/// [another PID namespace](crate::segment::SegmentOptions::any_pid_namespace), and by programs that know nothing of this crate.
///
/// # When a process dies
///
/// Nobody waits, and nobody is told. What a killed writer leaves may be half-written.
///
/// # Examples
///
/// ```
/// use multiproc::{Ordering::Relaxed, RawArray};
///
/// # fn main() -> multiproc::Result<()> {
/// let counts = RawArray::<u64>::new(256)?;
/// counts.fetch_add(7, 1, Relaxed);
/// assert_eq!(counts.get(7), 1);
/// # Ok(())
/// # }
/// ```
pub struct RawArray<T: Element> {
    place: Place,
    elements: NonNull<u8>,
    len: usize,
    is_writable: bool,
    element: PhantomData<T>,
}

/// What keeps the elements where they are.
#[derive(Clone)]
enum Place {
    Object(Object),
    Bytes {
        #[expect(dead_code, reason = "it keeps the mapping")]
        bytes: Arc<Bytes>,
    },
}

// SAFETY: the elements are plain bytes that are reached atomically, or on the caller's word.
unsafe impl<T: Element> Send for RawArray<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for RawArray<T> {}

impl<T: Element> RawArray<T> {
    /// An anonymous array of `len` zeroed elements, for this process and those it is sent to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`] if there is no memory for them.
    pub fn new(len: usize) -> Result<RawArray<T>> {
        let shape = shape_of::<T>(Kind::RawArray, "", len)?;
        Object::new(&shape, |base| init(base, len, &[] as &[T])).map(RawArray::of)
    }

    /// An anonymous array of these elements.
    ///
    /// # Errors
    ///
    /// As [`new`](RawArray::new).
    pub fn from_slice(elements: &[T]) -> Result<RawArray<T>> {
        let shape = shape_of::<T>(Kind::RawArray, "", elements.len())?;
        Object::new(&shape, |base| init(base, elements.len(), elements)).map(RawArray::of)
    }

    /// An anonymous array of the elements that an iterator gives.
    ///
    /// # Errors
    ///
    /// As [`new`](RawArray::new).
    #[expect(clippy::should_implement_trait, reason = "the trait's cannot fail")]
    pub fn from_iter(elements: impl IntoIterator<Item = T>) -> Result<RawArray<T>> {
        RawArray::from_slice(&elements.into_iter().collect::<Vec<T>>())
    }

    /// An array of `len` zeroed elements by name, in a segment of its own.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create(name: &str, len: usize) -> Result<RawArray<T>> {
        let shape = shape_of::<T>(Kind::RawArray, name, len)?;
        Object::create(name, &shape, |base| init(base, len, &[] as &[T])).map(RawArray::of)
    }

    /// The array that some process created under this name, of whatever length.
    ///
    /// # Errors
    ///
    /// As [`Segment::open`], and [`ErrorKind::TypeMismatch`] if something else has that name or the elements are of another type.
    pub fn open(name: &str) -> Result<RawArray<T>> {
        Object::open(name, &any_length::<T>(Kind::RawArray)).map(RawArray::of)
    }

    /// Opens the array of this name, which must have `len` elements, or creates it.
    ///
    /// # Errors
    ///
    /// As [`open`](RawArray::open) and [`create`](RawArray::create), and [`ErrorKind::TypeMismatch`] for another length.
    pub fn open_or_create(name: &str, len: usize) -> Result<RawArray<T>> {
        let shape = shape_of::<T>(Kind::RawArray, name, len)?;
        Object::open_or_create(name, &shape, |base| init(base, len, &[] as &[T])).map(RawArray::of)
    }

    fn of(object: Object) -> RawArray<T> {
        RawArray {
            elements: object.at(ELEMENTS_OFFSET),
            len: object.count(),
            is_writable: object.is_writable(),
            place: Place::Object(object),
            element: PhantomData,
        }
    }

    /// How many elements it has.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of the element at `index`.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    #[inline]
    #[track_caller]
    #[must_use]
    pub fn get(&self, index: usize) -> T {
        let place = self.at(index);
        let mut element = MaybeUninit::<T>::zeroed();
        // SAFETY: the element lies inside; whoever writes it does so atomically, or is a program whose writes are the hardware's.
        unsafe { copy::load(place.cast(), element.as_mut_ptr().cast(), size_of::<T>()) };
        // SAFETY: any bits are a `T`.
        unsafe { element.assume_init() }
    }

    /// Replaces the element at `index`.
    ///
    /// # Panics
    ///
    /// If there is no such element, or the segment is attached read-only.
    #[inline]
    #[track_caller]
    pub fn set(&self, index: usize, element: T) {
        let place = self.at_writable(index);
        // SAFETY: the element lies inside and may be written; a `Pod` value has no uninitialised bytes.
        unsafe { copy::store((&raw const element).cast(), place.cast(), size_of::<T>()) };
    }

    /// A copy of all elements, one after the other: not of one moment.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::zeroed(); self.len];
        self.read_into(0, &mut elements);
        elements
    }

    /// Copies elements from `start` on into `target`, one after the other.
    ///
    /// # Panics
    ///
    /// If they do not all exist.
    #[track_caller]
    pub fn read_into(&self, start: usize, target: &mut [T]) {
        let range = check_range(start, target.len(), self.len);
        // SAFETY: the range lies inside; as in `get`.
        unsafe {
            copy::load(self.pointer(range.start).cast(), target.as_mut_ptr().cast(), size_of_val(target))
        };
    }

    /// Replaces the elements from `start` on by those of `source`, one after the other.
    ///
    /// # Panics
    ///
    /// If they do not all exist, or the segment is attached read-only.
    #[track_caller]
    pub fn write_from(&self, start: usize, source: &[T]) {
        let range = check_range(start, source.len(), self.len);
        self.check_writable();
        // SAFETY: the range lies inside and may be written; as in `set`.
        unsafe { copy::store(source.as_ptr().cast(), self.pointer(range.start).cast(), size_of_val(source)) };
    }

    /// The elements as a slice.
    ///
    /// # Safety
    ///
    /// For as long as the slice lives nobody, in any process, writes an element: not through this type, not through a view of the same
    /// bytes, not as another program.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements are mapped while `self` lives, aligned, any bits are a `T`, and the caller promises that nobody writes.
        unsafe { std::slice::from_raw_parts(self.pointer(0), self.len) }
    }

    /// The elements as a slice to be changed.
    ///
    /// # Safety
    ///
    /// - For as long as the slice lives nobody, in any process, reads or writes an element but through it. `&mut self` does not say so:
    ///   clones and other processes have handles of their own.
    ///
    /// # Panics
    ///
    /// If the segment is attached read-only.
    #[must_use]
    pub unsafe fn as_mut_slice(&mut self) -> &mut [T] {
        self.check_writable();
        // SAFETY: as in `as_slice`; the caller promises that nobody else reads or writes.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(0), self.len) }
    }

    #[inline]
    #[track_caller]
    fn at(&self, index: usize) -> *mut T {
        check_index(index, self.len);
        self.pointer(index)
    }

    #[inline]
    #[track_caller]
    fn at_writable(&self, index: usize) -> *mut T {
        self.check_writable();
        self.at(index)
    }

    #[inline]
    fn pointer(&self, index: usize) -> *mut T {
        // SAFETY: callers have checked the index, or take the slice's end at most.
        unsafe { self.elements.as_ptr().cast::<T>().add(index) }
    }

    #[inline]
    fn check_writable(&self) {
        assert!(self.is_writable, "the segment is attached read-only, and this would write to it");
    }
}

macro_rules! atomics {
    ($($(#[$attribute:meta])* $operation:ident;)+) => {$(
        $(#[$attribute])*
        ///
        /// # Panics
        ///
        /// If there is no such element, or the segment is attached read-only.
        #[inline]
        #[track_caller]
        pub fn $operation(&self, index: usize, value: T, order: Ordering) -> T {
            let word = self.at_writable(index);
            // SAFETY: the element lies inside, aligned as a `T`, may be written, and others reach it atomically.
            unsafe { T::$operation(word, value, order) }
        }
    )+};
}

/// Numbers: atomic operations on one element.
impl<T: Number + Element> RawArray<T> {
    atomics! {
        /// Adds to the element at `index`; an integer wraps around. Returns the one before.
        fetch_add;
        /// Subtracts from the element at `index`; an integer wraps around. Returns the one before.
        fetch_sub;
        /// Replaces the element at `index` by the larger of the two. Returns the one before.
        fetch_max;
        /// Replaces the element at `index` by the smaller of the two. Returns the one before.
        fetch_min;
        /// Replaces the element at `index`. Returns the one before.
        swap;
    }

    /// Loads the element at `index`.
    ///
    /// # Panics
    ///
    /// If there is no such element, or `order` is `Release` or `AcqRel`.
    #[inline]
    #[track_caller]
    pub fn load(&self, index: usize, order: Ordering) -> T {
        let word = self.at(index);
        // SAFETY: the element lies inside, aligned as a `T`, and others reach it atomically.
        unsafe { T::load(word, order) }
    }

    /// Stores the element at `index`.
    ///
    /// # Panics
    ///
    /// If there is no such element, the segment is attached read-only, or `order` is `Acquire` or `AcqRel`.
    #[inline]
    #[track_caller]
    pub fn store(&self, index: usize, value: T, order: Ordering) {
        let word = self.at_writable(index);
        // SAFETY: as in `load`, and it may be written.
        unsafe { T::store(word, value, order) };
    }

    /// Stores `new` at `index` if the element there is `current`, bit for bit.
    ///
    /// # Errors
    ///
    /// The element that is there instead.
    ///
    /// # Panics
    ///
    /// If there is no such element, the segment is attached read-only, or `failure` is `Release` or `AcqRel`.
    #[inline]
    #[track_caller]
    pub fn compare_exchange(
        &self,
        index: usize,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<T, T> {
        let word = self.at_writable(index);
        // SAFETY: as in `store`.
        unsafe { T::compare_exchange(word, current, new, success, failure) }
    }
}

impl RawSegment {
    /// The `len` elements from `offset` on, as an array without a lock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if they do not all lie inside, or `offset` is not a multiple of the elements' alignment.
    pub fn view<T: Element>(&self, offset: usize, len: usize) -> Result<RawArray<T>> {
        let refuse = |why: String| {
            Err(Error::new(ErrorKind::InvalidInput, why).attempting("view", "raw segment", self.name()))
        };
        if offset % align_of::<T>() != 0 {
            return refuse(format!(
                "offset {offset} is no multiple of {}, to which the elements are aligned",
                align_of::<T>()
            ));
        }
        let Some(size) = len.checked_mul(size_of::<T>()) else {
            return refuse(format!(
                "{len} elements of {} bytes are more than can be counted",
                size_of::<T>()
            ));
        };
        let elements = self
            .bytes
            .range(offset, size)
            .map_err(|error| error.attempting("view", "raw segment", self.name()))?;
        Ok(RawArray {
            elements,
            len,
            is_writable: self.bytes.is_writable,
            place: Place::Bytes { bytes: Arc::clone(&self.bytes) },
            element: PhantomData,
        })
    }
}

impl Segment {
    /// Makes an array of `len` zeroed elements without a lock in this segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if the segment has an object of that name, [`ErrorKind::NoRoom`] if it is full.
    pub fn raw_array<T: Element>(&self, name: &str, len: usize) -> Result<RawArray<T>> {
        let shape = shape_of::<T>(Kind::RawArray, name, len)?;
        Object::build_in(&self.attachment, name, &shape, |base| init(base, len, &[] as &[T]))
            .map(RawArray::of)
    }
}

impl<T: Element> Clone for RawArray<T> {
    fn clone(&self) -> RawArray<T> {
        RawArray { place: self.place.clone(), ..*self }
    }
}

impl<T: Element> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawArray").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Only while it is sent to another process; a view of a raw segment cannot be sent: send the segment's name.
impl<T: Element> serde::Serialize for RawArray<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.place {
            Place::Object(object) => crate::transfer::serialize(object, serializer),
            Place::Bytes { .. } => Err(serde::ser::Error::custom(
                "a view of a raw segment cannot be sent: send the segment's name",
            )),
        }
    }
}

impl<'de, T: Element> serde::Deserialize<'de> for RawArray<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<RawArray<T>, D::Error> {
        crate::transfer::deserialize(deserializer, &any_length::<T>(Kind::RawArray)).map(RawArray::of)
    }
}

impl<T: Element> crate::segment::Handle for RawArray<T> {}

impl<T: Element> crate::segment::sealed::Handle for RawArray<T> {
    #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
    fn open_in(attachment: &Arc<crate::segment::Attachment>, name: &str) -> Result<RawArray<T>> {
        Object::open_in(attachment, name, &any_length::<T>(Kind::RawArray)).map(RawArray::of)
    }
}
