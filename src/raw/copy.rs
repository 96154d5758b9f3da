//! Copies between private memory and shared memory that others may be writing.
//!
//! Every access to the shared side is a relaxed atomic one, of the widest size its alignment allows, so a race is a mixture of
//! old and new words, and an aligned integer is never torn. (Rust's model does not define atomic accesses of different sizes to the same bytes
//! that race; the hardware does, and nothing else could copy in words what others change by the element.) What may be torn against what is
//! the caller's business.

#![expect(unsafe_code, reason = "private memory of any type is read and written as bytes")]

use crate::primitive::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

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
    unsafe { load_edge(source, target, head) };
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
    unsafe { load_edge(from, to, size - done) };
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
    unsafe { store_edge(source, target, head) };
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
    unsafe { store_edge(from, to, size - done) };
}

/// The widest access, in bytes, that the shared address is aligned to and that does not reach over the end.
#[inline]
fn width(shared: *const u8, left: usize) -> usize {
    let aligned = 1 << shared.addr().trailing_zeros().min(3);
    let fitting = 1 << left.ilog2().min(3);
    usize::min(aligned, fitting)
}

/// Fewer than two words: a head up to a word's alignment, or a tail.
///
/// # Safety
///
/// As [`load`].
#[inline]
unsafe fn load_edge(source: *const u8, target: *mut u8, size: usize) {
    let mut offset = 0;
    while offset < size {
        // SAFETY: in bounds of the source.
        let from = unsafe { source.add(offset) }.cast_mut();
        // SAFETY: in bounds of the target.
        let to = unsafe { target.add(offset) };
        macro_rules! step {
            ($atomic:ident, $integer:ty) => {{
                #[allow(clippy::cast_ptr_alignment, reason = "`width` is no wider than the alignment")]
                // SAFETY: aligned, in bounds, and written by others atomically only.
                let value = unsafe { $atomic::from_ptr(from.cast::<$integer>()) }.load(Ordering::Relaxed);
                #[allow(clippy::cast_ptr_alignment, reason = "it is written unaligned")]
                // SAFETY: private bytes, in bounds, of whatever alignment.
                unsafe {
                    to.cast::<$integer>().write_unaligned(value)
                };
                offset += size_of::<$integer>();
            }};
        }
        match width(from, size - offset) {
            8 => step!(AtomicU64, u64),
            4 => step!(AtomicU32, u32),
            2 => step!(AtomicU16, u16),
            _ => step!(AtomicU8, u8),
        }
    }
}

/// Fewer than two words: a head up to a word's alignment, or a tail.
///
/// # Safety
///
/// As [`store`].
#[inline]
unsafe fn store_edge(source: *const u8, target: *mut u8, size: usize) {
    let mut offset = 0;
    while offset < size {
        // SAFETY: in bounds of the source.
        let from = unsafe { source.add(offset) };
        // SAFETY: in bounds of the target.
        let to = unsafe { target.add(offset) };
        macro_rules! step {
            ($atomic:ident, $integer:ty) => {{
                #[allow(clippy::cast_ptr_alignment, reason = "it is read unaligned")]
                // SAFETY: private, initialised bytes, in bounds, of whatever alignment.
                let value = unsafe { from.cast::<$integer>().read_unaligned() };
                #[allow(clippy::cast_ptr_alignment, reason = "`width` is no wider than the alignment")]
                // SAFETY: aligned, in bounds, and touched by others atomically only.
                unsafe { $atomic::from_ptr(to.cast::<$integer>()) }.store(value, Ordering::Relaxed);
                offset += size_of::<$integer>();
            }};
        }
        match width(to, size - offset) {
            8 => step!(AtomicU64, u64),
            4 => step!(AtomicU32, u32),
            2 => step!(AtomicU16, u16),
            _ => step!(AtomicU8, u8),
        }
    }
}

/// Fills `size` bytes of shared memory with zeros.
///
/// # Safety
///
/// - `target` is good for writes of `size` bytes, and everybody who reads or writes them meanwhile does so atomically.
pub(crate) unsafe fn fill_with_zeros(target: *mut u8, size: usize) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for offset in (0..size).step_by(ZEROS.len()) {
        // SAFETY: in bounds of the target.
        let to = unsafe { target.add(offset) };
        // SAFETY: as many zeros as are left, or all there are.
        unsafe { store(ZEROS.as_ptr(), to, ZEROS.len().min(size - offset)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_integers_are_reached_whole() {
        let word = [0_u64; 2];
        let base = word.as_ptr().cast::<u8>();
        for (offset, left, expected) in
            [(0, 16, 8), (0, 4, 4), (4, 4, 4), (4, 12, 4), (2, 2, 2), (6, 9, 2), (1, 8, 1), (0, 7, 4)]
        {
            assert_eq!(width(base.wrapping_add(offset), left), expected);
        }
    }

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
