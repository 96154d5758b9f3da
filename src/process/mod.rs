//! Starting this program again to run one of its functions, and getting back what the function returned.
//!
//! A child is a fresh execution of the same program that never gets to `main`. It is safe in programs with threads, costs
//! about as much as running any program, and inherits nothing but stdout, stderr, the environment, the working directory
//! and what its arguments hold. Python calls this the *spawn* start method.
//!
//! Limits: a function is found by its place in the main program, so neither the function nor this crate may lie in a shared
//! library, and a program linked statically at a fixed address cannot spawn. A child's `main` thread has no name for `std`, and an overflow of its stack is a plain SIGSEGV.

mod builder;
mod child;
mod children;
pub(crate) mod current;
mod entry;
pub(crate) mod handle;
mod handover;
pub(crate) mod outcome;
mod report;
mod start;
mod task;

pub use self::builder::Builder;
pub use self::current::ProcessRef;
pub use self::task::Task;
