#![doc = include_str!("../README.md")]

// Under `--cfg loom` only the raw machines are built, on loom's atomics and a model of the kernel.
#[cfg(not(loom))]
mod array;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
mod plain;
mod primitive;
#[cfg(not(loom))]
pub mod process;
mod raw;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod sync;
mod sys;
#[cfg(not(loom))]
mod transfer;
#[cfg(not(loom))]
pub mod value;

#[cfg(not(loom))]
pub use array::{Array, ArrayGuard, RawArray};
#[cfg(not(loom))]
pub use error::{Error, ErrorKind, OwnerDied, Result, TryLockError};
#[cfg(not(loom))]
pub use plain::{Element, Integer, List, Number, Plain, Text};
pub use primitive::Ordering;
#[cfg(not(loom))]
pub use process::{Process, ProcessError, active_children, cpu_count, current_process, parent_process};
#[cfg(not(loom))]
pub use segment::{RawSegment, Segment, SegmentOptions};
#[cfg(not(loom))]
pub use sync::Mutex;
#[cfg(not(loom))]
pub use value::{RawValue, Value};

/// For the macros and the tests of this crate alone: no promise is made of anything in here.
#[cfg(not(loom))]
#[doc(hidden)]
pub mod __private {
    pub use crate::plain::identity::{DECLARATIONS, Declaration, dtype_of};
    pub use crate::sys::futex::set_sleep_bound_ns;
    pub use {bytemuck, linkme};
}
