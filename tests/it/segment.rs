//! Segments: names, lifetime, attach checks, options, plain bytes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use multiproc::segment::{reap, reap_all, unlink};
use multiproc::{Array, Error, ErrorKind, Mutex, Process, RawArray, RawValue, Segment, Value};

use super::{exists, unique};

fn path(name: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(name)
}

#[test]
fn one_segment_many_objects() -> multiproc::Result<()> {
    let name = unique("market");
    let market = Segment::create(&name, 64 << 10)?;
    let last = market.value("last", 0.5)?;
    let book = market.array::<u32>("book", 1024)?;
    let ledger = market.mutex("ledger", [0_u64; 3])?;
    let beat = market.raw_value("beat", 1_u8)?;
    let elsewhere = Segment::open(&name)?;
    elsewhere.get::<Value<f64>>("last")?.set(1.5);
    elsewhere.get::<Array<u32>>("book")?.set(7, 70)?;
    elsewhere.get::<Mutex<[u64; 3]>>("ledger")?.lock()?[2] = 9;
    elsewhere.get::<RawValue<u8>>("beat")?.set(2);
    assert_eq!((last.get(), book.get(7)?, ledger.lock()?[2], beat.get()), (1.5, 70, 9, 2));

    let names: Vec<(String, &str, u64)> =
        market.objects()?.into_iter().map(|object| (object.name, object.kind, object.count)).collect();
    let expected =
        [("last", "value", 1), ("book", "array", 1024), ("ledger", "mutex", 1), ("beat", "raw value", 1)];
    assert_eq!(names, expected.map(|(name, kind, count)| (name.to_owned(), kind, count)));

    assert_eq!(market.value("last", 1_u8).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let missing = elsewhere.get::<Value<f64>>("lost").unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(
        missing.to_string(),
        format!(
            "cannot open value \"lost\": segment {name:?} has no object \"lost\"; it holds \"last\", \"book\", \"ledger\", \"beat\""
        )
    );
    // An object keeps its segment.
    drop((market, elsewhere, book, ledger, beat));
    assert!(exists(&name));
    assert_eq!(last.get(), 1.5);
    drop(last);
    assert!(!exists(&name));
    Ok(())
}

#[test]
fn a_full_segment_says_so_and_stays_whole() -> multiproc::Result<()> {
    let name = unique("full");
    let segment = Segment::create(&name, 4096)?;
    assert!(segment.size() >= 4096);
    let mut made = 0;
    let error = loop {
        match segment.value(&format!("v{made}"), made) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoRoom);
    assert!(error.to_string().contains("bytes, the segment has"), "{error}");
    assert!(segment.available()? < 200);
    for index in 0..made {
        assert_eq!(segment.get::<Value<i32>>(&format!("v{index}"))?.get(), index);
    }
    Ok(())
}

#[test]
fn a_name_goes_though_a_child_is_just_being_started() -> multiproc::Result<()> {
    // Until its exec such a child holds a copy of every description, and with it of every flock.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = std::process::Command::new("true").status();
            }
        });
        let left: Vec<String> = (0..1_000)
            .map(|_| unique("spawned"))
            .filter(|name| {
                drop(Value::create(name, 1).unwrap());
                exists(name)
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for name in &left {
            let _ = unlink(name);
        }
        assert!(left.is_empty(), "{} names are left", left.len());
    });
    Ok(())
}

#[test]
fn what_is_created_cannot_be_read_only() {
    let name = unique("contrary");
    for error in [
        Segment::options().read_only().create(&name, 1).unwrap_err(),
        Segment::options().read_only().open_or_create(&name, 1).unwrap_err(),
        Segment::options().read_only().anonymous(1).unwrap_err(),
        Segment::options().read_only().create_raw(&name, 1).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(!exists(&name));
}

#[test]
fn names_are_checked_with_a_reason() {
    for (name, reason) in
        [("", "empty"), ("a/b", "no `/`"), ("/a", "no `/`"), ("a\0b", "NUL"), (".a", "dot"), ("..", "dot")]
    {
        for error in [
            Segment::create(name, 1).unwrap_err(),
            Segment::open(name).unwrap_err(),
            Value::create(name, 1).unwrap_err(),
            Array::<u8>::open(name).unwrap_err(),
            Segment::open_raw(name).unwrap_err(),
            reap(name).unwrap_err(),
            unlink(name).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
    let long = "x".repeat(256);
    assert!(Value::create(&long, 1).unwrap_err().to_string().contains("256 bytes"));
}

#[test]
fn the_last_to_detach_removes_the_name() -> multiproc::Result<()> {
    let name = unique("life");
    let first = Segment::create(&name, 1)?;
    let second = Segment::open(&name)?;
    assert!(first.is_linked());
    drop(first);
    assert!(exists(&name) && second.is_linked());
    assert!(!reap(&name)?);
    drop(second.clone());
    assert!(exists(&name));
    drop(second);
    assert!(!exists(&name));
    assert!(!reap(&name)?);
    Ok(())
}

#[test]
fn persist_keeps_the_name_until_it_is_unlinked() -> multiproc::Result<()> {
    let name = unique("persist");
    let segment = Segment::options().persist().create(&name, 100)?;
    segment.value("n", 5)?;
    drop(segment);
    assert!(exists(&name) && !reap(&name)?);
    assert_eq!(Segment::open(&name)?.get::<Value<i32>>("n")?.get(), 5);
    unlink(&name)?;
    assert!(!exists(&name));
    assert_eq!(unlink(&name).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn unlinking_leaves_those_attached_alone() -> multiproc::Result<()> {
    let name = unique("unlink");
    let old = Value::create(&name, 1)?;
    let segment = Segment::open(&name)?;
    segment.unlink()?;
    assert!(!segment.is_linked());
    let new = Value::create(&name, 2)?;
    assert_eq!(segment.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    drop((old, segment));
    // The old one's end does not take the new one's name.
    assert!(exists(&name));
    assert_eq!((new.get(), Value::<i32>::open(&name)?.get()), (2, 2));
    Ok(())
}

fn die_attached(name: String) {
    let _value = Value::create(&name, 7).unwrap();
    multiproc::current_process().kill().unwrap();
}

#[test]
fn what_a_killed_process_leaves_is_taken_over_or_reaped() -> multiproc::Result<()> {
    let names = [unique("left"), unique("left"), unique("left")];
    for name in &names {
        assert!(Process::spawn(die_attached, (name.clone(),))?.join().is_err());
        assert!(exists(name));
    }
    let [taken, reaped, opened] = &names;
    assert_eq!(Value::create(taken, 8)?.get(), 8);
    assert!(reap(reaped)? && !exists(reaped));
    // Nobody was in the middle of anything: it can still be opened.
    let value = Value::<i32>::open(opened)?;
    assert_eq!(value.get(), 7);
    assert!(!reap_all()?.contains(opened));
    drop(value);
    assert!(!exists(opened));
    Ok(())
}

/// A segment whose file is then changed behind its back, and what opening it says.
#[track_caller]
fn damaged(what: &str, damage: impl FnOnce(&fs::File)) -> (ErrorKind, String) {
    let name = unique(what);
    let segment = Segment::options().persist().create(&name, 100).unwrap();
    segment.value("n", 5).unwrap();
    drop(segment);
    damage(&OpenOptions::new().read(true).write(true).open(path(&name)).unwrap());
    let error = Segment::open(&name).and_then(|segment| segment.get::<Value<i32>>("n")).unwrap_err();
    // A refused attach removes nothing that is not ours to remove.
    assert!(exists(&name), "{what}");
    fs::remove_file(path(&name)).unwrap();
    (error.kind(), error.to_string())
}

#[test]
fn a_damaged_segment_is_refused_with_what_was_found() {
    let put =
        |offset: u64, bytes: &'static [u8]| move |file: &fs::File| file.write_all_at(bytes, offset).unwrap();
    for (what, offset, bytes, kind, text) in [
        ("magic", 0, b"notours!".as_slice(), ErrorKind::Foreign, "it was not made by this crate"),
        (
            "version",
            8,
            &[9, 0, 0, 0],
            ErrorKind::Incompatible,
            "its layout version is 9, this program's is 1",
        ),
        ("pointers", 12, &[4], ErrorKind::Incompatible, "its pointer width is 4, this program's is 8"),
        ("order", 13, &[2], ErrorKind::Incompatible, "its byte order is 2, this program's is 1"),
        (
            "libc",
            16,
            &[1, 0, 0, 0],
            ErrorKind::Incompatible,
            "its C library's robust-list offset is 1, this program's is",
        ),
        ("size", 24, &[1, 2, 3, 0], ErrorKind::Corrupted, "bytes, its header says 197121"),
        (
            "boot",
            32,
            &[1; 16],
            ErrorKind::OtherNamespace,
            "in another PID namespace or before the machine was started again",
        ),
        ("namespace", 48, &[1; 8], ErrorKind::OtherNamespace, "in another PID namespace"),
        ("table", 56, &[1; 8], ErrorKind::Corrupted, "its header is damaged"),
        ("count", 64, &[0xff; 4], ErrorKind::Corrupted, "its header is damaged"),
        ("objects", 72, &[0xff; 8], ErrorKind::Corrupted, "its header is damaged"),
        ("newest", 168, &[0xff; 8], ErrorKind::Corrupted, "the segment's directory is damaged"),
    ] {
        let (found, message) = damaged(what, put(offset, bytes));
        assert_eq!(found, kind, "{what}: {message}");
        assert!(message.contains(text), "{what}: {message}");
    }
    let (kind, message) = damaged("short", |file| file.set_len(64).unwrap());
    assert_eq!(kind, ErrorKind::Foreign, "{message}");
    let (kind, message) = damaged("truncated", |file| file.set_len(8192).unwrap());
    assert_eq!(kind, ErrorKind::Corrupted, "{message}");
    assert!(message.contains("it has 8192 bytes, its header says"), "{message}");
    let (kind, message) =
        damaged("mode", |file| file.set_permissions(fs::Permissions::from_mode(0o666)).unwrap());
    assert_eq!(kind, ErrorKind::PermissionDenied, "{message}");
    assert!(message.contains("its mode is 666, wider than the 600"), "{message}");
}

#[test]
fn no_byte_of_a_header_or_directory_makes_open_panic() -> multiproc::Result<()> {
    let name = unique("fuzz");
    let segment = Segment::options().persist().participants(1).create(&name, 512)?;
    segment.value("n", [1_u32; 3])?;
    segment.array::<u64>("a", 3)?;
    drop(segment);
    let whole = fs::read(path(&name)).unwrap();
    let file = OpenOptions::new().write(true).open(path(&name)).unwrap();
    // The header (but for its flags, of which one says that the name may go), and from the first object to the end of the directory. The segment's own lock is spared: garbage there is an owner.
    let places = (0..20).chain(24..128).chain(168..192).chain(320..1024.min(whole.len()));
    for position in places {
        for value in [0, 1, 0x40, 0xff] {
            file.write_all_at(&[value], position as u64).unwrap();
            if let Ok(segment) = Segment::open(&name) {
                let _ = segment.objects();
                let _ = segment.get::<Value<[u32; 3]>>("n").map(|value| value.get_checked());
                let _ = segment.get::<RawArray<u64>>("a");
            }
            file.write_all_at(&whole[position..=position], position as u64).unwrap();
        }
    }
    unlink(&name)
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() -> multiproc::Result<()> {
    let name = unique("foreign");
    fs::write(path(&name), vec![7; 8192]).unwrap();
    let foreign = |error: Error| assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    foreign(Segment::open(&name).unwrap_err());
    foreign(Value::<u8>::open(&name).unwrap_err());
    foreign(reap(&name).unwrap_err());
    foreign(unlink(&name).unwrap_err());
    assert_eq!(Value::create(&name, 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(!reap_all()?.contains(&name) && exists(&name));
    // As bytes it can be read.
    let mut bytes = [0; 2];
    Segment::open_raw(&name)?.read(8190, &mut bytes)?;
    assert_eq!(bytes, [7, 7]);
    fs::remove_file(path(&name)).unwrap();

    let target = unique("target");
    let value = Value::create(&target, 1)?;
    symlink(path(&target), path(&name)).unwrap();
    foreign(Segment::open(&name).unwrap_err());
    fs::remove_file(path(&name)).unwrap();
    fs::create_dir(path(&name)).unwrap();
    foreign(Segment::options().read_only().open(&name).unwrap_err());
    foreign(Segment::open_raw(&name).unwrap_err());
    fs::remove_dir(path(&name)).unwrap();
    drop(value);
    Ok(())
}

#[test]
fn another_user_s_segment_is_foreign_unless_it_is_expected() -> multiproc::Result<()> {
    let name = unique("user");
    let segment = Segment::create(&name, 100)?;
    if std::os::unix::fs::chown(path(&name), Some(12_345), None).is_err() {
        return Ok(()); // Only root may give files away.
    }
    let error = Segment::open(&name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign);
    assert!(error.to_string().contains("it belongs to user 12345, expected was user"), "{error}");
    Segment::options().owner(12_345).open(&name)?;
    assert_eq!(reap(&name).unwrap_err().kind(), ErrorKind::Foreign);
    segment.unlink()
}

#[test]
fn read_only_attachments_read() -> multiproc::Result<()> {
    let name = unique("watch");
    let segment = Segment::create(&name, 4096)?;
    let (price, pair) = (segment.value("price", 1.5)?, segment.value("pair", [1_u64, 2])?);
    let raw = segment.raw_array::<u16>("raw", 3)?;
    segment.array::<u8>("array", 3)?;
    segment.mutex("mutex", 1_u8)?;
    let watcher = Segment::options().read_only().open(&name)?;
    let seen = (watcher.get::<Value<f64>>("price")?, watcher.get::<Value<[u64; 2]>>("pair")?);
    let seen_raw = watcher.get::<RawArray<u16>>("raw")?;
    price.set(2.5);
    pair.set([3, 4]);
    raw.set(1, 9);
    assert_eq!((seen.0.get(), seen.1.get(), seen_raw.to_vec()), (2.5, [3, 4], vec![0, 9, 0]));
    for error in [
        watcher.get::<Array<u8>>("array").unwrap_err(),
        watcher.get::<Mutex<u8>>("mutex").unwrap_err(),
        watcher.value("new", 1).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    }
    let panics =
        |write: Box<dyn Fn() + std::panic::UnwindSafe>| assert!(std::panic::catch_unwind(write).is_err());
    let (value, both, elements) = (seen.0, seen.1, seen_raw);
    panics(Box::new(move || value.set(0.0)));
    panics(Box::new(move || both.set([0, 0])));
    panics(Box::new(move || elements.set(0, 1)));
    assert_eq!((price.get(), raw.get(0)), (2.5, 0));
    Ok(())
}

#[test]
fn options() -> multiproc::Result<()> {
    let name = unique("options");
    let segment = Segment::options().mode(0o640).populate().participants(3).create(&name, 10_000)?;
    assert_eq!(fs::metadata(path(&name)).unwrap().permissions().mode() & 0o777, 0o640);
    drop(segment);
    let huge = Segment::options().huge_pages().create(&name, 100).unwrap_err();
    assert_eq!(huge.kind(), ErrorKind::InvalidInput);
    assert!(huge.to_string().contains("huge pages are for anonymous segments only"), "{huge}");
    for error in [
        Segment::options().participants(0).create(&name, 1).unwrap_err(),
        Segment::options().mode(0o4777).create(&name, 1).unwrap_err(),
        Segment::options().mode(0o077).create(&name, 1).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(Segment::create(&name, usize::MAX).unwrap_err().kind(), ErrorKind::NoRoom);
    assert_eq!(Segment::create(&name, 1 << 46).unwrap_err().kind(), ErrorKind::NoRoom);
    assert!(!exists(&name));
    // A machine with huge pages gives them; one without says that there are none.
    match Segment::options().huge_pages().anonymous(100) {
        Ok(segment) => assert!(segment.size() > 1 << 20),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NoRoom, "{error}"),
    }
    let locked = Segment::options().lock_memory().anonymous(4096)?;
    locked.value("n", 1)?;
    Ok(())
}

fn bump(segment: Segment, one: Value<u64>) {
    one.set(one.get() + segment.get::<Value<u64>>("step").unwrap().get());
}

#[test]
fn anonymous_segments_travel() -> multiproc::Result<()> {
    let segment = Segment::options().anonymous(4096)?;
    let (one, _step) = (segment.value("one", 1_u64)?, segment.value("step", 41_u64)?);
    assert_eq!((segment.name(), segment.is_linked()), (None, false));
    Process::spawn(bump, (segment.clone(), one.clone()))?.join()?;
    assert_eq!(one.get(), 42);
    assert_eq!(segment.unlink().unwrap_err().kind(), ErrorKind::InvalidInput);
    Ok(())
}

#[test]
fn plain_bytes() -> multiproc::Result<()> {
    let name = unique("bytes");
    let bytes = Segment::create_raw(&name, 1000)?;
    assert_eq!((bytes.size(), fs::metadata(path(&name)).unwrap().len()), (1000, 1000));
    assert_eq!(Segment::create_raw(&name, 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
    bytes.write(995, b"hello")?;
    let other = Segment::open_raw(&name)?;
    let mut tail = [0; 6];
    other.read(994, &mut tail)?;
    assert_eq!(&tail, b"\0hello");
    for error in [
        other.read(995, &mut tail).unwrap_err(),
        other.write(usize::MAX, b"x").unwrap_err(),
        bytes.view::<u64>(0, 126).unwrap_err(),
        bytes.view::<u64>(4, 1).unwrap_err(),
        bytes.view::<u64>(0, usize::MAX).unwrap_err(),
        Segment::create_raw(&unique("none"), 0).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let view = bytes.view::<u32>(8, 10)?;
    view.set(3, 0x0102_0304);
    assert_eq!(other.view::<u32>(8, 10)?.get(3), 0x0102_0304);
    let watcher = Segment::options().read_only().open_raw(&name)?;
    assert_eq!(watcher.write(0, b"x").unwrap_err().kind(), ErrorKind::ReadOnly);
    let segment = unique("ours");
    let value = Value::create(&segment, 1)?;
    assert_eq!(Segment::open_raw(&segment).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(Segment::options().read_only().open_raw(&segment)?.size() > 0);
    drop(value);

    drop((bytes, view));
    assert!(exists(&name), "plain bytes stay until somebody unlinks them");
    other.unlink()?;
    assert_eq!(other.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!exists(&name));

    let old = Segment::create_raw(&name, 1)?;
    fs::remove_file(path(&name)).unwrap();
    let value = Value::create(&name, 1)?;
    assert_eq!(old.unlink().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(exists(&name), "the name is another's now");
    drop(value);
    Ok(())
}

#[test]
fn the_descriptor_limit_is_an_error_and_leaves_nothing() -> multiproc::Result<()> {
    fn exhausted(name: String) -> Result<(), String> {
        let mut files = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            files.push(file);
        }
        let error = Value::create(&name, 1).unwrap_err();
        if error.kind() != ErrorKind::LimitReached {
            return Err(error.to_string());
        }
        let error = Value::<i32>::open(&name).unwrap_err();
        if error.kind() != ErrorKind::LimitReached {
            return Err(error.to_string());
        }
        drop(files);
        Value::create(&name, 1).map(|_| ()).map_err(|error| error.to_string())
    }
    let name = unique("limit");
    assert_eq!(Process::spawn(exhausted, (name.clone(),))?.join()?, Ok(()));
    assert!(!exists(&name));
    Ok(())
}
