//! Who is attached: a table of processes, each with a word that the kernel marks when its process ends.

use super::layout::Participant;
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::Ordering;
use crate::raw::liveness;
use crate::sys::{host, robust};

/// This process's entry in the table of one segment.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) index: usize,
    pub(crate) generation: u32,
}

/// How this process's word is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stay {
    /// In the keeper's list: it can be given back.
    UntilDetached,
    /// In the list of this thread if that is the main one, for the life of the process; else as above.
    ForGood,
}

/// Takes an entry that is free or whose process has ended.
///
/// # Errors
///
/// [`ErrorKind::LimitReached`] if every entry belongs to a living process.
pub(crate) fn sit(
    table: &[Participant],
    stay: Stay,
    is_takeable: impl Fn(&Participant) -> bool,
) -> Result<Seat> {
    let is_main = robust::with(|thread| thread.tid() == std::process::id());
    for (index, entry) in table.iter().enumerate() {
        if liveness::is_claimed(&entry.word) || !is_takeable(entry) {
            continue;
        }
        let claimed = match stay {
            Stay::ForGood if is_main => liveness::claim_for_good(&entry.word),
            _ => liveness::claim(&entry.word)?,
        };
        if claimed {
            let generation = entry.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
            entry.started.store(host::own_start_time(), Ordering::Relaxed);
            entry.pid.store(std::process::id(), Ordering::Release);
            return Ok(Seat { index, generation });
        }
    }
    Err(Error::new(
        ErrorKind::LimitReached,
        format!("{} processes are attached already, which is the most it was created for", table.len()),
    ))
}

/// Gives back an entry that [`sit`] took [until detached](Stay::UntilDetached).
pub(crate) fn leave(table: &[Participant], seat: &Seat) -> Result<()> {
    let entry = &table[seat.index];
    entry.pid.store(0, Ordering::Release);
    liveness::release(&entry.word)
}

/// Whether the process of an entry has ended for certain: its word is nobody's, and there is no such process any more. (The word alone
/// would not do: a main thread may end before its process.)
pub(crate) fn has_ended(entry: &Participant) -> bool {
    !liveness::is_claimed(&entry.word) && process_has_ended(entry)
}

/// The same without a look at the word, for one who has taken it.
pub(crate) fn process_has_ended(entry: &Participant) -> bool {
    let pid = entry.pid.load(Ordering::Acquire);
    pid != 0 && host::start_time(pid) != Some(entry.started.load(Ordering::Relaxed))
}
