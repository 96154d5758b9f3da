//! What children are given, and starts that fail.

#![expect(
    unsafe_code,
    reason = "a constructor is linked in, and limits and signals are set, to see what children make of them"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the tests measure by themselves that a call waited long enough"
)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::panic;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multiproc::{Array, ErrorKind, Process, ProcessError, Value};
use multiproc::{active_children, current_process};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{children_in_the_system, join, open_descriptors, run_for_ever};

static CONSTRUCTED: AtomicBool = AtomicBool::new(false);

extern "C" fn construct() {
    CONSTRUCTED.store(true, Ordering::Relaxed);
}

/// Stands for the constructors of other crates, which may come after ours in the program's list. The number puts it at the end,
/// where the linker is LLVM's; with others it may come before ours, and the test then says less.
#[used]
// The attribute is sound: the section holds pointers to functions that libc calls before `main`; a C function may ignore
// its arguments.
#[unsafe(link_section = ".init_array.99999")]
static CONSTRUCTOR: extern "C" fn() = construct;

#[test]
fn constructors_have_run() {
    assert!(CONSTRUCTED.load(Ordering::Relaxed));
    assert!(join(&Process::spawn(|| CONSTRUCTED.load(Ordering::Relaxed), ()).unwrap()).unwrap());
}

/// What encodes, but does what its number says when it is decoded in another process.
#[derive(Clone, Copy, Debug)]
struct Trap {
    armed_by: u32,
    deed: u8,
}

const REFUSE: u8 = 0;
const EXIT: u8 = 1;
const PANIC: u8 = 2;
const STALL: u8 = 3;

impl Trap {
    fn new(deed: u8) -> Trap {
        Trap { armed_by: std::process::id(), deed }
    }
}

impl Serialize for Trap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.armed_by, self.deed).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Trap, D::Error> {
        let (armed_by, deed) = Deserialize::deserialize(deserializer)?;
        match deed {
            _ if armed_by == std::process::id() => Ok(Trap { armed_by, deed }),
            REFUSE => Err(de::Error::custom("it would rather not")),
            EXIT => std::process::exit(3),
            PANIC => panic!("it exploded"),
            _ => loop {
                thread::park();
            },
        }
    }
}

/// What cannot be encoded.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Mute;

impl Serialize for Mute {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("it has nothing to say"))
    }
}

#[test]
fn arguments_that_do_not_encode() {
    let error = Process::builder().name("mute").spawn(|_: Mute| (), (Mute,)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    assert!(error.to_string().starts_with("cannot start process \"mute\": "), "{error}");
}

#[test]
fn arguments_that_do_not_decode() {
    let error = Process::builder().name("trapped").spawn(|_: Trap| (), (Trap::new(REFUSE),)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(error.to_string().starts_with("cannot start process \"trapped\": "), "{error}");
    let error = Process::spawn(|_: Trap| (), (Trap::new(PANIC),)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(error.to_string().ends_with("it exploded"), "{error}");
}

#[test]
fn child_that_ends_before_its_function() {
    let error = Process::spawn(|_: Trap| (), (Trap::new(EXIT),)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StartFailed);
    assert!(error.to_string().contains("ended by exit code 3 before it called its function"), "{error}");
}

#[test]
fn child_that_does_not_come_up() {
    let patience = Duration::from_millis(300);
    let start = Instant::now();
    let spawned = Process::builder().start_timeout(patience).spawn(|_: Trap| (), (Trap::new(STALL),));
    let error = spawned.unwrap_err();
    assert!(start.elapsed() >= patience);
    assert_eq!(error.kind(), ErrorKind::StartFailed);
    assert!(error.to_string().contains("did not report within 300ms"), "{error}");
}

#[test]
fn results_that_do_not_encode() {
    let child = Process::spawn(|| Mute, ()).unwrap();
    match join(&child) {
        Err(ProcessError::Undecodable { error, .. }) => assert_eq!(error.kind(), ErrorKind::Encode),
        other => panic!("{other:?}"),
    }
    assert_eq!(child.exit_code(), Some(1));
}

#[test]
fn results_that_do_not_decode() {
    let child = Process::spawn(|| Trap::new(REFUSE), ()).unwrap();
    for _ in 0..2 {
        match join(&child) {
            Err(ProcessError::Undecodable { error, .. }) => assert_eq!(error.kind(), ErrorKind::Decode),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(child.exit_code(), Some(0));
}

#[test]
fn big_arguments_and_results() {
    let big: Vec<u64> = (0..1 << 20).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let child = Process::spawn(|big: Vec<u64>| big, (big.clone(),)).unwrap();
    assert!(join(&child).unwrap() == big);
}

#[test]
fn result_waits_for_nobody() {
    let child = Process::spawn(|| vec![7_u8; 8 << 20], ()).unwrap();
    // Nothing is read from it before it has ended.
    while child.is_alive() {
        thread::yield_now();
    }
    assert_eq!(join(&child).unwrap().len(), 8 << 20);
}

#[test]
fn handles_arrive() {
    fn work(total: Value<f64>, cells: Array<i32>) {
        total.set(3.25);
        for cell in cells.lock().unwrap().iter_mut() {
            *cell = -*cell;
        }
    }
    let total = Value::new(0.0).unwrap();
    let cells = Array::from_iter(0..10).unwrap();
    join(&Process::spawn(work, (total.clone(), cells.clone())).unwrap()).unwrap();
    assert_eq!(total.get(), 3.25);
    assert_eq!(cells.to_vec().unwrap(), (0..10).map(|n| -n).collect::<Vec<_>>());
}

#[test]
fn returned_handles_outlive_their_maker() {
    let child = Process::spawn(|| Value::new(7_u64), ()).unwrap();
    // The maker is gone before anybody decodes.
    while child.is_alive() {
        thread::yield_now();
    }
    let value = join(&child).unwrap().unwrap();
    value.set(value.get() + 1);
    assert_eq!(join(&child).unwrap().unwrap().get(), 8, "it is the same value");
    drop(child);
    assert_eq!(value.get(), 8);
}

#[test]
fn named_handles_arrive_by_their_descriptors() {
    fn double(cells: Array<u32>) -> Array<u32> {
        for cell in cells.lock().unwrap().iter_mut() {
            *cell *= 2;
        }
        cells
    }
    let name = format!("it-process-{}", std::process::id());
    let cells = Array::<u32>::create(&name, 4).unwrap();
    cells.lock().unwrap().copy_from_slice(&[1, 2, 3, 4]);
    let child = Process::spawn(double, (cells.clone(),)).unwrap();
    let returned = join(&child).unwrap();
    assert_eq!(returned.to_vec().unwrap(), [2, 4, 6, 8]);
    returned.lock().unwrap()[0] = 9;
    assert_eq!(cells.to_vec().unwrap()[0], 9, "it is the same array");
}

#[test]
fn nothing_leaks_in_the_parent() {
    fn spawn_many() {
        // The first one opens what stays open.
        join(&Process::spawn(|| (), ()).unwrap()).unwrap();
        let before = open_descriptors();
        for index in 0..200 {
            let child = Process::spawn(|n: u32| n, (index,)).unwrap();
            // Some are only dropped.
            if index % 2 == 0 {
                assert_eq!(join(&child).unwrap(), index);
            }
            if index % 20 == 0 {
                Process::spawn(|_: Trap| (), (Trap::new(REFUSE),)).unwrap_err();
                Process::spawn(|_: Trap| (), (Trap::new(EXIT),)).unwrap_err();
                Process::spawn(|_: Mute| (), (Mute,)).unwrap_err();
            }
        }
        while !active_children().is_empty() {
            thread::yield_now();
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_in_the_system(), 0);
    }
    join(&Process::spawn(spawn_many, ()).unwrap()).unwrap();
}

#[test]
fn descriptor_limit_is_an_error() {
    fn set_limit(limit: u64) {
        // SAFETY: rlimit is plain integers, for which zero is a value.
        let mut limits: libc::rlimit = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live rlimit.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) }, 0);
        limits.rlim_cur = limit;
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) }, 0);
    }
    fn approach() -> (usize, usize) {
        join(&Process::spawn(|| (), ()).unwrap()).unwrap();
        let before = open_descriptors();
        let (mut refused, mut started) = (0, 0);
        let highest = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        for room in 0..16 {
            set_limit(highest + room);
            match Process::spawn(|| 7, ()) {
                Ok(child) => {
                    assert_eq!(join(&child).unwrap(), 7);
                    started += 1;
                }
                Err(error) => {
                    // The child has the same limit.
                    assert!(
                        matches!(error.kind(), ErrorKind::LimitReached | ErrorKind::StartFailed),
                        "{error:?}"
                    );
                    refused += 1;
                }
            }
            set_limit(1024);
            assert_eq!(open_descriptors(), before, "with room for {room}");
            assert_eq!(children_in_the_system(), 0, "with room for {room}");
        }
        (refused, started)
    }
    let (refused, started) = join(&Process::spawn(approach, ()).unwrap()).unwrap();
    assert!(refused >= 4 && started >= 4, "{refused} {started}");
}

/// What a process has open, and which of that goes on to the programs that it executes.
fn look_at_descriptors() -> (Vec<String>, Vec<u32>) {
    let mut inheritable = Vec::new();
    let mut targets = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap();
        // The directory itself is gone by then.
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else { continue };
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        if u32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_CLOEXEC as u32 == 0 {
            inheritable.push(number.parse().unwrap());
        }
        targets.push(target.to_string_lossy().into_owned());
    }
    inheritable.sort_unstable();
    (targets, inheritable)
}

#[test]
fn child_gets_what_it_was_given_and_no_more() {
    let stat = File::open("/proc/self/stat").unwrap();
    let look = || (look_at_descriptors(), std::env::var("MULTIPROC_HANDOVER").is_ok());
    let ((open, inheritable), has_marker) = join(&Process::spawn(look, ()).unwrap()).unwrap();
    assert!(
        !open.iter().any(|target| target.ends_with("/stat") || target.contains("multiproc-start")),
        "{open:?}"
    );
    assert_eq!(
        inheritable,
        look_at_descriptors().1,
        "nothing of ours goes on to the programs that the child executes"
    );
    assert!(!has_marker);
    drop(stat);
}

#[test]
fn stdin_is_the_null_device() {
    fn with_another_stdin() -> [String; 2] {
        let stdin = || fs::read_link("/proc/self/fd/0").unwrap().to_string_lossy().into_owned();
        let other = File::open("/proc/version").unwrap();
        // SAFETY: the call takes two numbers; nothing here reads from stdin.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), 0) }, 0);
        let look = || fs::read_link("/proc/self/fd/0").unwrap().to_string_lossy().into_owned();
        [stdin(), join(&Process::spawn(look, ()).unwrap()).unwrap()]
    }
    let seen = join(&Process::spawn(with_another_stdin, ()).unwrap()).unwrap();
    assert_eq!(seen, ["/proc/version", "/dev/null"]);
}

#[test]
fn signals_are_sane() {
    fn status() -> (u64, u64) {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (mask("SigBlk:"), mask("SigIgn:"))
    }
    fn with_all_blocked() {
        nix::sys::signal::SigSet::all().thread_block().unwrap();
        for signal in [libc::SIGTERM, libc::SIGCHLD, libc::SIGHUP] {
            // SAFETY: SIG_IGN runs no code.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let child = Process::spawn(status, ()).unwrap();
        let (blocked, ignored) = join(&child).unwrap();
        // Whom the system collects by itself, because SIGCHLD is ignored, has no exit status.
        assert_eq!(child.exit_code(), None);
        let bit = |signal: i32| 1_u64 << (signal - 1);
        assert_eq!(blocked, 0);
        assert_eq!(ignored & (bit(libc::SIGTERM) | bit(libc::SIGCHLD)), 0);
        assert_ne!(ignored & bit(libc::SIGPIPE), 0);
        assert_ne!(ignored & bit(libc::SIGHUP), 0, "as nohup wants it");
        let child = Process::spawn(run_for_ever, ()).unwrap();
        child.kill().unwrap();
        assert!(matches!(join(&child), Err(ProcessError::Lost { .. })));
    }
    join(&Process::spawn(with_all_blocked, ()).unwrap()).unwrap();
}

#[test]
fn fork_in_the_function_speaks_for_nobody() {
    fn forking() -> u32 {
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } != 0 {
            // The fork returns a value, and then this one is killed without any.
            // SAFETY: null is allowed where the status goes.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {}
            current_process().kill().unwrap();
            run_for_ever();
        }
        7
    }
    let child = Process::spawn(forking, ()).unwrap();
    assert!(matches!(join(&child), Err(ProcessError::Signaled { signal: libc::SIGKILL, .. })));
}

#[test]
fn fork_of_the_parent_does_not_collect() {
    fn forking() -> u32 {
        let child = Process::spawn(std::process::id, ()).unwrap();
        // SAFETY: this process has one thread.
        let fork = unsafe { libc::fork() };
        if fork == 0 {
            let is_lost = matches!(child.join(), Err(ProcessError::Lost { .. }));
            let is_sane = is_lost && active_children().is_empty();
            drop(child);
            // SAFETY: it ends here, with nothing to clean up.
            unsafe { libc::_exit(if is_sane { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        assert_eq!(unsafe { libc::waitpid(fork, &raw mut status, 0) }, fork);
        assert_eq!(status, 0);
        assert_eq!(join(&child).unwrap(), child.pid());
        child.pid()
    }
    join(&Process::spawn(forking, ()).unwrap()).unwrap();
}

#[test]
fn marker_that_was_not_consumed_forbids_spawning() {
    let marked = || {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("MULTIPROC_HANDOVER", "3") };
        Process::spawn(|| (), ()).map(drop)
    };
    let error = join(&Process::spawn(marked, ()).unwrap()).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotInitialised);
}

/// In which role a copy of this test's program runs; without it, `copied_program` is no test.
const ROLE: &str = "MULTIPROC_IT_COPIED_PROGRAM";

#[test]
fn copied_program() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let own = std::env::current_exe().unwrap();
    join(&Process::spawn(|| (), ()).unwrap()).unwrap();
    fs::remove_file(&own).unwrap();
    if role == "replaced" {
        fs::copy("/bin/true", &own).unwrap();
    }
    assert_eq!(join(&Process::spawn(|| 7, ()).unwrap()).unwrap(), 7);
}

#[test]
fn program_may_be_deleted_or_replaced() {
    for role in ["deleted", "replaced"] {
        let name = format!("multiproc-it-{}-{role}", std::process::id());
        let copy = std::env::temp_dir().join(name);
        fs::copy("/proc/self/exe", &copy).unwrap();
        let ran = Command::new(&copy)
            .args(["--exact", "process::start::copied_program", "--nocapture"])
            .env(ROLE, role)
            .output()
            .unwrap();
        let _ = fs::remove_file(&copy);
        let text = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && text.contains("1 passed"), "{role}: {text}");
    }
}

#[test]
fn forged_marker_is_ignored() {
    for marker in ["", "x", "-1", "0", "3", "99999"] {
        let ran = Command::new("/proc/self/exe")
            .args(["--exact", "process::start::copied_program"])
            .env("MULTIPROC_HANDOVER", marker)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && text.contains("1 passed"), "{marker:?}: {text}");
    }
}
