//! Synchronisation across processes.

mod mutex;

pub(crate) use mutex::busy;
pub use mutex::{Mutex, MutexGuard};
