//! A value with a lock.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::{InvalidBits, ValueGuard, check_writable, store};
use crate::error::{Result, TryLockError};
use crate::handle::handle;
use crate::plain::number::is_number;
use crate::plain::{Integer, Number, Plain};
use crate::primitive::Ordering;
use crate::raw::lock::{Busy, Linked, PendingOnly};
use crate::segment::layout::{Kind, Shape};
use crate::segment::named::Segment;
use crate::segment::object::Object;
use crate::sync::busy;
use crate::sys::clock::Deadline;

/// A value that processes share: any [`Plain`] type, never torn.
///
/// [`get`](Value::get) takes no lock and writes nothing shared; [`set`](Value::set) and [`update`](Value::update) exclude each other.
/// For integers and floats of up to 8 bytes everything is one atomic instruction, with all of `std`'s atomic operations; these ignore the
/// lock, which then excludes only other [`lock`](Value::lock) holders.
///
/// An anonymous number takes 64 bytes of shared memory, other types of up to 32 bytes 128, of up to 64 bytes 192.
///
/// # When a process dies
///
/// A writer that is killed leaves the old or the new value, never a mixture, and never a lock that stays held. There is nothing to
/// repair, so nobody is told.
///
/// # Examples
///
/// ```
/// use multiproc::{Ordering::Relaxed, Process, Value};
///
/// fn count(hits: Value<u64>, share: Value<f64>) {
///     hits.fetch_add(1, Relaxed);
///     share.set(0.5);
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// let hits = Value::new(0_u64)?;
/// let share = Value::new(0.0)?;
/// Process::spawn(count, (hits.clone(), share.clone()))?.join()?;
/// assert_eq!((hits.get(), share.get()), (1, 0.5));
/// # Ok(())
/// # }
/// ```
///
/// What cannot lie in shared memory does not compile: no references, no `Vec`, no `String`, no structs with padding.
///
/// ```compile_fail,E0277
/// # fn main() -> multiproc::Result<()> {
/// let list = multiproc::Value::new(vec![1, 2, 3])?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "sharedctypes")]
#[doc(alias = "Synchronized")]
pub struct Value<T: Plain> {
    object: Object,
    element: PhantomData<T>,
}

handle!(Value<T: Plain>, Shape::value::<T>(Kind::Value));

impl<T: Plain> Value<T> {
    /// An anonymous value, for this process and those it is sent to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if there is no memory for it.
    pub fn new(value: T) -> Result<Value<T>> {
        Ok(Value::of(Object::new(&Shape::value::<T>(Kind::Value), |base| store::init(base, value))?))
    }

    /// A value by name, in a segment of its own.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create(name: &str, value: T) -> Result<Value<T>> {
        Ok(Value::of(Object::create(name, &Shape::value::<T>(Kind::Value), |base| store::init(base, value))?))
    }

    /// The value that some process created under this name.
    ///
    /// # Errors
    ///
    /// As [`Segment::open`], and [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) if something else has that name.
    pub fn open(name: &str) -> Result<Value<T>> {
        Ok(Value::of(Object::open(name, &Shape::value::<T>(Kind::Value))?))
    }

    /// Opens the value of this name, or creates it.
    ///
    /// # Errors
    ///
    /// As [`open`](Value::open) and [`create`](Value::create).
    pub fn open_or_create(name: &str, value: T) -> Result<Value<T>> {
        let shape = Shape::value::<T>(Kind::Value);
        Ok(Value::of(Object::open_or_create(name, &shape, |base| store::init(base, value))?))
    }

    /// The value: of some moment during the call, and never an older one than an earlier call gave.
    ///
    /// Takes no lock and writes nothing shared: a number costs a load, other types a copy by the word. It looks again
    /// whenever somebody wrote meanwhile.
    ///
    /// # Panics
    ///
    /// If the bits are no `T` (`bool`, `char`, enums), which only a program that breaks the contract leaves there;
    /// [`get_checked`](Value::get_checked) says so instead.
    #[doc(alias = "value")]
    #[doc(alias = "load")]
    #[inline]
    #[must_use]
    pub fn get(&self) -> T {
        self.get_checked().unwrap_or_else(|invalid| invalid.panic())
    }

    /// The value, or that the bits there are none.
    ///
    /// # Errors
    ///
    /// [`InvalidBits`], for a `bool`, `char` or enum that another program overwrote with something else.
    #[inline]
    pub fn get_checked(&self) -> Result<T, InvalidBits> {
        store::load(&self.object).ok_or(InvalidBits)
    }

    /// Replaces the value.
    ///
    /// # Panics
    ///
    /// If the segment is attached read-only, or this thread holds the value's [guard](Value::lock) (numbers: never).
    ///
    /// # Blocking
    ///
    /// While somebody else writes or holds the guard. Numbers: never.
    #[doc(alias = "value")]
    #[doc(alias = "store")]
    #[inline]
    pub fn set(&self, value: T) {
        check_writable(&self.object);
        if is_number::<T>() {
            return store::store(&self.object, value);
        }
        let lock = self.object.lock();
        // Nothing of the caller's runs in this section, so the kernel may be told by the pending slot alone.
        match lock.lock::<PendingOnly>(Deadline::Never) {
            Ok(held) => {
                // An owner that died left the old value or the new one whole.
                store::store(&self.object, value);
                lock.unlock::<PendingOnly>(held);
            }
            Err(Busy) => unreachable!("it may wait for ever"),
        }
    }

    /// Changes the value by a function of it, with no other writer in between, and returns the new one.
    ///
    /// For numbers it is a compare-and-exchange loop, so `change` may run several times; else it runs once, under the lock. If it
    /// panics, the value stays.
    ///
    /// # Panics
    ///
    /// As [`get`](Value::get) and [`set`](Value::set).
    ///
    /// # Blocking
    ///
    /// As [`set`](Value::set).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> multiproc::Result<()> {
    /// let best = multiproc::Value::new((0_u32, 0_u32).0)?;
    /// assert_eq!(best.update(|best| best.max(7)), 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&self, mut change: impl FnMut(T) -> T) -> T {
        check_writable(&self.object);
        if is_number::<T>() {
            return store::update_word(&self.object, change);
        }
        let mut guard = self.lock();
        let new = change(guard.get());
        guard.set(new);
        new
    }

    /// Takes the value for several steps: until the guard is dropped, nobody else sets it.
    ///
    /// The guard works on a private copy and commits it when it is dropped (not while panicking), so a kill in between leaves the old
    /// value. For numbers it works on the word itself, and atomic operations of others go on meanwhile.
    ///
    /// # Panics
    ///
    /// As [`get`](Value::get), if the segment is attached read-only, if this thread holds the guard already, or 2048 locks.
    ///
    /// # Blocking
    ///
    /// While somebody else holds the guard, or sets or updates the value.
    #[doc(alias = "get_lock")]
    #[doc(alias = "acquire")]
    pub fn lock(&self) -> ValueGuard<'_, T> {
        match self.lock_until(Deadline::Never) {
            Ok(guard) => guard,
            Err(_) => unreachable!("it may wait for ever"),
        }
    }

    /// Takes the value if nobody has it.
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`].
    ///
    /// # Panics
    ///
    /// As [`lock`](Value::lock), but for a guard that this thread holds.
    pub fn try_lock(&self) -> Result<ValueGuard<'_, T>, TryLockError<ValueGuard<'_, T>>> {
        self.lock_until(Deadline::Now)
    }

    /// Takes the value, waiting at most so long. A zero time-out is [`try_lock`](Value::try_lock).
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`].
    ///
    /// # Panics
    ///
    /// As [`lock`](Value::lock).
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ValueGuard<'_, T>, TryLockError<ValueGuard<'_, T>>> {
        self.lock_until(Deadline::after(timeout))
    }

    /// Takes the value, waiting until a point in time. One that has passed is [`try_lock`](Value::try_lock).
    ///
    /// # Errors
    ///
    /// [`TryLockError::TimedOut`].
    ///
    /// # Panics
    ///
    /// As [`lock`](Value::lock).
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<ValueGuard<'_, T>, TryLockError<ValueGuard<'_, T>>> {
        self.lock_until(Deadline::at(deadline))
    }

    fn lock_until(&self, deadline: Deadline) -> Result<ValueGuard<'_, T>, TryLockError<ValueGuard<'_, T>>> {
        check_writable(&self.object);
        match self.object.lock().lock::<Linked>(deadline) {
            Ok(held) => Ok(ValueGuard::new(&self.object, held)),
            Err(Busy) => Err(busy(deadline)),
        }
    }
}

macro_rules! fetch {
    ($($(#[$attribute:meta])* $operation:ident;)+) => {$(
        $(#[$attribute])*
        ///
        /// Returns the value before. The hardware's own instruction where it has one, else a compare-and-exchange loop.
        ///
        /// # Panics
        ///
        /// If the segment is attached read-only.
        #[inline]
        pub fn $operation(&self, value: T, order: Ordering) -> T {
            check_writable(&self.object);
            store::$operation(&self.object, value, order)
        }
    )+};
}

/// Numbers: the operations of `std`'s atomics, on one word of shared memory.
impl<T: Number> Value<T> {
    /// Loads the number, as `std`'s atomics do.
    ///
    /// # Panics
    ///
    /// If `order` is `Release` or `AcqRel`.
    #[inline]
    pub fn load(&self, order: Ordering) -> T {
        store::load_word(&self.object, order)
    }

    /// Stores a number, as `std`'s atomics do.
    ///
    /// # Panics
    ///
    /// If `order` is `Acquire` or `AcqRel`, or the segment is attached read-only.
    #[inline]
    pub fn store(&self, value: T, order: Ordering) {
        check_writable(&self.object);
        store::store_word(&self.object, value, order);
    }

    /// Stores `new` if the number is `current`, bit for bit.
    ///
    /// # Errors
    ///
    /// The number that is there instead.
    ///
    /// # Panics
    ///
    /// If `failure` is `Release` or `AcqRel`, or the segment is attached read-only.
    #[inline]
    pub fn compare_exchange(&self, current: T, new: T, success: Ordering, failure: Ordering) -> Result<T, T> {
        check_writable(&self.object);
        store::compare_exchange(&self.object, current, new, success, failure)
    }

    fetch! {
        /// Stores a number.
        swap;
        /// Adds; an integer wraps around.
        fetch_add;
        /// Subtracts; an integer wraps around.
        fetch_sub;
        /// Stores the larger of the two.
        fetch_max;
        /// Stores the smaller of the two.
        fetch_min;
    }
}

/// Integers have bits.
impl<T: Integer> Value<T> {
    fetch! {
        /// Stores the bitwise and.
        fetch_and;
        /// Stores the bitwise or.
        fetch_or;
        /// Stores the bitwise exclusive or.
        fetch_xor;
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get_checked() {
            Ok(value) => f.debug_tuple("Value").field(&value).finish(),
            Err(invalid) => f.debug_tuple("Value").field(&invalid).finish(),
        }
    }
}

impl Segment {
    /// Makes a value in this segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the segment has an object of that name, [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if it is full.
    pub fn value<T: Plain>(&self, name: &str, value: T) -> Result<Value<T>> {
        let shape = Shape::value::<T>(Kind::Value);
        Ok(Value::of(Object::build_in(&self.attachment, name, &shape, |base| store::init(base, value))?))
    }
}
