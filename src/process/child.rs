//! A child as its parent knows it: how to signal it, how to wait for it, and what it left.
//!
//! One thread collects it, under a lock that is never held while anybody waits; everybody else finds what that one found.
//! So no number of concurrent `join` and `is_alive` can lose the exit status.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::process::outcome::ProcessError;
use crate::process::report::{Outcome, Panic, Report};
use crate::segment::family;
use crate::sys::clock::Deadline;
use crate::sys::spawn::{self, Ending};
use crate::transfer::Delivery;

/// How long to leave a child alone that has ended but cannot be collected yet: a debugger looks at it first.
const UNCOLLECTABLE_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Child {
    /// Its place among the children of its parent, from 1.
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) is_daemon: bool,
    /// The process that started it. In a fork of that one this record is a copy, which must collect nothing.
    owner: u32,
    pidfd: OwnedFd,
    state: Mutex<State>,
}

enum State {
    /// Nobody has collected it.
    Running { report: Report, channel: OwnedFd },
    /// It is gone, and this is what it left.
    Ended(Arc<End>),
}

/// What an ended child left.
pub(crate) struct End {
    /// `None` if its exit status was collected elsewhere.
    pub(crate) ending: Option<Ending>,
    returned: Returned,
}

enum Returned {
    Value(Delivery),
    Panicked(Panic),
    /// The value got lost on the way.
    Failed(Error),
    Nothing,
}

impl Child {
    pub(crate) fn new(
        number: u64,
        name: String,
        pid: u32,
        is_daemon: bool,
        pidfd: OwnedFd,
        report: Report,
        channel: OwnedFd,
    ) -> Child {
        let state = Mutex::new(State::Running { report, channel });
        Child { number, name, pid, is_daemon, owner: std::process::id(), pidfd, state }
    }

    /// The pid of the process that started it.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// What it left, if it has ended. Collects it if nobody has.
    pub(crate) fn end(&self) -> Option<Arc<End>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (report, channel) = match &*state {
            State::Ended(end) => return Some(Arc::clone(end)),
            State::Running { report, channel } => (report, channel),
        };
        let ending = match spawn::collect(self.pidfd.as_fd()) {
            Ok(Some(ending)) => Some(ending),
            Ok(None) => return None,
            // Not ours to collect: then only the pidfd says whether it has ended.
            Err(_) if matches!(spawn::wait_readable([self.pidfd.as_fd()], Deadline::Now), Ok([true])) => None,
            Err(_) => return None,
        };
        let is_own = self.owner == std::process::id();
        let returned =
            if is_own { Returned::take(report, channel.as_fd(), ending) } else { Returned::Nothing };
        let end = Arc::new(End { ending, returned });
        *state = State::Ended(Arc::clone(&end));
        drop(state);
        if is_own {
            family::bury_dead();
        }
        Some(end)
    }

    /// Waits for it to end.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<Arc<End>, ProcessError> {
        loop {
            if let Some(end) = self.end() {
                return Ok(end);
            }
            if deadline == Deadline::Now {
                return Err(ProcessError::WouldBlock);
            }
            if deadline.has_passed() {
                return Err(ProcessError::TimedOut);
            }
            match spawn::wait_readable([self.pidfd.as_fd()], deadline) {
                Ok([true]) if self.end().is_none() => std::thread::sleep(UNCOLLECTABLE_PAUSE),
                Ok(_) => {}
                // The kernel was short of memory for the wait itself; the next look may find the child ended.
                Err(_) => std::thread::sleep(UNCOLLECTABLE_PAUSE),
            }
        }
    }

    /// Waits for the child's next message; `None` if it has ended without one, or none came until the deadline.
    pub(crate) fn wait_message(&self, deadline: Deadline) -> io::Result<Option<Vec<u8>>> {
        let channel = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Running { channel, .. } => channel.try_clone()?,
                State::Ended(_) => return Ok(None),
            }
        };
        spawn::wait_readable([channel.as_fd(), self.pidfd.as_fd()], deadline)?;
        Ok(spawn::receive(channel.as_fd())?.map(|(message, _)| message))
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        spawn::signal(self.pidfd.as_fd(), signal).map_err(|source| {
            Error::os("the system refuses", source).attempting("signal", "process", &self.name)
        })
    }

    /// What the child's function returned, as often as it is asked for.
    pub(crate) fn value<R: serde::de::DeserializeOwned>(&self, end: &End) -> Result<R, ProcessError> {
        match &end.returned {
            Returned::Value(delivery) => delivery.unpack().map_err(|error| self.undecodable(error)),
            _ => Err(self.failure(end).unwrap_or_else(|| self.lost())),
        }
    }

    /// Why there is no value; `None` if there is one.
    pub(crate) fn failure(&self, end: &End) -> Option<ProcessError> {
        let (name, pid) = (self.name.clone(), self.pid);
        Some(match (&end.returned, end.ending) {
            (Returned::Value(_), _) => return None,
            (Returned::Panicked(Panic { message, location }), _) => {
                ProcessError::Panicked { name, pid, message: message.clone(), location: location.clone() }
            }
            (Returned::Failed(error), _) => self.undecodable(duplicate(error)),
            (Returned::Nothing, Some(Ending::Exited(code))) => ProcessError::Exited { name, pid, code },
            (Returned::Nothing, Some(Ending::Signaled { signal, core_dumped })) => {
                ProcessError::Signaled { name, pid, signal, core_dumped }
            }
            (Returned::Nothing, None) => self.lost(),
        })
    }

    fn undecodable(&self, error: Error) -> ProcessError {
        ProcessError::Undecodable { name: self.name.clone(), pid: self.pid, error }
    }

    fn lost(&self) -> ProcessError {
        ProcessError::Lost { name: self.name.clone(), pid: self.pid }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Returned {
    /// Takes what an ended child left. Whatever is committed counts, however the process ended afterwards.
    fn take(report: &Report, channel: BorrowedFd<'_>, ending: Option<Ending>) -> Returned {
        match report.outcome() {
            Ok(Some(Outcome::Value { message, descriptors })) => {
                match receive_all(channel, descriptors).and_then(|fds| Delivery::posted(&message, fds)) {
                    Ok(delivery) => Returned::Value(delivery),
                    Err(error) => Returned::Failed(error),
                }
            }
            Ok(Some(Outcome::Panicked(panic))) => Returned::Panicked(panic),
            Ok(Some(Outcome::Failed(error))) => Returned::Failed(error),
            Ok(None) => match (ending, report.noted_panic()) {
                // Where a panic aborts the process, this is all that it can leave.
                (Some(Ending::Signaled { signal: libc::SIGABRT, .. }), Ok(Some(panic))) => {
                    Returned::Panicked(panic)
                }
                _ => Returned::Nothing,
            },
            Err(error) => Returned::Failed(error),
        }
    }
}

/// Takes the descriptors that belong to a value.
fn receive_all(channel: BorrowedFd<'_>, count: usize) -> Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    while descriptors.len() < count {
        match spawn::receive(channel) {
            Ok(Some((_, more))) if !more.is_empty() => descriptors.extend(more),
            Ok(_) => {
                // The kernel drops descriptors for which the receiver has no room, without a word.
                return Err(Error::new(ErrorKind::LimitReached, "its descriptors did not arrive"));
            }
            Err(source) => return Err(Error::os("its descriptors cannot be received", source)),
        }
    }
    Ok(descriptors)
}

/// An error once more, as it would arrive from another process.
fn duplicate(error: &Error) -> Error {
    postcard::to_stdvec(error)
        .and_then(|bytes| postcard::from_bytes(&bytes))
        .unwrap_or_else(|_| Error::new(error.kind(), error.to_string()))
}
