//! One value in shared memory without a lock.

#![expect(unsafe_code, reason = "a value becomes bytes")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{InvalidBits, check_writable, store};
use crate::error::Result;
use crate::handle::handle;
use crate::plain::number::is_number;
use crate::plain::{Number, Plain};
use crate::raw::copy;
use crate::segment::layout::{DATA_OFFSET, Kind, Shape};
use crate::segment::named::Segment;
use crate::segment::object::Object;

/// A value that processes share, without a lock: Python's `RawValue`.
///
/// Integers and floats of up to 8 bytes are read and written whole. Of anything larger, a read that races with a write may be a mixture
/// of old and new words, and so may what a killed writer leaves: a [`Value`](crate::Value) is never torn, and costs little more.
///
/// It takes as much shared memory as a `Value`. It can be used in a segment that was made in
/// [another PID namespace](crate::segment::SegmentOptions::any_pid_namespace).
///
/// # When a process dies
///
/// Nobody waits, and nobody is told.
///
/// # Examples
///
/// ```
/// # fn main() -> multiproc::Result<()> {
/// let heartbeat = multiproc::RawValue::new(0_u64)?;
/// heartbeat.set(1);
/// assert_eq!(heartbeat.get(), 1);
/// # Ok(())
/// # }
/// ```
pub struct RawValue<T: Plain> {
    object: Object,
    element: PhantomData<T>,
}

handle!(RawValue<T: Plain>, Shape::value::<T>(Kind::RawValue));

impl<T: Plain> RawValue<T> {
    /// An anonymous value, for this process and those it is sent to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if there is no memory for it.
    pub fn new(value: T) -> Result<RawValue<T>> {
        Ok(RawValue::of(Object::new(&Shape::value::<T>(Kind::RawValue), |base| store::init(base, value))?))
    }

    /// A value by name, in a segment of its own.
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create(name: &str, value: T) -> Result<RawValue<T>> {
        Ok(RawValue::of(Object::create(name, &Shape::value::<T>(Kind::RawValue), |base| {
            store::init(base, value)
        })?))
    }

    /// The value that some process created under this name.
    ///
    /// # Errors
    ///
    /// As [`Segment::open`], and [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) if something else has that name.
    pub fn open(name: &str) -> Result<RawValue<T>> {
        Ok(RawValue::of(Object::open(name, &Shape::value::<T>(Kind::RawValue))?))
    }

    /// Opens the value of this name, or creates it.
    ///
    /// # Errors
    ///
    /// As [`open`](RawValue::open) and [`create`](RawValue::create).
    pub fn open_or_create(name: &str, value: T) -> Result<RawValue<T>> {
        let shape = Shape::value::<T>(Kind::RawValue);
        Ok(RawValue::of(Object::open_or_create(name, &shape, |base| store::init(base, value))?))
    }

    /// The value.
    ///
    /// # Panics
    ///
    /// If the bits are no `T` (`bool`, `char`, enums): torn, or left by a program that breaks the contract.
    #[doc(alias = "value")]
    #[inline]
    #[must_use]
    pub fn get(&self) -> T {
        self.get_checked().unwrap_or_else(|invalid| invalid.panic())
    }

    /// The value, or that the bits there are none.
    ///
    /// # Errors
    ///
    /// [`InvalidBits`].
    #[inline]
    pub fn get_checked(&self) -> Result<T, InvalidBits> {
        if is_number::<T>() {
            return store::load(&self.object).ok_or(InvalidBits);
        }
        let mut value = MaybeUninit::<T>::zeroed();
        let bytes = value.as_mut_ptr().cast::<u8>();
        // SAFETY: the object's first copy has room for a `T` and is mapped; whoever writes it does so atomically.
        unsafe { copy::load(self.object.at(DATA_OFFSET).as_ptr(), bytes, size_of::<T>()) };
        // SAFETY: all bytes are initialised.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, size_of::<T>()) };
        bytemuck::checked::try_pod_read_unaligned(bytes).map_err(|_| InvalidBits)
    }

    /// Replaces the value.
    ///
    /// # Panics
    ///
    /// If the segment is attached read-only.
    #[doc(alias = "value")]
    #[inline]
    pub fn set(&self, value: T) {
        check_writable(&self.object);
        if is_number::<T>() {
            return store::store(&self.object, value);
        }
        let bytes = (&raw const value).cast::<u8>();
        // SAFETY: a `Plain` value has no uninitialised bytes; the object has room for it and is reached atomically.
        unsafe { copy::store(bytes, self.object.at(DATA_OFFSET).as_ptr(), size_of::<T>()) };
    }
}

impl<T: Number> RawValue<T> {
    /// Adds, atomically, and returns the number before; an integer wraps around. The other atomic operations are those of
    /// [`Value`](crate::Value), which for a number costs the same.
    ///
    /// # Panics
    ///
    /// If the segment is attached read-only.
    #[inline]
    pub fn fetch_add(&self, value: T, order: crate::Ordering) -> T {
        check_writable(&self.object);
        store::fetch_add(&self.object, value, order)
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get_checked() {
            Ok(value) => f.debug_tuple("RawValue").field(&value).finish(),
            Err(invalid) => f.debug_tuple("RawValue").field(&invalid).finish(),
        }
    }
}

impl Segment {
    /// Makes a value without a lock in this segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the segment has an object of that name,
    /// [`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom) if it is full.
    pub fn raw_value<T: Plain>(&self, name: &str, value: T) -> Result<RawValue<T>> {
        let shape = Shape::value::<T>(Kind::RawValue);
        Ok(RawValue::of(Object::build_in(&self.attachment, name, &shape, |base| store::init(base, value))?))
    }
}
