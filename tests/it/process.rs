//! Processes as their users see them. Whatever counts a whole process's things (its descriptors, its children, its names) runs
//! in a child, for the tests share one process.

#![expect(
    unsafe_code,
    reason = "a constructor is linked in, and limits and signals are set, to see what children make of them"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the tests measure by themselves that a call waited long enough"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multiproc::process::ProcessRef;
use multiproc::{Array, Error, ErrorKind, Process, ProcessError, Value};
use multiproc::{active_children, cpu_count, current_process, parent_process};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// Ends a hang, whatever its cause: a test that takes so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a test meets processes that it cannot join: grandchildren, and children that have more to say than one value.
struct Meeting {
    listener: UnixListener,
    place: PathBuf,
}

impl Meeting {
    fn new(name: &str) -> Meeting {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("multiproc-it-{}-{name}-{count}", std::process::id()));
        let _ = fs::remove_file(&place);
        Meeting { listener: UnixListener::bind(&place).unwrap(), place }
    }

    fn place(&self) -> String {
        self.place.to_str().unwrap().to_owned()
    }

    /// The next one who comes. Its end of the line closes when it dies.
    fn welcome(&self) -> Line {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        let coming = poll(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], patience).unwrap();
        assert_eq!(coming, 1, "nobody came");
        Line::new(self.listener.accept().unwrap().0)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
    }
}

struct Line(BufReader<UnixStream>);

impl Line {
    fn new(stream: UnixStream) -> Line {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Line(BufReader::new(stream))
    }

    fn to(place: &str) -> Line {
        Line::new(UnixStream::connect(place).unwrap())
    }

    fn say(&mut self, text: &str) {
        // In one piece: the other end may leave after the first.
        self.0.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    /// What the other end says next; `None` when it is gone.
    fn hear(&mut self) -> Option<String> {
        let mut text = String::new();
        match self.0.read_line(&mut text) {
            Ok(0) => None,
            Ok(_) => Some(text.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits for a child with a watchdog.
fn join<R: de::DeserializeOwned>(child: &Process<R>) -> Result<R, ProcessError> {
    let joined = child.join_timeout(PATIENCE);
    assert!(!matches!(joined, Err(ProcessError::TimedOut)), "{child:?} hangs");
    joined
}

fn run_for_ever() {
    loop {
        thread::park();
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How many children the system knows of, zombies included.
fn children_in_the_system() -> usize {
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap();
    children.split_whitespace().count()
}

#[test]
fn smoke() {
    fn add(a: u32, b: u32) -> u32 {
        a + b
    }
    let child = Process::spawn(add, (40, 2)).unwrap();
    assert_eq!(join(&child).unwrap(), 42);
    assert_eq!(child.exit_code(), Some(0));
    assert!(!child.is_alive());
}

#[test]
fn takes_up_to_eight_arguments() {
    assert_eq!(join(&Process::spawn(|| 0, ()).unwrap()).unwrap(), 0);
    assert_eq!(join(&Process::spawn(|a: i32| a, (1,)).unwrap()).unwrap(), 1);
    let text = |a: u8, b: String, c: Option<char>| format!("{a}{b}{c:?}");
    assert_eq!(join(&Process::spawn(text, (1, "b".to_owned(), Some('c'))).unwrap()).unwrap(), "1bSome('c')");
    let sum = |a: i8, b: i16, c: i32, d: i64, e: u8, f: u16, g: u32, h: u64| {
        i64::from(a) + i64::from(b) + i64::from(c) + d + i64::from(e) + i64::from(f) + i64::from(g) + h as i64
    };
    assert_eq!(join(&Process::spawn(sum, (1, 2, 3, 4, 5, 6, 7, 8)).unwrap()).unwrap(), 36);
}

#[test]
fn join_is_repeatable() {
    let child = Process::spawn(|| "again".to_owned(), ()).unwrap();
    for _ in 0..3 {
        assert_eq!(join(&child).unwrap(), "again");
    }
    let failing = Process::spawn(|| panic!("again"), ()).unwrap();
    let failing: Process = failing;
    for _ in 0..3 {
        assert!(matches!(join(&failing), Err(ProcessError::Panicked { .. })));
    }
}

#[test]
fn panic_gives_message_and_place() {
    fn fail(number: u32) -> u32 {
        panic!("no luck with {number}")
    }
    let line = line!() - 2;
    let child = Process::builder().name("unlucky").spawn(fail, (13,)).unwrap();
    match join(&child) {
        Err(ProcessError::Panicked { name, pid, message, location }) => {
            assert_eq!((name.as_str(), pid, message.as_str()), ("unlucky", child.pid(), "no luck with 13"));
            assert!(location.unwrap().contains(&format!("process.rs:{line}:")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(child.exit_code(), Some(101));
    let error = Error::from(join(&child).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ProcessFailed);
    assert!(error.to_string().contains("process \"unlucky\" (pid "), "{error}");
    assert!(error.to_string().ends_with(": no luck with 13"), "{error}");
}

#[test]
fn panic_without_text_or_hook() {
    let child: Process = Process::spawn(|| panic::panic_any(7), ()).unwrap();
    assert!(matches!(join(&child), Err(ProcessError::Panicked { message, .. }) if message.is_empty()));
    let unhooked = || {
        panic::set_hook(Box::new(|_| {}));
        panic!("unseen")
    };
    let child: Process = Process::spawn(unhooked, ()).unwrap();
    match join(&child) {
        Err(ProcessError::Panicked { message, location: None, .. }) => assert_eq!(message, "unseen"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn panic_that_aborts_gives_message_too() {
    fn fail_twice() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the second");
            }
        }
        let _bomb = Bomb;
        panic!("the first");
    }
    let child = Process::spawn(fail_twice, ()).unwrap();
    match join(&child) {
        Err(ProcessError::Panicked { message, location: Some(_), .. }) => assert_eq!(message, "the second"),
        other => panic!("{other:?}"),
    }
    assert_eq!(child.exit_code(), Some(-libc::SIGABRT));
}

#[test]
fn panic_that_was_caught_is_none() {
    let careful = || {
        thread::spawn(|| panic!("in a thread")).join().unwrap_err();
        panic::catch_unwind(|| panic!("here")).unwrap_err();
        7
    };
    assert_eq!(join(&Process::spawn(careful, ()).unwrap()).unwrap(), 7);
}

#[test]
fn err_makes_the_exit_code_one() {
    let child = Process::spawn(|| Err::<u32, _>("no".to_owned()), ()).unwrap();
    assert_eq!(join(&child).unwrap(), Err("no".to_owned()));
    assert_eq!(child.exit_code(), Some(1));
    let child = Process::spawn(|| Ok::<_, String>(7), ()).unwrap();
    assert_eq!(join(&child).unwrap(), Ok(7));
    assert_eq!(child.exit_code(), Some(0));
    fn fallible() -> multiproc::Result<()> {
        let child: Process = Process::spawn(|| std::process::exit(9), ())?;
        Ok(child.join()?)
    }
    let child = Process::spawn(fallible, ()).unwrap();
    let error = join(&child).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ProcessFailed);
    assert!(error.to_string().contains("exited with code 9"), "{error}");
    assert_eq!(child.exit_code(), Some(1));
}

#[test]
fn exit_gives_its_code() {
    for (given, seen) in [(0, 0), (7, 7), (256, 0), (300, 44), (-1, 255)] {
        let child: Process = Process::spawn(|code| std::process::exit(code), (given,)).unwrap();
        match join(&child) {
            Err(ProcessError::Exited { code, .. }) => assert_eq!(code, seen),
            other => panic!("{other:?}"),
        }
        assert_eq!(child.exit_code(), Some(seen));
    }
}

#[test]
fn signal_gives_its_number() {
    for given in [libc::SIGKILL, libc::SIGTERM, libc::SIGABRT, libc::SIGSEGV, libc::SIGRTMIN() + 3] {
        let raise = |signal| {
            // SAFETY: the call takes a number.
            unsafe { libc::raise(signal) };
        };
        let child = Process::spawn(raise, (given,)).unwrap();
        match join(&child) {
            Err(ProcessError::Signaled { signal, .. }) => assert_eq!(signal, given),
            other => panic!("{other:?}"),
        }
        assert_eq!(child.exit_code(), Some(-given));
    }
}

#[test]
fn terminate_and_kill() {
    let child = Process::spawn(run_for_ever, ()).unwrap();
    assert!(child.is_alive());
    assert_eq!(child.exit_code(), None);
    child.terminate().unwrap();
    assert!(matches!(join(&child), Err(ProcessError::Signaled { signal: libc::SIGTERM, .. })));
    assert_eq!(child.exit_code(), Some(-libc::SIGTERM));

    let child = Process::builder().name("stubborn").spawn(run_for_ever, ()).unwrap();
    child.kill().unwrap();
    let error = join(&child).unwrap_err();
    let pid = child.pid();
    assert_eq!(
        error.to_string(),
        format!("process \"stubborn\" (pid {pid}) was killed by signal 9 (SIGKILL)")
    );
    // One that has ended may be signalled in vain.
    child.terminate().unwrap();
    child.kill().unwrap();
}

#[test]
fn try_join() {
    let child = Process::spawn(run_for_ever, ()).unwrap();
    assert!(matches!(child.try_join(), Err(ProcessError::WouldBlock)));
    assert!(matches!(child.join_timeout(Duration::ZERO), Err(ProcessError::WouldBlock)));
    child.kill().unwrap();
    join(&child).unwrap_err();
    assert!(matches!(child.try_join(), Err(ProcessError::Signaled { .. })));
}

#[test]
fn join_timeout() {
    let child = Process::spawn(run_for_ever, ()).unwrap();
    let patience = Duration::from_millis(30);
    let start = Instant::now();
    assert!(matches!(child.join_timeout(patience), Err(ProcessError::TimedOut)));
    assert!(start.elapsed() >= patience);
    assert!(matches!(child.join_deadline(Instant::now() + patience), Err(ProcessError::TimedOut)));
    assert!(start.elapsed() >= 2 * patience);
    child.kill().unwrap();
    join(&child).unwrap_err();
}

#[test]
fn joins_from_many_threads_lose_nothing() {
    for _ in 0..10 {
        let child = Process::spawn(std::process::id, ()).unwrap();
        thread::scope(|scope| {
            for index in 0..8 {
                let child = &child;
                scope.spawn(move || {
                    while index % 2 == 0 && child.is_alive() {
                        thread::yield_now();
                    }
                    assert_eq!(join(child).unwrap(), child.pid());
                    assert_eq!(child.exit_code(), Some(0));
                });
            }
        });
    }
}

#[test]
fn sentinel_is_readable_at_the_end() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let child = Process::spawn(run_for_ever, ()).unwrap();
    let readable = |timeout: PollTimeout| {
        poll(&mut [PollFd::new(child.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 1
    };
    assert!(!readable(PollTimeout::ZERO));
    child.kill().unwrap();
    assert!(readable(PollTimeout::NONE));
    join(&child).unwrap_err();
    assert!(readable(PollTimeout::ZERO), "and it stays so");
}

#[test]
fn shows_its_state() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    let child = Process::builder().name("shown").daemon().spawn(run_for_ever, ()).unwrap();
    is_shared(&child);
    let (pid, parent) = (child.pid(), std::process::id());
    let start = format!("Process {{ name: \"shown\", pid: {pid}, parent: {parent}, status: ");
    assert_eq!(format!("{child:?}"), format!("{start}started, daemon: true }}"));
    child.kill().unwrap();
    join(&child).unwrap_err();
    assert_eq!(format!("{child:?}"), format!("{start}stopped, signal 9 (SIGKILL), daemon: true }}"));
    assert_eq!(
        format!("{:?}", child.to_ref()),
        format!("ProcessRef{}", &format!("{child:?}")["Process".len()..])
    );
}

#[test]
fn names_tell_the_line_of_descent() {
    fn names() -> Vec<String> {
        let first = Process::spawn(
            || {
                let inner = Process::spawn(|| current_process().name().to_owned(), ()).unwrap();
                vec![current_process().name().to_owned(), join(&inner).unwrap()]
            },
            (),
        );
        let mut names = join(&first.unwrap()).unwrap();
        let second =
            Process::builder().name("second").spawn(|| current_process().name().to_owned(), ()).unwrap();
        names.push(join(&second).unwrap());
        let third = Process::spawn(|| (), ()).unwrap();
        names.push(third.name().to_owned());
        join(&third).unwrap();
        names
    }
    let child = Process::spawn(names, ()).unwrap();
    let own = child.name().to_owned();
    assert!(own.strip_prefix("Process-").unwrap().parse::<u32>().is_ok(), "{own}");
    let expected = [format!("{own}:1"), format!("{own}:1:1"), "second".to_owned(), format!("{own}:3")];
    assert_eq!(join(&child).unwrap(), expected);
}

#[test]
fn child_knows_itself() {
    let look = || {
        let own = current_process();
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        (own.name().to_owned(), own.pid(), own.is_daemon(), own.is_alive(), own.exit_code(), comm)
    };
    let child = Process::builder().name("a name longer than most").daemon().spawn(look, ()).unwrap();
    let (name, pid, is_daemon, is_alive, exit_code, comm) = join(&child).unwrap();
    assert_eq!((name.as_str(), pid), ("a name longer than most", child.pid()));
    assert_eq!((is_daemon, is_alive, exit_code), (true, true, None));
    assert_eq!(comm, "a name longer t\n");
    assert!(cpu_count() >= 1);
}

#[test]
fn active_children_are_those_that_run() {
    fn look() {
        assert!(active_children().is_empty(), "a fresh child has none");
        let held = Process::spawn(run_for_ever, ()).unwrap();
        let dropped = Process::builder().name("dropped").spawn(run_for_ever, ()).unwrap().pid();
        let ended = Process::spawn(|| (), ()).unwrap();
        join(&ended).unwrap();
        let active = active_children();
        let pids: Vec<_> = active.iter().map(ProcessRef::pid).collect();
        assert_eq!(pids, [held.pid(), dropped]);
        assert_eq!(active[1].name(), "dropped");
        for child in &active {
            assert!(child.is_alive() && child.exit_code().is_none());
            assert!(matches!(child.try_join(), Err(ProcessError::WouldBlock)));
            assert!(matches!(child.join_timeout(Duration::from_millis(1)), Err(ProcessError::TimedOut)));
            child.kill().unwrap();
            assert!(matches!(child.join(), Err(ProcessError::Signaled { .. })));
            assert_eq!(child.exit_code(), Some(-9));
        }
        assert!(active_children().is_empty());
    }
    join(&Process::spawn(look, ()).unwrap()).unwrap();
}

#[test]
fn parent_is_known_and_outlived() {
    fn orphan(place: String) {
        let mut line = Line::to(&place);
        let parent = parent_process().unwrap();
        assert!(parent.is_alive());
        assert!(matches!(parent.try_join(), Err(ProcessError::WouldBlock)));
        line.say(&format!("{} {}", parent.pid(), parent.name()));
        parent.join().unwrap();
        assert!(!parent.is_alive());
        line.say("orphaned");
    }
    fn parent(place: String) {
        Process::spawn(orphan, (place,)).unwrap();
        run_for_ever();
    }
    assert!(parent_process().is_none());
    let meeting = Meeting::new("orphan");
    let child = Process::builder().name("parent").spawn(parent, (meeting.place(),)).unwrap();
    let mut line = meeting.welcome();
    assert_eq!(line.hear().unwrap(), format!("{} parent", child.pid()));
    child.kill().unwrap();
    assert_eq!(line.hear().unwrap(), "orphaned");
    join(&child).unwrap_err();
}

/// Says hello, and stays until it is ended.
fn linger(place: String) {
    let mut line = Line::to(&place);
    line.say("here");
    if line.hear().is_some() {
        line.say("told to go");
    }
}

/// Starts a daemon, and returns when it is told to.
fn parent_of_daemon(place: String, daemon: u8) {
    let builder = Process::builder().daemon();
    let _daemon = match daemon {
        MEEK => builder.spawn(linger, (place.clone(),)).unwrap(),
        _ => builder.spawn(linger_stubbornly, (place.clone(),)).unwrap(),
    };
    let mut line = Line::to(&place);
    line.say("parent");
    line.hear();
}

const MEEK: u8 = 0;
const STUBBORN: u8 = 1;

fn linger_stubbornly(place: String) {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    linger(place);
}

fn daemon_ends_with_its_parent(daemon: u8, end: fn(&Process, &mut Line)) -> Process {
    let meeting = Meeting::new(if daemon == MEEK { "daemon-meek" } else { "daemon-stubborn" });
    let child = Process::spawn(parent_of_daemon, (meeting.place(), daemon)).unwrap();
    let mut lines = [meeting.welcome(), meeting.welcome()].map(|mut line| (line.hear().unwrap(), line));
    lines.sort_by_key(|(name, _)| name.clone());
    let [(_, daemon), (_, parent)] = &mut lines;
    end(&child, parent);
    assert_eq!(daemon.hear(), None);
    child
}

#[test]
fn daemon_ends_when_its_parent_exits() {
    for daemon in [MEEK, STUBBORN] {
        let child = daemon_ends_with_its_parent(daemon, |_, parent| parent.say("exit"));
        join(&child).unwrap();
    }
}

#[test]
fn daemon_ends_when_its_parent_is_killed() {
    for daemon in [MEEK, STUBBORN] {
        let child = daemon_ends_with_its_parent(daemon, |child, _| child.kill().unwrap());
        join(&child).unwrap_err();
    }
}

#[test]
fn daemon_outlives_the_thread_that_spawned_it() {
    let meeting = Meeting::new("daemon-thread");
    let place = meeting.place();
    let child =
        thread::spawn(move || Process::builder().daemon().spawn(linger, (place,)).unwrap()).join().unwrap();
    let mut daemon = meeting.welcome();
    assert_eq!(daemon.hear().unwrap(), "here");
    assert!(matches!(child.join_timeout(Duration::from_millis(100)), Err(ProcessError::TimedOut)));
    daemon.say("go");
    assert_eq!(daemon.hear().unwrap(), "told to go");
    join(&child).unwrap();
}

#[test]
fn children_of_a_daemon_are_daemons() {
    let ask = || Process::spawn(|| (), ()).unwrap().is_daemon();
    assert!(join(&Process::builder().daemon().spawn(ask, ()).unwrap()).unwrap());
    assert!(!join(&Process::spawn(ask, ()).unwrap()).unwrap());
}

#[test]
fn others_are_waited_for_at_exit() {
    fn parent(place: String) {
        Process::spawn(linger, (place,)).unwrap();
    }
    let meeting = Meeting::new("waited-for");
    let child = Process::spawn(parent, (meeting.place(),)).unwrap();
    let mut grandchild = meeting.welcome();
    assert_eq!(grandchild.hear().unwrap(), "here");
    assert!(matches!(child.join_timeout(Duration::from_millis(100)), Err(ProcessError::TimedOut)));
    grandchild.say("go");
    assert_eq!(grandchild.hear().unwrap(), "told to go");
    join(&child).unwrap();
}

#[test]
fn dropping_lets_it_run() {
    let meeting = Meeting::new("dropped");
    drop(Process::spawn(linger, (meeting.place(),)).unwrap());
    let mut child = meeting.welcome();
    assert_eq!(child.hear().unwrap(), "here");
    child.say("go");
    assert_eq!(child.hear().unwrap(), "told to go");
}

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
            .args(["--exact", "process::copied_program", "--nocapture"])
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
            .args(["--exact", "process::copied_program"])
            .env("MULTIPROC_HANDOVER", marker)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && text.contains("1 passed"), "{marker:?}: {text}");
    }
}
