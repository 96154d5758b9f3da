//! The raw machines: words and the steps on them, with no idea of segments or types.
//!
//! Each is `repr(C)`, holds no pointer that another process could follow, and is fresh when all its bytes are zero.

#[cfg(not(loom))]
pub(crate) mod copy;
#[cfg_attr(loom, allow(dead_code, reason = "its callers are not built, and the models are tests"))]
pub(crate) mod flip;
#[cfg(not(loom))]
pub(crate) mod liveness;
#[cfg_attr(loom, allow(dead_code, reason = "its callers are not built, and the models are tests"))]
pub(crate) mod lock;
