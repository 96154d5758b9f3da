//! Python reads segments, and shares plain bytes, without this crate. Skipped with a note where there is no Python.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use multiproc::{Segment, plain};
use serde_json::{Value as Json, json};

use super::{exists, unique};

const SCRIPT: &str = include_str!("../../docs/read_segment.py");

plain! {
    struct Side { low: i16, high: i16, count: u32 }
    struct Quote { side: Side, grid: [[f32; 2]; 2], price: f64 }
}

const QUOTE: Quote =
    Quote { side: Side { low: -1, high: 2, count: 3 }, grid: [[0.5, 1.5], [2.5, 3.5]], price: 101.25 };

fn python(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", program]).args(arguments).stdin(Stdio::null());
    command
}

/// Whether there is a Python that has `module`; a note says if not.
fn has(module: &str) -> bool {
    let there = python(&format!("import {module}"), &[]).stderr(Stdio::null()).status();
    let is_there = there.is_ok_and(|status| status.success());
    if !is_there {
        eprintln!("skipped: there is no python3 with {module}");
    }
    is_there
}

/// What a Python program prints.
#[track_caller]
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = python(program, arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn read(name: &str) -> Json {
    serde_json::from_str(&printed(SCRIPT, &[name])).unwrap()
}

/// A market with one of everything that Python can read.
fn market(name: &str) -> multiproc::Result<Segment> {
    let market = Segment::create(name, 16 << 10)?;
    market.value("last", 2.5_f64)?;
    market.value("tiny", -3_i8)?;
    market.value("open", true)?;
    market.raw_value("letter", 'ß')?;
    market.value("quote", QUOTE)?;
    market.raw_value("raw quote", QUOTE)?;
    market.array::<Quote>("book", 2)?.set(1, QUOTE)?;
    market.array::<[f64; 3]>("rows", 2)?.set(1, [1.0, 2.0, 3.0])?;
    market.raw_array::<u32>("counts", 4)?.write_from(0, &[10, 11, 12, 13]);
    market.raw_array::<f64>("prices", 2)?;
    market.mutex("ledger", 7_u64)?;
    market.value("untold", [0_u128; 2])?;
    Ok(market)
}

#[test]
fn reads_every_kind_of_object() -> multiproc::Result<()> {
    if !has("mmap") {
        return Ok(());
    }
    let name = unique("python");
    let market = market(&name)?;
    let quote = json!([-1, 2, 3, 0.5, 1.5, 2.5, 3.5, 101.25]);
    let zero = json!([0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let found = read(&name);
    let objects = market.objects()?;
    assert_eq!(found.as_object().unwrap().len(), objects.len());
    for object in &objects {
        let seen = &found[&object.name];
        let geometry = (&seen["kind"], &seen["type"], &seen["count"], &seen["offset"], &seen["size"]);
        let own = (
            json!(object.kind),
            json!(object.type_name),
            json!(object.count),
            json!(object.offset),
            json!(object.size),
        );
        assert_eq!(geometry, (&own.0, &own.1, &own.2, &own.3, &own.4), "{}", object.name);
    }
    for (name, contents) in [
        ("last", json!([[2.5]])),
        ("tiny", json!([[-3]])),
        ("open", json!([[true]])),
        ("letter", json!([[u32::from('ß')]])),
        ("quote", json!([quote])),
        ("raw quote", json!([quote])),
        ("book", json!([zero, quote])),
        ("rows", json!([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])),
        ("counts", json!([[10], [11], [12], [13]])),
        ("prices", json!([[0.0], [0.0]])),
        ("ledger", Json::Null),
        ("untold", Json::Null),
    ] {
        assert_eq!(found[name]["contents"], contents, "{name}");
    }
    // Each time the other copy counts.
    let value = market.get::<multiproc::Value<Quote>>("quote")?;
    for price in [1.0, 2.0, 3.0] {
        value.set(Quote { price, ..QUOTE });
        assert_eq!(read(&name)["quote"]["contents"][0][7], json!(price));
    }
    drop(value);
    assert!(exists(&name), "a reader takes no name away");
    drop(market);
    assert!(!exists(&name), "nor does it keep one");
    Ok(())
}

#[test]
fn writes_into_a_raw_array_and_nowhere_else() -> multiproc::Result<()> {
    if !has("mmap") {
        return Ok(());
    }
    let name = unique("python");
    let market = market(&name)?;
    let (counts, prices) = (
        market.get::<multiproc::RawArray<u32>>("counts")?,
        market.get::<multiproc::RawArray<f64>>("prices")?,
    );
    printed(SCRIPT, &[&name, "counts", "2", "77"]);
    printed(SCRIPT, &[&name, "prices", "1", "0.25"]);
    assert_eq!((counts.to_vec(), prices.to_vec()), (vec![10, 11, 77, 13], vec![0.0, 0.25]));
    for place in [["counts", "4"], ["counts", "-1"], ["rows", "0"], ["last", "0"]] {
        let refused = python(SCRIPT, &[&name, place[0], place[1], "1"]).stderr(Stdio::null()).status();
        assert!(!refused.unwrap().success(), "{place:?}");
    }
    Ok(())
}

#[test]
fn refuses_what_is_no_segment() -> multiproc::Result<()> {
    if !has("mmap") {
        return Ok(());
    }
    let name = unique("python");
    let bytes = Segment::create_raw(&name, 4096)?;
    let refused = python(SCRIPT, &[&name]).output().unwrap();
    bytes.unlink()?;
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("no segment of layout version 1"), "{text}");
    Ok(())
}

#[test]
fn numpy_maps_arrays_in_place() -> multiproc::Result<()> {
    if !has("numpy") {
        return Ok(());
    }
    let name = unique("numpy");
    let market = market(&name)?;
    let length = std::fs::metadata(std::path::Path::new("/dev/shm").join(&name)).unwrap().len();
    let program = "
import sys, types
name, script = sys.argv[1:]
read = types.ModuleType('read_segment')
exec(script, read.__dict__)
with open('/dev/shm/' + name, 'rb') as file:
    found = read.objects(file.read())
book, rows, counts = (read.as_numpy(name, found[key]) for key in ('book', 'rows', 'counts'))
assert book.shape == (2,) and rows.shape == (2, 3) and counts.shape == (4,)
assert book['side']['count'].tolist() == [0, 3] and book['grid'][1].tolist() == [[0.5, 1.5], [2.5, 3.5]]
assert rows[1].tolist() == [1.0, 2.0, 3.0]
counts += 5
";
    printed(program, &[&name, SCRIPT]);
    assert_eq!(market.get::<multiproc::RawArray<u32>>("counts")?.to_vec(), [15, 16, 17, 18]);
    assert_eq!(std::fs::metadata(std::path::Path::new("/dev/shm").join(&name)).unwrap().len(), length);
    Ok(())
}

/// A Python program that goes on when it is told to.
struct Partner {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Partner {
    fn start(program: &str, arguments: &[&str]) -> Partner {
        let mut child =
            python(program, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Partner { child, answers }
    }

    /// Its next line; empty if it has ended.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn shared_memory_of_python_is_opened_as_bytes() -> multiproc::Result<()> {
    if !has("multiprocessing.shared_memory") {
        return Ok(());
    }
    let name = unique("psm");
    let program = "
import struct, sys
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(sys.argv[1], create=True, size=4096)
struct.pack_into('=4I', memory.buf, 16, 1, 2, 3, 4)
print('made', flush=True)
sys.stdin.readline()
print(struct.unpack_from('=4I', memory.buf, 16), bytes(memory.buf[4000:4005]).decode(), flush=True)
memory.close()
memory.unlink()
";
    let mut partner = Partner::start(program, &[&name]);
    assert_eq!(partner.hear(), "made");
    let bytes = Segment::open_raw(&name)?;
    assert_eq!(bytes.size(), 4096);
    let view = bytes.view::<u32>(16, 4)?;
    assert_eq!(view.to_vec(), [1, 2, 3, 4]);
    assert_eq!(view.fetch_add(2, 40, multiproc::Ordering::Relaxed), 3);
    bytes.write(4000, b"hello")?;
    partner.go_on();
    assert_eq!(partner.hear(), "(1, 2, 43, 4) hello");
    partner.end();
    assert!(!exists(&name));
    // What is mapped stays.
    assert_eq!(view.get(2), 43);
    Ok(())
}

#[test]
fn python_attaches_to_our_bytes_and_leaves_the_name() -> multiproc::Result<()> {
    if !has("multiprocessing.shared_memory") {
        return Ok(());
    }
    let name = unique("raw");
    let bytes = Segment::create_raw(&name, 1000)?;
    let view = bytes.view::<i64>(8, 3)?;
    view.write_from(0, &[-1, -2, -3]);
    let program = "
import struct, sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
if sys.version_info >= (3, 13):
    memory = SharedMemory(sys.argv[1], track=False)
else:
    memory = SharedMemory(sys.argv[1])
    resource_tracker.unregister('/' + sys.argv[1], 'shared_memory')
print(memory.size, struct.unpack_from('=3q', memory.buf, 8))
struct.pack_into('=q', memory.buf, 16, 5)
memory.close()
";
    assert_eq!(printed(program, &[&name]), "1000 (-1, -2, -3)\n");
    assert_eq!(view.to_vec(), [-1, 5, -3]);
    // The tracker ends a little after its program.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(exists(&name));
    bytes.unlink()
}
