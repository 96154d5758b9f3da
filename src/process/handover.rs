//! What a child is told at its start, as the bytes of a sealed memfd.
//!
//! ```text
//!  0   magic    8 bytes  "mp-start"
//!  8   version  u32      little-endian, as all numbers
//! 12   size     u32      of the notice
//! 16   notice            a `Notice`, in postcard's encoding
//!      message           the packed arguments, to the end of the file
//! ```
//!
//! The file is sealed before the child exists, so what was checked cannot change. It is input nevertheless: a file that
//! somebody else made gives an error, and nothing worse.

use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::image::Identity;
use crate::sys::{shm, spawn};

/// The environment variable that announces the memfd's number to the child, and is gone before user code runs.
pub(crate) const MARKER: &str = "MULTIPROC_HANDOVER";

const MAGIC: [u8; 8] = *b"mp-start";
const VERSION: u32 = 1;
const PREFIX_SIZE: usize = 16;
/// More than a notice with 20,000 descriptors takes.
const NOTICE_LIMIT: u32 = 1 << 20;

/// Everything but the arguments.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The distance of the routine from the image's load base.
    pub(crate) routine: u64,
    pub(crate) image: Identity,
    /// The distance of the entry that is to act: a program may hold two releases of this crate, each with its own.
    pub(crate) entry: u64,
    pub(crate) name: String,
    /// The counts on the way from the main process, as `2:1`.
    pub(crate) lineage: String,
    pub(crate) is_daemon: bool,
    pub(crate) parent_name: String,
    pub(crate) parent_pid: u32,
    /// A pidfd of the parent.
    pub(crate) parent: RawFd,
    /// The segment of anonymous objects.
    pub(crate) family: RawFd,
    /// Where the start is reported, and descriptors of the result go.
    pub(crate) channel: RawFd,
    /// The file for the result.
    pub(crate) report: RawFd,
    /// Those that belong to the arguments, in their order.
    pub(crate) descriptors: Vec<RawFd>,
}

/// Writes and seals the memfd.
pub(crate) fn write(notice: &Notice, message: &[u8]) -> Result<File> {
    let encoded = postcard::to_stdvec(notice)
        .map_err(|error| Error::new(ErrorKind::Encode, format!("its notice cannot be encoded: {error}")))?;
    let size = u32::try_from(encoded.len())
        .ok()
        .filter(|&size| size <= NOTICE_LIMIT)
        .ok_or_else(|| Error::new(ErrorKind::LimitReached, "its arguments hold too many descriptors"))?;
    let mut start = Vec::with_capacity(PREFIX_SIZE + encoded.len());
    start.extend_from_slice(&MAGIC);
    start.extend_from_slice(&VERSION.to_le_bytes());
    start.extend_from_slice(&size.to_le_bytes());
    start.extend_from_slice(&encoded);

    let written = || {
        let file = shm::memfd("multiproc-start", false)?;
        file.write_all_at(&start, 0)?;
        file.write_all_at(message, start.len() as u64)?;
        spawn::seal(&file)?;
        Ok(file)
    };
    written()
        .map_err(|source: std::io::Error| Error::os("its arguments cannot be laid down in memory", source))
}

/// Whether a file begins like a handover.
pub(crate) fn has_magic(file: &File) -> bool {
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC
}

/// Reads what [`write()`] wrote: the notice and the arguments' message.
pub(crate) fn read(file: &File) -> Result<(Notice, Vec<u8>)> {
    let corrupted = || Error::new(ErrorKind::Corrupted, "the handover is not what this program writes");
    let mut prefix = [0; PREFIX_SIZE];
    read_at(file, &mut prefix, 0)?;
    let (magic, numbers) = prefix.split_first_chunk().ok_or_else(corrupted)?;
    let (version, size) = numbers.split_first_chunk().ok_or_else(corrupted)?;
    let size = u32::from_le_bytes(size.try_into().map_err(|_| corrupted())?);
    if *magic != MAGIC || u32::from_le_bytes(*version) != VERSION || size > NOTICE_LIMIT {
        return Err(corrupted());
    }
    let mut encoded = vec![0; size as usize];
    read_at(file, &mut encoded, PREFIX_SIZE as u64)?;
    let (notice, rest) = postcard::take_from_bytes(&encoded).map_err(|_| corrupted())?;
    if !rest.is_empty() {
        return Err(corrupted());
    }
    let message_at = PREFIX_SIZE as u64 + u64::from(size);
    let length = file.metadata().map_err(|source| Error::os("the handover cannot be read", source))?.len();
    let message_size = length.checked_sub(message_at).and_then(|size| usize::try_from(size).ok());
    let mut message = vec![0; message_size.ok_or_else(corrupted)?];
    read_at(file, &mut message, message_at)?;
    Ok((notice, message))
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|source| Error::os("the handover cannot be read", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice {
            routine: 0x1234,
            entry: 0x5678,
            image: Identity::File { device: 1, inode: 2, segments: 3 },
            name: "Process-1".to_owned(),
            lineage: "1".to_owned(),
            is_daemon: true,
            parent_name: "MainProcess".to_owned(),
            parent_pid: 1,
            parent: 3,
            family: 4,
            channel: 5,
            report: 6,
            descriptors: vec![7, 8],
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        let file = write(&notice(), b"arguments").unwrap();
        assert!(has_magic(&file));
        assert_eq!(read(&file).unwrap(), (notice(), b"arguments".to_vec()));
        let error = file.write_at(b"x", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "it is sealed");
    }

    #[test]
    fn any_other_bytes_are_an_error() {
        let file = write(&notice(), b"").unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let read_from = |bytes: &[u8]| {
            let file = shm::memfd("test", false).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            read(&file).map(drop)
        };
        read_from(&bytes).unwrap();
        for end in 0..bytes.len() {
            read_from(&bytes[..end]).unwrap_err();
        }
        for at in 0..PREFIX_SIZE {
            let mut other = bytes.clone();
            other[at] ^= 0x80;
            read_from(&other).unwrap_err();
        }
        let mut huge = bytes.clone();
        huge[12..16].fill(0xff);
        read_from(&huge).unwrap_err();
    }
}
