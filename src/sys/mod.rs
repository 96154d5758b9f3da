//! The only floor that knows the operating system: one function per question, each with its unsafe block and its argument.
//!
//! Under `--cfg loom` the futex and the robust list are stand-ins (`model`) with the kernel's semantics, so that loom
//! can drive the real machines of `raw`.

#[cfg(not(loom))]
pub(crate) mod clock;
#[cfg(not(loom))]
pub(crate) mod futex;
#[cfg(not(loom))]
pub(crate) mod host;
#[cfg(not(loom))]
pub(crate) mod image;
#[cfg(not(loom))]
pub(crate) mod keeper;
#[cfg(not(loom))]
pub(crate) mod memory;
#[cfg(not(loom))]
pub(crate) mod robust;
#[cfg(not(loom))]
pub(crate) mod shm;
#[cfg(not(loom))]
pub(crate) mod spawn;

#[cfg(loom)]
#[allow(dead_code, reason = "its callers are the models, which are tests")]
pub(crate) mod model;
#[cfg(loom)]
pub(crate) use model::{clock, futex, robust};
