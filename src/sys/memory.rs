//! Mappings of shared memory, as raw memory only: a slice over it would claim that nobody else writes.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// How a mapping is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapOptions {
    pub(crate) access: Access,
    /// Touch every page now.
    pub(crate) populate: bool,
    /// Keep every page in memory.
    pub(crate) lock: bool,
}

impl MapOptions {
    pub(crate) const READ_WRITE: MapOptions =
        MapOptions { access: Access::ReadWrite, populate: false, lock: false };
}

/// A mapped range of a file. Unmapped when dropped.
pub(crate) struct Mapping(MmapRaw);

impl Mapping {
    /// Maps `size` bytes of `file` from `offset`, which is a multiple of the page size.
    pub(crate) fn new(file: &File, offset: u64, size: usize, options: MapOptions) -> io::Result<Mapping> {
        let mut map = MmapOptions::new();
        map.offset(offset).len(size);
        if options.populate {
            map.populate();
        }
        let raw = match options.access {
            Access::ReadWrite => map.map_raw(file)?,
            Access::ReadOnly => map.map_raw_read_only(file)?,
        };
        if options.lock {
            raw.lock()?;
        }
        Ok(Mapping(raw))
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_mut_ptr()).expect("the kernel maps nothing at 0 unless it is asked to")
    }

    pub(crate) fn size(&self) -> usize {
        self.0.len()
    }

    /// Leaves the mapping where it is for as long as the process lives.
    pub(crate) fn leak(self) -> NonNull<u8> {
        let base = self.base();
        std::mem::forget(self);
        base
    }
}

/// The size of a page, in bytes.
pub(crate) fn page_size() -> usize {
    static PAGE_SIZE: OnceLock<usize> = OnceLock::new();
    *PAGE_SIZE.get_or_init(|| {
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(4096)
    })
}
