//! How a segment is made or attached.

use std::fs::File;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::memory::{Access, MapOptions, page_size};

/// The size of the huge pages that are asked for: the machine's default, on x86-64 and aarch64 with 4 KiB pages.
const HUGE_PAGE_SIZE: usize = 2 << 20;

/// How a segment is created or opened: a builder, whose closing verbs are [`create`](SegmentOptions::create),
/// [`open`](SegmentOptions::open), [`open_or_create`](SegmentOptions::open_or_create) and
/// [`anonymous`](SegmentOptions::anonymous).
///
/// # Examples
///
/// ```
/// use multiproc::Segment;
///
/// # fn main() -> multiproc::Result<()> {
/// # let name = format!("doc-options-{}", std::process::id());
/// let market = Segment::options().mode(0o640).populate().create(&name, 1 << 20)?;
/// let watcher = Segment::options().read_only().open(&name)?;
/// # drop((market, watcher));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before its closing verb"]
pub struct SegmentOptions {
    pub(crate) mode: u32,
    pub(crate) persist: bool,
    pub(crate) populate: bool,
    pub(crate) huge_pages: bool,
    pub(crate) lock_memory: bool,
    pub(crate) read_only: bool,
    pub(crate) participants: u32,
    pub(crate) owner: Option<u32>,
    pub(crate) any_pid_namespace: bool,
}

impl SegmentOptions {
    pub(crate) fn new() -> SegmentOptions {
        SegmentOptions {
            mode: 0o600,
            persist: false,
            populate: false,
            huge_pages: false,
            lock_memory: false,
            read_only: false,
            participants: 256,
            owner: None,
            any_pid_namespace: false,
        }
    }

    /// For a descriptor that a relative handed over: it may do what the sender may, and the checks of user and namespace
    /// are the sender's.
    pub(crate) fn handed_over(descriptor: &File) -> SegmentOptions {
        let mut options = SegmentOptions::new();
        options.read_only = !crate::sys::shm::is_writable(descriptor);
        options.owner = crate::sys::shm::status(descriptor).ok().map(|status| status.user);
        options
    }

    /// The permission bits of the name, 0600 unless set; the umask does not apply. For creating.
    pub fn mode(mut self, mode: u32) -> SegmentOptions {
        self.mode = mode;
        self
    }

    /// The name stays when the last process has detached, until somebody [unlinks](crate::segment::unlink) it. For creating.
    pub fn persist(mut self) -> SegmentOptions {
        self.persist = true;
        self
    }

    /// Maps every page now, so that no first access pays for it later.
    pub fn populate(mut self) -> SegmentOptions {
        self.populate = true;
        self
    }

    /// Takes huge pages of 2 MiB from the machine's pool. For [anonymous](SegmentOptions::anonymous) segments only: the
    /// shared-memory file system has none, so creating a named one with it is an error.
    pub fn huge_pages(mut self) -> SegmentOptions {
        self.huge_pages = true;
        self
    }

    /// Keeps every page in memory ([mlock(2)](https://man7.org/linux/man-pages/man2/mlock.2.html)); it needs a limit that allows it.
    #[doc(alias = "mlock")]
    pub fn lock_memory(mut self) -> SegmentOptions {
        self.lock_memory = true;
        self
    }

    /// Attaches without the right to write. Values and the raw types can be opened and read; what has to be locked
    /// cannot be opened, and a write panics. For opening.
    pub fn read_only(mut self) -> SegmentOptions {
        self.read_only = true;
        self
    }

    /// Room for so many processes in the participants' table, 256 unless set; each takes 64 bytes of the segment. Attaching alone takes
    /// no place there: it is for what has to know who is attached. For creating.
    pub fn participants(mut self, count: u32) -> SegmentOptions {
        self.participants = count;
        self
    }

    /// The user to whom the segment must belong, this process's own unless set. For opening.
    pub fn owner(mut self, user: u32) -> SegmentOptions {
        self.owner = Some(user);
        self
    }

    /// Opens a segment that was made in another PID namespace, say another container. Only what needs no lock can be
    /// used there: the raw types. Thread ids collide between namespaces, and locks are held by them. For opening.
    pub fn any_pid_namespace(mut self) -> SegmentOptions {
        self.any_pid_namespace = true;
        self
    }

    pub(crate) fn check(&self, is_named: bool) -> Result<()> {
        let refuse = |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, why));
        if self.huge_pages && is_named {
            return refuse(
                "huge pages are for anonymous segments only: the shared-memory file system has none",
            );
        }
        if self.participants == 0 || self.participants > 1 << 16 {
            return refuse("a segment has room for 1 to 65536 participants");
        }
        if self.mode & !0o777 != 0 || self.mode & 0o600 != 0o600 {
            return refuse("the mode has permission bits only, and its owner may read and write");
        }
        Ok(())
    }

    /// What is made is written, at least once.
    pub(crate) fn check_creating(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::InvalidInput, "a segment that is created cannot be read-only"));
        }
        Ok(())
    }

    pub(crate) fn map_options(&self) -> MapOptions {
        let access = if self.read_only { Access::ReadOnly } else { Access::ReadWrite };
        MapOptions { access, populate: self.populate, lock: self.lock_memory }
    }

    pub(crate) fn page_size(&self) -> usize {
        if self.huge_pages { HUGE_PAGE_SIZE } else { page_size() }
    }
}
