//! The C library's mutex, where its user wants it.

use std::ptr::NonNull;

/// A process-shared pthread mutex at an address that others may have too.
#[derive(Clone, Copy)]
pub(crate) struct Pthread(NonNull<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is for several threads; the address is good for as long as `at` was promised.
unsafe impl Send for Pthread {}
// SAFETY: as above.
unsafe impl Sync for Pthread {}

impl Pthread {
    /// One on the heap, for ever.
    pub(crate) fn leaked(robust: bool) -> Pthread {
        let place = Box::leak(Box::new(std::mem::MaybeUninit::<libc::pthread_mutex_t>::uninit()));
        // SAFETY: leaked, aligned memory of that size, that nobody else knows.
        unsafe { Pthread::init(NonNull::from(place).cast(), robust) }
    }

    /// Makes one at this address.
    ///
    /// # Safety
    ///
    /// There is aligned memory for one, which stays for as long as anybody uses the mutex, and nobody uses yet.
    pub(crate) unsafe fn init(place: NonNull<libc::pthread_mutex_t>, robust: bool) -> Pthread {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: memory for one.
        unsafe { libc::pthread_mutexattr_init(attributes) };
        // SAFETY: initialised.
        unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) };
        if robust {
            // SAFETY: initialised.
            unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
        }
        // SAFETY: both are live, and nobody uses the mutex yet, by the caller's promise.
        let refused = unsafe { libc::pthread_mutex_init(place.as_ptr(), attributes) };
        assert_eq!(refused, 0, "no pthread mutex");
        Pthread(place)
    }

    /// The one that was made at this address, perhaps by another process.
    ///
    /// # Safety
    ///
    /// [`init`](Pthread::init) has returned, and the memory stays for as long as this is used.
    pub(crate) unsafe fn at(place: NonNull<libc::pthread_mutex_t>) -> Pthread {
        Pthread(place)
    }

    /// Runs `section` with the mutex held.
    #[inline]
    pub(crate) fn with<R>(self, section: impl FnOnce() -> R) -> R {
        // SAFETY: initialised, and still there.
        let refused = unsafe { libc::pthread_mutex_lock(self.0.as_ptr()) };
        debug_assert_eq!(refused, 0);
        let result = section();
        // SAFETY: this thread has just locked it.
        unsafe { libc::pthread_mutex_unlock(self.0.as_ptr()) };
        result
    }
}
