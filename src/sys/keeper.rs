//! A parked thread whose robust list vouches for the process.
//!
//! The words that say "this process lives" must be marked when the *process* ends, whichever threads end before. So they hang
//! in the list of a thread that never ends: the keeper. It is made at the first attach, sleeps in `pause` with every signal
//! blocked, and is never joined. A child of a fork has no keeper and makes its own when it attaches.

#![expect(unsafe_code, reason = "a thread with a small stack and blocked signals is made by pthread_create")]

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use super::robust::{self, Parked};
use crate::error::{Error, Result};
use crate::primitive::{AtomicPtr, Ordering};

/// Enough for a thread that only sleeps.
const STACK_SIZE: usize = 16 << 10;
/// Where thread-local storage eats the small stack up, libc refuses it, and this one is tried.
const LARGE_STACK_SIZE: usize = 1 << 20;

struct Keeper {
    /// The process it lives in; see [`robust::forks`].
    forks: u32,
    /// The private lock that guards its list.
    list: Mutex<Parked>,
}

/// Never freed: a process has one, and the child of a fork replaces it.
static KEEPER: AtomicPtr<Keeper> = AtomicPtr::new(null_mut());

/// Runs `f` on the keeper's list, with nobody else at it.
///
/// # Errors
///
/// If the thread cannot be made.
pub(crate) fn with<R>(f: impl FnOnce(&Parked) -> R) -> Result<R> {
    let keeper = keeper().map_err(|source| Error::os("its keeper thread cannot be started", source))?;
    let list = keeper.list.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(f(&list))
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
    let keeper: &'static Keeper =
        Box::leak(Box::new(Keeper { forks: robust::forks(), list: Mutex::new(start()?) }));
    KEEPER.store(std::ptr::from_ref(keeper).cast_mut(), Ordering::Release);
    Ok(keeper)
}

fn current() -> Option<&'static Keeper> {
    // SAFETY: what is stored is null or a leaked box. The Acquire pairs with the Release of the store.
    let keeper = unsafe { KEEPER.load(Ordering::Acquire).as_ref::<'static>() }?;
    (keeper.forks == robust::forks()).then_some(keeper)
}

/// What the new thread tells its creator.
struct Birth {
    parked: OnceLock<Parked>,
    creator: Thread,
}

// SAFETY: `Parked` is Send; the `OnceLock` hands it over once, and the creator copies it out.
unsafe impl Sync for Birth {}

fn start() -> io::Result<Parked> {
    let birth: &'static Birth =
        Box::leak(Box::new(Birth { parked: OnceLock::new(), creator: std::thread::current() }));
    with_all_signals_blocked(|| match create(birth, STACK_SIZE) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(birth, LARGE_STACK_SIZE),
        created => created,
    })?;
    loop {
        if let Some(parked) = birth.parked.get() {
            return Ok(*parked);
        }
        std::thread::park();
    }
}

fn with_all_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it fills the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` is filled, `before` may be written.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let result = f();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut()) };
    result
}

fn create(birth: &'static Birth, stack_size: usize) -> io::Result<()> {
    let check = |code: i32| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: `attributes` is memory for one.
    check(unsafe { libc::pthread_attr_init(attributes) })?;
    let smallest = libc::PTHREAD_STACK_MIN.max(stack_size);
    // SAFETY: `attributes` was initialised.
    let sized = check(unsafe { libc::pthread_attr_setstacksize(attributes, smallest) });
    // SAFETY: as above.
    let detached =
        check(unsafe { libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED) });
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    let argument = std::ptr::from_ref(birth).cast_mut().cast::<c_void>();
    let created = sized.and(detached).and_then(|()| {
        // SAFETY: `attributes` was initialised and set; `run` takes the leaked `birth`, which never dies.
        check(unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, argument) })
    });
    // SAFETY: `attributes` was initialised and is not used again.
    unsafe { libc::pthread_attr_destroy(attributes) };
    created
}

extern "C" fn run(birth: *mut c_void) -> *mut c_void {
    // SAFETY: `create` passes a leaked `Birth`.
    let birth = unsafe { &*birth.cast::<Birth>() };
    // SAFETY: PR_SET_NAME reads a string that ends in NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"multiproc-keep".as_ptr(), null::<u8>()) };
    let parked = Parked::this_thread();
    if birth.parked.set(parked).is_ok() {
        birth.creator.unpark();
    }
    loop {
        // SAFETY: no preconditions; all signals are blocked, so it sleeps until the process ends.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_and_it_is_not_this_thread() {
        let first = with(Parked::tid).unwrap();
        let second = std::thread::spawn(|| with(Parked::tid).unwrap()).join().unwrap();
        assert_eq!(first, second);
        assert!(robust::is_own_thread(first));
        robust::with(|thread| assert_ne!(thread.tid(), first));
    }
}
