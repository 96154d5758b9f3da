//! The atomics that every machine of this crate is built from.
//!
//! Normally they are the hardware's; under `--cfg loom` they are loom's, which explores the orderings that the
//! hardware allows. Nothing else in the crate names `core::sync::atomic`.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16,
    AtomicU32, AtomicU64, AtomicUsize, compiler_fence, fence,
};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

/// Loom has no compiler fence: it keeps a thread's own order anyway.
#[cfg(loom)]
pub(crate) fn compiler_fence(_: core::sync::atomic::Ordering) {}

pub use core::sync::atomic::Ordering;
