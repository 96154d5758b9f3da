#![doc = include_str!("../README.md")]

// Under `--cfg loom` only the raw machines are built, on loom's atomics and a model of the kernel.
#[cfg(not(loom))]
pub mod array;
#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
pub mod plain;
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
pub use array::{locked::Array, raw::RawArray};
#[cfg(not(loom))]
pub use error::{Error, ErrorKind, OwnerDied, Result, TryLockError};
#[cfg(not(loom))]
pub use plain::{list::List, text::Text};
pub use primitive::Ordering;
#[cfg(not(loom))]
pub use process::current::{active_children, cpu_count, current_process, parent_process};
#[cfg(not(loom))]
pub use process::{handle::Process, outcome::ProcessError};
#[cfg(not(loom))]
pub use segment::{named::Segment, raw::RawSegment};
#[cfg(not(loom))]
pub use sync::mutex::Mutex;
#[cfg(not(loom))]
pub use value::{locked::Value, raw::RawValue};

/// For the macros and the tests of this crate alone: no promise is made of anything in here.
#[cfg(not(loom))]
#[doc(hidden)]
pub mod __private {
    pub use crate::plain::identity::{DECLARATIONS, Declaration, dtype_of};
    pub use crate::sys::futex::set_sleep_bound_ns;
    pub use {bytemuck, linkme};
}
