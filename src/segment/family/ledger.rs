//! References that survive their holder's death.
//!
//! Each process writes its references into entries of its own, and counts them in the object. `acquire`: entry ← PENDING, count + 1,
//! entry ← HELD. `release`: entry ← 0, count − 1. Taking a dead process's back: a HELD entry is cleared, then uncounted; a PENDING one
//! is only cleared, for nobody knows whether it was counted. So a kill at any instruction leaks one reference at most, and never
//! drops one that is in use.

use super::{CHUNK_SIZE, FAMILY_OF_THIS_PROCESS, Family, Place, generation_of, live};
use crate::primitive::{AtomicU64, Ordering};
use crate::sys::robust;

/// Entries of a ledger chunk.
pub(super) const ENTRIES_COUNT: usize = CHUNK_SIZE / size_of::<AtomicU64>();

const PENDING: u64 = 1 << 30;
const HELD: u64 = 2 << 30;
const STATE: u64 = 3 << 30;

/// `generation << 32 | state << 30 | units`; 0 is free.
fn entry_of(place: Place, state: u64) -> u64 {
    u64::from(place.generation) << 32 | state | u64::from(place.units)
}

fn place_of(entry: u64) -> Place {
    Place { units: (entry & (PENDING - 1)) as u32, generation: (entry >> 32) as u32 }
}

/// One reference of this process to one object. Dropping it gives it back.
pub(crate) struct Hold {
    place: Place,
    entry: &'static AtomicU64,
    forks: u32,
}

impl Hold {
    /// Of an object that is being built and whose count is 1 already.
    pub(super) fn of_new(entry: &'static AtomicU64, place: Place) -> Hold {
        entry.store(entry_of(place, HELD), Ordering::Release);
        Hold { place, entry, forks: robust::forks() }
    }

    /// Of an object that somebody else refers to, in a window that is mapped; `None` if it is gone, and the entry is free again.
    pub(super) fn acquire(family: &'static Family, entry: &'static AtomicU64, place: Place) -> Option<Hold> {
        let header = family.header(place.offset());
        entry.store(entry_of(place, PENDING), Ordering::Release);
        // 0 stays 0: whoever brought it there frees the object.
        let counted = header
            .references
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
                (count > 0).then(|| count.saturating_add(1))
            })
            .is_ok();
        if counted && header.state.load(Ordering::Acquire) == live(place.generation) {
            entry.store(entry_of(place, HELD), Ordering::Release);
            return Some(Hold { place, entry, forks: robust::forks() });
        }
        entry.store(0, Ordering::Release);
        if counted {
            // Another object lies there by now, and it lost nothing: the count is its own again.
            let generation = generation_of(header.state.load(Ordering::Acquire));
            family.drop_reference(Place { generation, ..place });
        }
        None
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A copy in the child of a fork: the reference is its parent's.
        if self.forks != robust::forks() {
            return;
        }
        let Some(family) = FAMILY_OF_THIS_PROCESS.get() else { return };
        self.entry.store(0, Ordering::Release);
        family.drop_reference(self.place);
        if let Ok(member) = super::member::current(family) {
            member.recycle(self.entry);
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place.fmt(f)
    }
}

/// This process's free entries.
#[derive(Default)]
pub(super) struct FreeEntries(Vec<&'static AtomicU64>);

impl FreeEntries {
    pub(super) fn take(&mut self) -> Option<&'static AtomicU64> {
        self.0.pop()
    }

    pub(super) fn put(&mut self, entry: &'static AtomicU64) {
        self.0.push(entry);
    }
}

/// Takes back what a dead process's ledger says it held.
pub(super) fn take_back(family: &'static Family, entries: &[AtomicU64]) {
    for entry in entries {
        let held = entry.swap(0, Ordering::AcqRel);
        let place = place_of(held);
        // Cleared first: should we die here, one reference leaks, and none is dropped twice. An object that was not published
        // yet does not count either.
        if held & STATE == HELD
            && family.is_place(place)
            // Without address space to look there, it leaks.
            && family.at(place.offset()).is_ok()
            && family.header(place.offset()).state.load(Ordering::Acquire) == live(place.generation)
        {
            family.drop_reference(place);
        }
    }
}
