//! Where a child comes in: before `main`, from the program's list of constructors.
//!
//! Every process of the program passes here. Unless it is one that [`start`](super::start) announced something to, it goes
//! on as if nothing were here. A child never gets to `main`: it runs the constructors that are linked after this one, its
//! function, and `exit`.
//!
//! Nothing that is handed over is believed before it is checked: the announcement must be a sealed memfd with our magic, of
//! the same program, for this very entry (a program may hold two releases of this crate).

#![expect(unsafe_code, reason = "a constructor calls other constructors and a function by their addresses")]

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, c_char, c_int};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, ErrorKind, Result};
use crate::process::handover::{self, MARKER, Notice};
use crate::process::report::{Panic, Report};
use crate::process::task::{Task, assert_captures_nothing};
use crate::process::{current, outcome};
use crate::segment::family;
use crate::sys::clock::Deadline;
use crate::sys::image::Image;
use crate::sys::spawn;
use crate::transfer::{Delivery, Parcel};

/// The parent's only byte on the channel: it holds a pidfd of the child by now. Where something else in the parent collects
/// every child at once (or SIGCHLD is ignored), one that ended before would leave no trace, and its pid to others. It costs
/// nothing: the byte is there long before the child has come so far.
pub(crate) const GO: u8 = 3;
/// The child's first byte on the channel: its function is about to be called.
pub(crate) const STARTED: u8 = 0;
/// An error follows, which kept the child from calling its function.
pub(crate) const NOT_STARTED: u8 = 1;
/// Descriptors of the result come with this message.
const RETURNED: u8 = 2;

/// The exit code of a child whose function returned an `Err`, or a value that could not be delivered.
const EXIT_FAILURE: i32 = 1;
/// The exit code of a child that could not call its function (EX_SOFTWARE).
const EXIT_NOT_STARTED: i32 = 70;
/// The exit code of a child whose function panicked, as Rust's runtime has it.
const EXIT_PANICKED: i32 = 101;

/// How long a daemon whose parent is gone has between its SIGTERM and its SIGKILL.
const ORPHAN_GRACE: Duration = Duration::from_secs(1);
/// Enough for a thread that polls one descriptor.
const WATCH_STACK_SIZE: usize = 64 << 10;

/// The part of a child's work that depends on types: unpacks the arguments, says that it starts, calls the function, packs
/// what it returned. There is one for each function that the program spawns, and it is found by its address.
pub(crate) type Routine = fn(Delivery, &dyn Fn()) -> Result<Output>;

/// What a function returned.
pub(crate) struct Output {
    packed: Result<Parcel>,
    is_err: bool,
}

/// The routine of a function. It is called with this address, in another process, by [`enter`].
pub(crate) fn routine_of<F, Args>() -> usize
where
    F: Task<Args, Output: Serialize>,
    Args: DeserializeOwned,
{
    assert_captures_nothing::<F>();
    let routine: Routine = routine::<F, Args>;
    routine as usize
}

fn routine<F, Args>(delivery: Delivery, started: &dyn Fn()) -> Result<Output>
where
    F: Task<Args, Output: Serialize>,
    Args: DeserializeOwned,
{
    let args: Args = delivery.unpack()?;
    drop(delivery);
    started();
    let output = function::<F, Args>().run(args);
    Ok(Output { is_err: outcome::is_err(&output), packed: Parcel::pack(&output) })
}

fn function<F: Task<Args>, Args>() -> F {
    const { assert!(size_of::<F>() == 0) };
    // SAFETY: F has no bytes, so a dangling, aligned pointer may be read. It is a function item or a closure that captures
    // nothing (`Task` is sealed), of which a value was passed to `spawn` by a process of this program; being `Copy` and `Send`
    // it may be there once more, on another thread.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

#[cfg(not(target_env = "musl"))]
type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);
#[cfg(target_env = "musl")]
type Constructor = extern "C" fn();

/// Our slot in the program's list of constructors.
#[used]
// The attribute is sound: the section holds pointers to functions that libc calls, with these arguments, before `main`;
// the static is one.
#[unsafe(link_section = ".init_array")]
static ENTRY: Constructor = enter;

/// The address of our slot. Whoever asks for it also has the slot linked.
pub(crate) fn slot() -> usize {
    (&raw const ENTRY).expose_provenance()
}

#[cfg(not(target_env = "musl"))]
extern "C" fn enter(count: c_int, arguments: *const *const c_char, environment: *const *const c_char) {
    if let Some(announced) = Announced::find() {
        announced.run(&|constructor| constructor(count, arguments, environment));
    }
}

#[cfg(target_env = "musl")]
extern "C" fn enter() {
    if let Some(announced) = Announced::find() {
        announced.run(&|constructor| constructor());
    }
}

/// A handover that is meant for this process.
struct Announced {
    image: Image,
    notice: Notice,
    message: Vec<u8>,
    marked: RawFd,
    /// Those that come after ours.
    constructors: &'static [usize],
}

impl Announced {
    /// Finds it. `None`: this process goes on to `main`, and if it carries the marker it cannot spawn.
    fn find() -> Option<Announced> {
        let marked: RawFd = std::env::var_os(MARKER)?.to_str()?.parse().ok()?;
        if spawn::is_privileged() {
            return None;
        }
        let image = Image::main()?;
        let constructors = image.constructors_after(slot())?;
        let file = File::from(spawn::duplicate(marked).ok()?);
        if !spawn::is_sealed(&file) || !handover::has_magic(&file) {
            return None;
        }
        let (notice, message) = handover::read(&file).ok()?;
        let is_for_another_entry = image.distance_to(slot()) != notice.entry;
        if is_for_another_entry && image.identity().is_ok_and(|identity| identity == notice.image) {
            return None;
        }
        Some(Announced { image, notice, message, marked, constructors })
    }

    fn run(self, construct: &dyn Fn(Constructor)) -> ! {
        // SAFETY: this is a constructor, so `main` has not begun, and no thread of this program is at the environment.
        unsafe { spawn::remove_variable(OsStr::new(MARKER)) };
        let Ok(given) = Given::take(&self.notice, self.marked) else {
            // There is nothing to report to. The parent sees an exit before the start, with this code.
            std::process::exit(EXIT_NOT_STARTED);
        };
        if !is_told_to_go(&given.channel) {
            // The parent gave up, or is gone.
            std::process::exit(EXIT_NOT_STARTED);
        }
        let stage = STAGE.get_or_init(|| Stage {
            pid: std::process::id(),
            channel: given.channel,
            report: given.report,
        });
        let prepared =
            prepare(&self.image, self.notice, self.constructors, construct, given.family, given.parent);
        let delivered =
            prepared.and_then(|routine| Ok((routine, Delivery::lent(&self.message, given.descriptors)?)));
        let code = match delivered {
            Ok((routine, delivery)) => stage.perform(routine, delivery),
            Err(error) => stage.refuse(&error),
        };
        std::process::exit(code)
    }
}

/// The descriptors that this process was started with.
struct Given {
    parent: OwnedFd,
    family: OwnedFd,
    channel: OwnedFd,
    report: Report,
    descriptors: Vec<OwnedFd>,
}

impl Given {
    fn take(notice: &Notice, marked: RawFd) -> std::io::Result<Given> {
        let mut taken = BTreeSet::new();
        let mut take = |raw: RawFd| {
            if !taken.insert(raw) {
                return Err(std::io::Error::from_raw_os_error(libc::EBADF));
            }
            // SAFETY: the parent put it there for us, under a number that it wrote down in a file that nobody can change;
            // no other owner is in this process yet, and each number is taken once.
            unsafe { spawn::take_inherited(raw) }
        };
        drop(take(marked)?);
        Ok(Given {
            parent: take(notice.parent)?,
            family: take(notice.family)?,
            channel: take(notice.channel)?,
            report: Report::from(File::from(take(notice.report)?)),
            descriptors: notice.descriptors.iter().map(|&raw| take(raw)).collect::<Result<_, _>>()?,
        })
    }
}

fn is_told_to_go(channel: &OwnedFd) -> bool {
    let heard = spawn::wait_readable([channel.as_fd()], Deadline::Never)
        .and_then(|_| spawn::receive(channel.as_fd()));
    matches!(heard, Ok(Some((word, _))) if word == [GO])
}

/// Makes this process what the notice says, up to the call.
fn prepare(
    image: &Image,
    notice: Notice,
    constructors: &[usize],
    construct: &dyn Fn(Constructor),
    family: OwnedFd,
    parent: OwnedFd,
) -> Result<Routine> {
    let identity = image
        .identity()
        .map_err(|source| Error::os("the child cannot tell which program it runs", source))?;
    if identity != notice.image {
        return Err(Error::new(
            ErrorKind::Incompatible,
            "the program was replaced on disk while it ran, so the child runs another one",
        ));
    }
    let address = image
        .address_of(notice.routine)
        .ok_or_else(|| Error::new(ErrorKind::Corrupted, "no code lies where the child's function should"))?;
    // SAFETY: it is the distance of a `Routine` in an image with the same identity, so a `Routine` lies here: `start` took it
    // from `routine_of` and checked that it lies in the image's code.
    let routine =
        unsafe { std::mem::transmute::<*const (), Routine>(std::ptr::with_exposed_provenance(address)) };
    family::adopt(family)?;
    for &constructor in constructors {
        // Linkers fill gaps with these two.
        if constructor != 0 && constructor != usize::MAX {
            let constructor = std::ptr::with_exposed_provenance::<()>(constructor);
            // SAFETY: the entries of DT_INIT_ARRAY are constructors, of this type; libc would call this one next.
            construct(unsafe { std::mem::transmute::<*const (), Constructor>(constructor) });
        }
    }
    spawn::ignore_sigpipe();
    if let Ok(name) = CString::new(notice.name.as_str()) {
        // It only serves those who look at the process from outside.
        let _ = nix::sys::prctl::set_name(&name);
    }
    let is_daemon = notice.is_daemon;
    let parent = (notice.parent_name, notice.parent_pid, parent);
    current::become_child(notice.name, notice.lineage, is_daemon, parent)?;
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        note_panic(info);
        default(info);
    }));
    if is_daemon {
        watch_parent()?;
    }
    Ok(routine)
}

/// Ends this process when its parent is gone, however that went.
fn watch_parent() -> Result<()> {
    let Some(parent) = current::parent_pidfd() else {
        return Ok(());
    };
    let watch = move || {
        while !matches!(spawn::wait_readable([parent], Deadline::Never), Ok([true])) {
            // The kernel was short of memory for the wait.
            thread::sleep(Duration::from_millis(10));
        }
        spawn::signal_self(libc::SIGTERM);
        thread::sleep(ORPHAN_GRACE);
        spawn::signal_self(libc::SIGKILL);
    };
    let builder = thread::Builder::new().name("multiproc-watch".to_owned()).stack_size(WATCH_STACK_SIZE);
    // User code's signal handlers are to run on user code's threads.
    spawn::with_signals_blocked(|| builder.spawn(watch))
        .map_err(|source| Error::os("the thread that watches the parent cannot be started", source))?;
    Ok(())
}

/// What the child uses to tell its parent; there for the panic hook as well.
static STAGE: OnceLock<Stage> = OnceLock::new();

struct Stage {
    /// A fork of the child has a copy of all this, and must not speak for it.
    pid: u32,
    channel: OwnedFd,
    report: Report,
}

thread_local! {
    /// This thread's newest panic.
    static NEWEST: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

impl Stage {
    /// Calls the function and delivers what it returned. The answer is the exit code.
    fn perform(&self, routine: Routine, delivery: Delivery) -> i32 {
        let is_started = std::cell::Cell::new(false);
        let started = || {
            if spawn::send(self.channel.as_fd(), &[STARTED], &[]).is_err() {
                // The parent gave up or is gone: nobody asked for what follows.
                std::process::exit(EXIT_NOT_STARTED);
            }
            is_started.set(true);
        };
        let ended = panic::catch_unwind(AssertUnwindSafe(|| routine(delivery, &started)));
        if self.pid != std::process::id() {
            // The function forked, and this is the fork, which came back too.
            return 0;
        }
        match ended {
            Ok(Ok(output)) => self.deliver(output),
            Ok(Err(error)) => self.refuse(&error),
            Err(payload) => {
                let panic = panic_of(payload.as_ref());
                // To drop it may panic again.
                std::mem::forget(payload);
                if is_started.get() {
                    // Without it the joiner still learns the exit code.
                    let _ = self.report.write_panicked(&panic);
                    EXIT_PANICKED
                } else {
                    let text = format!("its arguments panicked while they were decoded: {}", panic.message);
                    self.refuse(&Error::new(ErrorKind::Decode, text))
                }
            }
        }
    }

    /// Tells the parent why the function was not called.
    fn refuse(&self, error: &Error) -> i32 {
        let message = |error: &Error| {
            let mut message = vec![NOT_STARTED];
            message.extend(postcard::to_stdvec(error).ok()?);
            (message.len() <= spawn::MESSAGE_SIZE).then_some(message)
        };
        let short =
            || message(&Error::new(error.kind(), "the child could not start, for a reason too long to tell"));
        if let Some(message) = message(error).or_else(short) {
            // If the parent is gone, nobody asks.
            let _ = spawn::send(self.channel.as_fd(), &message, &[]);
        }
        EXIT_NOT_STARTED
    }

    fn deliver(&self, output: Output) -> i32 {
        match output.packed.and_then(|parcel| self.commit(&parcel)) {
            Ok(()) if output.is_err => EXIT_FAILURE,
            Ok(()) => 0,
            Err(error) => {
                // Without it the joiner still learns the exit code.
                let _ = self.report.write_failed(&error);
                EXIT_FAILURE
            }
        }
    }

    /// All that belongs to the value first, its commit last: a kill leaves the whole value or none.
    fn commit(&self, parcel: &Parcel) -> Result<()> {
        let undeliverable = |source| Error::os("the returned value cannot be delivered", source);
        let owned = parcel.descriptors()?;
        let descriptors: Vec<BorrowedFd<'_>> = owned.iter().map(AsFd::as_fd).collect();
        for some in descriptors.chunks(spawn::DESCRIPTORS_PER_MESSAGE) {
            spawn::send(self.channel.as_fd(), &[RETURNED], some).map_err(undeliverable)?;
        }
        let message = parcel.post()?;
        self.report.write_value(&message).map_err(undeliverable)?;
        self.report.commit_value(message.len(), descriptors.len()).map_err(undeliverable)
    }
}

/// What the runtime says when it aborts because of a panic that came before, and which tells more.
const FOLLOWING_PANICS: [&str; 2] =
    ["panic in a function that cannot unwind", "panic in a destructor during cleanup"];

fn note_panic(info: &PanicHookInfo<'_>) {
    let Some(stage) = STAGE.get().filter(|stage| stage.pid == std::process::id()) else {
        return;
    };
    let message = text_of(info.payload());
    if FOLLOWING_PANICS.contains(&message.as_str()) {
        return;
    }
    let panic = Panic { message, location: info.location().map(ToString::to_string) };
    // Without it the joiner still learns the signal.
    let _ = stage.report.note_panic(&panic);
    // A thread that is past its locals is not the one whose panic is the process's.
    let _ = NEWEST.try_with(|newest| newest.replace(Some(panic)));
}

/// The panic that was caught. Where it happened is known if the hook saw the same one.
fn panic_of(payload: &(dyn Any + Send)) -> Panic {
    let message = text_of(payload);
    let noted = NEWEST.with(|newest| newest.take()).filter(|panic| panic.message == message);
    noted.unwrap_or(Panic { message, location: None })
}

fn text_of(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default().to_owned()
}
