//! A value of several words that no kill can tear: two copies and a version that says which one counts.
//!
//! Invariant: copy `version & 1` is whole, and nobody writes it. A writer, alone under its lock, writes the other copy and then
//! commits by storing `version + 1`. A kill before the store leaves the old value, after it the new one; there is nothing to
//! repair. Readers copy without a lock and compare the *whole* version afterwards: parity alone would miss two commits.
//!
//! Orderings, each checked to be needed: the writer's release fence makes the previous commit visible before this copy is
//! touched; the commit's Release pairs with the reader's Acquire load of the version; the reader's acquire fence keeps its
//! copying before its second look. Source: Hans Boehm,
//! [Can Seqlocks Get Along With Programming Language Memory Models?](https://www.hpl.hp.com/techreports/2012/HPL-2012-68.pdf)

use crate::primitive::{AtomicU64, Ordering, fence};

/// A view of the words of one such value, wherever they lie.
#[derive(Clone, Copy)]
pub(crate) struct Flip<'a> {
    pub(crate) version: &'a AtomicU64,
    /// Equally long.
    pub(crate) copies: [&'a [AtomicU64]; 2],
}

impl Flip<'_> {
    /// Copies the value of one version out, word by word: `put(index, word)` is called for each word, again from the first
    /// whenever a commit came in between. Lock-free: each retry means that somebody committed.
    #[inline]
    pub(crate) fn load(&self, mut put: impl FnMut(usize, u64)) {
        loop {
            let version = self.version.load(Ordering::Acquire);
            for (index, word) in self.copy(version).iter().enumerate() {
                put(index, word.load(Ordering::Relaxed));
            }
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return;
            }
        }
    }

    /// Writes the next version, whose words `get(index)` gives, and commits it. The caller holds the writers' lock.
    #[inline]
    pub(crate) fn store(&self, mut get: impl FnMut(usize) -> u64) {
        let version = self.version.load(Ordering::Relaxed);
        fence(Ordering::Release);
        for (index, word) in self.copy(version.wrapping_add(1)).iter().enumerate() {
            word.store(get(index), Ordering::Relaxed);
        }
        self.version.store(version.wrapping_add(1), Ordering::Release);
    }

    #[inline]
    fn copy(&self, version: u64) -> &[AtomicU64] {
        // NB: not by an index: then the compiler forgets that both are equally long, and how long, and unrolls no loop over them.
        if version & 1 == 0 { self.copies[0] } else { self.copies[1] }
    }
}

#[cfg(all(test, loom))]
mod models;
