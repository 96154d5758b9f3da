//! The family segment: anonymous objects, for a program and everything it spawns.
//!
//! It is one sparse, sealed memfd that every relative inherits, so a million values cost one descriptor, a handle is an offset
//! and a generation that any relative can resolve, and the kernel frees everything with the last relative, however it goes.
//!
//! Invariant: an object is freed when nobody refers to it, and a reference is an entry in its holder's *ledger*
//! ([`ledger`]), written before the object is used, so that what a killed process held can be taken back. A process allocates only in
//! *chunks* of its own ([`chunks`]), so the allocator's tables are private and nobody's death tears them. A kill may leak one object (or those of one message) until
//! the family ends; it never frees one early. Checked in `models/`.

#![expect(unsafe_code, reason = "mapped bytes become the tables and words that the layout says lie there")]

mod chunks;
mod ledger;
mod member;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytemuck::Zeroable;
use serde::{Deserialize, Serialize};

use super::layout::{
    FAMILY, LIVE_OFFSET, Live, ObjectHeader, PARTICIPANTS_OFFSET, Participant, Preamble, Shape,
};
use super::preamble::own_preamble;
use super::room::check_memory;
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::{AtomicPtr, Ordering};
use crate::raw::copy;
use crate::sys::memory::{MapOptions, Mapping, page_size};
use crate::sys::{robust, shm};

pub(crate) use ledger::Hold;

use chunks::Chunk;

/// Address space for everything a family shares; pages are there only where they are used.
const FAMILY_SIZE: u64 = 64 << 30;
/// What a process may be limited to: then the family is smaller.
const FAMILY_SIZE_LEAST: u64 = 256 << 20;
/// Memory is mapped in windows of this size, once each.
const WINDOW_SIZE: usize = 64 << 20;
/// As many processes as a thread's robust list could look after.
const PARTICIPANTS_COUNT: usize = 2_048;
/// What a process claims at once.
const CHUNK_SIZE: usize = 64 << 10;
/// Places lie at multiples of this, and an offset in these units has 30 bits.
const UNIT: usize = 64;

/// Behind the participants' table, a whole number of chunks from the start.
const CHUNK_TABLE_OFFSET: usize =
    (PARTICIPANTS_OFFSET + PARTICIPANTS_COUNT * size_of::<Participant>()).next_multiple_of(CHUNK_SIZE);

const _: () = assert!(FAMILY_SIZE / UNIT as u64 == 1 << 30);

/// The family that this process belongs to.
struct Family {
    file: File,
    size: usize,
    first_chunk: usize,
    base: NonNull<u8>,
    /// One word a window; null is not mapped yet.
    windows: Box<[AtomicPtr<u8>]>,
    /// Held while a window is mapped.
    mapping: Mutex<()>,
}

// SAFETY: `base` and the windows are mappings that are never undone; what lies in them is atomics, or private to its builder.
unsafe impl Send for Family {}
// SAFETY: as above.
unsafe impl Sync for Family {}

static FAMILY_OF_THIS_PROCESS: OnceLock<Family> = OnceLock::new();

/// An object's place: what a handle is on its way to a relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Offset in units of 64 bytes.
    units: u32,
    /// Which of the objects that lay there.
    generation: u32,
}

impl Place {
    fn offset(self) -> usize {
        self.units as usize * UNIT
    }
}

/// An object of the family that this process holds: its address, and the reference that keeps it.
pub(crate) struct Anonymous {
    pub(crate) base: NonNull<u8>,
    pub(crate) hold: Hold,
    /// A large object's own mapping; a small one lies in a window.
    pub(crate) mapping: Option<Mapping>,
}

/// The descriptor that every child inherits; makes the family if there is none yet.
///
/// # Errors
///
/// If its file or its first window cannot be made.
pub(crate) fn descriptor() -> Result<BorrowedFd<'static>> {
    Ok(family()?.file.as_fd())
}

/// Joins the family of the parent. To be called once, before anything else of the crate.
///
/// # Errors
///
/// If the descriptor is not that of a family segment of this layout, or this process belongs to a family already.
pub(crate) fn adopt(descriptor: OwnedFd) -> Result<()> {
    let family = Family::open(File::from(descriptor))?;
    FAMILY_OF_THIS_PROCESS
        .set(family)
        .map_err(|_| Error::new(ErrorKind::Corrupted, "this process belongs to a family already"))
}

/// Takes back what dead relatives held. Called when a child has ended.
pub(crate) fn bury_dead() {
    if let Some(family) = FAMILY_OF_THIS_PROCESS.get()
        // Without a place of its own a process has nobody's chunks to give to; the next one that has one will do it.
        && let Ok(member) = member::current(family)
    {
        member.bury_dead(family);
    }
}

/// Builds an object. `init` writes its bytes, which are zero; nobody else sees them before it returns.
///
/// # Errors
///
/// [`ErrorKind::NoRoom`] if there is no memory for it.
pub(crate) fn build(shape: &Shape, init: impl FnOnce(NonNull<u8>)) -> Result<Anonymous> {
    robust::check_supported()?;
    let family = family()?;
    let member = member::current(family)?;
    let room = member.allocate(family, shape.size)?;
    init(room.base);
    let header = family.header(room.place.offset());
    header.kind.store(shape.kind_word(), Ordering::Relaxed);
    header.references.store(1, Ordering::Relaxed);
    // The entry counts from the moment the object lives: a kill between the two leaves neither.
    let hold = member.hold_new(family, room.place).inspect_err(|_| family.drop_reference(room.place))?;
    header.state.store(live(room.place.generation), Ordering::Release);
    Ok(Anonymous { base: room.base, hold, mapping: room.mapping })
}

/// Takes a reference to an object that another relative holds, or sent.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if it is gone, [`ErrorKind::TypeMismatch`] if it is something else.
pub(crate) fn resolve(place: Place, expected: &Shape) -> Result<Anonymous> {
    let family = family()?;
    let hold = hold(place)?;
    let header = family.header(place.offset());
    if header.kind.load(Ordering::Acquire) != expected.kind_word() {
        return Err(Error::new(
            ErrorKind::TypeMismatch,
            format!("what was sent is no {} of {}", expected.kind.name(), expected.identity),
        ));
    }
    let (base, mapping) = family.map_object(place)?;
    let room = mapping.as_ref().map_or_else(|| room_of(&hold), Mapping::size);
    if room < expected.size {
        return Err(Error::new(ErrorKind::Corrupted, "what was sent is smaller than its type"));
    }
    Ok(Anonymous { base, hold, mapping })
}

/// Takes a reference to whatever lies there.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if it is gone.
pub(crate) fn hold(place: Place) -> Result<Hold> {
    let family = family()?;
    if !family.is_place(place) {
        return Err(Error::new(ErrorKind::Corrupted, "the object lies outside the family's memory"));
    }
    member::current(family)?.hold(family, place)
}

/// Counts a message that carries the object: it lives until the message is received, whatever becomes of its sender.
pub(crate) fn post(hold: &Hold) {
    if let Some(family) = FAMILY_OF_THIS_PROCESS.get() {
        family.header(hold.place().offset()).references.fetch_add(1, Ordering::Relaxed);
    }
}

/// The message was received, and its objects are held: it does not count any more.
pub(crate) fn unpost(hold: &Hold) {
    if let Some(family) = FAMILY_OF_THIS_PROCESS.get() {
        family.drop_reference(hold.place());
    }
}

/// Bytes of the place that a held object of at most a chunk lies in.
pub(crate) fn room_of(hold: &Hold) -> usize {
    let chunk = hold.place().offset() / CHUNK_SIZE;
    FAMILY_OF_THIS_PROCESS.get().and_then(|family| family.chunks()[chunk].slot_size()).unwrap_or(0)
}

fn family() -> Result<&'static Family> {
    static MAKING: Mutex<()> = Mutex::new(());
    if let Some(family) = FAMILY_OF_THIS_PROCESS.get() {
        return Ok(family);
    }
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if FAMILY_OF_THIS_PROCESS.get().is_none() {
        let family = Family::create()?;
        // Nobody else is in here, and `adopt` is called before anything else: the place is free.
        let _ = FAMILY_OF_THIS_PROCESS.set(family);
    }
    FAMILY_OF_THIS_PROCESS.get().ok_or_else(|| Error::new(ErrorKind::Os, "there is no family segment"))
}

/// Generations have 30 bits, and 0 is that of a place that nothing ever lay in.
const GENERATION_MOST: u32 = u32::MAX >> 2;

/// `ObjectHeader::state` of a place that its chunk's owner may give away.
fn free(generation: u32) -> u32 {
    generation << 2
}

/// `ObjectHeader::state` of an object that lives.
fn live(generation: u32) -> u32 {
    generation << 2 | 1
}

/// `ObjectHeader::state` of an object that is not whole yet.
fn in_the_making(generation: u32) -> u32 {
    generation << 2 | 2
}

fn is_free(state: u32) -> bool {
    state & 3 == 0
}

fn is_live(state: u32) -> bool {
    state & 3 == 1
}

fn generation_of(state: u32) -> u32 {
    state >> 2
}

impl Family {
    fn create() -> Result<Family> {
        let cannot = |source| Error::os("the family segment cannot be made", source);
        let file = shm::memfd("multiproc-family", false).map_err(cannot)?;
        let mut size = shm::largest_file().map_or(FAMILY_SIZE, |largest| largest.min(FAMILY_SIZE));
        size -= size % WINDOW_SIZE as u64;
        if size < FAMILY_SIZE_LEAST {
            return Err(Error::new(
                ErrorKind::LimitReached,
                format!("files are limited to {size} bytes, the family segment needs {FAMILY_SIZE_LEAST}"),
            ));
        }
        file.set_len(size).map_err(cannot)?;
        shm::seal_size(&file).map_err(cannot)?;
        let mut preamble = own_preamble();
        preamble.flags = FAMILY;
        preamble.size = size;
        preamble.participants_count = PARTICIPANTS_COUNT as u32;
        preamble.objects_offset = CHUNK_TABLE_OFFSET as u64;
        file.write_all_at(bytemuck::bytes_of(&preamble), 0).map_err(cannot)?;
        Family::of_file(file, size)
    }

    fn open(file: File) -> Result<Family> {
        robust::check_supported()?;
        let cannot = |source: std::io::Error| Error::os("the family segment cannot be read", source);
        let mut preamble = Preamble::zeroed();
        file.read_exact_at(bytemuck::bytes_of_mut(&mut preamble), 0).map_err(cannot)?;
        let size = shm::status(&file).map_err(cannot)?.size;
        let mut expected = own_preamble();
        expected.flags = FAMILY;
        expected.size = size;
        expected.participants_count = PARTICIPANTS_COUNT as u32;
        expected.objects_offset = CHUNK_TABLE_OFFSET as u64;
        let is_sealed = shm::has_sealed_size(&file).map_err(cannot)?;
        let same = bytemuck::bytes_of(&preamble) == bytemuck::bytes_of(&expected);
        if !same
            || !is_sealed
            || !(FAMILY_SIZE_LEAST..=FAMILY_SIZE).contains(&size)
            || size % WINDOW_SIZE as u64 != 0
        {
            return Err(Error::new(
                ErrorKind::Incompatible,
                "what was handed over is no family segment of this program",
            ));
        }
        Family::of_file(file, size)
    }

    fn of_file(file: File, size: u64) -> Result<Family> {
        let size = usize::try_from(size)
            .map_err(|_| Error::new(ErrorKind::NoRoom, "the family segment cannot be addressed"))?;
        let chunk_count = size / CHUNK_SIZE;
        let first_chunk = (CHUNK_TABLE_OFFSET + chunk_count * size_of::<Chunk>()).div_ceil(CHUNK_SIZE);
        // A process that may not address a whole window more has no use for a family.
        let base = map_window(&file, 0)?;
        let windows: Box<[AtomicPtr<u8>]> =
            (0..size / WINDOW_SIZE).map(|_| AtomicPtr::new(null_mut())).collect();
        windows[0].store(base.as_ptr(), Ordering::Release);
        Ok(Family { file, size, first_chunk, base, windows, mapping: Mutex::new(()) })
    }

    /// Whether a place that came from outside can be one.
    fn is_place(&self, place: Place) -> bool {
        let offset = place.offset();
        offset >= self.first_chunk * CHUNK_SIZE
            && offset < self.size
            && (1..=GENERATION_MOST).contains(&place.generation)
            && self.chunks()[offset / CHUNK_SIZE].can_begin_at(offset % CHUNK_SIZE)
    }

    /// The address of `offset`, in its window.
    fn at(&self, offset: usize) -> Result<NonNull<u8>> {
        let window = &self.windows[offset / WINDOW_SIZE];
        // Pairs with the Release of the store: only the address is needed, the mapping is the kernel's.
        let mut base = window.load(Ordering::Acquire);
        if base.is_null() {
            let _mapping = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
            base = window.load(Ordering::Acquire);
            if base.is_null() {
                base = map_window(&self.file, offset / WINDOW_SIZE)?.as_ptr();
                window.store(base, Ordering::Release);
            }
        }
        // SAFETY: the remainder lies within the window, whose mapping is never undone.
        let address = unsafe { base.add(offset % WINDOW_SIZE) };
        NonNull::new(address).ok_or_else(|| Error::new(ErrorKind::Os, "a window is mapped at 0"))
    }

    /// The header of the object at `offset`, whose window this process has mapped: it holds the object, or owns its chunk.
    fn header(&self, offset: usize) -> &ObjectHeader {
        let address = self.at(offset).expect("a window that was mapped stays so");
        // SAFETY: places lie at multiples of 64 bytes inside the family, and each begins with a header of atomics.
        unsafe { address.cast::<ObjectHeader>().as_ref() }
    }

    /// Where an object can be reached: in its window, or, where it is larger than a chunk, in a mapping of its own.
    fn map_object(&self, place: Place) -> Result<(NonNull<u8>, Option<Mapping>)> {
        let offset = place.offset();
        let first = offset / CHUNK_SIZE;
        match chunks::large_range(self.chunks(), first) {
            None => Ok((self.at(offset)?, None)),
            Some(count) => {
                let mapping =
                    Mapping::new(&self.file, offset as u64, count * CHUNK_SIZE, MapOptions::READ_WRITE)
                        .map_err(|source| {
                            Error::os(format!("{} bytes cannot be mapped", count * CHUNK_SIZE), source)
                        })?;
                Ok((mapping.base(), Some(mapping)))
            }
        }
    }

    fn live(&self) -> &Live {
        // SAFETY: the first window holds the fixed part; the words are atomics, aligned to 8.
        let address = unsafe { self.base.add(LIVE_OFFSET) };
        // SAFETY: as above; the mapping is never undone.
        unsafe { address.cast::<Live>().as_ref() }
    }

    fn participants(&'static self) -> &'static [Participant] {
        // SAFETY: the table lies in the first window.
        let first = unsafe { self.base.add(PARTICIPANTS_OFFSET) };
        // SAFETY: its entries are atomics, aligned to 8; the mapping is never undone.
        unsafe { std::slice::from_raw_parts(first.cast::<Participant>().as_ptr(), PARTICIPANTS_COUNT) }
    }

    fn chunks(&self) -> &[Chunk] {
        // SAFETY: the table lies in the first window: 16 bytes a chunk, and a chunk is a 4096th part of that.
        let first = unsafe { self.base.add(CHUNK_TABLE_OFFSET) };
        // SAFETY: its entries are atomics, aligned to 8; the mapping is never undone.
        unsafe { std::slice::from_raw_parts(first.cast::<Chunk>().as_ptr(), self.size / CHUNK_SIZE) }
    }

    /// One reference less; the last one frees the object.
    fn drop_reference(&self, place: Place) {
        let header = self.header(place.offset());
        // AcqRel: what every holder did to the object comes before what its next owner does.
        if header.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.free(place);
        }
    }

    /// Marks a place free that nobody refers to.
    fn free(&self, place: Place) {
        let first = place.offset() / CHUNK_SIZE;
        if let Some(count) = chunks::large_range(self.chunks(), first) {
            // The pages go back at once; only the first, with the header, waits for the chunks' owner. Should the kernel refuse, they
            // go with the chunks.
            let page = page_size();
            let _ =
                shm::punch(&self.file, (place.offset() + page) as u64, (count * CHUNK_SIZE - page) as u64);
        }
        self.header(place.offset()).state.store(free(place.generation), Ordering::Release);
        // Tells the chunk's owner where to look. Lost with a kill here, it leaks the place until the owner sweeps for others.
        self.chunks()[first].freed.fetch_add(1, Ordering::Release);
    }

    /// A generation for an object: one for all places, so that no place sees one again for as long as it takes to count to 2³⁰.
    fn next_generation(&self) -> u32 {
        let count = self.live().generations.fetch_add(1, Ordering::Relaxed);
        (count % u64::from(GENERATION_MOST)) as u32 + 1
    }

    /// Fills the place of `size` bytes at `base` with zeros, but for its state.
    fn wipe(base: NonNull<u8>, size: usize) {
        const STATE: usize = std::mem::offset_of!(ObjectHeader, state);
        let fill = |start: usize, end: usize| {
            // SAFETY: inside the `size` bytes that the caller has just allocated at `base`.
            let target = unsafe { base.add(start) };
            // SAFETY: as above; nobody else uses them.
            unsafe { copy::fill_with_zeros(target.as_ptr(), end - start) };
        };
        fill(0, STATE);
        fill(STATE + size_of::<u32>(), size);
    }
}

fn map_window(file: &File, index: usize) -> Result<NonNull<u8>> {
    let offset = (index * WINDOW_SIZE) as u64;
    Mapping::new(file, offset, WINDOW_SIZE, MapOptions::READ_WRITE)
        .map(Mapping::leak)
        .map_err(|source| Error::os("64 MiB of address space for the family segment cannot be had", source))
}

/// Reserves the pages of `count` chunks from `first` on.
fn reserve(family: &Family, first: usize, count: usize) -> Result<()> {
    let size = count * CHUNK_SIZE;
    check_memory(size)?;
    shm::reserve(&family.file, (first * CHUNK_SIZE) as u64, size as u64)
        .map_err(|source| Error::os(format!("{size} bytes cannot be reserved"), source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::layout::Kind;

    fn value() -> Anonymous {
        build(&Shape::value::<u64>(Kind::Value), |_| {}).unwrap()
    }

    #[test]
    fn an_object_is_found_by_its_place_until_the_last_hold_goes() {
        let shape = Shape::value::<u64>(Kind::Value);
        let object = value();
        let place = object.hold.place();
        let again = resolve(place, &shape).unwrap();
        assert_eq!(again.base, object.base);
        assert_eq!(
            resolve(place, &Shape::value::<i64>(Kind::Value)).err().unwrap().kind(),
            ErrorKind::TypeMismatch
        );
        drop(object);
        drop(resolve(place, &shape).unwrap());
        drop(again);
        assert_eq!(resolve(place, &shape).err().unwrap().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_posted_object_outlives_its_sender() {
        let object = value();
        let place = object.hold.place();
        post(&object.hold);
        drop(object);
        let received = hold(place).unwrap();
        unpost(&received);
        drop(received);
        assert_eq!(hold(place).err().unwrap().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        for units in [0, 1, 4095, u32::MAX >> 2, u32::MAX] {
            for generation in [0, 1, u32::MAX] {
                assert!(hold(Place { units, generation }).is_err());
            }
        }
    }

    #[test]
    fn places_are_used_again() {
        // Far more objects than would fit if places were not reused: 1024 a chunk.
        let places: std::collections::HashSet<u32> =
            (0..20_000).map(|_| value().hold.place().units).collect();
        assert!(places.len() <= 8 * 1024, "{} places for one object at a time", places.len());
    }

    #[test]
    fn large_objects_have_a_mapping_of_their_own_and_go_back_at_once() {
        let shape = Shape::array::<u8>(Kind::Array, Some(3 << 20)).unwrap();
        let mut units = std::collections::HashSet::new();
        for _ in 0..50 {
            let object = build(&shape, |base| {
                // SAFETY: the last byte of the object.
                let last = unsafe { base.add(shape.size - 1) };
                // SAFETY: as above; nobody else knows it. It reads 0, and is 1 for the next one who would get it unwiped.
                assert_eq!(unsafe { last.read() }, 0);
                // SAFETY: as above.
                unsafe { last.write(1) };
            })
            .unwrap();
            assert!(object.mapping.is_some());
            units.insert(object.hold.place().units);
        }
        assert!(units.len() < 20, "ranges are used again");
    }
}
