//! The parent's side of a start: what is handed over, and the wait until the child calls its function.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::process::child::Child;
use crate::process::entry::{self, GO, NOT_STARTED, STARTED};
use crate::process::handover::{self, MARKER, Notice};
use crate::process::outcome::Shown;
use crate::process::report::Report;
use crate::process::{children, current};
use crate::segment::family;
use crate::sys::clock::Deadline;
use crate::sys::image::{Identity, Image, Program};
use crate::sys::spawn;
use crate::transfer::Parcel;

/// How a child is to be started.
pub(crate) struct Order {
    pub(crate) name: Option<String>,
    pub(crate) is_daemon: bool,
    pub(crate) timeout: Duration,
}

/// This program, as far as it matters for starting it again.
struct Host {
    image: Image,
    identity: Identity,
    program: Program,
}

/// Starts a child that runs a routine, and waits until its function is about to be called.
///
/// # Errors
///
/// See [`Process::spawn`](crate::Process::spawn). Nothing is left behind: no process, no descriptor.
pub(crate) fn start<Args: Serialize>(order: &Order, routine: usize, args: &Args) -> Result<Arc<Child>> {
    let (number, lineage) = current::next_child();
    let name = order.name.clone().unwrap_or_else(|| format!("Process-{lineage}"));
    // The parcel keeps what the arguments hold alive until the child has its own hold on it.
    let packed = Parcel::pack(args);
    let started = packed.and_then(|parcel| start_named(order, routine, &parcel, &name, number, lineage));
    started.map_err(|error| error.attempting("start", "process", &name))
}

fn start_named(
    order: &Order,
    routine: usize,
    parcel: &Parcel,
    name: &str,
    number: u64,
    lineage: String,
) -> Result<Arc<Child>> {
    if std::env::var_os(MARKER).is_some() {
        return Err(Error::new(
            ErrorKind::NotInitialised,
            "this process was itself started as a child, but did not come in through this crate's entry",
        ));
    }
    let host = host()?;
    let routine = host.image.offset_of(routine).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "its function lies in a shared library, not in the main program")
    })?;
    children::collect_ended();
    children::watch_exit()?;

    let no_lines = |source| Error::os("no descriptors can be had for it", source);
    let report = Report::create().map_err(no_lines)?;
    let (channel, childs_channel) = spawn::channel().map_err(no_lines)?;
    let own = current::own_pidfd()?;
    let mut handed = Handed::default();
    let lent = parcel.descriptors()?;
    let notice = Notice {
        routine,
        image: host.identity.clone(),
        entry: host.image.distance_to(entry::slot()),
        name: name.to_owned(),
        lineage,
        is_daemon: order.is_daemon || current::is_daemon(),
        parent_name: current::name().to_owned(),
        parent_pid: std::process::id(),
        parent: handed.add(own.as_fd())?,
        family: handed.add(family::descriptor()?)?,
        channel: handed.add(childs_channel.as_fd())?,
        report: handed.add(report.file().as_fd())?,
        descriptors: lent.iter().map(|descriptor| handed.add(descriptor.as_fd())).collect::<Result<_>>()?,
    };
    let handover = handover::write(&notice, &parcel.message()?)?;
    let marked = handed.add(handover.as_fd())?;

    let pid = spawn::start(&host.program.path, &arguments()?, &environment(marked)?, &handed.all())
        .map_err(|source| Error::os("the system cannot run this program again", source))?;
    drop(handed);
    // The child's end must be closed here, so that its death is the channel's end.
    drop(childs_channel);
    drop(handover);
    let pidfd = spawn::pidfd(pid).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => Error::new(
            ErrorKind::StartFailed,
            format!("the child (pid {pid}) ended at once, and its exit status was collected elsewhere"),
        ),
        _ => {
            // It cannot fail: the child is ours and waits for its word, so nobody else has collected it.
            let _ = spawn::kill_and_collect(pid);
            no_lines(source)
        }
    })?;
    // It fails if the child has ended, and then the wait for its report says how.
    let _ = spawn::send(channel.as_fd(), &[GO], &[]);
    let is_daemon = notice.is_daemon;
    let child = Arc::new(Child::new(number, name.to_owned(), pid, is_daemon, pidfd, report, channel));
    if let Err(error) = wait_started(&child, order.timeout) {
        // It fails only for a child that runs under another user by now.
        let _ = child.signal(libc::SIGKILL);
        // The answer is known already.
        let _ = child.wait(Deadline::Never);
        return Err(error);
    }
    // Listed only now: whoever collects it earlier takes the report away.
    children::add(Arc::clone(&child));
    Ok(child)
}

/// Waits for the child's report.
fn wait_started(child: &Child, timeout: Duration) -> Result<()> {
    let failed = |text: String| Error::new(ErrorKind::StartFailed, text);
    let deadline = Deadline::after(timeout);
    loop {
        // A child that ended first and is looked at second has sent all that it ever will.
        let message = child.wait_message(deadline).map_err(|source| {
            Error::os("its report cannot be received", source).with_kind(ErrorKind::StartFailed)
        })?;
        match message.as_deref() {
            Some([STARTED]) => return Ok(()),
            Some([NOT_STARTED, error @ ..]) => {
                let unreadable = |_| failed(format!("its report (pid {}) cannot be read", child.pid));
                return Err(postcard::from_bytes(error).unwrap_or_else(unreadable));
            }
            Some(_) => {
                return Err(failed(format!("its report (pid {}) is not one of this program", child.pid)));
            }
            None => {}
        }
        if let Some(end) = child.end() {
            let text = format!(
                "the child (pid {}) ended by {} before it called its function",
                child.pid,
                Shown(end.ending)
            );
            return Err(failed(text));
        }
        if deadline.has_passed() {
            return Err(failed(format!("the child (pid {}) did not report within {timeout:?}", child.pid)));
        }
    }
}

/// The descriptors that a child gets, under the numbers that it is told.
#[derive(Default)]
struct Handed<'a> {
    plain: Vec<BorrowedFd<'a>>,
    /// Standing in for those that cannot keep their number.
    duplicates: Vec<OwnedFd>,
}

impl<'a> Handed<'a> {
    /// Adds one. Its number is another one if it is that of a standard stream, or was added before: the child owns each
    /// of its descriptors once.
    fn add(&mut self, descriptor: BorrowedFd<'a>) -> Result<RawFd> {
        let raw = descriptor.as_raw_fd();
        if raw >= spawn::FIRST_ABOVE_STDIO && self.all().iter().all(|other| other.as_raw_fd() != raw) {
            self.plain.push(descriptor);
            return Ok(raw);
        }
        let duplicate =
            spawn::duplicate(raw).map_err(|source| Error::os("no descriptors can be had for it", source))?;
        let raw = duplicate.as_raw_fd();
        self.duplicates.push(duplicate);
        Ok(raw)
    }

    fn all(&self) -> Vec<BorrowedFd<'_>> {
        self.plain.iter().copied().chain(self.duplicates.iter().map(AsFd::as_fd)).collect()
    }
}

/// This program. It is looked up once, and again when its file changes.
fn host() -> Result<Arc<Host>> {
    static HOST: Mutex<Option<Arc<Host>>> = Mutex::new(None);
    let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(host) = host.as_ref().filter(|host| host.program.is_unchanged()) {
        return Ok(Arc::clone(host));
    }
    let image =
        Image::main().filter(|image| image.constructors_after(entry::slot()).is_some()).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "this crate is in a shared library, not in the main program")
        })?;
    let identity =
        image.identity().map_err(|source| Error::os("this program cannot be told from others", source))?;
    let found = Arc::new(Host { image, identity, program: Program::find(&image) });
    *host = Some(Arc::clone(&found));
    Ok(found)
}

/// The same command line: it is what `ps` shows of the child, and what its function may look at.
fn arguments() -> Result<Vec<CString>> {
    std::env::args_os().map(|argument| no_nul(argument.into_vec())).collect()
}

/// The same environment, and the marker.
fn environment(marked: RawFd) -> Result<Vec<CString>> {
    let own = std::env::vars_os().map(|(name, value)| {
        let mut variable = name.into_vec();
        variable.push(b'=');
        variable.extend(value.into_vec());
        no_nul(variable)
    });
    own.chain([no_nul(format!("{MARKER}={marked}").into_bytes())]).collect()
}

fn no_nul(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes)
        .map_err(|_| Error::new(ErrorKind::InvalidInput, "an argument or variable has a NUL in it"))
}
