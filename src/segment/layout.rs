//! Where things lie in a segment, byte for byte. `docs/layout.md` shows the same as tables; the assertions here hold the two
//! together.
//!
//! A segment begins with the [`Preamble`], written once and never changed, then the [`Live`] words, then the participants'
//! table, then the objects and the directory's entries, as they come. Everything read from here is input: copied out, checked, and then
//! the copy is used.

use bytemuck::{Pod, Zeroable};

use crate::plain::Element;
use crate::plain::identity::Identity;
use crate::plain::number::is_number;
use crate::primitive::{AtomicU32, AtomicU64};
use crate::raw::lock::RawLock;

/// What our segments begin with.
pub(crate) const MAGIC: [u8; 8] = *b"multiprc";
/// Changes whenever an older program could misread a newer segment, or the other way round.
pub(crate) const VERSION: u32 = 1;
/// Flag of the preamble: nobody removes the name but by [`unlink`](crate::segment::unlink).
pub(crate) const PERSIST: u32 = 1;
/// Flag of the preamble: this is a family segment, which has no name and no directory.
pub(crate) const FAMILY: u32 = 2;

/// The byte order of this machine, as the preamble says it.
pub(crate) const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };

/// The first 128 bytes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Preamble {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
    /// Bytes of a pointer.
    pub(crate) pointer_width: u8,
    pub(crate) byte_order: u8,
    pub(crate) reserved: [u8; 2],
    /// From a list entry to its lock word; the C library's choice.
    pub(crate) futex_offset: i32,
    pub(crate) flags: u32,
    /// The segment, in bytes.
    pub(crate) size: u64,
    pub(crate) boot_id: [u8; 16],
    pub(crate) pid_namespace: u64,
    /// Where the participants' table begins, and how many entries it has.
    pub(crate) participants_offset: u64,
    pub(crate) participants_count: u32,
    /// The permission bits it was created with.
    pub(crate) mode: u32,
    /// Where objects may begin.
    pub(crate) objects_offset: u64,
    pub(crate) spare: [u64; 6],
}

/// The words at [`LIVE_OFFSET`] that change while the segment is in use.
#[repr(C)]
pub(crate) struct Live {
    /// Held while an object is built and published.
    pub(crate) lock: RawLock,
    /// Offset of the newest directory entry; 0 is none. Storing it publishes an object.
    pub(crate) newest: AtomicU64,
    /// No byte at or behind this offset was ever written. What lies before it and behind the newest entry is the litter of a
    /// killed creator.
    pub(crate) touched: AtomicU64,
    /// Chunks at or behind this index were never used. (Family only.)
    pub(crate) chunks_used: AtomicU64,
    /// Where the search for a free chunk begins. (Family only.)
    pub(crate) chunk_hint: AtomicU64,
    /// Entries of the participants' table at or behind this index were never used. (Family only.)
    pub(crate) participants_used: AtomicU64,
    /// How many places were given away that had no generation yet. (Family only.)
    pub(crate) generations: AtomicU64,
    pub(crate) reserved: [AtomicU64; 5],
}

pub(crate) const LIVE_OFFSET: usize = 128;
pub(crate) const PARTICIPANTS_OFFSET: usize = 256;

/// A process attached to the segment.
#[repr(C)]
pub(crate) struct Participant {
    /// Says that the process lives; see [`crate::raw::liveness`].
    pub(crate) word: RawLock,
    pub(crate) pid: AtomicU32,
    /// How often the entry changed hands: tells a process from its predecessor here.
    pub(crate) generation: AtomicU32,
    /// When the process was started, in clock ticks since the boot.
    pub(crate) started: AtomicU64,
    pub(crate) reserved: AtomicU64,
}

/// What every object begins with.
#[repr(C)]
pub(crate) struct ObjectHeader {
    pub(crate) lock: RawLock,
    /// Family only: `generation << 2 | 0 free, 1 live, 2 being built`. The generation tells an object from those that lay there
    /// before it.
    pub(crate) state: AtomicU32,
    /// [`Kind`] in the low 8 bits; in the family, above it 24 bits of the type's hash.
    pub(crate) kind: AtomicU32,
    /// Family only: how many processes hold the object, plus how many messages.
    pub(crate) references: AtomicU64,
}

/// Where an object's own bytes begin: a number's word, a value's version, an array's length.
pub(crate) const WORD_OFFSET: usize = size_of::<ObjectHeader>();
/// Where the copies of a value begin, and the data of a mutex.
pub(crate) const DATA_OFFSET: usize = 64;
/// Where the elements of an array begin, from the array and so from the segment aligned to as much.
pub(crate) const ELEMENTS_OFFSET: usize = 128;

const _: () = {
    assert!(size_of::<Preamble>() == LIVE_OFFSET);
    assert!(LIVE_OFFSET + size_of::<Live>() <= PARTICIPANTS_OFFSET);
    assert!(size_of::<Participant>() == 64);
    assert!(std::mem::offset_of!(Participant, pid) == 40);
    assert!(std::mem::offset_of!(ObjectHeader, state) == 40);
    assert!(WORD_OFFSET == 56);
    assert!(size_of::<EntryHead>() == 64);
};

/// An entry of the directory: this, then the bytes of the object's name, of the type's name and of its dtype.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct EntryHead {
    /// Offset of the entry before this one; 0 is none.
    pub(crate) older: u64,
    /// Where the object lies, and how many bytes it takes.
    pub(crate) object_offset: u64,
    pub(crate) object_size: u64,
    /// Size of an element (or of the one value), in bytes.
    pub(crate) element_size: u64,
    /// How many elements there are; 1 for what is no array.
    pub(crate) count: u64,
    pub(crate) kind: u32,
    pub(crate) element_alignment: u32,
    /// Lengths of the three texts, in bytes.
    pub(crate) name_len: u16,
    pub(crate) type_name_len: u16,
    pub(crate) dtype_len: u16,
    pub(crate) reserved: u16,
    /// FNV-1a of the object's name: most entries are passed over by it.
    pub(crate) name_hash: u32,
    pub(crate) spare: u32,
}

/// What sort of object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Mutex = 1,
    Value = 2,
    RawValue = 3,
    Array = 4,
    RawArray = 5,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Mutex, Kind::Value, Kind::RawValue, Kind::Array, Kind::RawArray];

    pub(crate) fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|&kind| kind as u32 == number)
    }

    /// As messages name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Mutex => "mutex",
            Kind::Value => "value",
            Kind::RawValue => "raw value",
            Kind::Array => "array",
            Kind::RawArray => "raw array",
        }
    }

    pub(crate) fn is_array(self) -> bool {
        matches!(self, Kind::Array | Kind::RawArray)
    }

    /// Whether its lock is ever taken: such an object means nothing in another PID namespace, nor without write access.
    pub(crate) fn locks(self) -> bool {
        matches!(self, Kind::Mutex | Kind::Value | Kind::Array)
    }
}

/// What is to be built, or is expected to be found.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) identity: Identity,
    /// Elements of an array, else 1. `None`: whatever is found.
    pub(crate) count: Option<u64>,
    /// Of the whole object, in bytes.
    pub(crate) size: usize,
    /// Of the whole object.
    pub(crate) alignment: usize,
}

impl Shape {
    /// One value: a number's word, or a version and two copies.
    pub(crate) fn value<T: 'static>(kind: Kind) -> Shape {
        let size = if is_number::<T>() { DATA_OFFSET } else { DATA_OFFSET + 2 * copy_stride(size_of::<T>()) };
        Shape { kind, identity: Identity::of::<T>(), count: Some(1), size, alignment: DATA_OFFSET }
    }

    /// Data in place, handed out by reference.
    pub(crate) fn mutex<T: Element>() -> Shape {
        let offset = const { mutex_data_offset::<T>() };
        Shape {
            kind: Kind::Mutex,
            identity: Identity::of::<T>(),
            count: Some(1),
            size: (offset + size_of::<T>()).next_multiple_of(offset),
            alignment: offset,
        }
    }

    /// `count` elements in place, or any number of them. `None` if their bytes cannot be counted.
    pub(crate) fn array<T: Element>(kind: Kind, count: Option<usize>) -> Option<Shape> {
        const {
            assert!(align_of::<T>() <= ELEMENTS_OFFSET, "elements are aligned to at most 128 bytes");
        };
        let size = count
            .unwrap_or(0)
            .checked_mul(size_of::<T>())?
            .checked_add(ELEMENTS_OFFSET)?
            .checked_next_multiple_of(ELEMENTS_OFFSET)?;
        isize::try_from(size).ok()?;
        let count = count.map(|count| count as u64);
        Some(Shape { kind, identity: Identity::of::<T>(), count, size, alignment: ELEMENTS_OFFSET })
    }

    /// The kind word of an object of the family.
    pub(crate) fn kind_word(&self) -> u32 {
        self.identity.hash() << 8 | u32::from(self.kind as u8)
    }
}

/// Bytes from one copy of a value to the other: up to 32 share a cache line with nothing else.
pub(crate) const fn copy_stride(size: usize) -> usize {
    if size <= 32 { 32 } else { size.next_multiple_of(64) }
}

/// Where the data of a mutex over `T` begin, which is also what the whole must be aligned to.
pub(crate) const fn mutex_data_offset<T>() -> usize {
    assert!(align_of::<T>() <= ELEMENTS_OFFSET, "a mutex's data are aligned to at most 128 bytes");
    if align_of::<T>() <= DATA_OFFSET { DATA_OFFSET } else { ELEMENTS_OFFSET }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_documented() {
        assert_eq!(Shape::value::<u64>(Kind::Value).size, 64);
        assert_eq!(Shape::value::<f32>(Kind::Value).size, 64);
        assert_eq!(Shape::value::<[u8; 32]>(Kind::Value).size, 128);
        assert_eq!(Shape::value::<[u8; 64]>(Kind::Value).size, 192);
        assert_eq!(Shape::value::<[u8; 65]>(Kind::Value).size, 320);
        assert_eq!(Shape::mutex::<u64>().size, 128);
        assert_eq!(Shape::array::<f64>(Kind::Array, Some(0)).unwrap().size, 128);
        assert_eq!(Shape::array::<f64>(Kind::Array, Some(17)).unwrap().size, 384);
        assert!(Shape::array::<f64>(Kind::Array, Some(usize::MAX / 4)).is_none());
        assert!(Shape::array::<u8>(Kind::Array, Some(usize::MAX - 8)).is_none());
    }
}
