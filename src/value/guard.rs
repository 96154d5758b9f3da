//! A value taken for several steps.

use std::fmt;
use std::marker::PhantomData;

use super::store;
use crate::plain::Plain;
use crate::plain::number::is_number;
use crate::raw::lock::{Held, Linked};
use crate::segment::object::Object;

/// A [`Value`](crate::Value) that nobody else sets until this is dropped. It stays on its thread.
///
/// It works on a private copy, and dropping it commits that, unless the thread is panicking. For numbers it works on the word itself.
///
/// # Examples
///
/// ```
/// use multiproc::Value;
///
/// # fn main() -> multiproc::Result<()> {
/// let range = Value::new([0.0, 1.0])?;
/// {
///     let mut range = range.lock();
///     let [low, high] = range.get();
///     range.set([low - 1.0, high + 1.0]);
/// }
/// assert_eq!(range.get(), [-1.0, 2.0]);
/// # Ok(())
/// # }
/// ```
#[must_use = "the value is given back when the guard is dropped"]
pub struct ValueGuard<'a, T: Plain> {
    object: &'a Object,
    held: Option<Held>,
    /// What is to be committed; `None` for as long as nothing was set, and for numbers.
    new: Option<T>,
    /// It was made in a destructor, while the thread was panicking already: then that panic is none of its own.
    was_panicking: bool,
    /// Not `Send`: the lock hangs in this thread's list.
    _stays: PhantomData<*const ()>,
}

impl<'a, T: Plain> ValueGuard<'a, T> {
    pub(super) fn new(object: &'a Object, held: Held) -> ValueGuard<'a, T> {
        object.set_guarded();
        ValueGuard {
            object,
            held: Some(held),
            new: None,
            was_panicking: std::thread::panicking(),
            _stays: PhantomData,
        }
    }

    /// The value, with what this guard has set.
    ///
    /// # Panics
    ///
    /// If the bits are no `T`, which only a program that breaks the contract leaves there.
    #[must_use]
    pub fn get(&self) -> T {
        self.new.or_else(|| store::load(self.object)).unwrap_or_else(|| super::InvalidBits.panic())
    }

    /// Sets the value: for others when this is dropped, and for numbers at once.
    pub fn set(&mut self, value: T) {
        if is_number::<T>() {
            store::store(self.object, value);
        } else {
            self.new = Some(value);
        }
    }

    /// Changes the value by a function of it, and returns the new one.
    ///
    /// # Panics
    ///
    /// As [`get`](ValueGuard::get).
    pub fn update(&mut self, mut change: impl FnMut(T) -> T) -> T {
        if is_number::<T>() {
            return store::update_word(self.object, change);
        }
        let new = change(self.get());
        self.new = Some(new);
        new
    }
}

impl<T: Plain> Drop for ValueGuard<'_, T> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            if let Some(new) = self.new.take()
                && (self.was_panicking || !std::thread::panicking())
            {
                store::store(self.object, new);
            }
            self.object.lock().unlock::<Linked>(held);
        }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ValueGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueGuard").field(&self.get()).finish()
    }
}
