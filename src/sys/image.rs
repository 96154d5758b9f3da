//! The program that runs: where it lies in memory, what tells it from every other program, and which file it came from.
//!
//! A function travels to another process as its distance from the load base of the main image, and that means the same
//! thing there only if the same program runs there. What identifies a program is the build id that its linker left in it;
//! without one, the file that is mapped (device and inode), with the table of its segments as a second look.
//!
//! Sources: [dl_iterate_phdr(3)](https://man7.org/linux/man-pages/man3/dl_iterate_phdr.3.html),
//! [elf(5)](https://man7.org/linux/man-pages/man5/elf.5.html),
//! [proc_pid_maps(5)](https://man7.org/linux/man-pages/man5/proc_pid_maps.5.html).

#![expect(unsafe_code, reason = "the loader's tables are raw memory")]

use std::ffi::{CStr, CString, OsStr, c_int, c_void};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::slice;

use libc::{Elf64_Ehdr, Elf64_Phdr, PF_R, PF_X, PT_DYNAMIC, PT_LOAD, PT_NOTE};
use serde::{Deserialize, Serialize};

/// The link that leads to the running program, even when its file was deleted or replaced.
const PROC_SELF_EXE: &CStr = c"/proc/self/exe";
const NT_GNU_BUILD_ID: u32 = 3;
const DT_NULL: u64 = 0;
const DT_INIT_ARRAY: u64 = 25;
const DT_INIT_ARRAYSZ: u64 = 27;
/// More of a file's headers and notes than any linker writes.
const FILE_READ_LIMIT: u64 = 1 << 20;

/// The main program's image in this process. It is never unloaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    base: usize,
    segments: &'static [Elf64_Phdr],
}

/// What tells a program from every other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Identity {
    /// The linker's hash of everything it linked.
    BuildId(Vec<u8>),
    /// Device and inode of the mapped file, and a hash of the table of segments. A file cannot be written while it runs,
    /// and its inode number is not given to another one, so equality holds as long as the process that compares lives.
    File { device: u64, inode: u64, segments: u64 },
}

impl Image {
    /// Finds it; `None` only if the loader lists nothing.
    pub(crate) fn main() -> Option<Image> {
        let mut found: Option<Image> = None;
        // SAFETY: the callback has the type that the call wants, and gets a pointer to `found`, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(take_first), (&raw mut found).cast()) };
        found
    }

    /// How far from the load base something of this image lies.
    pub(crate) fn distance_to(&self, address: usize) -> u64 {
        address.wrapping_sub(self.base) as u64
    }

    /// The distance of a function from the load base; `None` if it lies in a shared library, or in no code at all.
    pub(crate) fn offset_of(&self, function: usize) -> Option<u64> {
        let offset = function.checked_sub(self.base)?;
        self.is_loaded(&(function..function.checked_add(1)?), PF_X).then_some(offset as u64)
    }

    /// The address of the function at a distance from the load base; `None` if no code lies there.
    pub(crate) fn address_of(&self, offset: u64) -> Option<usize> {
        let function = self.base.checked_add(usize::try_from(offset).ok()?)?;
        self.is_loaded(&(function..function.checked_add(1)?), PF_X).then_some(function)
    }

    /// The constructors that are to run after the one whose slot lies at `slot`, in order.
    /// `None` if `slot` is not in the array: this image is not the one with our entry.
    pub(crate) fn constructors_after(&self, slot: usize) -> Option<&'static [usize]> {
        let dynamic = self.segments.iter().find(|segment| segment.p_type == PT_DYNAMIC)?;
        let entries = self.words(self.range(dynamic))?;
        let value =
            |tag| entries.chunks_exact(2).take_while(|e| e[0] as u64 != DT_NULL).find(|e| e[0] as u64 == tag);
        let start = self.base.checked_add(value(DT_INIT_ARRAY)?[1])?;
        let size = value(DT_INIT_ARRAYSZ)?[1];
        let array = self.words(start..start.checked_add(size)?)?;
        let index = slot.checked_sub(start)? / size_of::<usize>();
        array.get(index + 1..)
    }

    /// What tells this program from every other one.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        if let Some(build_id) = self.build_id() {
            return Ok(Identity::BuildId(build_id.to_vec()));
        }
        let mapping = Mapping::of(self)?;
        Ok(Identity::File { device: mapping.device, inode: mapping.inode, segments: self.hash_of_segments() })
    }

    fn build_id(&self) -> Option<&'static [u8]> {
        let notes = self.segments.iter().filter(|segment| segment.p_type == PT_NOTE);
        notes.filter_map(|note| build_id_in(self.bytes(self.range(note))?, note.p_align)).next()
    }

    /// FNV-1a over what the linker decided: offsets, addresses and sizes of all segments.
    fn hash_of_segments(&self) -> u64 {
        let words = self.segments.iter().flat_map(|segment| {
            [u64::from(segment.p_type), segment.p_offset, segment.p_vaddr, segment.p_filesz, segment.p_memsz]
        });
        words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3))
    }

    fn range(&self, segment: &Elf64_Phdr) -> Range<usize> {
        let start = self.base.wrapping_add(segment.p_vaddr as usize);
        start..start.saturating_add(segment.p_memsz as usize)
    }

    /// Whether a whole range lies in one loaded segment that has these access flags.
    fn is_loaded(&self, range: &Range<usize>, flags: u32) -> bool {
        self.segments.iter().any(|segment| {
            let loaded = self.range(segment);
            segment.p_type == PT_LOAD
                && segment.p_flags & flags == flags
                && loaded.start <= range.start
                && range.end <= loaded.end
        })
    }

    fn bytes(&self, range: Range<usize>) -> Option<&'static [u8]> {
        if range.is_empty() || !self.is_loaded(&range, PF_R) {
            return None;
        }
        // SAFETY: the range lies in one loaded, readable segment of the main image, which is never unloaded; notes are
        // constants of the linker that nobody writes.
        Some(unsafe { slice::from_raw_parts(std::ptr::with_exposed_provenance(range.start), range.len()) })
    }

    /// The words of a table that only the loader wrote, before any constructor ran.
    fn words(&self, range: Range<usize>) -> Option<&'static [usize]> {
        if range.is_empty() || range.start % align_of::<usize>() != 0 || !self.is_loaded(&range, PF_R) {
            return None;
        }
        let count = range.len() / size_of::<usize>();
        // SAFETY: the range is aligned and lies in one loaded, readable segment of the main image, which is never unloaded;
        // the loader finished writing there (relocations) before it called the first constructor.
        Some(unsafe { slice::from_raw_parts(std::ptr::with_exposed_provenance(range.start), count) })
    }
}

/// Takes the first image that the loader lists, which is the main program, and stops.
unsafe extern "C" fn take_first(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader passes a live description of an image.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 1;
    }
    // SAFETY: `dlpi_phdr` points at `dlpi_phnum` program headers, which stay where they are as long as the image is loaded;
    // the main program is never unloaded.
    let segments = unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let found = found.cast::<Option<Image>>();
    // SAFETY: `found` is the pointer that `Image::main` passed, to a live Option<Image> that nobody else uses now.
    unsafe { found.write(Some(Image { base: info.dlpi_addr as usize, segments })) };
    1
}

/// The GNU build id in the bytes of a note segment. The bytes may be anything.
fn build_id_in(mut notes: &[u8], align: u64) -> Option<&[u8]> {
    let align = if align == 8 { 8 } else { 4 };
    loop {
        let (header, rest) = notes.split_at_checked(12)?;
        let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (name_size, value_size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        // The header's 12 bytes count for the alignment of what follows it.
        let value_at = (12 + name_size).next_multiple_of(align).checked_sub(12)?;
        let name = rest.get(..name_size)?;
        let value = rest.get(value_at..value_at.checked_add(value_size)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !value.is_empty() {
            return Some(value);
        }
        notes = rest.get((12 + value_at + value_size).next_multiple_of(align).checked_sub(12)?..)?;
    }
}

/// The build id of a program on disk. The file may hold anything.
fn build_id_of_file(file: &File) -> Option<Vec<u8>> {
    let mut header = [0; size_of::<Elf64_Ehdr>()];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let number = |bytes: &[u8], at: usize, size: usize| {
        let mut whole = [0; 8];
        whole.get_mut(..size)?.copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_le_bytes(whole))
    };
    let (table_at, entry_size, count) =
        (number(&header, 32, 8)?, number(&header, 54, 2)?, number(&header, 56, 2)?);
    if entry_size != size_of::<Elf64_Phdr>() as u64 || cfg!(target_endian = "big") {
        return None;
    }
    let table = read(file, table_at, entry_size * count)?;
    table.chunks_exact(size_of::<Elf64_Phdr>()).find_map(|segment| {
        if number(segment, 0, 4)? != u64::from(PT_NOTE) {
            return None;
        }
        let notes = read(file, number(segment, 8, 8)?, number(segment, 32, 8)?)?;
        build_id_in(&notes, number(segment, 48, 8)?).map(<[u8]>::to_vec)
    })
}

fn read(file: &File, offset: u64, size: u64) -> Option<Vec<u8>> {
    if size > FILE_READ_LIMIT {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// The file from which the main image is mapped.
struct Mapping {
    device: u64,
    inode: u64,
    path: PathBuf,
}

impl Mapping {
    fn of(image: &Image) -> io::Result<Mapping> {
        let code =
            image.segments.iter().find(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_X != 0);
        let address = code.map_or(0, |code| image.range(code).start);
        let maps = fs::read("/proc/self/maps")?;
        maps.split(|&byte| byte == b'\n')
            .find_map(|line| Mapping::parse(line, address))
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the program's own mapping is not listed"))
    }

    /// One line: `start-end perms offset major:minor inode path`; `None` if it does not hold `address`.
    fn parse(line: &[u8], address: usize) -> Option<Mapping> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = field()?.split_once('-')?;
        let held = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        if !held.contains(&address) {
            return None;
        }
        let (major, minor) = field().and(field()).and(field())?.split_once(':')?;
        let device =
            libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        let inode = field()?.parse().ok().filter(|&inode| inode != 0)?;
        let path = PathBuf::from(OsStr::from_bytes(fields.next()?.trim_ascii_start()));
        Some(Mapping { device, inode, path })
    }
}

/// The file that starts this program again, with what tells whether it still is that file.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: CString,
    /// Device, inode, size and time of the last change, when the path was compared; `None` for `/proc/self/exe`.
    seen: Option<[u64; 5]>,
}

impl Program {
    /// Finds it: the first of the link target of `/proc/self/exe`, the path that was executed and the path of our own
    /// mapping that is the running program (the same build id, or, where there is none, the same file); else
    /// `/proc/self/exe`. The plain path gives the child its own name in `ps`, and works under valgrind and `ld.so ./program`.
    pub(crate) fn find(image: &Image) -> Program {
        let mapping = Mapping::of(image).ok();
        let link = fs::read_link(OsStr::from_bytes(PROC_SELF_EXE.to_bytes())).ok();
        let mapped = mapping.as_ref().map(|mapping| mapping.path.clone());
        let candidates = [link, executed_path(), mapped];
        let found = candidates.into_iter().flatten().find_map(|path| {
            let path = fs::canonicalize(path).ok()?;
            let file = File::open(&path).ok()?;
            let same = match (image.build_id(), build_id_of_file(&file)) {
                (Some(ours), Some(theirs)) => ours == theirs,
                (None, None) => {
                    let (mapping, found) = (mapping.as_ref()?, file.metadata().ok()?);
                    (mapping.device, mapping.inode) == (found.dev(), found.ino())
                }
                _ => false,
            };
            let seen = Some(fingerprint(&file.metadata().ok()?));
            let path = CString::new(path.into_os_string().into_vec()).ok()?;
            same.then_some(Program { path, seen })
        });
        found.unwrap_or(Program { path: PROC_SELF_EXE.to_owned(), seen: None })
    }

    /// Whether the file is still the one that was found.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.seen.is_none_or(|seen| {
            let path = Path::new(OsStr::from_bytes(self.path.to_bytes()));
            fs::metadata(path).is_ok_and(|found| fingerprint(&found) == seen)
        })
    }
}

fn fingerprint(found: &fs::Metadata) -> [u64; 5] {
    let changed = (found.ctime().unsigned_abs(), found.ctime_nsec().unsigned_abs());
    [found.dev(), found.ino(), found.size(), changed.0, changed.1]
}

/// The path that was given to execve; it may be relative, and to a directory that has been left.
fn executed_path() -> Option<PathBuf> {
    // SAFETY: getauxval only looks the key up; 0 is the answer for a key that is not there.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) } as usize;
    if address == 0 {
        return None;
    }
    // SAFETY: AT_EXECFN is the address of a NUL-terminated string above the stack, which lives as long as the process.
    let path = unsafe { CStr::from_ptr(std::ptr::with_exposed_provenance(address)) };
    Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_own_code_and_not_the_libraries() {
        static NO_CODE: u64 = 0;
        let image = Image::main().unwrap();
        let own = finds_its_own_code_and_not_the_libraries as fn() as usize;
        let offset = image.offset_of(own).unwrap();
        assert_eq!(image.address_of(offset), Some(own));
        assert_eq!(image.offset_of(libc::getpid as *const () as usize), None);
        assert_eq!(image.address_of(u64::MAX), None);
        assert_eq!(image.offset_of((&raw const NO_CODE).addr()), None);
    }

    #[test]
    fn knows_itself_again_on_disk() {
        let image = Image::main().unwrap();
        let program = Program::find(&image);
        assert!(program.is_unchanged());
        assert_eq!(program.path.to_str().unwrap(), std::env::current_exe().unwrap().to_str().unwrap());
        assert_eq!(image.identity().unwrap(), image.identity().unwrap());
        let mapping = Mapping::of(&image).unwrap();
        assert_eq!(mapping.inode, fs::metadata("/proc/self/exe").unwrap().ino());
        if let Some(build_id) = image.build_id() {
            let file = File::open("/proc/self/exe").unwrap();
            assert_eq!(build_id_of_file(&file).as_deref(), Some(build_id));
        }
    }

    #[test]
    fn notes_may_hold_anything() {
        let note = [&[4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", &[7, 8, 9, 0]].concat();
        assert_eq!(build_id_in(&note, 4), Some(&[7, 8, 9][..]));
        for end in 0..note.len() - 1 {
            assert_eq!(build_id_in(&note[..end], 4), None, "{end}");
        }
        let other = [&[4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0][..], b"GNU\0"].concat();
        assert_eq!(build_id_in(&[&other[..], &note].concat(), 4), Some(&[7, 8, 9][..]));
        assert_eq!(build_id_in(&[0xff; 64], 4), None);
        assert_eq!(build_id_in(&[0; 64], 8), None);
    }

    #[test]
    fn a_file_that_is_no_program_has_no_build_id() {
        let file = File::open("/proc/self/maps").unwrap();
        assert_eq!(build_id_of_file(&file), None);
    }
}
