//! Files of shared memory: named ones on the shared-memory file system, and memfds.
//!
//! A POSIX shared-memory object `name` is the file `/dev/shm/name`, which is how libc's `shm_open` opens it too
//! ([shm_open(3)](https://man7.org/linux/man-pages/man3/shm_open.3.html)); going by the path is what lets a segment be
//! built without a name and be linked in whole ([open(2)](https://man7.org/linux/man-pages/man2/open.2.html), O_TMPFILE).

#![expect(unsafe_code, reason = "flock on a borrowed file has no safe wrapper")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::linkat;

use crate::primitive::{AtomicU64, Ordering};

/// Where the kernel's shared-memory file system is mounted, for libc as for us.
const DIRECTORY: &str = "/dev/shm";

/// What the kernel says of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) user: u32,
    /// The permission bits.
    pub(crate) mode: u32,
    pub(crate) is_regular: bool,
    pub(crate) is_linked: bool,
}

impl Status {
    fn of(metadata: &fs::Metadata) -> Status {
        Status {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            user: metadata.uid(),
            mode: metadata.mode() & 0o7777,
            is_regular: metadata.is_file(),
            is_linked: metadata.nlink() > 0,
        }
    }

    pub(crate) fn is_same_file(&self, other: &Status) -> bool {
        self.device == other.device && self.inode == other.inode
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(name)
}

/// A file on the shared-memory file system that has no name yet, so that nobody sees it while it is built.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub(crate) file: File,
    /// Where the file system has no O_TMPFILE: the name it has meanwhile.
    temporary: Option<PathBuf>,
}

impl Unnamed {
    /// Makes one, empty. The umask does not apply to its mode.
    pub(crate) fn create(mode: u32) -> io::Result<Unnamed> {
        let unnamed = match fs::OpenOptions::new()
            .read(true)
            .write(true)
            .mode(mode)
            .custom_flags(libc::O_TMPFILE)
            .open(DIRECTORY)
        {
            Ok(file) => Unnamed { file, temporary: None },
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                Unnamed::create_under_temporary_name(mode)?
            }
            Err(error) => return Err(error),
        };
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        unnamed.file.set_permissions(permissions)?;
        Ok(unnamed)
    }

    fn create_under_temporary_name(mode: u32) -> io::Result<Unnamed> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = path_of(&format!(".multiproc-{}-{count}", std::process::id()));
            match fs::OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path) {
                // Left by a killed process that had this pid.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok(Unnamed { file: opened?, temporary: Some(path) }),
            }
        }
    }

    /// Gives the file its name, in one step; `AlreadyExists` if that is taken.
    pub(crate) fn link(&self, name: &str) -> io::Result<()> {
        let target = path_of(name);
        if let Some(temporary) = &self.temporary {
            return fs::hard_link(temporary, target);
        }
        match linkat(self.file.as_fd(), c"", AT_FDCWD, &target, AtFlags::AT_EMPTY_PATH) {
            // Before Linux 6.10 that takes a capability; without it there is the way through /proc.
            Err(nix::Error::ENOENT | nix::Error::EPERM) => {
                let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                Ok(linkat(AT_FDCWD, source.as_str(), AT_FDCWD, &target, AtFlags::AT_SYMLINK_FOLLOW)?)
            }
            linked => Ok(linked?),
        }
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Should it stay behind: it has a leading dot, so no open of ours can take it for a segment.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Opens what has this name, without following a link and without waiting for a FIFO's other end.
pub(crate) fn open(name: &str, writable: bool) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path_of(name))
}

/// Opens a file again that this process has open, as an open file description of its own.
pub(crate) fn reopen(file: &impl AsRawFd, writable: bool) -> io::Result<File> {
    fs::OpenOptions::new().read(true).write(writable).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether a descriptor was opened for writing.
pub(crate) fn is_writable(file: &impl AsFd) -> bool {
    fcntl(file, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Removes a name.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    fs::remove_file(path_of(name))
}

/// The names on the shared-memory file system that are UTF-8.
pub(crate) fn names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(DIRECTORY)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

pub(crate) fn status(file: &File) -> io::Result<Status> {
    Ok(Status::of(&file.metadata()?))
}

/// What has this name now; a link is not followed.
pub(crate) fn status_of_name(name: &str) -> io::Result<Status> {
    Ok(Status::of(&fs::symlink_metadata(path_of(name))?))
}

/// Room on the file system that holds `file`, in bytes; `None` where it has no limit of its own.
pub(crate) fn room(file: &File) -> io::Result<Option<u64>> {
    let status = fstatvfs(file)?;
    Ok((status.blocks() > 0).then(|| status.blocks_available().saturating_mul(status.fragment_size())))
}

/// Makes `file` `size` bytes long, with every page reserved: a full file system is an error now, not a SIGBUS later.
pub(crate) fn reserve(file: &File, offset: u64, size: u64) -> io::Result<()> {
    let (offset, size) = (signed(offset)?, signed(size)?);
    loop {
        match fallocate(file, FallocateFlags::empty(), offset, size) {
            Err(nix::Error::EINTR) => {}
            reserved => return Ok(reserved?),
        }
    }
}

/// Gives the pages of a range back; it reads as zeros.
pub(crate) fn punch(file: &File, offset: u64, size: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, signed(offset)?, signed(size)?)?)
}

fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// How a file is locked as a whole, by its open file description ([flock(2)](https://man7.org/linux/man-pages/man2/flock.2.html)).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// Locks without waiting; `false` if somebody holds it the other way.
pub(crate) fn try_flock(file: &File, lock: Lock) -> io::Result<bool> {
    let operation = match lock {
        Lock::Shared => libc::LOCK_SH | libc::LOCK_NB,
        Lock::Exclusive => libc::LOCK_EX | libc::LOCK_NB,
    };
    loop {
        // SAFETY: the descriptor is open, for the file is borrowed.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EWOULDBLOCK) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Gives the lock of an open file description back, whoever else has it open.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, for the file is borrowed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A file in memory that has no name. `name` is what `/proc` shows.
pub(crate) fn memfd(name: &str, huge_pages: bool) -> io::Result<File> {
    let name = CString::new(name)?;
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if huge_pages {
        flags |= MFdFlags::MFD_HUGETLB;
    }
    Ok(File::from(memfd_create(name.as_c_str(), flags)?))
}

/// Fixes the size of a memfd for good, so that nobody who maps it can be hit by SIGBUS.
pub(crate) fn seal_size(file: &File) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Whether a memfd's size is fixed for good. Only a memfd can say so.
pub(crate) fn has_sealed_size(file: &impl AsFd) -> io::Result<bool> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    Ok(seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))
}

/// The largest file this process may make, if it is limited.
pub(crate) fn largest_file() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}
