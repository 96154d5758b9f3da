//! Memory that the driver and everything it forks see alike, and the kernel's way to wait on a word of it.
//!
//! Nothing here uses the library under test: a broken lock must not be able to break its own judge.

#![expect(unsafe_code, reason = "maps memory and calls futex")]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use std::{io, ptr};

/// The most peers a scenario may have.
pub(crate) const PEERS: usize = 8;

/// A type that works in memory shared with forked processes.
///
/// # Safety
///
/// - All of it lies inside the value: a `Vec`'s elements, for instance, would stay in each process's own heap.
/// - It may be used through `&` by several processes at once, so plain `Sync` fields and no lock that only knows
///   threads (`std::sync::Mutex` would wait on a private futex).
/// - It needs no drop.
pub(crate) unsafe trait InPlace: Sync {}

// SAFETY: an atomic is its bytes, and the hardware does not ask which process touches them.
unsafe impl InPlace for AtomicU32 {}
// SAFETY: as for `AtomicU32`.
unsafe impl InPlace for AtomicU64 {}
// SAFETY: an array holds its elements and nothing else.
unsafe impl<T: InPlace, const N: usize> InPlace for [T; N] {}

/// A value in an anonymous shared mapping, inherited by fork.
pub(crate) struct Shared<T: InPlace> {
    place: NonNull<T>,
}

impl<T: InPlace> Shared<T> {
    /// Maps fresh memory and puts `value` there.
    pub(crate) fn new(value: T) -> Self {
        const {
            assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>());
        }
        // SAFETY: a fresh anonymous mapping takes nothing from anybody.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        let place = NonNull::new(address.cast::<T>()).expect("the kernel maps nothing at null unasked");
        // SAFETY: the mapping is ours alone so far, writable, page-aligned and as large as `T`.
        unsafe { place.write(value) };
        Self { place }
    }
}

impl<T: InPlace> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: mapped and initialised until `drop`, and `InPlace` says that sharing by reference is sound.
        unsafe { self.place.as_ref() }
    }
}

impl<T: InPlace> Drop for Shared<T> {
    fn drop(&mut self) {
        // The error can be ignored: it could only say that this is no mapping, and then nothing leaks.
        // SAFETY: this is the whole mapping made in `new`; references to it do not outlive `self`.
        unsafe { libc::munmap(self.place.as_ptr().cast(), size_of::<T>()) };
    }
}

/// Sleeps while `word` is `value`, for `timeout` at most; may return early.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let limit = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
    // Every answer (woken, changed, interrupted, late) means "look again" to the caller.
    // SAFETY: the word and the time-out are valid for the length of the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, limit) };
}

/// Wakes `count` sleepers of `word`.
pub(crate) fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: the word is valid; waking changes no memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

/// Where a forked process is on its way; the values of [`Slot::state`], in the order in which they come.
pub(crate) mod state {
    /// Forked, and nothing asked of it yet.
    pub(crate) const NEW: u32 = 0;
    /// On its way into its operation; asleep there, perhaps.
    pub(crate) const ENTERING: u32 = 1;
    /// Said that it is inside.
    pub(crate) const INSIDE: u32 = 2;
    /// Through; its message is the answer.
    pub(crate) const DONE: u32 = 3;
    /// Through, and its message says what was wrong.
    pub(crate) const FAILED: u32 = 4;
}

/// What the driver asks of a peer; the values of [`Slot::cue`].
pub(crate) mod cue {
    /// Nothing yet.
    pub(crate) const WAIT: u32 = 0;
    /// Begin.
    pub(crate) const ENTER: u32 = 1;
    /// Come out again.
    pub(crate) const LEAVE: u32 = 2;
}

/// The line between the driver and one forked process.
///
/// `text` is stored before `state` says `DONE` or `FAILED` (Release, paired with the Acquire in `state`).
pub(crate) struct Slot {
    cue: AtomicU32,
    state: AtomicU32,
    length: AtomicU32,
    text: [AtomicU8; 500],
}

impl Slot {
    const fn new() -> Self {
        Self {
            cue: AtomicU32::new(cue::WAIT),
            state: AtomicU32::new(state::NEW),
            length: AtomicU32::new(0),
            text: [const { AtomicU8::new(0) }; 500],
        }
    }

    /// What the other side is doing.
    pub(crate) fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    /// The word that changes with [`Slot::state`], to wait on.
    pub(crate) fn state_word(&self) -> &AtomicU32 {
        &self.state
    }

    /// Tells the driver how far this process is.
    pub(crate) fn report(&self, state: u32) {
        self.state.store(state, Ordering::Release);
        futex_wake(&self.state, i32::MAX);
    }

    /// Leaves the answer for the driver; `Err` is what was wrong.
    pub(crate) fn answer(&self, answer: &Result<String, String>) {
        let (Ok(text) | Err(text)) = answer;
        let mut length = 0;
        for (place, byte) in self.text.iter().zip(text.bytes()) {
            place.store(byte, Ordering::Relaxed);
            length += 1;
        }
        self.length.store(length, Ordering::Relaxed);
        self.report(if answer.is_ok() { state::DONE } else { state::FAILED });
    }

    /// The answer that was left.
    pub(crate) fn text(&self) -> String {
        let length = self.length.load(Ordering::Relaxed) as usize;
        let bytes: Vec<u8> = self.text.iter().take(length).map(|byte| byte.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Gives the other side its cue.
    pub(crate) fn give(&self, cue: u32) {
        self.cue.store(cue, Ordering::Release);
        futex_wake(&self.cue, i32::MAX);
    }

    /// What was asked of this process so far.
    pub(crate) fn cue(&self) -> u32 {
        self.cue.load(Ordering::Acquire)
    }

    /// Sleeps until the cue is at least `cue`.
    pub(crate) fn await_cue(&self, cue: u32) {
        loop {
            let given = self.cue();
            if given >= cue {
                return;
            }
            futex_wait(&self.cue, given, None);
        }
    }
}

/// The lines of one run.
pub(crate) struct Board {
    pub(crate) victim: Slot,
    pub(crate) oracle: Slot,
    pub(crate) peers: [Slot; PEERS],
}

// SAFETY: atomics only.
unsafe impl InPlace for Board {}

impl Board {
    pub(crate) fn new() -> Shared<Self> {
        Shared::new(Self { victim: Slot::new(), oracle: Slot::new(), peers: [const { Slot::new() }; PEERS] })
    }
}
