//! A thread that vouches for the process.
//!
//! A word that says "this process lives" must be marked when the *process* ends, whichever threads end before. So it is owned by a thread
//! that never ends: the keeper. It is made when first needed, sleeps with every signal blocked, and takes the words itself: were another
//! thread to link them into its list, a kill between the two could leave a stale word (a model in `models/` shows how). A child of a
//! fork has no keeper and makes its own.

#![expect(unsafe_code, reason = "a thread with a small stack and blocked signals is made by pthread_create")]

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::{robust, spawn};
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::{AtomicPtr, Ordering};

/// Enough for a thread that takes locks and sleeps.
const STACK_SIZE: usize = 32 << 10;
/// Where thread-local storage eats the small stack up, libc refuses it, and this one is tried.
const LARGE_STACK_SIZE: usize = 1 << 20;

/// What the keeper does for others, on its own thread.
type Job = Box<dyn FnOnce() + Send>;

struct Keeper {
    /// The process it lives in; see [`robust::forks`].
    forks: u32,
    jobs: Sender<Job>,
}

/// Never freed: a process has one, and the child of a fork replaces it.
static KEEPER: AtomicPtr<Keeper> = AtomicPtr::new(null_mut());

/// Runs `job` on the keeper's thread and returns what it returns.
///
/// # Errors
///
/// If the thread cannot be made.
pub(crate) fn run<R: Send + 'static>(job: impl FnOnce() -> R + Send + 'static) -> Result<R> {
    let keeper = keeper().map_err(|source| Error::os("its keeper thread cannot be started", source))?;
    let (answer, answered) = channel();
    let gone = || Error::new(ErrorKind::Os, "its keeper thread has ended");
    let job = move || {
        // Whoever asked waits for the answer.
        let _ = answer.send(job());
    };
    keeper.jobs.send(Box::new(job)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())
}

fn keeper() -> io::Result<&'static Keeper> {
    /// Only one thread makes it. (A fork while it is held is a fork in the middle of an attach, by another thread.)
    static MAKING: Mutex<()> = Mutex::new(());
    if let Some(keeper) = current() {
        return Ok(keeper);
    }
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(keeper) = current() {
        return Ok(keeper);
    }
    let (jobs, received) = channel();
    start(received)?;
    let keeper: &'static Keeper = Box::leak(Box::new(Keeper { forks: robust::forks(), jobs }));
    KEEPER.store(std::ptr::from_ref(keeper).cast_mut(), Ordering::Release);
    Ok(keeper)
}

fn current() -> Option<&'static Keeper> {
    // SAFETY: what is stored is null or a leaked box. The Acquire pairs with the Release of the store.
    let keeper = unsafe { KEEPER.load(Ordering::Acquire).as_ref::<'static>() }?;
    (keeper.forks == robust::forks()).then_some(keeper)
}

fn start(jobs: Receiver<Job>) -> io::Result<()> {
    let jobs = Box::into_raw(Box::new(jobs));
    let started = spawn::with_signals_blocked(|| match create(jobs, STACK_SIZE) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(jobs, LARGE_STACK_SIZE),
        created => created,
    });
    if started.is_err() {
        // SAFETY: from `Box::into_raw` above, and no thread got it.
        drop(unsafe { Box::from_raw(jobs) });
    }
    started
}

fn create(jobs: *mut Receiver<Job>, stack_size: usize) -> io::Result<()> {
    let check = |code: i32| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: `attributes` is memory for one.
    check(unsafe { libc::pthread_attr_init(attributes) })?;
    let size = libc::PTHREAD_STACK_MIN.max(stack_size);
    // SAFETY: `attributes` was initialised.
    let sized = check(unsafe { libc::pthread_attr_setstacksize(attributes, size) });
    // SAFETY: as above.
    let detached =
        check(unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) });
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    let created = sized.and(detached).and_then(|()| {
        // SAFETY: `attributes` was initialised and set; `run_jobs` takes the box, which nobody else uses.
        check(unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run_jobs, jobs.cast()) })
    });
    // SAFETY: `attributes` was initialised and is not used again.
    unsafe { libc::pthread_attr_destroy(attributes) };
    created
}

extern "C" fn run_jobs(jobs: *mut c_void) -> *mut c_void {
    // SAFETY: `create` passes a box that is this thread's from now on.
    let jobs = unsafe { Box::from_raw(jobs.cast::<Receiver<Job>>()) };
    // SAFETY: PR_SET_NAME reads a string that ends in NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"multiproc-keep".as_ptr()) };
    // The sender is never dropped, so this never ends.
    jobs.iter().for_each(|job| job());
    null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_and_it_is_not_this_thread() {
        let tid = || robust::with(robust::Thread::tid);
        let first = run(tid).unwrap();
        let second = std::thread::spawn(move || run(tid).unwrap()).join().unwrap();
        assert_eq!(first, second);
        assert!(robust::is_own_thread(first));
        assert_ne!(tid(), first);
    }
}
