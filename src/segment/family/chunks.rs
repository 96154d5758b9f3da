//! The family's memory in chunks of 64 KiB, each owned by one process.
//!
//! A chunk holds places of one size, or ledger entries, or is part of a large object. Only its owner gives places of it away; others
//! mark a place free and count that in the chunk. What a dead process owned is adopted, or given back to the family.

use crate::primitive::{AtomicU32, AtomicU64, Ordering};

use super::{CHUNK_SIZE, UNIT};

/// What a chunk is used for: nothing yet.
pub(super) const UNUSED: u32 = 0;
/// A ledger of its owner.
pub(super) const LEDGER: u32 = 1;
/// The first chunk of a large object.
pub(super) const LARGE: u32 = 2;
/// A further chunk of the large object that begins before it.
pub(super) const LARGE_REST: u32 = 3;
/// From here on: places of `SLOT_SIZES[use − SLOTS]` bytes.
pub(super) const SLOTS: u32 = 16;

/// Sizes of places. Each is a multiple of 64, those from 256 on of 128, so that an array's elements are aligned to 128 bytes.
pub(super) const SLOT_SIZES: [usize; 17] =
    [64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096, 8192, 16_384, 32_768];

/// An entry of the chunk table.
#[repr(C)]
pub(super) struct Chunk {
    /// `generation << 32 | participant + 1`; 0 is free.
    pub(super) owner: AtomicU64,
    pub(super) usage: AtomicU32,
    /// Places that others marked free since the owner last looked.
    pub(super) freed: AtomicU32,
}

const _: () = assert!(size_of::<Chunk>() == 16);

impl Chunk {
    pub(super) fn usage(&self) -> u32 {
        self.usage.load(Ordering::Acquire)
    }

    /// The size of this chunk's places, if it has any.
    pub(super) fn slot_size(&self) -> Option<usize> {
        let class = self.usage().checked_sub(SLOTS)?;
        SLOT_SIZES.get(class as usize).copied()
    }

    /// Whether an object may begin `offset` bytes into the chunk.
    pub(super) fn can_begin_at(&self, offset: usize) -> bool {
        match self.slot_size() {
            Some(size) => offset % size == 0 && offset + size <= CHUNK_SIZE,
            None => self.usage() == LARGE && offset == 0,
        }
    }

    /// Takes the chunk if it is free.
    fn claim(&self, owner: u64) -> bool {
        self.owner.load(Ordering::Relaxed) == 0
            && self.owner.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Frees the chunk. Its use goes first: a chunk without one is free whoever its owner was.
    pub(super) fn release(&self) {
        self.freed.store(0, Ordering::Relaxed);
        self.usage.store(UNUSED, Ordering::Release);
        self.owner.store(0, Ordering::Release);
    }
}

/// The class of places that hold `size` bytes; `None` is a large object. Places of 128 bytes and its multiples are aligned to 128.
pub(super) fn class_of(size: usize) -> Option<usize> {
    debug_assert!(size % UNIT == 0, "shapes come in multiples of 64");
    SLOT_SIZES.iter().position(|&slot| slot >= size && (size % 128 != 0 || slot % 128 == 0))
}

/// How many chunks the large object that begins in `first` takes; `None` if none begins there.
pub(super) fn large_range(chunks: &[Chunk], first: usize) -> Option<usize> {
    if chunks.get(first)?.usage() != LARGE {
        return None;
    }
    let rest = chunks[first + 1..].iter().take_while(|chunk| chunk.usage() == LARGE_REST).count();
    Some(1 + rest)
}

/// Claims `count` free chunks in a row for `owner`, looking from `hint` on and then from `first` on; their use is [`UNUSED`]. `used` is
/// raised to the end of a row before it is touched: burying looks no further.
pub(super) fn claim(
    chunks: &[Chunk],
    first: usize,
    hint: usize,
    owner: u64,
    count: usize,
    used: &AtomicU64,
) -> Option<usize> {
    let hint = hint.clamp(first, chunks.len());
    claim_between(chunks, hint, chunks.len(), owner, count, used)
        .or_else(|| claim_between(chunks, first, (hint + count).min(chunks.len()), owner, count, used))
}

fn claim_between(
    chunks: &[Chunk],
    start: usize,
    end: usize,
    owner: u64,
    count: usize,
    used: &AtomicU64,
) -> Option<usize> {
    let mut begin = start;
    while begin.checked_add(count)? <= end {
        used.fetch_max((begin + count) as u64, Ordering::AcqRel);
        let row = &chunks[begin..begin + count];
        match row.iter().position(|chunk| !chunk.claim(owner)) {
            None => return Some(begin),
            Some(taken) => {
                row[..taken].iter().for_each(Chunk::release);
                begin += taken + 1;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count: usize) -> Vec<Chunk> {
        (0..count)
            .map(|_| Chunk { owner: AtomicU64::new(0), usage: AtomicU32::new(0), freed: AtomicU32::new(0) })
            .collect()
    }

    #[test]
    fn classes_keep_the_alignment() {
        assert_eq!(class_of(64).map(|class| SLOT_SIZES[class]), Some(64));
        assert_eq!(class_of(192).map(|class| SLOT_SIZES[class]), Some(192));
        assert_eq!(class_of(384).map(|class| SLOT_SIZES[class]), Some(384));
        assert_eq!(class_of(32_768).map(|class| SLOT_SIZES[class]), Some(32_768));
        assert_eq!(class_of(32_832), None);
        for size in (128..=32_768).step_by(128) {
            assert_eq!(SLOT_SIZES[class_of(size).unwrap()] % 128, 0);
        }
    }

    #[test]
    fn claims_rows_and_gives_back_what_does_not_do() {
        let (chunks, used) = (table(8), AtomicU64::new(0));
        chunks[3].owner.store(9, Ordering::Relaxed);
        assert_eq!(claim(&chunks, 1, 1, 7, 3, &used), Some(4));
        assert_eq!(claim(&chunks, 1, 7, 7, 2, &used), Some(1));
        assert_eq!(claim(&chunks, 1, 1, 7, 2, &used), None);
        assert_eq!(claim(&chunks, 1, 1, 7, 1, &used), Some(7));
        assert_eq!(claim(&chunks, 1, 1, 7, 1, &used), None);
        assert_eq!((chunks[0].owner.load(Ordering::Relaxed), used.load(Ordering::Relaxed)), (0, 8));
    }
}
