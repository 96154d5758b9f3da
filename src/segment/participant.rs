//! Who is attached: a table of processes, each with a word that the kernel marks when its process ends.

use super::layout::Participant;
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::Ordering;
use crate::raw::liveness;
use crate::sys::host;

/// This process's entry in the table of one segment.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) index: usize,
    pub(crate) generation: u32,
}

/// Takes an entry for this process, for good: one that is free, and was never used or has been cleared after its process.
///
/// # Errors
///
/// [`ErrorKind::LimitReached`] if there is none.
pub(crate) fn sit(table: &'static [Participant]) -> Result<Seat> {
    for (index, entry) in table.iter().enumerate() {
        // Asked again once the word is ours: meanwhile somebody may have come and died, and has to be buried first.
        let is_vacant = move || entry.pid.load(Ordering::Acquire) == 0;
        if !liveness::is_claimed(&entry.word) && is_vacant() && liveness::claim(&entry.word, is_vacant)? {
            let generation = entry.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
            entry.started.store(host::own_start_time(), Ordering::Relaxed);
            entry.pid.store(std::process::id(), Ordering::Release);
            return Ok(Seat { index, generation });
        }
    }
    Err(Error::new(
        ErrorKind::LimitReached,
        format!("{} processes take part already, which is the most there can be", table.len()),
    ))
}

/// Whether the process of an entry has ended for certain: its word is nobody's, and there is no such process any more, with no thread
/// left. (The word alone would not do: the other threads of a killed process may still be at their last instructions.)
pub(crate) fn has_ended(entry: &Participant) -> bool {
    !liveness::is_claimed(&entry.word) && process_has_ended(entry)
}

/// The same without a look at the word, for one who has taken it.
pub(crate) fn process_has_ended(entry: &Participant) -> bool {
    let pid = entry.pid.load(Ordering::Acquire);
    pid != 0 && host::has_ended(pid, entry.started.load(Ordering::Relaxed))
}
