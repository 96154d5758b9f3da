//! What `docs/` says of bytes and tests, compared with the bytes and the tests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use multiproc::segment::{ObjectInfo, unlink};
use multiproc::{Mutex, Process, Segment, Value, current_process};

use super::unique;

const LAYOUT: &str = include_str!("../../docs/layout.md");
const DEATH: &str = include_str!("../../docs/death.md");
const SCRIPT: &str = include_str!("../../docs/read_segment.py");

/// The kinds of objects, by the numbers that stand for them.
const KINDS: [&str; 6] = ["", "mutex", "value", "raw value", "array", "raw array"];

/// What must lie in a row of a table.
enum Cell {
    Bytes(Vec<u8>),
    Zeros,
    /// A lock that nobody holds. But for its two words it is stale.
    FreeLock,
    /// Not known here, or looked at by the test itself.
    Anything,
}

use Cell::{Anything, Bytes, FreeLock, Zeros};

fn word(number: u64) -> Cell {
    Bytes(number.to_ne_bytes().to_vec())
}

fn half(number: u32) -> Cell {
    Bytes(number.to_ne_bytes().to_vec())
}

fn quarter(number: usize) -> Cell {
    Bytes(u16::try_from(number).unwrap().to_ne_bytes().to_vec())
}

/// The cells of the first table below a heading, without its head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let start = LAYOUT.find(&format!("\n### Table: {heading}\n")).expect(heading);
    let cells = |line: &str| -> Vec<String> {
        let line = line.replace("\\|", "\u{0}");
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
    };
    let lines = LAYOUT[start..].lines().skip_while(|line| !line.starts_with('|'));
    lines.take_while(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// Compares the rows of a table with `bytes`, in which the thing begins at `base`. The rows must follow one another without a gap, from
/// `start` to `end`.
#[track_caller]
fn check(
    heading: &str,
    bytes: &[u8],
    base: usize,
    (start, end): (usize, usize),
    expected: Vec<(&str, Cell)>,
) {
    let rows = table(heading);
    let names: Vec<&str> = rows.iter().map(|row| row[2].as_str()).collect();
    assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{heading}");
    let mut position = start;
    for (row, (name, cell)) in rows.iter().zip(expected) {
        let offset: usize = row[0].parse().unwrap();
        assert_eq!(offset, position, "{heading}: {name}");
        position = row[1].parse().map_or(end, |size: usize| offset + size);
        let found = &bytes[base + offset..base + position];
        match cell {
            Bytes(bytes) => assert_eq!(found, bytes, "{heading}: {name}"),
            Zeros => assert!(found.iter().all(|&byte| byte == 0), "{heading}: {name}: {found:?}"),
            FreeLock => assert_eq!((found.len(), &found[..8]), (40, &[0; 8][..]), "{heading}: {name}"),
            Anything => {}
        }
    }
    assert_eq!(position, end, "{heading}: where it ends");
}

fn file_of(name: &str) -> PathBuf {
    Path::new("/dev/shm").join(name)
}

fn word_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn half_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn entry_of(object: &ObjectInfo) -> usize {
    object.offset + object.size
}

fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What every preamble of this program on this machine must say.
fn preamble(
    flags: u32,
    size: u64,
    participants: u32,
    mode: u32,
    objects_offset: u64,
) -> Vec<(&'static str, Cell)> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot_id = u128::from_str_radix(&boot_id.trim().replace('-', ""), 16).unwrap();
    let namespace = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/proc/self/ns/pid").unwrap());
    let futex_offset: i32 = if cfg!(target_env = "musl") { -28 } else { -32 };
    vec![
        ("magic", Bytes(b"multiprc".to_vec())),
        ("version", half(1)),
        ("pointer_width", Bytes(vec![8])),
        ("byte_order", Bytes(vec![if cfg!(target_endian = "little") { 1 } else { 2 }])),
        ("reserved", Zeros),
        ("futex_offset", Bytes(futex_offset.to_ne_bytes().to_vec())),
        ("flags", half(flags)),
        ("size", word(size)),
        ("boot_id", Bytes(boot_id.to_le_bytes().to_vec())),
        ("pid_namespace", word(namespace)),
        ("participants_offset", word(256)),
        ("participants_count", half(participants)),
        ("mode", half(mode)),
        ("objects_offset", word(objects_offset)),
        ("spare", Zeros),
    ]
}

#[test]
fn a_named_segment_lies_as_its_tables_say() -> multiproc::Result<()> {
    let name = unique("layout");
    let segment = Segment::options().persist().mode(0o640).participants(3).create(&name, 8 << 10)?;
    segment.value("number", 2.5_f32)?;
    let wide = segment.value("wide", [1_u64, 2, 3, 4])?;
    wide.set([5, 6, 7, 8]);
    wide.set([9, 10, 11, 12]);
    wide.set([13, 14, 15, 16]);
    segment.mutex("mutex", [0x55_u8; 64])?;
    segment.raw_value("raw", [7_u64; 3])?;
    segment.array::<u16>("array", 3)?.write_from(0, &[21, 22, 23])?;
    segment.raw_array::<u16>("counts", 64)?.write_from(0, &[9; 64]);
    let objects = segment.objects()?;
    let bytes = fs::read(file_of(&name)).unwrap();
    drop((segment, wide));
    unlink(&name)?;

    check("preamble", &bytes, 0, (0, 128), preamble(1, bytes.len() as u64, 3, 0o640, 256 + 3 * 64));
    let texts = |object: &ObjectInfo| {
        [object.name.clone(), object.type_name.clone(), object.dtype.clone().unwrap_or_default()].concat()
    };
    let newest = objects.last().unwrap();
    let live = vec![
        ("lock", FreeLock),
        ("newest", word(entry_of(newest) as u64)),
        ("touched", word((entry_of(newest) + 64 + texts(newest).len()).next_multiple_of(8) as u64)),
        ("chunks_used", Zeros),
        ("chunk_hint", Zeros),
        ("participants_used", Zeros),
        ("generations", Zeros),
        ("reserved", Zeros),
    ];
    check("live words", &bytes, 0, (128, 256), live);
    let participant =
        ["word", "pid", "generation", "started", "reserved"].map(|name| (name, Zeros)).into_iter().collect();
    check("participant", &bytes, 256, (0, 64), participant);

    let mut older = 0;
    // Size and alignment of the elements, and their number.
    let types = [(4, 4, 1), (32, 8, 1), (64, 1, 1), (24, 8, 1), (2, 2, 3), (2, 2, 64)];
    for (object, (size, alignment, count)) in objects.iter().zip(types) {
        let kind = KINDS.iter().position(|&kind| kind == object.kind).unwrap() as u32;
        let dtype = object.dtype.clone().unwrap_or_default();
        let entry = vec![
            ("older", word(older)),
            ("object_offset", word(object.offset as u64)),
            ("object_size", word(object.size as u64)),
            ("element_size", word(size)),
            ("count", word(count)),
            ("kind", half(kind)),
            ("element_alignment", half(alignment)),
            ("name_len", quarter(object.name.len())),
            ("type_name_len", quarter(object.type_name.len())),
            ("dtype_len", quarter(dtype.len())),
            ("reserved", Zeros),
            ("name_hash", half(fnv1a(&object.name))),
            ("spare", Zeros),
        ];
        let at = entry_of(object);
        check("directory entry", &bytes, at, (0, 64), entry);
        let texts = texts(object);
        assert_eq!(&bytes[at + 64..at + 64 + texts.len()], texts.as_bytes());
        let alignment = if object.kind.ends_with("array") { 128 } else { 64 };
        assert_eq!((object.offset % alignment, at % 64), (0, 0));
        older = at as u64;

        let header = vec![("lock", FreeLock), ("state", Zeros), ("kind", half(kind)), ("references", Zeros)];
        check("object header", &bytes, object.offset, (0, 56), header);
    }
    let kinds = table("directory entry").swap_remove(5).swap_remove(3);
    assert_eq!(kinds, "1 mutex, 2 value, 3 raw value, 4 array, 5 raw array");

    let [number, wide, mutex, raw, array, counts] = &objects[..] else { panic!("six objects") };
    let content = |words: &[u64]| Bytes(words.iter().flat_map(|word| word.to_ne_bytes()).collect());
    assert_eq!((number.size, wide.size, mutex.size, raw.size), (64, 128, 128, 128));
    let mut low = 2.5_f32.to_ne_bytes().to_vec();
    low.extend([0; 4]);
    check("number", &bytes, number.offset, (0, 64), vec![("header", Anything), ("word", Bytes(low))]);
    let copies = vec![
        ("header", Anything),
        ("version", word(3)),
        ("copy 0", content(&[9, 10, 11, 12])),
        ("copy 1", content(&[13, 14, 15, 16])),
    ];
    check("two copies", &bytes, wide.offset, (0, 128), copies);
    let single =
        vec![("header", Anything), ("version", Zeros), ("copy 0", content(&[7, 7, 7, 0])), ("copy 1", Zeros)];
    check("two copies", &bytes, raw.offset, (0, 128), single);
    let data = vec![("header", Anything), ("unused", Zeros), ("data", Bytes(vec![0x55; 64]))];
    check("mutex", &bytes, mutex.offset, (0, 128), data);
    for (array, elements) in [(array, vec![21_u16, 22, 23]), (counts, vec![9; 64])] {
        let length = word(elements.len() as u64);
        let mut contents: Vec<u8> = elements.iter().flat_map(|element| element.to_ne_bytes()).collect();
        contents.resize(128, 0);
        let rows =
            vec![("header", Anything), ("length", length), ("unused", Zeros), ("elements", Bytes(contents))];
        check("array", &bytes, array.offset, (0, 256), rows);
        assert_eq!(array.size, 256);
    }
    Ok(())
}

#[test]
fn values_take_the_strides_of_the_table() -> multiproc::Result<()> {
    let name = unique("strides");
    let segment = Segment::create(&name, 8 << 10)?;
    segment.value("1", [0_u8; 1])?;
    segment.value("32", [0_u8; 32])?;
    segment.value("33", [0_u8; 33])?;
    segment.value("64", [0_u8; 64])?;
    segment.value("65", [0_u8; 65])?;
    segment.value("128", [0_u8; 128])?;
    let rows = table("strides");
    for object in segment.objects()? {
        let bytes: usize = object.name.parse().unwrap();
        let most = |row: &Vec<String>| row[0].rsplit(' ').next().unwrap().parse::<usize>();
        let row = rows.iter().find(|row| most(row).is_ok_and(|most| bytes <= most)).unwrap();
        let [stride, size] = [&row[1], &row[2]].map(|cell| cell.parse::<usize>().unwrap());
        assert_eq!((object.size, (object.size - 64) / 2), (size, stride), "{bytes} bytes");
    }
    segment.value("more", [0_u8; 129])?;
    assert_eq!(segment.objects()?.last().unwrap().size, 64 + 2 * 192);
    Ok(())
}

fn die_with(mutex: Mutex<u64>) {
    let _guard = mutex.lock().unwrap();
    current_process().kill().unwrap();
}

#[test]
fn a_lock_shows_the_words_of_the_table() -> multiproc::Result<()> {
    const WAITERS: u32 = 0x8000_0000;
    const OWNER_DIED: u32 = 0x4000_0000;
    let name = unique("lock");
    let mutex = Mutex::create(&name, 1_u64)?;
    let base = Segment::open(&name)?.objects()?[0].offset;
    let file = File::open(file_of(&name)).unwrap();
    let look = || {
        let mut lock = [0; 40];
        file.read_exact_at(&mut lock, base as u64).unwrap();
        lock
    };
    // With musl the two change places.
    let (word_offset, status_offset) = if cfg!(target_env = "musl") { (4, 0) } else { (0, 4) };
    let words = || (half_at(&look(), word_offset), half_at(&look(), status_offset));
    let tid = nix::unistd::gettid().as_raw().unsigned_abs();

    assert_eq!(words(), (0, 0));
    let guard = mutex.lock()?;
    assert_eq!(words(), (tid, 0));
    if word_offset == 0 {
        let rows = vec![
            ("word", half(tid)),
            ("status", half(0)),
            ("guarded_by", Anything),
            ("reserved", Zeros),
            ("previous", Anything),
            ("next", Anything),
        ];
        check("lock", &look(), 0, (0, 40), rows);
    }
    assert!(word_at(&look(), 24) != 0 && word_at(&look(), 32) != 0, "it is linked");
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // It may use a short time up before it falls asleep.
            while words().0 & WAITERS == 0 {
                assert!(mutex.lock_timeout(std::time::Duration::from_millis(2)).is_err());
            }
        });
    });
    assert_eq!(words(), (tid | WAITERS, 0));
    drop(guard);
    assert_eq!(words(), (WAITERS, 0));
    drop(mutex.lock()?);
    assert_eq!(words(), (0, 0));

    assert!(Process::spawn(die_with, (mutex.clone(),))?.join().is_err());
    assert_eq!(words(), (OWNER_DIED, 0));
    drop(mutex.lock().unwrap_err());
    assert_eq!(words(), (0, 1));
    drop(mutex.lock_or_repair(|_| {}));
    assert_eq!(words(), (0, 0));
    Ok(())
}

/// The family segment of this process.
fn family() -> File {
    let folder = fs::read_dir("/proc/self/fd").unwrap();
    let is_family = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("memfd:multiproc-family"))
    };
    let path = folder.map(|entry| entry.unwrap().path()).find(is_family).unwrap();
    File::open(path).unwrap()
}

#[test]
fn the_family_segment_lies_as_its_tables_say() -> multiproc::Result<()> {
    const CHUNK: usize = 64 << 10;
    const CHUNK_TABLE: usize = 196_608;
    let number = 0xface_0000_0000_0000 | u64::from(std::process::id());
    let value = Value::new(number)?;
    let family = family();
    let size = family.metadata().unwrap().len();
    let read = |offset: usize, size: usize| {
        let mut bytes = vec![0; size];
        family.read_exact_at(&mut bytes, offset as u64).unwrap();
        bytes
    };
    let fixed = read(0, 256 + 2048 * 64);
    check("preamble", &fixed, 0, (0, 128), preamble(2, size, 2048, 0, CHUNK_TABLE as u64));

    let pid = std::process::id();
    let index = (0..2048).find(|index| half_at(&fixed, 256 + index * 64 + 40) == pid).unwrap();
    let base = 256 + index * 64;
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let participant = vec![
        ("word", Anything),
        ("pid", half(pid)),
        ("generation", Anything),
        ("started", word(started)),
        ("reserved", Zeros),
    ];
    check("participant", &fixed, base, (0, 64), participant);
    let tid = half_at(&fixed, base + if cfg!(target_env = "musl") { 4 } else { 0 }) & 0x3fff_ffff;
    assert!(Path::new(&format!("/proc/self/task/{tid}")).exists(), "a thread of ours holds the word");

    let owner = u64::from(half_at(&fixed, base + 44)) << 32 | (index as u64 + 1);
    let first = (CHUNK_TABLE + size as usize / CHUNK * 16).div_ceil(CHUNK);
    let used = word_at(&fixed, 184) as usize;
    let chunks = read(CHUNK_TABLE, used * 16);
    let own = |usage: u32| {
        (first..used).filter(move |&chunk| {
            word_at(&chunks, chunk * 16) == owner && half_at(&chunks, chunk * 16 + 8) == usage
        })
    };
    // Among the places of 64 bytes, the one with our number in it.
    let places = own(16).collect::<Vec<_>>();
    let place = places
        .iter()
        .flat_map(|chunk| (0..CHUNK / 64).map(move |slot| chunk * CHUNK + slot * 64))
        .find(|&place| word_at(&read(place, 64), 56) == number)
        .unwrap();
    let object = read(place, 64);
    let (state, kind) = (half_at(&object, 40), half_at(&object, 44));
    assert_eq!((state & 3, KINDS[kind as usize & 0xff], word_at(&object, 48)), (1, "value", 1));
    let reference = u64::from(state >> 2) << 32 | 2 << 30 | (place / 64) as u64;
    let (usages, sizes) = (table("chunk"), &LAYOUT[LAYOUT.find("| bytes of a place |").unwrap()..]);
    assert!(usages[1][3].starts_with("0 nothing, 1 ledger"), "{}", usages[1][3]);
    assert!(sizes.starts_with("| bytes of a place | 64 | 128 |"));
    drop(value);
    // Another test may have it by now: then as another generation.
    assert_ne!(half_at(&read(place, 64), 40), state, "it is free");
    let has_let_go =
        |chunk: usize| read(chunk * CHUNK, CHUNK).chunks(8).all(|entry| word_at(entry, 0) != reference);
    let chunks = read(CHUNK_TABLE, used * 16);
    let ledgers: Vec<usize> = (first..used)
        .filter(|&chunk| word_at(&chunks, chunk * 16) == owner && half_at(&chunks, chunk * 16 + 8) == 1)
        .collect();
    assert!(!ledgers.is_empty() && ledgers.into_iter().all(has_let_go), "the reference is taken back");
    Ok(())
}

#[test]
fn the_script_in_the_text_is_the_one_that_is_run() {
    let (_, rest) = LAYOUT.split_once("```python\n").unwrap();
    let (script, _) = rest.split_once("```\n").unwrap();
    assert!(script == SCRIPT, "docs/layout.md shows another script than docs/read_segment.py");
}

fn sources_below(folder: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.insert(path.to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// What stands in backticks, and is made of these characters.
fn quoted(text: &str, allowed: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(move |word| !word.is_empty() && word.chars().all(&allowed))
}

#[test]
fn the_tests_that_the_table_of_deaths_names_are_there() {
    let tests = sources_below("tests/it");
    let mut count = 0;
    for word in quoted(DEATH, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':') {
        let Some((module, test)) = word.split_once("::") else { continue };
        let is_there = tests.iter().any(|(file, text)| {
            file.contains(&format!("/it/{module}")) && text.contains(&format!("fn {test}("))
        });
        assert!(is_there, "there is no test {word}");
        count += 1;
    }
    assert!(count > 20, "{count} tests are named");
    let units: String = sources_below("src").into_values().collect();
    for word in quoted(DEATH, |c| c.is_ascii_lowercase() || c == '_') {
        let is_name_of_test = word.matches('_').count() > 4;
        assert!(!is_name_of_test || units.contains(&format!("fn {word}(")), "there is no unit test {word}");
    }

    let steps: String = sources_below("tests/step").into_values().collect();
    let mut count = 0;
    for word in quoted(DEATH, |c| c.is_ascii_lowercase() || c == '-').filter(|word| word.contains('-')) {
        let is_there = steps.contains(&format!("\"{word}\""))
            || word.match_indices('-').any(|(dash, _)| {
                steps.contains(&format!("\"{}-{{}}\"", &word[..dash]))
                    && steps.contains(&format!("\"{}\"", &word[dash + 1..]))
            });
        assert!(is_there, "there is no scenario {word}");
        count += 1;
    }
    assert!(count > 10, "{count} scenarios are named");
}
