//! The kernel, for loom.
