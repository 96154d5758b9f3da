//! What making, opening and starting cost, which happens seldom and calls the kernel: beside the system calls that nobody can do without.
//!
//! `cargo bench --bench control`

#![allow(unsafe_code, reason = "the peers are the C library's calls")]
#![allow(clippy::disallowed_methods, reason = "a bench has a clock of its own")]

mod harness;

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use harness::{Contender, compare, median, report, rounds, time};
use multiproc::{Process, Segment, Value};

/// Programs that this one starts in order to see something happen for the first time. None: the bench itself.
const NOTHING: &str = "--do-nothing";
const FIRST_OPEN: &str = "--open-first";
const MILLION: &str = "--make-a-million";
const MILLION_WIDE: &str = "--make-a-million-wide";

fn main() -> multiproc::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        [NOTHING] => return Ok(()),
        [FIRST_OPEN, name] => return tell(&first_opens(name)?),
        [MILLION] => return tell(&make_a_million(|number| number)?),
        [MILLION_WIDE] => return tell(&make_a_million(|number| [number; 8])?),
        _ => {}
    }
    harness::introduce();
    open_and_close()?;
    many_values();
    spawn_and_join()
}

/// A named value of its own segment, and an equal file without this crate. Their names go when this does.
struct Files {
    value: Value<u64>,
    plain: multiproc::RawSegment,
    names: [String; 2],
}

impl Files {
    fn create() -> multiproc::Result<Files> {
        let names = ["value", "plain"].map(|what| format!("bench-control-{}-{what}", std::process::id()));
        let value = Value::create(&names[0], 42_u64)?;
        let size = std::fs::metadata(format!("/dev/shm/{}", names[0])).map_or(4096, |file| file.len());
        let plain = Segment::create_raw(&names[1], size as usize)?;
        Ok(Files { value, plain, names })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = self.plain.unlink();
    }
}

/// Opens, asks, maps, looks, unmaps and closes.
fn open_and_close_by_hand(name: &CString) -> u64 {
    // SAFETY: a string that ends.
    let file = unsafe { libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0) };
    assert!(file >= 0, "the file of the comparison cannot be opened");
    // SAFETY: all zero is a status.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a live status.
    assert_eq!(unsafe { libc::fstat(file, &raw mut status) }, 0);
    let size = status.st_size as usize;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, wherever there is room.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, file, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    // SAFETY: mapped, of at least a page, and written by nobody.
    let word = unsafe { base.cast::<u64>().read_volatile() };
    // SAFETY: mapped above, and not used any more.
    unsafe { libc::munmap(base, size) };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    word
}

fn open_and_close() -> multiproc::Result<()> {
    let files = Files::create()?;
    let name = files.names[0].as_str();
    let plain = CString::new(format!("/{}", files.names[1])).expect("no NUL in it");
    assert_eq!(Value::<u64>::open(name)?.get(), files.value.get());
    compare(
        "open and close a named value, from the second time on",
        1001,
        vec![
            Contender::each("Value::<u64>::open, get, drop", || Value::<u64>::open(name).unwrap().get()),
            Contender::each("shm_open fstat mmap read munmap close", || open_and_close_by_hand(&plain)),
        ],
    );

    // The value's own creation attached in this process: only another one opens for the first time.
    type Opens = (Vec<f64>, Vec<f64>);
    let (mut program, mut child): (Opens, Opens) = Default::default();
    let (mut program_more, mut child_more) = (Vec::new(), Vec::new());
    for _ in 0..rounds(31) {
        let opens = ask(&[FIRST_OPEN, name]);
        program.0.push(opens[0]);
        program.1.push(opens[1]);
        program_more.push(opens[0] - opens[1]);
        let opens = Process::spawn(first_opens, (name.to_owned(),))?.join()?.unwrap_or_default();
        child.0.push(opens[0]);
        child.1.push(opens[1]);
        child_more.push(opens[0] - opens[1]);
    }
    for (whose, opens) in [("a fresh program", program), ("a fresh child of `Process::spawn`", child)] {
        let title = format!("open and close a named value in {whose}");
        report(&title, &["the first time", "later times"], &[opens.0, opens.1]);
    }
    println!(
        "  the first time costs {} more in a program of its own, {} more in a child",
        time(median(&program_more)),
        time(median(&child_more))
    );
    Ok(())
}

/// How long the first open takes, and the median of some later ones, in nanoseconds.
fn first_opens(name: impl AsRef<str>) -> multiproc::Result<Vec<f64>> {
    let mut ns = Vec::new();
    for _ in 0..21 {
        let start = Instant::now();
        drop(Value::<u64>::open(name.as_ref())?);
        ns.push(start.elapsed().as_nanos() as f64);
    }
    Ok(vec![ns[0], median(&ns[1..])])
}

fn many_values() {
    println!();
    for (what, flag) in [("Value<u64>", MILLION), ("Value<[u64; 8]>", MILLION_WIDE)] {
        let mut ns = [const { Vec::new() }; 4];
        let mut rest = Vec::new();
        for _ in 0..rounds(5) {
            let told = ask(&[flag]);
            ns.iter_mut().zip(&told).for_each(|(ns, &told)| ns.push(told));
            rest = told[4..].to_vec();
        }
        let [new, drop, again, boxed] = ns.map(|ns| time(median(&ns)));
        let [bytes, descriptors] = rest[..] else { panic!("it told something else") };
        println!("a million live {what}, CPU time");
        println!("  new {new} each, drop {drop}, new in the place of dropped ones {again}; Box::new {boxed}");
        println!("  {bytes:.1} bytes of the family each, {descriptors} more descriptors for all");
    }
}

/// In nanoseconds: a new one, a dropped one, a new one where others were dropped, a box; then bytes for one, and descriptors for all.
fn make_a_million<T: multiproc::plain::Plain + PartialEq>(
    value: impl Fn(u64) -> T,
) -> multiproc::Result<Vec<f64>> {
    let count = if std::env::var_os("QUICK").is_some() { 100_000 } else { 1_000_000 };
    let each = |start: f64| (own_ns() - start) / count as f64;
    let make = |values: &mut Vec<Value<T>>| -> multiproc::Result<f64> {
        let start = own_ns();
        for number in 0..count {
            values.push(Value::new(value(number))?);
        }
        Ok(each(start))
    };
    let mut values = Vec::with_capacity(count as usize);
    let descriptors_before = descriptors().len();
    // The family's own tables are not the values'.
    let first = Value::new(value(0))?;
    let bytes_before = family_bytes();
    let new = make(&mut values)?;
    let bytes = (family_bytes() - bytes_before) as f64 / count as f64;
    let descriptors = descriptors().len() - descriptors_before;
    assert!(values.iter().zip(0..).all(|(shared, number)| shared.get() == value(number)));

    let start = own_ns();
    values.clear();
    let dropped = each(start);
    let again = make(&mut values)?;
    drop(first);

    let mut boxes = Vec::with_capacity(count as usize);
    let start = own_ns();
    boxes.extend((0..count).map(|number| Box::new(value(number))));
    let boxed = each(start);
    std::hint::black_box(boxes);
    Ok(vec![new, dropped, again, boxed, bytes, descriptors as f64])
}

/// For how long this thread has run, in nanoseconds: a million of anything takes longer than a scheduler's slice, and what others do meanwhile
/// is not to count.
fn own_ns() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Where each open descriptor of this process leads.
fn descriptors() -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Bytes of memory that the family's file takes.
fn family_bytes() -> u64 {
    let is_family = |path: &std::path::PathBuf| {
        std::fs::read_link(path)
            .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:multiproc-family"))
    };
    let family = descriptors().into_iter().find(is_family).expect("there is a family");
    std::fs::metadata(family).map_or(0, |file| file.blocks() * 512)
}

fn spawn_and_join() -> multiproc::Result<()> {
    let program = std::env::current_exe().expect("this program has a path");
    assert_eq!(Process::spawn(|| 42, ())?.join()?, 42);
    compare(
        "start a process that does nothing, and wait for its end",
        301,
        vec![
            Contender::each("Process::spawn, join", || Process::spawn(|| (), ()).unwrap().join().unwrap()),
            Contender::each("std::process::Command, status", || {
                let status = Command::new(&program).arg(NOTHING).status().unwrap();
                assert!(status.success());
            }),
        ],
    );
    Ok(())
}

/// The figures that this program prints when it is started so.
fn ask(arguments: &[&str]) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(arguments).stderr(Stdio::inherit());
    if harness::is_quick() {
        command.env("QUICK", "1");
    }
    let output = command.output().expect("this program can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect()
}

fn tell(figures: &[f64]) -> multiproc::Result<()> {
    figures.iter().for_each(|figure| println!("{figure}"));
    Ok(())
}
