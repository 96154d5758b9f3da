//! Integers and floats of up to eight bytes: one word of shared memory, changed by the hardware's atomics.

#![expect(unsafe_code, reason = "a word of shared memory becomes an atomic")]

use std::any::TypeId;

use crate::primitive::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    AtomicUsize, Ordering,
};

use super::Plain;

/// An integer or float of up to eight bytes, which a [`Value`](crate::Value) holds in one word and changes atomically.
///
/// Implemented for `i8` to `i64`, `u8` to `u64`, `isize`, `usize`, `f32` and `f64`; it cannot be implemented for others. Its
/// operations are the methods of [`Value<T>`](crate::Value) and [`RawArray<T>`](crate::RawArray).
pub trait Number: Plain + PartialEq + PartialOrd + sealed::Operations {}

/// A [`Number`] that has bits: every one but the floats.
pub trait Integer: Number + sealed::BitOperations {}

pub(crate) mod sealed {
    use crate::primitive::Ordering;

    /// Atomic operations on the word at `word`.
    ///
    /// # Safety
    ///
    /// Of every function: `word` is aligned for `Self`, good for reads and writes, and touched by others atomically only.
    pub trait Operations: Copy {
        unsafe fn load(word: *mut Self, order: Ordering) -> Self;
        unsafe fn store(word: *mut Self, value: Self, order: Ordering);
        unsafe fn swap(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn compare_exchange(
            word: *mut Self,
            current: Self,
            new: Self,
            success: Ordering,
            failure: Ordering,
        ) -> Result<Self, Self>;
        unsafe fn fetch_add(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn fetch_sub(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn fetch_max(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn fetch_min(word: *mut Self, value: Self, order: Ordering) -> Self;
    }

    /// As [`Operations`].
    pub trait BitOperations: Operations {
        unsafe fn fetch_and(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn fetch_or(word: *mut Self, value: Self, order: Ordering) -> Self;
        unsafe fn fetch_xor(word: *mut Self, value: Self, order: Ordering) -> Self;
    }
}

macro_rules! delegate {
    ($atomic:ident: $($operation:ident),+) => {$(
        #[inline]
        unsafe fn $operation(word: *mut Self, value: Self, order: Ordering) -> Self {
            // SAFETY: the caller promises what `from_ptr` asks.
            unsafe { $atomic::from_ptr(word) }.$operation(value, order)
        }
    )+};
}

macro_rules! integers {
    ($($integer:ty: $atomic:ident),+ $(,)?) => {$(
        impl Number for $integer {}
        impl Integer for $integer {}

        impl sealed::Operations for $integer {
            #[inline]
            unsafe fn load(word: *mut Self, order: Ordering) -> Self {
                // SAFETY: the caller promises what `from_ptr` asks.
                unsafe { $atomic::from_ptr(word) }.load(order)
            }

            #[inline]
            unsafe fn store(word: *mut Self, value: Self, order: Ordering) {
                // SAFETY: the caller promises what `from_ptr` asks.
                unsafe { $atomic::from_ptr(word) }.store(value, order);
            }

            #[inline]
            unsafe fn compare_exchange(
                word: *mut Self,
                current: Self,
                new: Self,
                success: Ordering,
                failure: Ordering,
            ) -> Result<Self, Self> {
                // SAFETY: the caller promises what `from_ptr` asks.
                unsafe { $atomic::from_ptr(word) }.compare_exchange(current, new, success, failure)
            }

            delegate!($atomic: swap, fetch_add, fetch_sub, fetch_max, fetch_min);
        }

        impl sealed::BitOperations for $integer {
            delegate!($atomic: fetch_and, fetch_or, fetch_xor);
        }
    )+};
}

integers! {
    i8: AtomicI8, i16: AtomicI16, i32: AtomicI32, i64: AtomicI64, isize: AtomicIsize,
    u8: AtomicU8, u16: AtomicU16, u32: AtomicU32, u64: AtomicU64, usize: AtomicUsize,
}

macro_rules! floats {
    ($($float:ty: $atomic:ident),+ $(,)?) => {$(
        impl Number for $float {}

        impl sealed::Operations for $float {
            #[inline]
            unsafe fn load(word: *mut Self, order: Ordering) -> Self {
                // SAFETY: the caller promises what `from_ptr` asks; the bits have the float's size and alignment.
                Self::from_bits(unsafe { $atomic::from_ptr(word.cast()) }.load(order))
            }

            #[inline]
            unsafe fn store(word: *mut Self, value: Self, order: Ordering) {
                // SAFETY: as in `load`.
                unsafe { $atomic::from_ptr(word.cast()) }.store(value.to_bits(), order);
            }

            #[inline]
            unsafe fn swap(word: *mut Self, value: Self, order: Ordering) -> Self {
                // SAFETY: as in `load`.
                Self::from_bits(unsafe { $atomic::from_ptr(word.cast()) }.swap(value.to_bits(), order))
            }

            #[inline]
            unsafe fn compare_exchange(
                word: *mut Self,
                current: Self,
                new: Self,
                success: Ordering,
                failure: Ordering,
            ) -> Result<Self, Self> {
                // SAFETY: as in `load`.
                unsafe { $atomic::from_ptr(word.cast()) }
                    .compare_exchange(current.to_bits(), new.to_bits(), success, failure)
                    .map(Self::from_bits)
                    .map_err(Self::from_bits)
            }

            #[inline]
            unsafe fn fetch_add(word: *mut Self, value: Self, order: Ordering) -> Self {
                // SAFETY: the caller's promise.
                unsafe { fetch_with(word, order, |old| old + value) }
            }

            #[inline]
            unsafe fn fetch_sub(word: *mut Self, value: Self, order: Ordering) -> Self {
                // SAFETY: the caller's promise.
                unsafe { fetch_with(word, order, |old| old - value) }
            }

            #[inline]
            unsafe fn fetch_max(word: *mut Self, value: Self, order: Ordering) -> Self {
                // SAFETY: the caller's promise.
                unsafe { fetch_with(word, order, |old| old.max(value)) }
            }

            #[inline]
            unsafe fn fetch_min(word: *mut Self, value: Self, order: Ordering) -> Self {
                // SAFETY: the caller's promise.
                unsafe { fetch_with(word, order, |old| old.min(value)) }
            }
        }
    )+};
}

floats! { f32: AtomicU32, f64: AtomicU64 }

/// The hardware adds integers only: a float is changed by compare and exchange, again while others came first.
///
/// # Safety
///
/// As the functions of [`sealed::Operations`].
#[inline]
unsafe fn fetch_with<T: sealed::Operations>(word: *mut T, order: Ordering, change: impl Fn(T) -> T) -> T {
    // SAFETY: the caller's promise.
    let mut old = unsafe { T::load(word, Ordering::Relaxed) };
    loop {
        // SAFETY: the caller's promise.
        match unsafe { T::compare_exchange(word, old, change(old), order, Ordering::Relaxed) } {
            Ok(old) => return old,
            Err(now) => old = now,
        }
    }
}

/// Whether `T` is a [`Number`]. Known when the program is built, though no bound says it.
#[inline]
pub(crate) fn is_number<T: 'static>() -> bool {
    macro_rules! is_one_of {
        ($($number:ty),+) => { $(TypeId::of::<T>() == TypeId::of::<$number>())||+ };
    }
    is_one_of!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize, f32, f64)
}
