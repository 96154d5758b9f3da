//! This thread's place in the kernel's care: its TID and the robust list that libc registered for it.
//!
//! A lock whose node hangs in the list, or which the list's *pending* slot names, is marked OWNER_DIED by the kernel when the
//! thread ends, however it ends. We link our nodes into the very list libc uses, both ways, so that libc's own robust mutexes
//! go on working beside ours, in any order. Sources: the kernel's
//! [robust-futex-ABI](https://docs.kernel.org/locking/robust-futex-ABI.html),
//! [get_robust_list(2)](https://man7.org/linux/man-pages/man2/get_robust_list.2.html), and the `ENQUEUE_MUTEX` and
//! `DEQUEUE_MUTEX` of libc.
//!
//! The kernel reads the list in the thread's own context, after its last instruction: the order of the stores matters to
//! it, the caches do not. Hence compiler fences only.

#![expect(unsafe_code, reason = "the robust list belongs to libc and is reached by its address")]

use std::cell::Cell;
use std::io;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::futex;
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::{AtomicU32, AtomicUsize, Ordering, compiler_fence};

/// Bytes from a list entry (a node's `next` word) to the lock word it stands for. It is libc's choice, one for the whole
/// thread, and it shapes [`RawLock`](crate::raw::lock::RawLock).
pub(crate) const FUTEX_OFFSET: isize = if cfg!(target_env = "musl") { -28 } else { -32 };

/// The kernel gives up after this many held locks of one thread: another one would not be marked when the thread dies.
const HELD_MOST: u32 = 2_048;

/// A lock's links in the list of the thread that holds it. Meaningful only to that thread: the addresses are its process's.
#[repr(C)]
pub(crate) struct Node {
    /// Address of the entry (or head) whose `next` is this one.
    prev: AtomicUsize,
    /// Address of the next entry; the last one names the head. The entry's own address is that of this word.
    next: AtomicUsize,
}

#[cfg(test)]
impl Node {
    pub(crate) fn new() -> Node {
        Node { prev: AtomicUsize::new(0), next: AtomicUsize::new(0) }
    }
}

/// `struct robust_list_head` of the kernel, in libc's thread block.
#[repr(C)]
struct Head {
    list: AtomicUsize,
    futex_offset: isize,
    pending: AtomicUsize,
}

/// What this thread knows about itself, kept so that the fast path needs no system call.
pub(crate) struct Thread {
    /// 0 until it is asked for, and again in the child of a fork.
    tid: Cell<u32>,
    head: Cell<*const Head>,
    /// How many nodes of ours are linked beside others: all of them, or all but the one that found the list empty. So a lock
    /// that is held alone costs no counting.
    nested: Cell<u32>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread { tid: Cell::new(0), head: Cell::new(null()), nested: Cell::new(0) }
    };
}

/// How often this process image was forked: a child finds another number than the one its parent's handles carry.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Runs `f` with this thread's record, filled in.
///
/// Only the address is taken inside `LocalKey::with`, which is then inlined away; a whole fast path in it is not, and twice as slow.
#[inline]
pub(crate) fn with<R>(f: impl FnOnce(&Thread) -> R) -> R {
    let thread = THREAD.with(std::ptr::from_ref);
    // SAFETY: a thread-local without destructor lives as long as its thread, and the reference does not leave this call.
    let thread = unsafe { &*thread };
    if thread.tid.get() == 0 {
        thread.register();
    }
    f(thread)
}

/// How many forks lie between this process and the start of its program. A handle that remembers another number was copied
/// by a fork: it is not this process's to release.
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// Whether a thread of this process has this TID.
pub(crate) fn is_own_thread(tid: u32) -> bool {
    let Ok(tid) = libc::pid_t::try_from(tid) else { return false };
    // SAFETY: signal 0 is never delivered; the call only asks whether the thread exists.
    tid != 0 && unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, 0) } == 0
}

/// Whether this libc keeps its robust list as our locks are shaped for. Asked when a segment is created or attached.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if it keeps another offset, or if the kernel knows no robust list.
pub(crate) fn check_supported() -> Result<()> {
    static SUPPORTED: OnceLock<Result<(), String>> = OnceLock::new();
    SUPPORTED
        .get_or_init(|| {
            // Asked here, once, and not by the first lock that has to wait.
            futex::has_other_cpus();
            // Handles remember the count of forks from here on, locks taken or not.
            watch_forks();
            let head = robust_list_head().map_err(|error| error.to_string())?;
            // SAFETY: the head lies in this thread's control block, which lives as long as the thread.
            let offset = unsafe { (*head).futex_offset };
            if offset == FUTEX_OFFSET {
                Ok(())
            } else {
                Err(format!(
                    "the C library's robust list has the offset {offset}, this program was built for {FUTEX_OFFSET}"
                ))
            }
        })
        .clone()
        .map_err(|found| Error::new(ErrorKind::Unsupported, found))
}

impl Thread {
    /// This thread's TID, as it stands in the words of the locks it holds.
    #[inline]
    pub(crate) fn tid(&self) -> u32 {
        self.tid.get()
    }

    /// Whether one more lock could be held without being lost to the kernel's limit.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.nested.get() < HELD_MOST - 1
    }

    /// Names `node` as the lock that is being taken or given back: should the thread end now, the kernel looks at it too.
    #[inline]
    pub(crate) fn set_pending(&self, node: &Node) {
        self.head().pending.store(entry_of(node), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// No lock is being taken or given back.
    #[inline]
    pub(crate) fn clear_pending(&self) {
        compiler_fence(Ordering::SeqCst);
        self.head().pending.store(0, Ordering::Relaxed);
    }

    /// Puts `node` first in this thread's list.
    #[inline]
    pub(crate) fn link(&self, node: &Node) {
        if !link_into(self.head(), node) {
            self.nested.set(self.nested.get() + 1);
        } else if self.nested.get() != 0 {
            // Some of libc's mutexes lay beside ours, and left between: the count is of an empty list.
            self.nested.set(0);
        }
    }

    /// Takes `node`, which is in this thread's list, out of it.
    #[inline]
    pub(crate) fn unlink(&self, node: &Node) {
        if !unlink_from(self.head(), node) {
            self.nested.set(self.nested.get().saturating_sub(1));
        }
    }

    #[inline]
    fn head(&self) -> &Head {
        // SAFETY: `register` stored the address of this thread's list head, which lies in its control block and outlives every
        // `&Thread`, for these never leave the thread.
        unsafe { &*self.head.get() }
    }

    #[cold]
    fn register(&self) {
        watch_forks();
        let head = robust_list_head()
            .expect("every Linux since 2.6.17 has a robust list, and create and open have asked");
        self.head.set(head);
        self.nested.set(0);
        // SAFETY: gettid has no preconditions and cannot fail.
        let tid = unsafe { libc::gettid() };
        self.tid.set(tid.unsigned_abs());
    }
}

/// A list entry's address is that of its `next` word.
#[inline]
fn entry_of(node: &Node) -> usize {
    (&raw const node.next).expose_provenance()
}

/// Bit 0 of an entry's address marks one of libc's priority-inheriting mutexes.
#[inline]
fn address_of(entry: usize) -> usize {
    entry & !1
}

/// Puts `node` first. Returns whether it is the only one.
#[inline]
fn link_into(head: &Head, node: &Node) -> bool {
    let head_entry = (&raw const head.list).expose_provenance();
    let first = head.list.load(Ordering::Relaxed);
    node.next.store(first, Ordering::Relaxed);
    node.prev.store(head_entry, Ordering::Relaxed);
    let is_only = first == head_entry;
    if !is_only {
        store_word(address_of(first) - size_of::<usize>(), entry_of(node));
    }
    compiler_fence(Ordering::SeqCst);
    head.list.store(entry_of(node), Ordering::Relaxed);
    is_only
}

/// Takes `node` out. Returns whether it was the only one.
#[inline]
fn unlink_from(head: &Head, node: &Node) -> bool {
    let head_entry = (&raw const head.list).expose_provenance();
    let next = node.next.load(Ordering::Relaxed);
    let prev = node.prev.load(Ordering::Relaxed);
    let is_only = next == head_entry && prev == head_entry;
    if is_only {
        head.list.store(head_entry, Ordering::Relaxed);
    } else {
        if address_of(next) != head_entry {
            store_word(address_of(next) - size_of::<usize>(), prev);
        }
        store_word(address_of(prev), next);
    }
    compiler_fence(Ordering::SeqCst);
    is_only
}

/// Writes a link word of a neighbour: of one of our nodes, of libc's mutexes, or of the head.
#[inline]
fn store_word(address: usize, value: usize) {
    let word = std::ptr::with_exposed_provenance::<AtomicUsize>(address);
    // SAFETY: the neighbours in a thread's robust list are locks that the thread holds; their memory stays mapped while they are
    // held (guards borrow their mapping, a forgotten guard leaks it), and libc demands the same of its own. A peer that
    // overwrites the links of a lock that somebody holds breaks this, as it does for libc's mutexes; see ARCHITECTURE.md.
    unsafe { (*word).store(value, Ordering::Relaxed) };
}

/// The address of the list head that libc registered for this thread.
fn robust_list_head() -> io::Result<*const Head> {
    let mut head = registered_head()?;
    if head.is_null() {
        // musl registers the list when a thread first locks a robust mutex.
        lock_a_pthread_mutex();
        head = registered_head()?;
    }
    if head.is_null() { Err(io::Error::from_raw_os_error(libc::ENOSYS)) } else { Ok(head) }
}

fn registered_head() -> io::Result<*const Head> {
    let mut head: *mut Head = null_mut();
    let mut size = 0_usize;
    // SAFETY: 0 is this thread; the call writes an address and a size to two live variables.
    let failed = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut size) };
    if failed == 0 { Ok(head) } else { Err(io::Error::last_os_error()) }
}

fn lock_a_pthread_mutex() {
    let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
    let mutex = &raw mut mutex;
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    // SAFETY: `attributes` is memory for one.
    unsafe { libc::pthread_mutexattr_init(attributes) };
    // SAFETY: `attributes` was initialised.
    unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) };
    // SAFETY: `mutex` is memory for one that nobody uses; `attributes` was initialised.
    unsafe { libc::pthread_mutex_init(mutex, attributes) };
    // SAFETY: `mutex` was initialised and is free.
    unsafe { libc::pthread_mutex_lock(mutex) };
    // SAFETY: this thread has just locked it.
    unsafe { libc::pthread_mutex_unlock(mutex) };
    // SAFETY: it is free and nobody else knows it.
    unsafe { libc::pthread_mutex_destroy(mutex) };
    // SAFETY: initialised above, used for the last time.
    unsafe { libc::pthread_mutexattr_destroy(attributes) };
}

/// Has the child of every fork from now on know that it is one.
fn watch_forks() {
    static WATCHING: OnceLock<()> = OnceLock::new();
    WATCHING.get_or_init(|| {
        // SAFETY: the handler is async-signal-safe: it stores to a thread-local without destructor and to atomics.
        let refused = unsafe { libc::pthread_atfork(None, None, Some(on_fork_child)) };
        assert!(refused == 0, "no memory for a fork handler");
    });
}

/// In the child of a fork: another TID, an empty list (libc has emptied it), and nothing of the parent's is ours.
extern "C" fn on_fork_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    THREAD.with(|thread| {
        thread.tid.set(0);
        thread.nested.set(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_libc_is_supported() {
        check_supported().unwrap();
        with(|thread| {
            // SAFETY: gettid has no preconditions.
            assert_eq!(thread.tid(), unsafe { libc::gettid() }.unsigned_abs());
            assert!(is_own_thread(thread.tid()));
        });
        assert!(!is_own_thread(0));
    }

    #[test]
    fn what_others_link_and_unlink_does_not_use_up_the_room() {
        let (libc_s, ours) = (Node::new(), Node::new());
        with(|thread| {
            for _ in 0..3 * HELD_MOST {
                link_into(thread.head(), &libc_s);
                thread.link(&ours);
                unlink_from(thread.head(), &libc_s);
                thread.unlink(&ours);
            }
            thread.link(&ours);
            thread.unlink(&ours);
            assert!(thread.has_room());
        });
    }

    #[test]
    fn nodes_leave_the_list_in_any_order() {
        let nodes = [Node::new(), Node::new(), Node::new()];
        with(|thread| {
            let empty = thread.head().list.load(Ordering::Relaxed);
            for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
                nodes.iter().for_each(|node| thread.link(node));
                order.iter().for_each(|&index| thread.unlink(&nodes[index]));
                assert_eq!(thread.head().list.load(Ordering::Relaxed), empty);
            }
        });
    }
}
