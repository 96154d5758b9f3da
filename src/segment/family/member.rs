//! This process as a member of its family: its entry in the table, its chunks, its ledger, and burying the dead.
//!
//! The tables here are private memory; what others see of them are the chunks' entries and the places' states.

#![expect(unsafe_code, reason = "a claimed chunk becomes ledger entries")]

use std::collections::BTreeMap;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, PoisonError};

use super::chunks::{self, Chunk, LARGE, LARGE_REST, LEDGER, SLOT_SIZES, SLOTS, UNUSED};
use super::ledger::{self, ENTRIES_COUNT, FreeEntries, Hold};
use super::{CHUNK_SIZE, Family, Place, UNIT, generation_of, in_the_making, is_free, is_live, reserve};
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::{AtomicPtr, AtomicU64, Ordering};
use crate::raw::lock::Linked;
use crate::segment::participant::{self, Seat};
use crate::sys::clock::Deadline;
use crate::sys::memory::Mapping;
use crate::sys::{robust, shm};

/// Words of a chunk's bitmap: as many bits as the smallest places it can hold.
const BITMAP_WORDS: usize = CHUNK_SIZE / SLOT_SIZES[0] / 64;

pub(super) struct Member {
    seat: Seat,
    forks: u32,
    private: Mutex<Private>,
}

#[derive(Default)]
struct Private {
    /// Chunks of places that this process owns, by their index.
    slots: BTreeMap<usize, Slots>,
    /// For each class, chunks of it that have a free place, or had when they were put here.
    open: [Vec<usize>; SLOT_SIZES.len()],
    /// First chunks of the large objects that this process made.
    large: Vec<usize>,
    entries: FreeEntries,
}

/// Which places of a chunk its owner may give away.
struct Slots {
    class: usize,
    free: [u64; BITMAP_WORDS],
}

/// A place that was given away, zeroed.
pub(super) struct Room {
    pub(super) place: Place,
    pub(super) base: NonNull<u8>,
    pub(super) mapping: Option<Mapping>,
}

/// Never freed: a process is one member, and the child of a fork becomes another.
static MEMBER: AtomicPtr<Member> = AtomicPtr::new(null_mut());

/// This process's membership; it joins if it has not yet.
pub(super) fn current(family: &'static Family) -> Result<&'static Member> {
    static JOINING: Mutex<()> = Mutex::new(());
    if let Some(member) = joined() {
        return Ok(member);
    }
    let _joining = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(member) = joined() {
        return Ok(member);
    }
    // Where somebody has to be buried first the entry names a process: chunks name their owner by it.
    let seat = participant::sit(family.participants())?;
    family.live().participants_used.fetch_max(seat.index as u64 + 1, Ordering::AcqRel);
    let member: &'static Member =
        Box::leak(Box::new(Member { seat, forks: robust::forks(), private: Mutex::default() }));
    MEMBER.store(std::ptr::from_ref(member).cast_mut(), Ordering::Release);
    member.bury_dead(family);
    Ok(member)
}

fn joined() -> Option<&'static Member> {
    // SAFETY: what is stored is null or a leaked box. The Acquire pairs with the Release of the store.
    let member = unsafe { MEMBER.load(Ordering::Acquire).as_ref::<'static>() }?;
    (member.forks == robust::forks()).then_some(member)
}

/// As a chunk names its owner.
fn owner_word(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | (index as u64 + 1)
}

impl Member {
    fn owner(&self) -> u64 {
        owner_word(self.seat.index, self.seat.generation)
    }

    fn private(&self) -> std::sync::MutexGuard<'_, Private> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives away a zeroed place for an object of `size` bytes.
    pub(super) fn allocate(&self, family: &'static Family, size: usize) -> Result<Room> {
        match chunks::class_of(size) {
            Some(class) => self.allocate_slot(family, class),
            None => self.allocate_large(family, size),
        }
    }

    fn allocate_slot(&self, family: &'static Family, class: usize) -> Result<Room> {
        let slot_size = SLOT_SIZES[class];
        let mut private = self.private();
        let offset = match private.take_slot(class) {
            Some(offset) => offset,
            None => {
                private.sweep(family, class);
                match private.take_slot(class) {
                    Some(offset) => offset,
                    None => {
                        let chunk = self.claim(family, &mut private, 1)?;
                        family.chunks()[chunk].usage.store(SLOTS + class as u32, Ordering::Release);
                        private.open_slots(chunk, class, |_| true);
                        private
                            .take_slot(class)
                            .ok_or_else(|| Error::new(ErrorKind::NoRoom, "a new chunk has no place"))?
                    }
                }
            }
        };
        let base = family.at(offset)?;
        let state = &family.header(offset).state;
        let generation = family.next_generation();
        // Before the private lock goes: a sweep must not take it for a place that was given back.
        state.store(in_the_making(generation), Ordering::Release);
        drop(private);
        Family::wipe(base, slot_size);
        Ok(Room { place: place_at(offset, generation), base, mapping: None })
    }

    fn allocate_large(&self, family: &'static Family, size: usize) -> Result<Room> {
        let count = size.div_ceil(CHUNK_SIZE);
        let mut private = self.private();
        private.sweep_large(family);
        let first = self.claim(family, &mut private, count)?;
        let chunks = family.chunks();
        // The first chunk's use goes first: a rest without a beginning could not be told from another object's.
        chunks[first].usage.store(LARGE, Ordering::Release);
        chunks[first + 1..first + count]
            .iter()
            .for_each(|chunk| chunk.usage.store(LARGE_REST, Ordering::Release));
        let offset = first * CHUNK_SIZE;
        if let Err(error) = family.at(offset) {
            give_back(family, first, count);
            return Err(error);
        }
        let place = place_at(offset, family.next_generation());
        // Before the private lock goes: a sweep must not take it for an object that was given back.
        family.header(offset).state.store(in_the_making(place.generation), Ordering::Release);
        private.large.push(first);
        drop(private);
        let (base, mapping) = family.map_object(place).inspect_err(|_| family.free(place))?;
        Ok(Room { place, base, mapping })
    }

    /// Claims chunks and reserves their pages, which read as zeros.
    fn claim(&self, family: &'static Family, private: &mut Private, count: usize) -> Result<usize> {
        let live = family.live();
        let hint = usize::try_from(live.chunk_hint.load(Ordering::Relaxed)).unwrap_or(0);
        let (chunks, used) = (family.chunks(), &live.chunks_used);
        let found =
            chunks::claim(chunks, family.first_chunk, hint, self.owner(), count, used).or_else(|| {
                // Perhaps the dead have some.
                self.bury_dead_into(family, private);
                chunks::claim(chunks, family.first_chunk, family.first_chunk, self.owner(), count, used)
            });
        let first = found.ok_or_else(|| {
            Error::new(
                ErrorKind::NoRoom,
                format!("the family segment has no {} bytes in a row left", count * CHUNK_SIZE),
            )
        })?;
        let end = first + count;
        live.chunk_hint.store(end as u64, Ordering::Relaxed);
        if let Err(error) = reserve(family, first, count) {
            give_back(family, first, count);
            return Err(error);
        }
        Ok(first)
    }

    /// Writes the reference to an object that is being built.
    pub(super) fn hold_new(&self, family: &'static Family, place: Place) -> Result<Hold> {
        Ok(Hold::of_new(self.entry(family)?, place))
    }

    /// Takes a reference to an object that somebody else holds.
    pub(super) fn hold(&self, family: &'static Family, place: Place) -> Result<Hold> {
        family.at(place.offset())?;
        let entry = self.entry(family)?;
        Hold::acquire(family, entry, place).ok_or_else(|| {
            self.recycle(entry);
            Error::new(ErrorKind::NotFound, "the object that was sent is gone")
        })
    }

    /// An entry of the ledger is free again.
    pub(super) fn recycle(&self, entry: &'static AtomicU64) {
        self.private().entries.put(entry);
    }

    fn entry(&self, family: &'static Family) -> Result<&'static AtomicU64> {
        let mut private = self.private();
        if let Some(entry) = private.entries.take() {
            return Ok(entry);
        }
        let chunk = self.claim(family, &mut private, 1)?;
        let entries = ledger_of(family, chunk)?;
        entries.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
        family.chunks()[chunk].usage.store(LEDGER, Ordering::Release);
        entries.iter().rev().for_each(|entry| private.entries.put(entry));
        private.entries.take().ok_or_else(|| Error::new(ErrorKind::NoRoom, "a new ledger has no entry"))
    }

    /// Takes back what dead members held, and what they owned.
    pub(super) fn bury_dead(&self, family: &'static Family) {
        self.bury_dead_into(family, &mut self.private());
    }

    fn bury_dead_into(&self, family: &'static Family, private: &mut Private) {
        // One more: an entry may belong to one who was killed before it could say so.
        let used =
            usize::try_from(family.live().participants_used.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        for (index, entry) in family.participants().iter().enumerate().take(used.saturating_add(1)) {
            if index == self.seat.index || !participant::has_ended(entry) {
                continue;
            }
            // Whoever buries holds the dead one's word: should he die too, the next one begins again, where he stopped.
            let Ok(held) = entry.word.lock::<Linked>(Deadline::Now) else { continue };
            entry.word.recover();
            if participant::process_has_ended(entry) {
                self.bury(family, private, owner_word(index, entry.generation.load(Ordering::Acquire)));
                entry.pid.store(0, Ordering::Release);
            }
            entry.word.unlock::<Linked>(held);
        }
    }

    fn bury(&self, family: &'static Family, private: &mut Private, dead: u64) {
        let chunks = family.chunks();
        let used =
            usize::try_from(family.live().chunks_used.load(Ordering::Acquire)).unwrap_or(0).min(chunks.len());
        let owned = || {
            (family.first_chunk..used).filter(|&index| chunks[index].owner.load(Ordering::Acquire) == dead)
        };
        // First what it held, which may free what it owned.
        for index in owned().filter(|&index| chunks[index].usage() == LEDGER).collect::<Vec<_>>() {
            if let Ok(entries) = ledger_of(family, index) {
                ledger::take_back(family, entries);
                give_back(family, index, 1);
            }
        }
        for index in owned().collect::<Vec<_>>() {
            let chunk = &chunks[index];
            match chunk.usage() {
                UNUSED => give_back(family, index, 1),
                LARGE if family.at(index * CHUNK_SIZE).is_err() => {}
                LARGE => {
                    chunk.owner.store(self.owner(), Ordering::Release);
                    let state = &family.header(index * CHUNK_SIZE).state;
                    let found = state.load(Ordering::Acquire);
                    if !is_live(found) {
                        // Its maker died before it was whole.
                        family.header(index * CHUNK_SIZE).references.store(0, Ordering::Relaxed);
                        state.store(super::free(generation_of(found)), Ordering::Release);
                    }
                    private.large.push(index);
                }
                // It belongs to the beginning before it.
                LARGE_REST => {}
                _ => match chunk.slot_size() {
                    None => give_back(family, index, 1),
                    // Without address space to look there, it stays the dead one's.
                    Some(_) if family.at(index * CHUNK_SIZE).is_err() => {}
                    Some(size) => {
                        let class = (chunk.usage() - SLOTS) as usize;
                        chunk.owner.store(self.owner(), Ordering::Release);
                        private.open_slots(index, class, |slot| {
                            let header = family.header(index * CHUNK_SIZE + slot * size);
                            let is_free = !is_live(header.state.load(Ordering::Acquire));
                            if is_free {
                                // Its maker may have died before it was whole.
                                header.references.store(0, Ordering::Relaxed);
                            }
                            is_free
                        });
                        private.give_back_if_empty(family, index);
                    }
                },
            }
        }
        private.sweep_large(family);
    }
}

fn place_at(offset: usize, generation: u32) -> Place {
    Place { units: (offset / UNIT) as u32, generation }
}

/// The entries of a ledger chunk.
fn ledger_of(family: &'static Family, chunk: usize) -> Result<&'static [AtomicU64]> {
    let first = family.at(chunk * CHUNK_SIZE)?.cast::<AtomicU64>();
    // SAFETY: a chunk is 64 KiB of mapped memory, aligned to as much, and windows are never unmapped. Whoever reads or writes a ledger
    // does so atomically.
    Ok(unsafe { std::slice::from_raw_parts(first.as_ptr(), ENTRIES_COUNT) })
}

/// Gives chunks and their pages back to the family, the first chunk last: what begins there is the last to vanish.
fn give_back(family: &'static Family, first: usize, count: usize) {
    if shm::punch(&family.file, (first * CHUNK_SIZE) as u64, (count * CHUNK_SIZE) as u64).is_err() {
        // They would not read as zeros: nobody gets them again.
        return;
    }
    family.chunks()[first..first + count].iter().rev().for_each(Chunk::release);
    family.live().chunk_hint.fetch_min(first as u64, Ordering::Relaxed);
}

impl Private {
    fn take_slot(&mut self, class: usize) -> Option<usize> {
        while let Some(&index) = self.open[class].last() {
            if let Some(slots) = self.slots.get_mut(&index)
                && let Some(slot) = slots.take()
            {
                return Some(index * CHUNK_SIZE + slot * SLOT_SIZES[class]);
            }
            self.open[class].pop();
        }
        None
    }

    fn open_slots(&mut self, index: usize, class: usize, is_free: impl Fn(usize) -> bool) {
        let mut slots = Slots { class, free: [0; BITMAP_WORDS] };
        (0..CHUNK_SIZE / SLOT_SIZES[class]).filter(|&slot| is_free(slot)).for_each(|slot| slots.put(slot));
        self.slots.insert(index, slots);
        self.open[class].push(index);
    }

    /// Finds the places of this class that were marked free, and gives chunks back that have become empty.
    fn sweep(&mut self, family: &'static Family, class: usize) {
        let size = SLOT_SIZES[class];
        let mut emptied = Vec::new();
        for (&index, slots) in self.slots.iter_mut().filter(|(_, slots)| slots.class == class) {
            let chunk = &family.chunks()[index];
            if chunk.freed.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Before the look at the places: one that is freed meanwhile counts again.
            chunk.freed.swap(0, Ordering::AcqRel);
            for slot in 0..CHUNK_SIZE / size {
                let state = &family.header(index * CHUNK_SIZE + slot * size).state;
                if !slots.has(slot) && is_free(state.load(Ordering::Acquire)) {
                    slots.put(slot);
                }
            }
            self.open[class].push(index);
            if slots.is_empty() {
                emptied.push(index);
            }
        }
        // One stays, for the next that is asked for.
        for index in emptied.into_iter().skip(1) {
            self.give_back_if_empty(family, index);
        }
    }

    fn give_back_if_empty(&mut self, family: &'static Family, index: usize) {
        if let Some(slots) = self.slots.get(&index)
            && slots.is_empty()
        {
            self.open[slots.class].retain(|&open| open != index);
            self.slots.remove(&index);
            give_back(family, index, 1);
        }
    }

    fn sweep_large(&mut self, family: &'static Family) {
        self.large.retain(|&first| {
            if is_free(family.header(first * CHUNK_SIZE).state.load(Ordering::Acquire)) {
                let count = chunks::large_range(family.chunks(), first).unwrap_or(1);
                give_back(family, first, count);
                return false;
            }
            true
        });
    }
}

impl Slots {
    fn count(&self) -> usize {
        CHUNK_SIZE / SLOT_SIZES[self.class]
    }

    fn has(&self, slot: usize) -> bool {
        self.free[slot / 64] >> (slot % 64) & 1 == 1
    }

    fn put(&mut self, slot: usize) {
        self.free[slot / 64] |= 1 << (slot % 64);
    }

    fn take(&mut self) -> Option<usize> {
        let word = self.free.iter().position(|&word| word != 0)?;
        let bit = self.free[word].trailing_zeros() as usize;
        self.free[word] &= self.free[word] - 1;
        Some(word * 64 + bit)
    }

    fn is_empty(&self) -> bool {
        (0..self.count()).all(|slot| self.has(slot))
    }
}
