//! Names, parents, children, daemons.

#![expect(
    unsafe_code,
    reason = "a constructor is linked in, and limits and signals are set, to see what children make of them"
)]

use std::fs;
use std::thread;
use std::time::Duration;

use multiproc::process::ProcessRef;
use multiproc::{Process, ProcessError};
use multiproc::{active_children, cpu_count, current_process, parent_process};

use super::{Line, Meeting, join, run_for_ever};

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
