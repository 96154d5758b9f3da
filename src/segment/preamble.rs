//! The first bytes of a segment: what every program that attaches must agree on with the one that made it.

#![expect(unsafe_code, reason = "the bytes are written into a mapping")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytemuck::Zeroable;

use super::layout::{
    BYTE_ORDER, FAMILY, MAGIC, PARTICIPANTS_OFFSET, PERSIST, Participant, Preamble, VERSION,
};
use super::options::SegmentOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::raw::copy;
use crate::sys::memory::Mapping;
use crate::sys::shm::Status;
use crate::sys::{host, robust};

/// Whether a file begins as our segments do.
pub(crate) fn is_ours(file: &File, status: &Status) -> bool {
    read_preamble(file, status).is_ok()
}

/// Reads the first bytes and checks that they are ours.
pub(crate) fn read_preamble(file: &File, status: &Status) -> Result<Preamble> {
    let foreign = |what: String| Err(Error::new(ErrorKind::Foreign, what));
    if !status.is_regular {
        return foreign("it is no regular file".to_owned());
    }
    let mut preamble = Preamble::zeroed();
    if status.size < size_of::<Preamble>() as u64 {
        return foreign(format!("it was not made by this crate: it has {} bytes", status.size));
    }
    file.read_exact_at(bytemuck::bytes_of_mut(&mut preamble), 0)
        .map_err(|source| Error::os("it cannot be read", source))?;
    if preamble.magic != MAGIC {
        return foreign(
            "it was not made by this crate (as plain bytes it can be opened with `Segment::open_raw`)"
                .to_owned(),
        );
    }
    Ok(preamble)
}

/// Checks everything that this program must agree on with the one that made the segment.
pub(crate) fn checked_preamble(file: &File, status: &Status, options: &SegmentOptions) -> Result<Preamble> {
    let preamble = read_preamble(file, status)?;
    let owner = options.owner.unwrap_or_else(host::user);
    if status.user != owner {
        return Err(Error::new(
            ErrorKind::Foreign,
            format!("it belongs to user {}, expected was user {owner}", status.user),
        ));
    }
    if status.is_linked && preamble.mode != 0 && status.mode & 0o777 & !preamble.mode != 0 {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "its mode is {:o}, wider than the {:o} it was created with",
                status.mode & 0o777,
                preamble.mode
            ),
        ));
    }
    let own = own_preamble();
    let expect = |what: &str, found: i64, expected: i64| {
        if found == expected {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Incompatible,
            format!("its {what} is {found}, this program's is {expected}"),
        ))
    };
    expect("layout version", preamble.version.into(), own.version.into())?;
    expect("pointer width", preamble.pointer_width.into(), own.pointer_width.into())?;
    expect("byte order", preamble.byte_order.into(), own.byte_order.into())?;
    expect("C library's robust-list offset", preamble.futex_offset.into(), own.futex_offset.into())?;
    if preamble.flags & FAMILY != 0 {
        return Err(corrupted("it says it is a family segment, which has no name"));
    }
    if preamble.size != status.size {
        return Err(Error::new(
            ErrorKind::Corrupted,
            format!("it has {} bytes, its header says {}", status.size, preamble.size),
        ));
    }
    let fixed = objects_offset(preamble.participants_count) as u64;
    if preamble.participants_offset != own.participants_offset
        || preamble.objects_offset != fixed
        || preamble.objects_offset > preamble.size
    {
        return Err(corrupted("its header is damaged"));
    }
    if is_of_another_namespace(&preamble) && !options.any_pid_namespace {
        return Err(Error::new(
            ErrorKind::OtherNamespace,
            "it was made in another PID namespace or before the machine was started again, where its locks mean nothing \
             (`SegmentOptions::any_pid_namespace` opens what needs no lock)",
        ));
    }
    Ok(preamble)
}

pub(crate) fn is_of_another_namespace(preamble: &Preamble) -> bool {
    let own = own_preamble();
    preamble.boot_id != own.boot_id || preamble.pid_namespace != own.pid_namespace
}

/// What this program writes, and expects, in every preamble.
pub(crate) fn own_preamble() -> Preamble {
    Preamble {
        magic: MAGIC,
        version: VERSION,
        pointer_width: size_of::<usize>() as u8,
        byte_order: BYTE_ORDER,
        futex_offset: robust::FUTEX_OFFSET as i32,
        boot_id: host::boot_id().to_le_bytes(),
        pid_namespace: host::pid_namespace(),
        participants_offset: PARTICIPANTS_OFFSET as u64,
        ..Preamble::zeroed()
    }
}

pub(crate) fn write_preamble(
    mapping: &Mapping,
    size: usize,
    objects_offset: usize,
    is_anonymous: bool,
    options: &SegmentOptions,
) {
    let mut preamble = own_preamble();
    preamble.flags = if options.persist && !is_anonymous { PERSIST } else { 0 };
    preamble.size = size as u64;
    preamble.participants_count = options.participants;
    preamble.mode = if is_anonymous { 0 } else { options.mode };
    preamble.objects_offset = objects_offset as u64;
    let bytes = bytemuck::bytes_of(&preamble);
    // SAFETY: a new segment is larger than its preamble, and nobody else knows it yet.
    unsafe { copy::store(bytes.as_ptr(), mapping.base().as_ptr(), bytes.len()) };
}

pub(crate) fn corrupted(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupted, what)
}

/// Where objects begin behind a table of so many participants.
pub(crate) fn objects_offset(participants: u32) -> usize {
    PARTICIPANTS_OFFSET + participants as usize * size_of::<Participant>()
}
