//! A mutex over data in shared memory.

#![expect(unsafe_code, reason = "the guard hands out the data that its lock protects")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::error::{OwnerDied, Result, TryLockError};
use crate::handle::handle;
use crate::plain::Element;
use crate::raw::lock::{Busy, Held, Linked, RawLock};
use crate::segment::layout::{Shape, mutex_data_offset};
use crate::segment::named::Segment;
use crate::segment::object::Object;
use crate::sys::clock::Deadline;

/// Mutual exclusion between threads of any processes, with the data it protects: `std::sync::Mutex` in shared memory.
///
/// The data are an [`Element`]: `&mut T` is handed out while the lock is held, and every bit pattern is a `T`. An uncontended
/// lock and unlock costs what `std::sync::Mutex` costs and calls nobody. It takes 64 bytes of shared memory and the data, rounded
/// up to 64.
///
/// It is not fair and knows no priorities. A panic while it is held does not poison it. It must not be locked in a signal handler. At most 2048 locks may be held by one
/// thread at once.
///
/// # When a process dies
///
/// A waiter that dies is forgotten. If the owner dies (or its thread ends) with the lock held, the kernel wakes the next one, who gets
/// [`OwnerDied`] with the guard in it: the data may be half-changed. So does everybody after him, until somebody calls
/// [`MutexGuard::recover`]. Nobody waits for ever.
///
/// # Examples
///
/// ```
/// use multiproc::{Mutex, Process};
///
/// fn deposit(account: Mutex<i64>) {
///     *account.lock().unwrap() += 100;
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// let account = Mutex::new(1_i64)?;
/// Process::spawn(deposit, (account.clone(),))?.join()?;
/// assert_eq!(*account.lock()?, 101);
/// # Ok(())
/// # }
/// ```
pub struct Mutex<T: Element> {
    object: Object,
    element: PhantomData<T>,
}

handle!(Mutex<T: Element>, Shape::mutex::<T>());

// SAFETY: the data are plain bytes, reached only under the lock, which excludes threads as it excludes processes.
unsafe impl<T: Element> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for Mutex<T> {}

impl<T: Element> Mutex<T> {
    /// An anonymous mutex, for this process and those it is sent to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if there is no memory for it.
    pub fn new(data: T) -> Result<Mutex<T>> {
        Ok(Mutex::of(Object::new(&Shape::mutex::<T>(), |base| write(base, data))?))
    }

    /// A mutex by name, in a segment of its own.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create(name: &str, data: T) -> Result<Mutex<T>> {
        Ok(Mutex::of(Object::create(name, &Shape::mutex::<T>(), |base| write(base, data))?))
    }

    /// The mutex that some process created under this name.
    ///
    /// # Errors
    ///
    /// As [`Segment::open`], and [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) if something else has that name.
    pub fn open(name: &str) -> Result<Mutex<T>> {
        Ok(Mutex::of(Object::open(name, &Shape::mutex::<T>())?))
    }

    /// Opens the mutex of this name, or creates it.
    ///
    /// # Errors
    ///
    /// As [`open`](Mutex::open) and [`create`](Mutex::create).
    pub fn open_or_create(name: &str, data: T) -> Result<Mutex<T>> {
        Ok(Mutex::of(Object::open_or_create(name, &Shape::mutex::<T>(), |base| write(base, data))?))
    }

    /// Locks, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// [`OwnerDied`], with the guard, if an owner died while it held the lock and nobody has recovered the data since.
    ///
    /// # Panics
    ///
    /// If this thread holds it already, or holds 2048 locks.
    ///
    /// # Blocking
    ///
    /// While somebody else holds it: a few pauses, a few yields, then asleep.
    #[doc(alias = "acquire")]
    #[inline(always)]
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, OwnerDied<MutexGuard<'_, T>>> {
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
    #[inline]
    pub fn try_lock(&self) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
        self.lock_until(Deadline::Now)
    }

    /// Locks, waiting at most so long. A zero time-out is [`try_lock`](Mutex::try_lock).
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`], [`TryLockError::OwnerDied`].
    ///
    /// # Panics
    ///
    /// As [`lock`](Mutex::lock).
    ///
    /// # Blocking
    ///
    /// As [`lock`](Mutex::lock), until the time-out on the monotonic clock.
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
        self.lock_until(Deadline::after(timeout))
    }

    /// Locks, waiting until a point in time. One that has passed is [`try_lock`](Mutex::try_lock).
    ///
    /// # Errors
    ///
    /// As [`lock_timeout`](Mutex::lock_timeout).
    ///
    /// # Panics
    ///
    /// As [`lock`](Mutex::lock).
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
        self.lock_until(Deadline::at(deadline))
    }

    /// Locks, and if an owner died, lets `repair` put the data in order first.
    ///
    /// If `repair` panics the data stay unrecovered, and the next one is told.
    ///
    /// # Panics
    ///
    /// As [`lock`](Mutex::lock).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> multiproc::Result<()> {
    /// let sum = multiproc::Mutex::new([1_u32, 2, 3])?;
    /// let sum = sum.lock_or_repair(|sum| sum[2] = sum[0] + sum[1]);
    /// assert_eq!(sum[2], 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock_or_repair(&self, repair: impl FnOnce(&mut T)) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(|died| {
            let mut guard = died.into_guard();
            repair(&mut guard);
            guard.recover();
            guard
        })
    }

    fn lock_until(&self, deadline: Deadline) -> Result<MutexGuard<'_, T>, TryLockError<MutexGuard<'_, T>>> {
        match self.object.lock().lock::<Linked>(deadline) {
            Ok(held) => Ok(self.guard(held)?),
            Err(Busy) => Err(busy(deadline)),
        }
    }

    #[inline(always)]
    fn guard(&self, held: Held) -> Result<MutexGuard<'_, T>, OwnerDied<MutexGuard<'_, T>>> {
        let lock = self.object.lock();
        self.object.set_guarded();
        let guard = MutexGuard { lock, held: Some(held), data: data_of(&self.object), _stays: PhantomData };
        if lock.is_inconsistent() { Err(self.died(guard)) } else { Ok(guard) }
    }

    /// Out of line: within it the guard would go through memory on every path, which more than doubles the cost of a lock.
    #[cold]
    #[inline(never)]
    fn died<'a>(&self, guard: MutexGuard<'a, T>) -> OwnerDied<MutexGuard<'a, T>> {
        self.object.note_death();
        OwnerDied::new(guard)
    }
}

/// What a lock that could not be had until `deadline` is called.
pub(crate) fn busy<G>(deadline: Deadline) -> TryLockError<G> {
    match deadline {
        Deadline::Now => TryLockError::WouldBlock,
        _ => TryLockError::TimedOut,
    }
}

fn data_of<T>(object: &Object) -> NonNull<T> {
    object.at(const { mutex_data_offset::<T>() }).cast()
}

fn write<T>(base: NonNull<u8>, data: T) {
    // SAFETY: the shape of a mutex has room for the data there, aligned, and nobody else sees it yet.
    let place = unsafe { base.add(const { mutex_data_offset::<T>() }) };
    // SAFETY: as above.
    unsafe { place.cast::<T>().write(data) };
}

impl<T: Element> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mutex").field(&self.object).finish()
    }
}

impl Segment {
    /// Makes a mutex in this segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the segment has an object of that name,
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if it is full.
    pub fn mutex<T: Element>(&self, name: &str, data: T) -> Result<Mutex<T>> {
        Ok(Mutex::of(Object::build_in(&self.attachment, name, &Shape::mutex::<T>(), |base| {
            write(base, data)
        })?))
    }
}

/// The right to the data of a [`Mutex`], until it is dropped. It stays on its thread.
///
/// One that is forgotten keeps its lock until the thread ends, and its memory mapped (with it the segment's name) until the process does;
/// the next one who locks gets [`OwnerDied`].
/// A copy that a fork made in the child gives nothing back: the lock is the parent's.
#[must_use = "the lock is given back when the guard is dropped"]
pub struct MutexGuard<'a, T> {
    lock: &'a RawLock,
    held: Option<Held>,
    data: NonNull<T>,
    /// Borrows the handle, so that nothing is unmapped; not `Send`, for the lock hangs in this thread's list.
    _stays: PhantomData<(&'a mut T, *const ())>,
}

// SAFETY: a shared guard gives `&T` only.
unsafe impl<T: Sync> Sync for MutexGuard<'_, T> {}

impl<T> MutexGuard<'_, T> {
    /// Says that the data are in order again: from now on nobody is told of the owner that died.
    pub fn recover(&mut self) {
        self.lock.recover();
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the data are mapped while the handle is borrowed, initialised, any bits are a `T`, and under the lock nobody writes them.
        unsafe { self.data.as_ref() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; under the lock nobody else reads them either.
        unsafe { self.data.as_mut() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.lock.unlock::<Linked>(held);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
