//! The elements of an array, while its lock is held.

#![expect(unsafe_code, reason = "the guard hands out the elements that its lock protects")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::plain::Element;
use crate::raw::lock::{Held, Linked, RawLock};

/// The right to the elements of an [`Array`](crate::Array), until it is dropped. It stays on its thread.
///
/// One that is forgotten keeps its lock until the thread ends, and its memory mapped; the next one who locks gets
/// [`OwnerDied`](crate::OwnerDied).
#[must_use = "the lock is given back when the guard is dropped"]
pub struct ArrayGuard<'a, T> {
    lock: &'a RawLock,
    held: Option<Held>,
    elements: NonNull<T>,
    len: usize,
    /// Borrows the handle, so that nothing is unmapped; not `Send`, for the lock hangs in this thread's list.
    _stays: PhantomData<(&'a mut [T], *const ())>,
}

// SAFETY: a shared guard gives `&[T]` only.
unsafe impl<T: Sync> Sync for ArrayGuard<'_, T> {}

impl<'a, T> ArrayGuard<'a, T> {
    #[inline]
    pub(super) fn new(lock: &'a RawLock, held: Held, elements: NonNull<T>, len: usize) -> ArrayGuard<'a, T> {
        ArrayGuard { lock, held: Some(held), elements, len, _stays: PhantomData }
    }

    /// Says that the elements are in order again: from now on nobody is told of the owner that died.
    pub fn recover(&mut self) {
        self.lock.recover();
    }
}

impl<T> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements are mapped while the handle is borrowed, aligned, any bits are a `T`, and under the lock nobody writes
        // them.
        unsafe { std::slice::from_raw_parts(self.elements.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for ArrayGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; under the lock nobody else reads them either.
        unsafe { std::slice::from_raw_parts_mut(self.elements.as_ptr(), self.len) }
    }
}

impl<'a, T: Element> IntoIterator for &'a ArrayGuard<'_, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> std::slice::Iter<'a, T> {
        self.iter()
    }
}

impl<'a, T: Element> IntoIterator for &'a mut ArrayGuard<'_, T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> std::slice::IterMut<'a, T> {
        self.iter_mut()
    }
}

impl<T> Drop for ArrayGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.lock.unlock::<Linked>(held);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for ArrayGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
