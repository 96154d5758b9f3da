//! Room for what is to be made: asked for first, for filling the memory to find out would harm others.

use std::fs::File;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{host, shm};

/// Reserves every page, after asking whether there is room: filling the file system to find out would harm others.
pub(crate) fn reserve(file: &File, size: usize) -> Result<()> {
    let full = |room: u64| {
        Error::new(ErrorKind::NoRoom, format!("it needs {size} bytes, and there is room for {room}"))
    };
    let room =
        shm::room(file).map_err(|source| Error::os("its file system cannot be asked for room", source))?;
    check_memory(size)?;
    match room {
        Some(room) if room < size as u64 => Err(full(room)),
        _ => shm::reserve(file, 0, size as u64)
            .map_err(|source| Error::os(format!("{size} bytes cannot be reserved"), source)),
    }
}

/// Whether so much memory can be had at all. Small amounts are not asked for: the question costs more than they do.
pub(crate) fn check_memory(size: usize) -> Result<()> {
    const WORTH_ASKING: usize = 16 << 20;
    if size <= WORTH_ASKING {
        return Ok(());
    }
    match host::available_memory() {
        Some(available) if available < size as u64 => Err(Error::new(
            ErrorKind::NoRoom,
            format!("it needs {size} bytes, and the machine has {available} bytes of memory available"),
        )),
        _ => Ok(()),
    }
}
