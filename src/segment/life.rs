//! The life of a name: taken, opened, and removed when nobody is attached.
//!
//! To *reap* a name is to take an exclusive `flock` on a fresh description of its file: it can be had when no attachment, which holds a
//! shared one, is left. Between a look at a name and its removal somebody may remove it otherwise and take it anew; only explicit
//! unlinking makes that possible, and then the name that goes is the new one.

use super::layout::PERSIST;
use super::name;
use super::options::SegmentOptions;
use super::preamble::read_preamble;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::host;
use crate::sys::shm::{self, Lock};

/// What became of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaped {
    Removed,
    /// Somebody is attached.
    InUse,
    /// It is to persist, is not there, or leads to another segment by now.
    Kept,
}

/// Removes the name of a segment of ours that nobody is attached to.
///
/// # Errors
///
/// [`ErrorKind::Foreign`] if it was not made by this crate, or belongs to another user.
pub(crate) fn reap(name: &str) -> Result<Reaped> {
    name::check_segment(name)?;
    let cannot = |what: &'static str| move |source: std::io::Error| Error::os(what, source);
    let file = match shm::open(name, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Reaped::Kept),
        Err(error) => return Err(cannot("it cannot be opened")(error)),
    };
    let status = shm::status(&file).map_err(cannot("its file cannot be asked"))?;
    let preamble = read_preamble(&file, &status)?;
    if status.user != host::user() {
        return Err(Error::new(ErrorKind::Foreign, format!("it belongs to user {}", status.user)));
    }
    if preamble.flags & PERSIST != 0 {
        return Ok(Reaped::Kept);
    }
    if !shm::try_flock(&file, Lock::Exclusive).map_err(cannot("its file cannot be locked"))? {
        return Ok(Reaped::InUse);
    }
    // Under the exclusive lock nobody attaches, but the name may have gone to another segment before.
    match shm::status_of_name(name) {
        Ok(named) if named.is_same_file(&status) => {
            shm::unlink(name).map_err(cannot("its name cannot be removed"))?;
            Ok(Reaped::Removed)
        }
        _ => Ok(Reaped::Kept),
    }
}

/// Whether a name is free that was not: what was there was left by a killed process.
pub(crate) fn is_reaped(name: &str) -> bool {
    matches!(reap(name), Ok(Reaped::Removed))
}

/// Opens what has this name, or creates it. Between the two somebody may create or remove it: then the other one works, unless they do it
/// for ever, which is the outer error.
pub(crate) fn open_or_create<T>(
    name: &str,
    mut open: impl FnMut() -> Result<T>,
    mut create: impl FnMut() -> Result<T>,
) -> Result<Result<T>> {
    for _ in 0..64 {
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return Ok(opened),
        }
        match create() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // Perhaps the room went to another one who creates it just now.
            Err(error) if error.kind() == ErrorKind::NoRoom && shm::status_of_name(name).is_ok() => {}
            created => return Ok(created),
        }
    }
    Err(Error::new(ErrorKind::Busy, "it comes and goes faster than it can be attached"))
}

/// Removes the name of a segment of ours, whoever is attached.
pub(crate) fn unlink(name: &str) -> Result<()> {
    name::check_segment(name)?;
    let file = shm::open(name, false).map_err(|source| cannot_open_file(source, &SegmentOptions::new()))?;
    let status = shm::status(&file).map_err(|source| Error::os("its file cannot be asked", source))?;
    read_preamble(&file, &status)?;
    shm::unlink(name).map_err(|source| Error::os("its name cannot be removed", source))
}

pub(crate) fn cannot_open_file(source: std::io::Error, options: &SegmentOptions) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT) => Error::os("no segment of that name (is the publisher running?)", source),
        Some(libc::ELOOP) => {
            Error::os("it is a symbolic link, which is not followed", source).with_kind(ErrorKind::Foreign)
        }
        Some(libc::EISDIR) => Error::os("it is a folder", source).with_kind(ErrorKind::Foreign),
        Some(libc::EACCES) if !options.read_only => {
            Error::os("this user may not open it for writing", source)
        }
        Some(libc::EACCES) => Error::os("this user may not open it", source),
        Some(libc::EMFILE) => Error::os("this process has as many descriptors open as it may", source),
        _ => Error::os("its file cannot be opened", source),
    }
}
