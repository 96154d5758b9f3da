//! A process's hold on one mapped segment, and the life of its name.
//!
//! A named segment is built without a name and linked in whole, so that a half-built one is never seen and a killed creator leaves
//! nothing. Every attachment holds a shared `flock` on an open file description of its own; whoever detaches, or is refused, or
//! finds a name taken, tries to *reap*: an exclusive `flock` on a fresh description says that nobody is attached any more, and the
//! name goes. The lock of an attachment is never upgraded: a failed upgrade would lose it.
//!
//! Deliberately absent: pid files, a daemon, a count of users. The kernel counts, and it counts right after any kill.

#![expect(unsafe_code, reason = "mapped bytes become the tables and words that the layout says lie there")]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::directory::{self, Bytes, Entry};
use super::layout::{LIVE_OFFSET, Live, Shape};
use super::life::{Reaped, cannot_open_file, is_reaped, reap};
use super::name;
use super::options::SegmentOptions;
use super::preamble::{checked_preamble, corrupted, is_of_another_namespace, objects_offset, write_preamble};
use super::room::reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::primitive::{AtomicBool, Ordering};
use crate::raw::copy;
use crate::raw::lock::{Linked, RawLock};
use crate::sys::clock::Deadline;
use crate::sys::memory::{Access, Mapping};
use crate::sys::robust;
use crate::sys::shm::{self, Lock, Status, Unnamed};

/// How long the last to detach waits for a dead one's descriptors to be closed.
const DEATH_TIMEOUT: Duration = Duration::from_millis(250);
const DEATH_PAUSE: Duration = Duration::from_millis(1);
/// How long an attach waits for somebody who is just deciding whether the name may go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_micros(200);

/// One mapping of one segment. Shared by all handles into it; dropping the last detaches.
pub(crate) struct Attachment {
    /// `None` only while it is dropped.
    mapping: Option<Mapping>,
    file: Option<File>,
    /// `None` for an anonymous segment.
    name: Option<String>,
    status: Status,
    /// Copied once; the segment's own words are not asked again.
    size: usize,
    objects_offset: usize,
    access: Access,
    /// Whether the segment belongs to another PID namespace or boot: then no lock in it may be taken.
    is_foreign_namespace: bool,
    /// Somebody who was attached has died: it may still be on its way out, and count as attached, when this process detaches.
    has_seen_death: AtomicBool,
    forks: u32,
}

impl Attachment {
    /// Makes a segment with room for `room` bytes of objects, lets `build` fill it, and then gives it its name, if it has one.
    pub(crate) fn create<R>(
        name: Option<&str>,
        room: usize,
        options: &SegmentOptions,
        build: impl FnOnce(&Arc<Attachment>) -> Result<R>,
    ) -> Result<(Arc<Attachment>, R)> {
        if let Some(name) = name {
            name::check_segment(name)?;
        }
        options.check(name.is_some())?;
        options.check_creating()?;
        robust::check_supported()?;
        if let Some(name) = name
            && shm::status_of_name(name).is_ok()
            && !is_reaped(name)
        {
            // Before any memory is taken for it. The link below asks again.
            return Err(Error::new(ErrorKind::AlreadyExists, "the name is taken"));
        }
        let objects_offset = objects_offset(options.participants);
        let size = objects_offset
            .checked_add(room)
            .and_then(|size| size.checked_next_multiple_of(options.page_size()))
            .filter(|&size| i64::try_from(size).is_ok())
            .ok_or_else(|| {
                Error::new(ErrorKind::NoRoom, format!("{room} bytes are more than can be counted"))
            })?;

        let unnamed = make_file(name, size, options)?;
        let file = unnamed.as_file();
        reserve(file, size)?;
        let map_options = options.map_options();
        let mapping = Mapping::new(file, 0, size, map_options)
            .map_err(|source| Error::os(format!("its {size} bytes cannot be mapped"), source))?;
        write_preamble(&mapping, size, objects_offset, name.is_none(), options);
        let file = file.try_clone().map_err(|source| Error::os("its descriptor cannot be kept", source))?;
        let status = shm::status(&file).map_err(|source| Error::os("its file cannot be asked", source))?;
        // Nobody else knows the file, so this cannot be refused.
        shm::try_flock(&file, Lock::Shared)
            .map_err(|source| Error::os("its file cannot be locked", source))?;
        let attachment = Attachment {
            mapping: Some(mapping),
            file: Some(file),
            name: name.map(str::to_owned),
            status,
            size,
            objects_offset,
            access: Access::ReadWrite,
            is_foreign_namespace: false,
            has_seen_death: AtomicBool::new(false),
            forks: robust::forks(),
        };
        let attachment = Arc::new(attachment);
        let built = build(&attachment)?;
        if let Some(name) = name {
            link(&unnamed, name)?;
        }
        Ok((attachment, built))
    }

    /// Attaches to the segment of this name.
    pub(crate) fn open(name: &str, options: &SegmentOptions) -> Result<Arc<Attachment>> {
        name::check_segment(name)?;
        options.check(true)?;
        robust::check_supported()?;
        let deadline = Deadline::after(BUSY_TIMEOUT);
        let attached = loop {
            if deadline.has_passed() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "another program keeps its file locked, or replaces it all the time",
                ));
            }
            let file =
                shm::open(name, !options.read_only).map_err(|source| cannot_open_file(source, options))?;
            let locked = shm::try_flock(&file, Lock::Shared)
                .map_err(|source| Error::os("its file cannot be locked", source))?;
            if !locked {
                // Somebody decides just now whether the name may go: it will be gone, or free to attach to.
                drop(file);
                std::thread::sleep(BUSY_PAUSE);
                continue;
            }
            let status =
                shm::status(&file).map_err(|source| Error::os("its file cannot be asked", source))?;
            match shm::status_of_name(name) {
                Ok(named) if named.is_same_file(&status) => {}
                // Unlinked, or replaced, between our open and our lock.
                _ => continue,
            }
            break Attachment::of_file(file, status, Some(name.to_owned()), options);
        };
        attached.inspect_err(|_| {
            // The refused attach may have been the last user. What cannot be removed stays for the next one.
            let _ = reap(name);
        })
    }

    /// Attaches through a descriptor that another process handed over. `name` is the segment's, if it has one.
    pub(crate) fn of_descriptor(descriptor: File, name: Option<String>) -> Result<Arc<Attachment>> {
        robust::check_supported()?;
        let options = SegmentOptions::handed_over(&descriptor);
        // A description of its own, so that its flock is its own; where /proc is missing, the message's is kept.
        let (file, sent) = match shm::reopen(&descriptor, !options.read_only) {
            Ok(file) => (file, Some(descriptor)),
            Err(_) => (descriptor, None),
        };
        let locked = shm::try_flock(&file, Lock::Shared)
            .map_err(|source| Error::os("its file cannot be locked", source))?;
        if !locked {
            return Err(Error::new(ErrorKind::Busy, "another program keeps its file locked"));
        }
        if let Some(sent) = sent {
            // The message's description kept the name until now; see `drop` for why it is not only closed.
            let _ = shm::unlock(&sent);
        }
        let status = shm::status(&file).map_err(|source| Error::os("its file cannot be asked", source))?;
        Attachment::of_file(file, status, name, &options)
    }

    fn of_file(
        file: File,
        status: Status,
        name: Option<String>,
        options: &SegmentOptions,
    ) -> Result<Arc<Attachment>> {
        let preamble = checked_preamble(&file, &status, options)?;
        let size = usize::try_from(status.size).map_err(|_| corrupted("its size cannot be addressed"))?;
        let mapping = Mapping::new(&file, 0, size, options.map_options())
            .map_err(|source| Error::os(format!("its {size} bytes cannot be mapped"), source))?;
        let is_foreign_namespace = is_of_another_namespace(&preamble);
        let attachment = Attachment {
            mapping: Some(mapping),
            file: Some(file),
            name,
            status,
            size,
            objects_offset: usize::try_from(preamble.objects_offset)
                .map_err(|_| corrupted("its size cannot be addressed"))?,
            access: if options.read_only { Access::ReadOnly } else { Access::ReadWrite },
            is_foreign_namespace,
            has_seen_death: AtomicBool::new(false),
            forks: robust::forks(),
        };
        Ok(Arc::new(attachment))
    }

    /// Somebody who was attached has died.
    pub(crate) fn note_death(&self) {
        self.has_seen_death.store(true, Ordering::Relaxed);
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// As messages name it.
    pub(crate) fn label(&self) -> &str {
        self.name().unwrap_or("")
    }

    /// A descriptor for a message, of a description of its own: it keeps the name until the message is received, whatever its sender does
    /// with its own. Where /proc is missing, it is the sender's.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        let own = self.file.as_ref().expect("open until it is dropped");
        let cannot = |source| Error::os("its descriptor cannot be sent", source);
        match shm::reopen(own, self.is_writable()) {
            Ok(file) => {
                shm::try_flock(&file, Lock::Shared).map_err(cannot)?;
                Ok(file.into())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                own.try_clone().map(OwnedFd::from).map_err(cannot)
            }
            Err(error) => Err(cannot(error)),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Whether the name still leads to this segment; `None` if it never had one.
    pub(crate) fn is_linked(&self) -> bool {
        self.name()
            .is_some_and(|name| shm::status_of_name(name).is_ok_and(|named| named.is_same_file(&self.status)))
    }

    /// Removes the name, if it still leads here.
    pub(crate) fn unlink(&self) -> Result<()> {
        match self.name() {
            Some(name) if self.is_linked() => {
                shm::unlink(name).map_err(|source| Error::os("its name cannot be removed", source))
            }
            Some(_) => Err(Error::new(ErrorKind::NotFound, "its name leads nowhere, or to another segment")),
            None => Err(Error::new(ErrorKind::InvalidInput, "it has no name")),
        }
    }

    /// Bytes for objects, used and free.
    pub(crate) fn room(&self) -> usize {
        self.size - self.objects_offset
    }

    /// Bytes behind the last object.
    pub(crate) fn room_left(&self) -> Result<usize> {
        Ok(self.size - self.used(self.newest())?)
    }

    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        directory::entries(self, self.newest()).collect()
    }

    /// The object of this name, if it is what `expected` says.
    pub(crate) fn find(&self, name: &str, expected: &Shape) -> Result<Entry> {
        name::check_object(name)?;
        let entry = directory::find(self, self.newest(), name)?.ok_or_else(|| self.no_such_object(name))?;
        self.admit(&entry, expected)?;
        Ok(entry)
    }

    /// The object of the directory entry at this offset, if it is what `expected` says.
    pub(crate) fn find_at(&self, entry_offset: usize, expected: &Shape) -> Result<Entry> {
        let entry = directory::entry_at(self, entry_offset)?;
        self.admit(&entry, expected)?;
        Ok(entry)
    }

    fn admit(&self, entry: &Entry, expected: &Shape) -> Result<()> {
        entry.check(expected)?;
        let needs_lock = expected.kind.locks() && expected.kind != super::layout::Kind::Value;
        if !self.is_writable() && needs_lock {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!(
                    "the segment is attached read-only, and {} has to be locked",
                    article_and_name(entry)
                ),
            ));
        }
        if self.is_foreign_namespace && expected.kind.locks() {
            return Err(Error::new(
                ErrorKind::OtherNamespace,
                format!(
                    "the segment was made in another PID namespace, where the locks of {} mean nothing here",
                    article_and_name(entry)
                ),
            ));
        }
        Ok(())
    }

    fn no_such_object(&self, name: &str) -> Error {
        let names: Vec<String> = match self.entries() {
            Ok(entries) => entries.iter().rev().take(8).map(|entry| format!("{:?}", entry.name)).collect(),
            Err(error) => return error,
        };
        let holds = if names.is_empty() {
            "it holds none".to_owned()
        } else {
            format!("it holds {}", names.join(", "))
        };
        Error::new(ErrorKind::NotFound, format!("segment {:?} has no object {name:?}; {holds}", self.label()))
    }

    /// Builds an object and publishes it under `name`. `init` writes the object's own bytes, which are zero; nobody else sees them.
    pub(crate) fn build(&self, name: &str, shape: &Shape, init: impl FnOnce(NonNull<u8>)) -> Result<Entry> {
        name::check_object(name)?;
        if !self.is_writable() {
            return Err(Error::new(ErrorKind::ReadOnly, "the segment is attached read-only"));
        }
        if self.is_foreign_namespace {
            return Err(Error::new(
                ErrorKind::OtherNamespace,
                "the segment was made in another PID namespace",
            ));
        }
        let live = self.live();
        // A creator that died while it held the lock left litter behind the newest entry, and nothing else.
        let held = live
            .lock
            .lock::<Linked>(Deadline::Never)
            .unwrap_or_else(|_| unreachable!("it may wait for ever"));
        live.lock.recover();
        let unlock = Unlock { lock: &live.lock, held: Some(held) };

        let newest = self.newest();
        if directory::find(self, newest, name)?.is_some() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("segment {:?} has an object of that name", self.label()),
            ));
        }
        let used = self.used(newest)?;
        let plan = directory::plan(name, shape, newest, used, self.size)?;

        let touched =
            usize::try_from(live.touched.load(Ordering::Relaxed)).unwrap_or(self.size).min(plan.end);
        if touched > used {
            self.wipe(used, touched - used);
        }
        live.touched.fetch_max(plan.end as u64, Ordering::Release);
        let object = self.at(plan.object_offset);
        init(object);
        let header = object.cast::<super::layout::ObjectHeader>();
        // SAFETY: the plan put the object inside the mapping, aligned to 64 bytes, zeroed, and ours alone until it is published.
        let header = unsafe { header.as_ref() };
        header.kind.store(shape.kind as u32, Ordering::Relaxed);
        self.write(plan.entry_offset, &plan.entry);
        // Publishes: pairs with the Acquire of `newest`.
        live.newest.store(plan.entry_offset as u64, Ordering::Release);
        drop(unlock);
        directory::find(self, plan.entry_offset, name)?
            .ok_or_else(|| corrupted("its directory changes under us"))
    }

    /// The address of `offset`, which the caller has checked.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.size, "offsets are checked when they are read");
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.base().add(offset) }
    }

    fn base(&self) -> NonNull<u8> {
        self.mapping.as_ref().expect("mapped until it is dropped").base()
    }

    fn newest(&self) -> usize {
        // Pairs with the Release in `build`: the entry and its object are whole.
        usize::try_from(self.live().newest.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    /// The first byte behind the newest entry.
    fn used(&self, newest: usize) -> Result<usize> {
        match directory::entries(self, newest).next() {
            None => Ok(self.objects_offset),
            Some(entry) => Ok(entry?.end.next_multiple_of(8)),
        }
    }

    fn live(&self) -> &Live {
        // SAFETY: every segment is larger than its fixed part, which was checked; the words are atomics, aligned to 8.
        unsafe { self.at(LIVE_OFFSET).cast::<Live>().as_ref() }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.size), "the plan is inside");
        // SAFETY: in bounds; readers of the directory read atomically.
        unsafe { copy::store(bytes.as_ptr(), self.at(offset).as_ptr(), bytes.len()) };
    }

    fn wipe(&self, offset: usize, size: usize) {
        assert!(offset.checked_add(size).is_some_and(|end| end <= self.size), "the plan is inside");
        // SAFETY: in bounds; readers of the directory read atomically.
        unsafe { copy::fill_with_zeros(self.at(offset).as_ptr(), size) };
    }
}

impl Bytes for Attachment {
    fn size(&self) -> usize {
        self.size
    }

    fn objects_offset(&self) -> usize {
        self.objects_offset
    }

    fn read(&self, offset: usize, target: &mut [u8]) {
        assert!(
            offset.checked_add(target.len()).is_some_and(|end| end <= self.size),
            "bounds are checked first"
        );
        // SAFETY: in bounds; whoever writes there writes atomically.
        unsafe { copy::load(self.at(offset).as_ptr(), target.as_mut_ptr(), target.len()) };
    }
}

/// Gives the segment's lock back whatever happens.
struct Unlock<'a> {
    lock: &'a RawLock,
    held: Option<crate::raw::lock::Held>,
}

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.lock.unlock::<Linked>(held);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let is_own = self.forks == robust::forks();
        drop(self.mapping.take());
        if let Some(file) = self.file.take()
            && is_own
        {
            // Closing alone would not do: a child of this process that is just being started holds a copy of every description until
            // its exec. Should the kernel refuse, the close does it a moment later.
            let _ = shm::unlock(&file);
        }
        if is_own && let Some(name) = self.name() {
            // A dead owner's locks are given away before its descriptors are closed: it may count as attached for a moment more, and
            // nobody comes after us. What cannot be removed then stays for the next one who looks.
            let patience =
                if self.has_seen_death.load(Ordering::Relaxed) { DEATH_TIMEOUT } else { Duration::ZERO };
            let deadline = Deadline::after(patience);
            while matches!(reap(name), Ok(Reaped::InUse)) && !deadline.has_passed() {
                std::thread::sleep(DEATH_PAUSE);
            }
        }
    }
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

/// The file of a segment that is being made.
enum NewFile {
    Named(Unnamed),
    Memory(File),
}

impl NewFile {
    fn as_file(&self) -> &File {
        match self {
            NewFile::Named(unnamed) => &unnamed.file,
            NewFile::Memory(file) => file,
        }
    }
}

fn make_file(name: Option<&str>, size: usize, options: &SegmentOptions) -> Result<NewFile> {
    match name {
        Some(_) => {
            let unnamed = Unnamed::create(options.mode)
                .map_err(|source| Error::os("no file can be made in /dev/shm", source))?;
            Ok(NewFile::Named(unnamed))
        }
        None => {
            let cannot = |source| Error::os("no file can be made in memory", source);
            let file = shm::memfd("multiproc", options.huge_pages).map_err(cannot)?;
            file.set_len(size as u64)
                .map_err(|source| Error::os(format!("no memory for {size} bytes"), source))?;
            shm::seal_size(&file).map_err(cannot)?;
            Ok(NewFile::Memory(file))
        }
    }
}

fn link(unnamed: &NewFile, name: &str) -> Result<()> {
    let NewFile::Named(unnamed) = unnamed else { return Ok(()) };
    for attempt in 0.. {
        match unnamed.link(name) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // Perhaps it is what a killed process left behind.
                let was_left = is_reaped(name);
                if !was_left || attempt == 8 {
                    return Err(Error::os("the name is taken", error));
                }
            }
            Err(error) => return Err(Error::os("its name cannot be made", error)),
        }
    }
    unreachable!("the loop returns")
}

fn article_and_name(entry: &Entry) -> String {
    format!("{} {:?}", entry.kind.name(), entry.name)
}

/// Keeps a mapping for as long as the process lives: a lock in it is held by a guard that was forgotten.
pub(crate) fn leak(attachment: &Arc<Attachment>) {
    let _stays = ManuallyDrop::new(Arc::clone(attachment));
}
