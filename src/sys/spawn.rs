//! Starting a process, watching it, signalling it and collecting it, all by descriptors, so that no pid is used twice.
//!
//! Every wait that a signal handler may interrupt goes on; that is decided here, once, in [`wait_readable`] and [`again`].
//!
//! Sources: [posix_spawn(3)](https://man7.org/linux/man-pages/man3/posix_spawn.3.html),
//! [pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html),
//! [waitid(2)](https://man7.org/linux/man-pages/man2/waitid.2.html),
//! [unix(7)](https://man7.org/linux/man-pages/man7/unix.7.html).

#![expect(unsafe_code, reason = "posix_spawn, pidfds and inherited descriptors have no safe wrapper")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::sys::time::TimeSpec;
use nix::unistd::{SysconfVar, sysconf};

use super::clock::Deadline;

/// As many descriptors as one message carries (SCM_MAX_FD).
pub(crate) const DESCRIPTORS_PER_MESSAGE: usize = 253;
/// The size of the largest message on a channel.
pub(crate) const MESSAGE_SIZE: usize = 16 << 10;
/// Room for the header and the descriptors of one message.
const CONTROL_SIZE: usize = 64 + DESCRIPTORS_PER_MESSAGE * size_of::<RawFd>();
/// The lowest descriptor that is not one of stdin, stdout and stderr.
pub(crate) const FIRST_ABOVE_STDIO: RawFd = 3;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signaled { signal: i32, core_dumped: bool },
}

/// Starts `program`. Of this process's descriptors it gets stdout, stderr and `handed`, under the same numbers; its stdin is
/// the null device. No signal is blocked in it, and those by which it is ended or which it needs for its own children are
/// not ignored; what else this process ignores (`nohup`'s SIGHUP) stays ignored.
pub(crate) fn start(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
    handed: &[BorrowedFd<'_>],
) -> io::Result<u32> {
    let mut actions = FileActions::new()?;
    actions.open_null_as_stdin()?;
    for descriptor in handed {
        actions.hand_over(*descriptor)?;
    }
    let attributes = Attributes::new()?;
    let arguments = null_terminated(arguments);
    let environment = null_terminated(environment);
    let mut pid = 0;
    // SAFETY: every pointer is to a live object of its type: `program` and the strings of both lists are NUL-terminated, the
    // lists end with a null pointer, actions and attributes are initialised. posix_spawn writes through none but `pid`.
    let code = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    done(code)?;
    Ok(pid.unsigned_abs())
}

fn null_terminated(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([null_mut()]).collect()
}

/// The answer of a function that returns an error's code.
fn done(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<FileActions> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer is to memory of the right size and alignment, which the call initialises.
        done(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        Ok(FileActions(unsafe { actions.assume_init() }))
    }

    fn open_null_as_stdin(&mut self) -> io::Result<()> {
        let path = c"/dev/null".as_ptr();
        // SAFETY: the actions are initialised; the path is NUL-terminated, and copied by the call.
        done(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.0, 0, path, libc::O_RDONLY, 0) })
    }

    /// A duplication onto itself clears close-on-exec, in the child alone.
    fn hand_over(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let raw = descriptor.as_raw_fd();
        // SAFETY: the actions are initialised, and the call only takes numbers.
        done(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, raw, raw) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed only here. It cannot fail on such actions.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Attributes> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the pointer is to memory of the right size and alignment, which the call initialises.
        done(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        let mut attributes = Attributes(unsafe { attributes.assume_init() });
        let unblocked = SigSet::empty();
        // SAFETY: the attributes are initialised, and the set is a live signal set.
        done(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, unblocked.as_ref()) })?;
        let defaults: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGPIPE].into_iter().collect();
        // SAFETY: the attributes are initialised, and the set is a live signal set.
        done(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, defaults.as_ref()) })?;
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the attributes are initialised. Both flags fit a short.
        done(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed only here. It cannot fail on such attributes.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// A descriptor of a process, closed at exec.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends a signal; to a process that has ended it does nothing.
pub(crate) fn signal(process: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let no_details = null_mut::<libc::siginfo_t>();
    // SAFETY: the call takes numbers and a pointer that may be null.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_details, 0) };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sends a signal to this process.
pub(crate) fn signal_self(signal: c_int) {
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: the call takes two numbers. It cannot fail: the process exists, may signal itself, and the signal is valid.
    unsafe { libc::kill(pid, signal) };
}

/// Collects an ended child, so that it is no zombie; `None` while it runs. ECHILD: it is no child of ours, or was collected.
pub(crate) fn collect(child: BorrowedFd<'_>) -> io::Result<Option<Ending>> {
    collect_by(libc::P_PIDFD, child.as_raw_fd().unsigned_abs(), libc::WNOHANG)
}

/// Kills and collects a child of which there is no descriptor: none could be opened. It has not been collected yet, so the
/// pid is still its own.
pub(crate) fn kill_and_collect(pid: u32) -> io::Result<()> {
    // SAFETY: the call takes two numbers.
    Errno::result(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) })?;
    collect_by(libc::P_PID, pid, 0).map(drop)
}

fn collect_by(kind: libc::idtype_t, id: u32, flags: c_int) -> io::Result<Option<Ending>> {
    // SAFETY: siginfo_t is plain integers and pointers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    again(|| {
        // SAFETY: `info` is a live siginfo_t that the call may write; the rest is numbers.
        Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | flags) })
    })?;
    // SAFETY: waitid fills the fields of a child in; where it found none they are the zeros from above.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above, and it found a child.
    let status = unsafe { info.si_status() };
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Ending::Exited(status),
        code => Ending::Signaled { signal: status, core_dumped: code == libc::CLD_DUMPED },
    }))
}

/// Repeats a call that a signal handler interrupted.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Waits until one of the descriptors is readable, or at its end, and says which are; none of them at the deadline.
pub(crate) fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    deadline: Deadline,
) -> io::Result<[bool; N]> {
    let mut ready = [false; N];
    let mut polled = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
    poll(&mut polled, deadline)?;
    for (ready, polled) in ready.iter_mut().zip(&polled) {
        *ready = is_ready(polled);
    }
    Ok(ready)
}

/// Which of any number of descriptors are readable now.
pub(crate) fn readable_now(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = descriptors.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut polled, Deadline::Now)?;
    Ok(polled.iter().map(is_ready).collect())
}

fn is_ready(polled: &PollFd<'_>) -> bool {
    polled.revents().is_none_or(|events| !events.is_empty())
}

fn poll(polled: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<()> {
    again(|| ppoll(polled, deadline.remaining().map(TimeSpec::from_duration), None)).map(drop)
}

/// Two ends of a channel that keeps messages apart, both closed at exec.
pub(crate) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message without waiting, with up to [`DESCRIPTORS_PER_MESSAGE`] descriptors. No SIGPIPE if nobody listens.
pub(crate) fn send(
    channel: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    again(|| sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(message)], control, flags, None)).map(drop)
}

/// Takes the next message, without waiting; `None` if there is none (yet, or ever: the other end is closed).
///
/// Descriptors for which this process has no room are missing in the answer. (nix's wrapper would leak the others then.)
pub(crate) fn receive(channel: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0_u8; MESSAGE_SIZE];
    let mut control = [0_u64; CONTROL_SIZE.div_ceil(size_of::<u64>())];
    let mut part = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
    // SAFETY: msghdr is plain integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header describes one part and a control buffer, both live, with their sizes; the buffer is aligned.
    let received =
        again(|| Errno::result(unsafe { libc::recvmsg(channel.as_raw_fd(), &raw mut header, flags) }));
    let size = match received {
        Ok(size) => size.unsigned_abs(),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ECONNRESET)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let descriptors = received_descriptors(&header);
    message.truncate(size);
    Ok((size > 0).then_some((message, descriptors)))
}

/// The descriptors that came with a message. The kernel puts all of them into one control message, the only one.
fn received_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    // SAFETY: the kernel filled the header in, and its control buffer, which is alive.
    let control = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or the first header in the control buffer, whole and aligned.
    let Some(first) = (unsafe { control.as_ref() }) else {
        return Vec::new();
    };
    if (first.cmsg_level, first.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Vec::new();
    }
    // SAFETY: `control` points at a header in a live control buffer.
    let data = unsafe { libc::CMSG_DATA(control) };
    let message_size: usize = first.cmsg_len as _;
    let size = message_size.saturating_sub(data.addr() - control.addr());
    let own = |index| {
        // SAFETY: the message's length says that so many descriptors follow its header.
        let at = unsafe { data.add(index * size_of::<RawFd>()) };
        // SAFETY: as above; the data need not be aligned.
        let raw = unsafe { at.cast::<RawFd>().read_unaligned() };
        // SAFETY: the kernel just opened it for us with this message, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(raw) }
    };
    (0..size / size_of::<RawFd>()).map(own).collect()
}

/// Takes a descriptor that this process was started with, and closes it at the next exec.
///
/// # Safety
///
/// - Nobody else in this process owns the descriptor `raw`: it was handed over, by the number, to the caller alone. A number
///   that is not open is an error and harmless; one that another owner closes later would close a stranger's file here.
pub(crate) unsafe fn take_inherited(raw: RawFd) -> io::Result<OwnedFd> {
    if raw < FIRST_ABOVE_STDIO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1, and borrowed only for this call; that it is open is what the call finds out.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, as the call above found, and the caller promises that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Seals a memfd: nobody will change a byte or the size of it.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(all_seals()))?;
    Ok(())
}

/// Another descriptor for what is open under a number, whoever owns that: closed at exec, and none of the standard streams'.
/// Any number may be asked for.
pub(crate) fn duplicate(raw: RawFd) -> io::Result<OwnedFd> {
    if raw < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1, and borrowed only for this call; that it is open is what the call finds out.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    let duplicate = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(FIRST_ABOVE_STDIO))?;
    // SAFETY: the kernel just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Whether a file is a memfd that nobody can change any more.
pub(crate) fn is_sealed(file: &File) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(all_seals()))
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

/// Whether the program runs with rights that its caller does not have, so that the environment is not to be believed.
pub(crate) fn is_privileged() -> bool {
    // SAFETY: getauxval only looks the key up; 0 is the answer for a key that is not there.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Removes a variable from this process's environment.
///
/// # Safety
///
/// - No other thread reads or writes the environment meanwhile: the caller runs before `main`, in a constructor.
pub(crate) unsafe fn remove_variable(name: &OsStr) {
    // SAFETY: the caller promises that no other thread is at the environment.
    unsafe { std::env::remove_var(name) };
}

/// Runs `f` with every signal blocked on this thread, and so on the threads that it starts.
pub(crate) fn with_signals_blocked<T>(f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let result = f();
    before.thread_set_mask()?;
    result
}

/// Has a function called when this process ends by `exit` or by a return from `main`.
pub(crate) fn at_exit(function: extern "C" fn()) -> io::Result<()> {
    // SAFETY: the function is static, takes nothing, and cannot unwind out of itself (`extern "C"`).
    if unsafe { libc::atexit(function) } == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

/// Has writes to a pipe that nobody reads fail instead of ending the process, as Rust's runtime does before `main`.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN runs no code of ours. It cannot fail: the signal is valid and may be ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The logical CPUs of the machine that are online.
pub(crate) fn cpus_online() -> usize {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|count| usize::try_from(count).ok()).filter(|&count| count > 0).unwrap_or(1)
}
