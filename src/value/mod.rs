//! One value in shared memory.
//!
//! A number is a word, changed by the hardware's atomics. Anything larger is two copies and a version under a lock, so that no kill
//! tears it. `store` knows the one and the other; the handles add the lock and the names.

mod guard;
pub(crate) mod locked;
pub(crate) mod raw;
mod store;

pub use guard::ValueGuard;

use crate::error::{Error, ErrorKind};
use crate::segment::object::Object;

#[inline]
fn check_writable(object: &Object) {
    if !object.is_writable() {
        read_only(object);
    }
}

#[cold]
fn read_only(object: &Object) -> ! {
    panic!("the segment {object:?} is attached read-only, and this would write to it");
}

/// The bits of a value are none of its type: a `bool` that is 2, say. Only a program that broke the contract can have left them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bits in shared memory are no value of its type: another program overwrote them")]
pub struct InvalidBits;

impl InvalidBits {
    #[cold]
    pub(crate) fn panic(self) -> ! {
        panic!("{self}");
    }
}

impl From<InvalidBits> for Error {
    fn from(invalid: InvalidBits) -> Error {
        Error::new(ErrorKind::Corrupted, invalid.to_string())
    }
}
