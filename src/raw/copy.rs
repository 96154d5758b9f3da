//! Copies between private memory and shared memory that others may be writing.
//!
//! Every access to the shared side is a relaxed atomic one, of the widest size its alignment allows, so a race is a mixture of
//! old and new words and never undefined behaviour. What may be torn against what is the caller's business.

#![expect(unsafe_code, reason = "private memory of any type is read and written as bytes")]

use crate::primitive::{AtomicU8, AtomicU64, Ordering};

/// The bytes of one word.
const WORD: usize = size_of::<u64>();

/// Copies `size` bytes of shared memory to `target`.
///
/// # Safety
///
/// - `source` is good for reads of `size` bytes, and everybody who writes them meanwhile does so atomically.
/// - `target` is good for writes of `size` bytes, which nobody else touches.
#[inline]
pub(crate) unsafe fn load(source: *const u8, target: *mut u8, size: usize) {
    let head = source.align_offset(WORD).min(size);
    // SAFETY: the first `head` bytes of both, by the caller's promise.
    unsafe { load_bytes(source, target, head) };
    let words = (size - head) / WORD;
    for index in 0..words {
        let offset = head + index * WORD;
        // SAFETY: `offset` lies within the `size` bytes of the source.
        let from = unsafe { source.add(offset) };
        #[expect(clippy::cast_ptr_alignment, reason = "`head` is what brings it to a word's alignment")]
        // SAFETY: aligned by `head`, in bounds, and written by others atomically only.
        let word = unsafe { AtomicU64::from_ptr(from.cast_mut().cast::<u64>()) }.load(Ordering::Relaxed);
        // SAFETY: `offset` lies within the `size` bytes of the target.
        let to = unsafe { target.add(offset) };
        // SAFETY: eight private bytes, of whatever alignment.
        unsafe { to.cast::<u64>().write_unaligned(word) };
    }
    let done = head + words * WORD;
    // SAFETY: in bounds of the source.
    let from = unsafe { source.add(done) };
    // SAFETY: in bounds of the target.
    let to = unsafe { target.add(done) };
    // SAFETY: the remaining bytes of both.
    unsafe { load_bytes(from, to, size - done) };
}

/// Copies `size` bytes from `source` to shared memory.
///
/// # Safety
///
/// - `source` is good for reads of `size` bytes, initialised and not written by anybody meanwhile.
/// - `target` is good for writes of `size` bytes, and everybody who reads or writes them meanwhile does so atomically.
#[inline]
pub(crate) unsafe fn store(source: *const u8, target: *mut u8, size: usize) {
    let head = target.align_offset(WORD).min(size);
    // SAFETY: the first `head` bytes of both, by the caller's promise.
    unsafe { store_bytes(source, target, head) };
    let words = (size - head) / WORD;
    for index in 0..words {
        let offset = head + index * WORD;
        // SAFETY: `offset` lies within the `size` bytes of the source.
        let from = unsafe { source.add(offset) };
        // SAFETY: eight private, initialised bytes, of whatever alignment.
        let word = unsafe { from.cast::<u64>().read_unaligned() };
        // SAFETY: `offset` lies within the `size` bytes of the target.
        let to = unsafe { target.add(offset) };
        #[expect(clippy::cast_ptr_alignment, reason = "`head` is what brings it to a word's alignment")]
        // SAFETY: aligned by `head`, in bounds, and touched by others atomically only.
        unsafe { AtomicU64::from_ptr(to.cast::<u64>()) }.store(word, Ordering::Relaxed);
    }
    let done = head + words * WORD;
    // SAFETY: in bounds of the source.
    let from = unsafe { source.add(done) };
    // SAFETY: in bounds of the target.
    let to = unsafe { target.add(done) };
    // SAFETY: the remaining bytes of both.
    unsafe { store_bytes(from, to, size - done) };
}

/// # Safety
///
/// As [`load`].
#[inline]
unsafe fn load_bytes(source: *const u8, target: *mut u8, size: usize) {
    for offset in 0..size {
        // SAFETY: in bounds of the source.
        let from = unsafe { source.add(offset) };
        // SAFETY: a byte has every alignment; others write it atomically only.
        let byte = unsafe { AtomicU8::from_ptr(from.cast_mut()) }.load(Ordering::Relaxed);
        // SAFETY: in bounds of the target.
        let to = unsafe { target.add(offset) };
        // SAFETY: one private byte.
        unsafe { to.write(byte) };
    }
}

/// # Safety
///
/// As [`store`].
#[inline]
unsafe fn store_bytes(source: *const u8, target: *mut u8, size: usize) {
    for offset in 0..size {
        // SAFETY: in bounds of the source.
        let from = unsafe { source.add(offset) };
        // SAFETY: one private, initialised byte.
        let byte = unsafe { from.read() };
        // SAFETY: in bounds of the target.
        let to = unsafe { target.add(offset) };
        // SAFETY: a byte has every alignment; others touch it atomically only.
        unsafe { AtomicU8::from_ptr(to) }.store(byte, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_and_size_arrives_whole_and_nothing_beside_it_changes() {
        let pattern: Vec<u8> = (1..=64).collect();
        for offset in 0..9 {
            for size in 0..40 {
                let mut shared = [0_u64; 8];
                let base = shared.as_mut_ptr().cast::<u8>();
                let mut back = [0_u8; 40];
                // SAFETY: offset + size < 64 bytes of `shared`, which nobody else knows.
                let at = unsafe { base.add(offset) };
                // SAFETY: `size` bytes of the pattern fit behind `at`.
                unsafe { store(pattern.as_ptr(), at, size) };
                // SAFETY: `size` bytes of `back` are private.
                unsafe { load(at, back.as_mut_ptr(), size) };
                assert_eq!(back[..size], pattern[..size]);
                let bytes: &[u8] = bytemuck::cast_slice(&shared);
                assert!(bytes[..offset].iter().chain(&bytes[offset + size..]).all(|&byte| byte == 0));
            }
        }
    }
}
