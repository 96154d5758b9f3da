//! An array with a lock.

#![expect(unsafe_code, reason = "elements are copied into an array that is being built")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::{ArrayGuard, any_length, check_index, check_range, shape_of};
use crate::error::{OwnerDied, Result, TryLockError};
use crate::handle::handle;
use crate::plain::Element;
use crate::raw::lock::{Busy, Held, Linked};
use crate::segment::layout::{ELEMENTS_OFFSET, Kind, WORD_OFFSET};
use crate::segment::named::Segment;
use crate::segment::object::Object;
use crate::sync::busy;
use crate::sys::clock::Deadline;

/// An array that processes share, with a lock: elements of a plain type, in place.
///
/// [`lock`](Array::lock) hands out the elements as a slice, at the speed of a slice. The by-value calls (`get`, `set`, `to_vec` …) lock for
/// their own duration. The length is fixed. Two dimensions are an array of arrays: `Array<[f64; 3]>` has rows of three.
///
/// It takes 128 bytes of shared memory and its elements, which begin at a multiple of 128 bytes; their pages are reserved when it is
/// created, so that a full memory is an error then and not a signal later. Elements from [`new`](Array::new) and
/// [`create`](Array::create) are zero.
///
/// # When a process dies
///
/// A waiter that dies is forgotten. If the owner dies with the lock held, some elements may be new and others old: everybody who locks,
/// or gets, or sets, gets [`OwnerDied`] until somebody locks, looks, and calls [`ArrayGuard::recover`]. Nobody waits for ever.
///
/// # Examples
///
/// ```
/// use multiproc::{Array, Process};
///
/// fn negate(cells: Array<i32>) {
///     for cell in cells.lock().unwrap().iter_mut() {
///         *cell = -*cell;
///     }
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// let cells = Array::from_iter(0..4)?;
/// Process::spawn(negate, (cells.clone(),))?.join()?;
/// assert_eq!(cells.to_vec()?, [0, -1, -2, -3]);
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # fn main() -> multiproc::Result<()> {
/// let names = multiproc::Array::<String>::new(4)?; // use Array<Text<32>>
/// # Ok(())
/// # }
/// ```
#[doc(alias = "SynchronizedArray")]
pub struct Array<T: Element> {
    object: Object,
    element: PhantomData<T>,
}

handle!(Array<T: Element>, any_length::<T>(Kind::Array));

// SAFETY: the elements are plain bytes, reached only under the lock, which excludes threads as it excludes processes.
unsafe impl<T: Element> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Array<T> {}

impl<T: Element> Array<T> {
    /// An anonymous array of `len` zeroed elements, for this process and those it is sent to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if there is no memory for them; nothing is taken then.
    pub fn new(len: usize) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, "", len)?;
        Object::new(&shape, |base| init(base, len, &[] as &[T])).map(Array::of)
    }

    /// An anonymous array of these elements.
    ///
    /// # Errors
    ///
    /// As [`new`](Array::new).
    pub fn from_slice(elements: &[T]) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, "", elements.len())?;
        Object::new(&shape, |base| init(base, elements.len(), elements)).map(Array::of)
    }

    /// An anonymous array of the elements that an iterator gives.
    ///
    /// # Errors
    ///
    /// As [`new`](Array::new).
    #[expect(clippy::should_implement_trait, reason = "the trait's cannot fail")]
    pub fn from_iter(elements: impl IntoIterator<Item = T>) -> Result<Array<T>> {
        Array::from_slice(&elements.into_iter().collect::<Vec<T>>())
    }

    /// An array of `len` zeroed elements by name, in a segment of its own.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`]: the room is checked before anything is written.
    pub fn create(name: &str, len: usize) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, name, len)?;
        Object::create(name, &shape, |base| init(base, len, &[] as &[T])).map(Array::of)
    }

    /// An array of these elements by name, in a segment of its own: others see it whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create_from_slice(name: &str, elements: &[T]) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, name, elements.len())?;
        Object::create(name, &shape, |base| init(base, elements.len(), elements)).map(Array::of)
    }

    /// The array that some process created under this name, of whatever length.
    ///
    /// # Errors
    ///
    /// As [`Segment::open`], and [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) if something else has that name or the
    /// elements are of another type.
    pub fn open(name: &str) -> Result<Array<T>> {
        Object::open(name, &any_length::<T>(Kind::Array)).map(Array::of)
    }

    /// Opens the array of this name, which must have `len` elements, or creates it.
    ///
    /// # Errors
    ///
    /// As [`open`](Array::open) and [`create`](Array::create), and
    /// [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) for another length.
    pub fn open_or_create(name: &str, len: usize) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, name, len)?;
        Object::open_or_create(name, &shape, |base| init(base, len, &[] as &[T])).map(Array::of)
    }

    /// How many elements it has.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.object.count()
    }

    /// Whether it has no elements.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks the array and hands out its elements.
    ///
    /// # Errors
    ///
    /// [`OwnerDied`], with the guard, if an owner died while it held the lock and nobody has recovered since.
    ///
    /// # Panics
    ///
    /// If this thread holds it already, or holds 2048 locks.
    ///
    /// # Blocking
    ///
    /// While somebody else holds it.
    #[doc(alias = "get_lock")]
    #[doc(alias = "acquire")]
    #[inline]
    pub fn lock(&self) -> Result<ArrayGuard<'_, T>, OwnerDied<ArrayGuard<'_, T>>> {
        match self.object.lock().lock::<Linked>(Deadline::Never) {
            Ok(held) => self.guard(held),
            Err(Busy) => unreachable!("it may wait for ever"),
        }
    }

    /// Locks if nobody holds it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`] if it is held, by this thread too; [`TryLockError::OwnerDied`].
    ///
    /// # Panics
    ///
    /// If this thread holds 2048 locks.
    pub fn try_lock(&self) -> Result<ArrayGuard<'_, T>, TryLockError<ArrayGuard<'_, T>>> {
        self.lock_until(Deadline::Now)
    }

    /// Locks, waiting at most so long. A zero time-out is [`try_lock`](Array::try_lock).
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`], [`TryLockError::OwnerDied`].
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock).
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ArrayGuard<'_, T>, TryLockError<ArrayGuard<'_, T>>> {
        self.lock_until(Deadline::after(timeout))
    }

    /// Locks, waiting until a point in time. One that has passed is [`try_lock`](Array::try_lock).
    ///
    /// # Errors
    ///
    /// As [`lock_timeout`](Array::lock_timeout).
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock).
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<ArrayGuard<'_, T>, TryLockError<ArrayGuard<'_, T>>> {
        self.lock_until(Deadline::at(deadline))
    }

    /// Locks, and if an owner died, lets `repair` put the elements in order first.
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock). If `repair` panics, the array stays unrecovered.
    pub fn lock_or_repair(&self, repair: impl FnOnce(&mut [T])) -> ArrayGuard<'_, T> {
        self.lock().unwrap_or_else(|died| {
            let mut guard = died.into_guard();
            repair(&mut guard);
            guard.recover();
            guard
        })
    }

    /// A copy of the element at `index`.
    ///
    /// # Errors
    ///
    /// [`OwnerDied`] as [`lock`](Array::lock), but with nothing in it.
    ///
    /// # Panics
    ///
    /// If there is no such element, and as [`lock`](Array::lock).
    #[track_caller]
    pub fn get(&self, index: usize) -> Result<T, OwnerDied> {
        check_index(index, self.len());
        Ok(self.consistent()?[index])
    }

    /// Replaces the element at `index`.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get); the element stays.
    ///
    /// # Panics
    ///
    /// As [`get`](Array::get).
    #[track_caller]
    pub fn set(&self, index: usize, element: T) -> Result<(), OwnerDied> {
        check_index(index, self.len());
        self.consistent()?[index] = element;
        Ok(())
    }

    /// Changes the element at `index` by a function of it, with nobody in between, and returns the new one.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// As [`get`](Array::get).
    #[track_caller]
    pub fn update(&self, index: usize, change: impl FnOnce(T) -> T) -> Result<T, OwnerDied> {
        check_index(index, self.len());
        let mut elements = self.consistent()?;
        elements[index] = change(elements[index]);
        Ok(elements[index])
    }

    /// A copy of all elements, of one moment.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock).
    pub fn to_vec(&self) -> Result<Vec<T>, OwnerDied> {
        Ok(self.consistent()?.to_vec())
    }

    /// An iterator over copies of all elements, of one moment: what others write meanwhile does not show.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock).
    pub fn iter(&self) -> Result<std::vec::IntoIter<T>, OwnerDied> {
        Ok(self.to_vec()?.into_iter())
    }

    /// Copies elements from `start` on into `target`, all of one moment.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// If they do not all exist, and as [`lock`](Array::lock).
    #[track_caller]
    pub fn read_into(&self, start: usize, target: &mut [T]) -> Result<(), OwnerDied> {
        let range = check_range(start, target.len(), self.len());
        target.copy_from_slice(&self.consistent()?[range]);
        Ok(())
    }

    /// Replaces the elements from `start` on by those of `source`. If this process is killed half-way, the next one is told.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get); the elements stay.
    ///
    /// # Panics
    ///
    /// If they do not all exist, and as [`lock`](Array::lock).
    #[track_caller]
    pub fn write_from(&self, start: usize, source: &[T]) -> Result<(), OwnerDied> {
        let range = check_range(start, source.len(), self.len());
        self.consistent()?[range].copy_from_slice(source);
        Ok(())
    }

    /// Replaces every element.
    ///
    /// # Errors
    ///
    /// As [`get`](Array::get); the elements stay.
    ///
    /// # Panics
    ///
    /// As [`lock`](Array::lock).
    pub fn fill(&self, element: T) -> Result<(), OwnerDied> {
        self.consistent()?.fill(element);
        Ok(())
    }

    /// The guard, or only the news that an owner died.
    fn consistent(&self) -> Result<ArrayGuard<'_, T>, OwnerDied> {
        self.lock().map_err(|_| OwnerDied::new(()))
    }

    fn lock_until(&self, deadline: Deadline) -> Result<ArrayGuard<'_, T>, TryLockError<ArrayGuard<'_, T>>> {
        match self.object.lock().lock::<Linked>(deadline) {
            Ok(held) => Ok(self.guard(held)?),
            Err(Busy) => Err(busy(deadline)),
        }
    }

    #[inline]
    fn guard(&self, held: Held) -> Result<ArrayGuard<'_, T>, OwnerDied<ArrayGuard<'_, T>>> {
        let lock = self.object.lock();
        self.object.set_guarded();
        let guard = ArrayGuard::new(lock, held, self.object.at(ELEMENTS_OFFSET).cast(), self.len());
        if lock.is_inconsistent() { Err(self.died(guard)) } else { Ok(guard) }
    }

    #[cold]
    #[inline(never)]
    fn died<'a>(&self, guard: ArrayGuard<'a, T>) -> OwnerDied<ArrayGuard<'a, T>> {
        self.object.note_death();
        OwnerDied::new(guard)
    }
}

/// Writes the length and the first elements into an array that nobody sees yet and whose bytes are zero.
pub(super) fn init<T: Element>(base: NonNull<u8>, len: usize, elements: &[T]) {
    debug_assert!(elements.len() <= len);
    // SAFETY: every array has its length there.
    let word = unsafe { base.add(WORD_OFFSET) };
    // SAFETY: as above, aligned to 8; the array is ours alone.
    unsafe { word.cast::<u64>().write(len as u64) };
    // SAFETY: the elements lie there.
    let first = unsafe { base.add(ELEMENTS_OFFSET) };
    // SAFETY: the shape has room for `len` elements, no fewer than are copied; they are aligned, and ours alone.
    unsafe { first.cast::<T>().as_ptr().copy_from_nonoverlapping(elements.as_ptr(), elements.len()) };
}

impl<T: Element> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("name", &self.object).field("len", &self.len()).finish()
    }
}

impl Segment {
    /// Makes an array of `len` zeroed elements in this segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the segment has an object of that name,
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if it is full.
    pub fn array<T: Element>(&self, name: &str, len: usize) -> Result<Array<T>> {
        let shape = shape_of::<T>(Kind::Array, name, len)?;
        Object::build_in(&self.attachment, name, &shape, |base| init(base, len, &[] as &[T])).map(Array::of)
    }
}
