//! Processes as their users see them. Whatever counts a whole process's things (its descriptors, its children, its names) runs
//! in a child, for the tests share one process.

mod ends;
mod kin;
mod start;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use multiproc::{Process, ProcessError};
use serde::de;

/// Ends a hang, whatever its cause: a test that takes so long has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Where a test meets processes that it cannot join: grandchildren, and children that have more to say than one value.
pub(super) struct Meeting {
    listener: UnixListener,
    place: PathBuf,
}

impl Meeting {
    pub(super) fn new(name: &str) -> Meeting {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("multiproc-it-{}-{name}-{count}", std::process::id()));
        let _ = fs::remove_file(&place);
        Meeting { listener: UnixListener::bind(&place).unwrap(), place }
    }

    pub(super) fn place(&self) -> String {
        self.place.to_str().unwrap().to_owned()
    }

    /// The next one who comes. Its end of the line closes when it dies.
    pub(super) fn welcome(&self) -> Line {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        let coming = poll(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], patience).unwrap();
        assert_eq!(coming, 1, "nobody came");
        Line::new(self.listener.accept().unwrap().0)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
    }
}

pub(super) struct Line(BufReader<UnixStream>);

impl Line {
    pub(super) fn new(stream: UnixStream) -> Line {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Line(BufReader::new(stream))
    }

    pub(super) fn to(place: &str) -> Line {
        Line::new(UnixStream::connect(place).unwrap())
    }

    pub(super) fn say(&mut self, text: &str) {
        // In one piece: the other end may leave after the first.
        self.0.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    /// What the other end says next; `None` when it is gone.
    pub(super) fn hear(&mut self) -> Option<String> {
        let mut text = String::new();
        match self.0.read_line(&mut text) {
            Ok(0) => None,
            Ok(_) => Some(text.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits for a child with a watchdog.
pub(super) fn join<R: de::DeserializeOwned>(child: &Process<R>) -> Result<R, ProcessError> {
    let joined = child.join_timeout(PATIENCE);
    assert!(!matches!(joined, Err(ProcessError::TimedOut)), "{child:?} hangs");
    joined
}

pub(super) fn run_for_ever() {
    loop {
        thread::park();
    }
}

pub(super) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many children the system knows of, zombies included.
pub(super) fn children_in_the_system() -> usize {
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap();
    children.split_whitespace().count()
}
