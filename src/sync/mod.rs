//! Synchronisation across processes.

pub(crate) mod mutex;

pub use mutex::MutexGuard;
pub(crate) use mutex::busy;
