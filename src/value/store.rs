//! How a value lies in its object: a number as one word, anything else as two copies and a version.

#![expect(unsafe_code, reason = "a value becomes bytes, and checked bytes a value")]

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::plain::number::is_number;
use crate::plain::{Integer, Number, Plain};
use crate::primitive::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::raw::copy;
use crate::raw::flip::Flip;
use crate::segment::layout::{DATA_OFFSET, WORD_OFFSET, copy_stride};
use crate::segment::object::Object;

/// Writes the first value into an object that nobody sees yet and whose bytes are zero.
pub(super) fn init<T: Plain>(base: NonNull<u8>, value: T) {
    // A version of 0 makes the first copy the one that counts.
    let offset = if is_number::<T>() { WORD_OFFSET } else { DATA_OFFSET };
    // SAFETY: the shape of a value has room for one there.
    let place = unsafe { base.add(offset) };
    let source = (&raw const value).cast::<u8>();
    // SAFETY: a `Plain` value has no uninitialised bytes; the place is ours alone.
    unsafe { copy::store(source, place.as_ptr(), size_of::<T>()) };
}

/// The value, or `None` if the bits are none.
#[inline]
pub(super) fn load<T: Plain>(object: &Object) -> Option<T> {
    if is_number::<T>() {
        let bits = word_load::<T>(object, Ordering::Acquire);
        return Some(of_bits(bits));
    }
    let mut words = Words::<T>::ZERO;
    flip::<T>(object).load(|index, word| words.set(index, word));
    words.to_value()
}

/// Replaces the value. For anything but a number the caller holds the lock.
#[inline]
pub(super) fn store<T: Plain>(object: &Object, value: T) {
    if is_number::<T>() {
        return word_store::<T>(object, to_bits(value), Ordering::Release);
    }
    let words = Words::of(&value);
    flip::<T>(object).store(|index| words.get(index));
}

/// Changes a number by compare and exchange.
pub(super) fn update_word<T: Plain>(object: &Object, mut change: impl FnMut(T) -> T) -> T {
    let mut old = word_load::<T>(object, Ordering::Acquire);
    loop {
        let new = change(of_bits(old));
        match word_compare_exchange::<T>(object, old, to_bits(new)) {
            Ok(()) => return new,
            Err(now) => old = now,
        }
    }
}

fn flip<T>(object: &Object) -> Flip<'_> {
    let words = size_of::<T>().div_ceil(8);
    let copies = [object.words(0, words), object.words(copy_stride(size_of::<T>()), words)];
    Flip { version: object.word(), copies }
}

/// A value as whole words, the last one filled up with zeros.
#[repr(C, align(8))]
struct Words<T> {
    value: MaybeUninit<T>,
    /// Room for the last word to reach over the value's end.
    fill: [u8; 8],
}

impl<T: Plain> Words<T> {
    const ZERO: Words<T> = Words { value: MaybeUninit::zeroed(), fill: [0; 8] };

    #[inline]
    fn of(value: &T) -> Words<T> {
        let mut words = Words::ZERO;
        words.value.write(*value);
        words
    }

    /// The words that a `T` reaches into.
    #[inline]
    fn as_slice(&self) -> &[u64] {
        let first = (&raw const *self).cast::<u64>();
        // SAFETY: aligned for words, and `fill` is room for the last one. All bytes up to there are initialised: to zero first, and a
        // `Plain` value written over them has no uninitialised ones.
        unsafe { std::slice::from_raw_parts(first, size_of::<T>().div_ceil(8)) }
    }

    #[inline]
    fn as_mut_slice(&mut self) -> &mut [u64] {
        let first = (&raw mut *self).cast::<u64>();
        // SAFETY: as in `as_slice`; any bits may stand in `value`, for only `to_value` reads it, and checks them.
        unsafe { std::slice::from_raw_parts_mut(first, size_of::<T>().div_ceil(8)) }
    }

    #[inline]
    fn get(&self, index: usize) -> u64 {
        self.as_slice()[index]
    }

    #[inline]
    fn set(&mut self, index: usize, word: u64) {
        self.as_mut_slice()[index] = word;
    }

    #[inline]
    fn to_value(&self) -> Option<T> {
        let bytes = (&raw const self.value).cast::<u8>();
        // SAFETY: all bytes were set, to zero first.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, size_of::<T>()) };
        bytemuck::checked::try_pod_read_unaligned(bytes).ok()
    }
}

/// The bits of a number in the low bytes.
#[inline]
fn to_bits<T: Plain>(value: T) -> u64 {
    Words::of(&value).get(0)
}

#[inline]
fn of_bits<T: Plain>(bits: u64) -> T {
    let bytes = bits.to_ne_bytes();
    bytemuck::checked::pod_read_unaligned(&bytes[..size_of::<T>()])
}

/// The word of a number of the type's own size: its accesses must not be wider than others'.
macro_rules! with_word {
    ($type:ty, $object:expr, |$word:ident, $bits:ident| $body:expr) => {{
        let address = $object.at(WORD_OFFSET).as_ptr();
        match size_of::<$type>() {
            1 => with_word!(@ AtomicU8, u8, address, $word, $bits, $body),
            2 => with_word!(@ AtomicU16, u16, address, $word, $bits, $body),
            4 => with_word!(@ AtomicU32, u32, address, $word, $bits, $body),
            _ => with_word!(@ AtomicU64, u64, address, $word, $bits, $body),
        }
    }};
    (@ $atomic:ident, $integer:ident, $address:ident, $word:ident, $bits:ident, $body:expr) => {{
        #[expect(clippy::allow_attributes, reason = "a byte has every alignment")]
        #[allow(clippy::cast_ptr_alignment, reason = "the word lies at 56 bytes in an object aligned to 64")]
        // SAFETY: mapped while the object lives, aligned for 8 bytes, and only ever reached atomically.
        let $word = unsafe { $atomic::from_ptr($address.cast::<$integer>()) };
        let $bits = |bits: u64| bits as $integer;
        $body
    }};
}

#[expect(clippy::useless_conversion, reason = "one of the four sizes is that of the conversion's target")]
#[inline]
fn word_load<T>(object: &Object, order: Ordering) -> u64 {
    with_word!(T, object, |word, _bits| u64::from(word.load(order)))
}

#[inline]
fn word_store<T>(object: &Object, value: u64, order: Ordering) {
    with_word!(T, object, |word, bits| word.store(bits(value), order));
}

#[expect(clippy::useless_conversion, reason = "one of the four sizes is that of the conversion's target")]
#[inline]
fn word_compare_exchange<T>(object: &Object, old: u64, new: u64) -> Result<(), u64> {
    with_word!(T, object, |word, bits| word
        .compare_exchange(bits(old), bits(new), Ordering::AcqRel, Ordering::Acquire)
        .map(|_| ())
        .map_err(u64::from))
}

fn number<T: Number>(object: &Object) -> *mut T {
    object.at(WORD_OFFSET).cast::<T>().as_ptr()
}

#[inline]
pub(super) fn load_word<T: Number>(object: &Object, order: Ordering) -> T {
    // SAFETY: a number's word, aligned for 8 bytes, mapped while the object lives, and only ever reached atomically.
    unsafe { T::load(number(object), order) }
}

#[inline]
pub(super) fn store_word<T: Number>(object: &Object, value: T, order: Ordering) {
    // SAFETY: as in `load_word`; the caller may write.
    unsafe { T::store(number(object), value, order) }
}

#[inline]
pub(super) fn compare_exchange<T: Number>(
    object: &Object,
    current: T,
    new: T,
    success: Ordering,
    failure: Ordering,
) -> Result<T, T> {
    // SAFETY: as in `store_word`.
    unsafe { T::compare_exchange(number(object), current, new, success, failure) }
}

macro_rules! fetch {
    ($($bound:ident: $($operation:ident),+;)+) => {$($(
        #[inline]
        pub(super) fn $operation<T: $bound>(object: &Object, value: T, order: Ordering) -> T {
            // SAFETY: as in `store_word`.
            unsafe { T::$operation(number(object), value, order) }
        }
    )+)+};
}

fetch! {
    Number: swap, fetch_add, fetch_sub, fetch_max, fetch_min;
    Integer: fetch_and, fetch_or, fetch_xor;
}
