//! What a child leaves for its parent, as the bytes of a memfd that both have.
//!
//! ```text
//!      0  commit of the outcome   32 bytes   kind u32 · descriptors u32 · offset u64 · size u64 · check u64
//!     32  commit of a panic       32 bytes   the same
//!   4096  the newest panic        at most 64 KiB
//!  69632  the outcome             any size
//! ```
//!
//! What a commit speaks of is written before it, and a commit lies in one page and is written by one call, so a child that
//! is killed leaves no outcome or a whole one. The parent reads only when the child has ended. A pipe would not do: a child
//! with a result larger than the pipe could not end before somebody joins it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::shm;

const OUTCOME_COMMIT_AT: u64 = 0;
const PANIC_COMMIT_AT: u64 = 32;
const PANIC_AT: u64 = 4096;
const PANIC_SIZE_LIMIT: usize = 64 << 10;
const OUTCOME_AT: u64 = PANIC_AT + PANIC_SIZE_LIMIT as u64;
const COMMIT_SIZE: usize = 32;

const NOTHING: u32 = 0;
const VALUE: u32 = 1;
const PANICKED: u32 = 2;
const FAILED: u32 = 3;

/// What a panic said, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Panic {
    pub(crate) message: String,
    pub(crate) location: Option<String>,
}

/// What became of the child's function.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its output, packed, with the number of descriptors that were sent before.
    Value {
        message: Vec<u8>,
        descriptors: usize,
    },
    Panicked(Panic),
    /// It returned, and the output could not be packed or delivered.
    Failed(Error),
}

/// The child's side, and the parent's.
#[derive(Debug)]
pub(crate) struct Report {
    file: File,
    /// Only one thread writes a panic at a time; the newest one stays.
    panics: Mutex<()>,
}

struct Commit {
    kind: u32,
    descriptors: u32,
    offset: u64,
    size: u64,
}

impl Commit {
    fn to_bytes(&self) -> [u8; COMMIT_SIZE] {
        let mut bytes = [0; COMMIT_SIZE];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.descriptors.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        bytes[24..].copy_from_slice(&self.check().to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; COMMIT_SIZE]) -> Option<Commit> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let commit = Commit { kind: word(0)?, descriptors: word(4)?, offset: long(8)?, size: long(16)? };
        (commit.kind == NOTHING || long(24)? == commit.check()).then_some(commit)
    }

    /// Tells a commit from bytes that something else left there.
    fn check(&self) -> u64 {
        let head = u64::from(self.kind) << 32 | u64::from(self.descriptors);
        (head ^ self.offset.rotate_left(17) ^ self.size.rotate_left(34)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            | 1
    }
}

impl Report {
    pub(crate) fn create() -> io::Result<Report> {
        shm::memfd("multiproc-report", false).map(Report::from)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Lays the packed output down. It counts from [`commit_value`](Report::commit_value) on.
    pub(crate) fn write_value(&self, message: &[u8]) -> io::Result<()> {
        self.file.write_all_at(message, OUTCOME_AT)
    }

    pub(crate) fn commit_value(&self, size: usize, descriptors: usize) -> io::Result<()> {
        let descriptors = u32::try_from(descriptors).map_err(io::Error::other)?;
        self.commit(
            OUTCOME_COMMIT_AT,
            &Commit { kind: VALUE, descriptors, offset: OUTCOME_AT, size: size as u64 },
        )
    }

    pub(crate) fn write_panicked(&self, panic: &Panic) -> io::Result<()> {
        self.write_outcome(PANICKED, panic)
    }

    pub(crate) fn write_failed(&self, error: &Error) -> io::Result<()> {
        self.write_outcome(FAILED, error)
    }

    fn write_outcome<T: Serialize>(&self, kind: u32, outcome: &T) -> io::Result<()> {
        let bytes = postcard::to_stdvec(outcome).map_err(io::Error::other)?;
        self.file.write_all_at(&bytes, OUTCOME_AT)?;
        let size = bytes.len() as u64;
        self.commit(OUTCOME_COMMIT_AT, &Commit { kind, descriptors: 0, offset: OUTCOME_AT, size })
    }

    /// Notes a panic that may be the end of the process, in case nothing else can be written.
    pub(crate) fn note_panic(&self, panic: &Panic) -> io::Result<()> {
        let _one = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = panic.message.as_str();
        // A path and the lengths take the rest.
        while message.len() > PANIC_SIZE_LIMIT / 2 {
            let end = (0..=PANIC_SIZE_LIMIT / 2).rev().find(|&end| message.is_char_boundary(end));
            message = &message[..end.unwrap_or(0)];
        }
        let bytes = postcard::to_stdvec(&(message, &panic.location)).map_err(io::Error::other)?;
        if bytes.len() > PANIC_SIZE_LIMIT {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.file.write_all_at(&[0; COMMIT_SIZE], PANIC_COMMIT_AT)?;
        self.file.write_all_at(&bytes, PANIC_AT)?;
        let size = bytes.len() as u64;
        self.commit(PANIC_COMMIT_AT, &Commit { kind: PANICKED, descriptors: 0, offset: PANIC_AT, size })
    }

    fn commit(&self, at: u64, commit: &Commit) -> io::Result<()> {
        self.file.write_all_at(&commit.to_bytes(), at)
    }

    /// What the child committed, if it did. To be called when it has ended.
    pub(crate) fn outcome(&self) -> Result<Option<Outcome>> {
        let Some((commit, bytes)) = self.read(OUTCOME_COMMIT_AT)? else {
            return Ok(None);
        };
        Ok(Some(match commit.kind {
            VALUE => Outcome::Value { message: bytes, descriptors: commit.descriptors as usize },
            PANICKED => Outcome::Panicked(decode(&bytes)?),
            FAILED => Outcome::Failed(decode(&bytes)?),
            _ => return Err(corrupted()),
        }))
    }

    /// The newest panic that was noted.
    pub(crate) fn noted_panic(&self) -> Result<Option<Panic>> {
        self.read(PANIC_COMMIT_AT)?.map(|(_, bytes)| decode(&bytes)).transpose()
    }

    fn read(&self, commit_at: u64) -> Result<Option<(Commit, Vec<u8>)>> {
        let unreadable = |source| Error::os("what the child left cannot be read", source);
        let length = self.file.metadata().map_err(unreadable)?.len();
        if length < commit_at + COMMIT_SIZE as u64 {
            return Ok(None);
        }
        let mut bytes = [0; COMMIT_SIZE];
        self.file.read_exact_at(&mut bytes, commit_at).map_err(unreadable)?;
        let commit = Commit::from_bytes(&bytes).ok_or_else(corrupted)?;
        if commit.kind == NOTHING {
            return Ok(None);
        }
        if commit.size > 0 && commit.offset.checked_add(commit.size).is_none_or(|end| end > length) {
            return Err(corrupted());
        }
        let mut bytes = vec![0; usize::try_from(commit.size).map_err(|_| corrupted())?];
        self.file.read_exact_at(&mut bytes, commit.offset).map_err(unreadable)?;
        Ok(Some((commit, bytes)))
    }
}

impl From<File> for Report {
    fn from(file: File) -> Report {
        Report { file, panics: Mutex::new(()) }
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|_| corrupted())
}

fn corrupted() -> Error {
    Error::new(ErrorKind::Corrupted, "what the child left is not what this program writes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_from_its_commit_on() {
        let report = Report::create().unwrap();
        assert!(report.outcome().unwrap().is_none());
        report.write_value(b"seven").unwrap();
        assert!(report.outcome().unwrap().is_none());
        report.commit_value(5, 2).unwrap();
        match report.outcome().unwrap() {
            Some(Outcome::Value { message, descriptors: 2 }) => assert_eq!(message, b"seven"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_value_is_one() {
        let report = Report::create().unwrap();
        report.write_value(b"").unwrap();
        report.commit_value(0, 0).unwrap();
        assert!(
            matches!(report.outcome().unwrap(), Some(Outcome::Value { message, .. }) if message.is_empty())
        );
    }

    #[test]
    fn the_newest_panic_stays() {
        let report = Report::create().unwrap();
        assert_eq!(report.noted_panic().unwrap(), None);
        let long = Panic { message: "ä".repeat(PANIC_SIZE_LIMIT), location: Some("a.rs:1:1".to_owned()) };
        report.note_panic(&long).unwrap();
        let noted = report.noted_panic().unwrap().unwrap();
        assert!(long.message.starts_with(&noted.message) && noted.message.len() > 1000);
        let short = Panic { message: "no".to_owned(), location: None };
        report.note_panic(&short).unwrap();
        assert_eq!(report.noted_panic().unwrap(), Some(short.clone()));
        report.write_panicked(&short).unwrap();
        assert!(matches!(report.outcome().unwrap(), Some(Outcome::Panicked(panic)) if panic == short));
    }

    #[test]
    fn any_other_bytes_are_an_error() {
        let report = Report::create().unwrap();
        report.write_value(b"seven").unwrap();
        report.commit_value(usize::MAX, 0).unwrap();
        assert_eq!(report.outcome().unwrap_err().kind(), ErrorKind::Corrupted);
        report.commit_value(5 << 20, 0).unwrap();
        assert_eq!(report.outcome().unwrap_err().kind(), ErrorKind::Corrupted);
        report.file().write_all_at(&[0xff; COMMIT_SIZE], OUTCOME_COMMIT_AT).unwrap();
        assert_eq!(report.outcome().unwrap_err().kind(), ErrorKind::Corrupted);
    }
}
