//! What the crate does, seen from outside: one binary, a module a subject, the public face only.

mod array;
mod death;
mod documents;
mod examples;
mod mutex;
mod plain;
mod process;
mod python;
mod segment;
mod transfer;
mod value;

use std::sync::atomic::{AtomicU32, Ordering};

/// A name that no other test uses, in this run or in another one that goes on at the same time.
fn unique(subject: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("mp-test-{}-{count}-{subject}", std::process::id())
}

/// Whether a name is there now.
fn exists(name: &str) -> bool {
    std::path::Path::new("/dev/shm").join(name).symlink_metadata().is_ok()
}
