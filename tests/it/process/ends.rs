//! How children end, and what their parents learn of it.

#![expect(
    unsafe_code,
    reason = "a constructor is linked in, and limits and signals are set, to see what children make of them"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the tests measure by themselves that a call waited long enough"
)]

use std::os::fd::AsFd;
use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use multiproc::{Error, ErrorKind, Process, ProcessError};

use super::{join, run_for_ever};

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
            assert!(location.unwrap().contains(&format!("ends.rs:{line}:")));
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
