//! What survivors see when a process is killed, forks, or lives in another namespace.

#![expect(unsafe_code, reason = "fork and unshare are the C library's")]

use multiproc::{Array, Error, ErrorKind, Mutex, Process, Value, current_process};

use super::{exists, unique};

fn kill_me() -> ! {
    current_process().kill().unwrap();
    unreachable!("killed")
}

fn die_with_the_mutex(mutex: Mutex<[u32; 2]>) {
    let mut guard = mutex.lock().unwrap();
    guard[0] = 1;
    kill_me()
}

#[test]
fn owner_dies_everybody_is_told_until_somebody_recovers() -> multiproc::Result<()> {
    let mutex = Mutex::new([0_u32; 2])?;
    assert!(Process::spawn(die_with_the_mutex, (mutex.clone(),))?.join().is_err());
    for _ in 0..3 {
        // Told, and given the guard; dropping it recovers nothing.
        let guard = mutex.lock().unwrap_err().into_guard();
        assert_eq!(*guard, [1, 0]);
    }
    assert!(matches!(mutex.try_lock(), Err(multiproc::TryLockError::OwnerDied(_))));
    let error = Error::from(mutex.lock().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::OwnerDied);

    let unrepaired = std::panic::catch_unwind(|| drop(mutex.lock_or_repair(|_| panic!("cannot"))));
    assert!(unrepaired.is_err() && mutex.lock().is_err());
    *mutex.lock_or_repair(|data| *data = [1, 1]) = [2, 2];
    assert_eq!(*mutex.lock()?, [2, 2]);
    Ok(())
}

fn wait_for_the_mutex(mutex: Mutex<[u32; 2]>) -> bool {
    match mutex.lock() {
        Ok(_) => false,
        Err(died) => {
            died.into_guard().recover();
            true
        }
    }
}

fn hold_until_killed(mutex: Mutex<[u32; 2]>, held: Value<bool>) {
    let _guard = mutex.lock().unwrap();
    held.set(true);
    loop {
        std::thread::park();
    }
}

#[test]
fn owner_dies_while_others_sleep_on_it() -> multiproc::Result<()> {
    let (mutex, held) = (Mutex::new([0; 2])?, Value::new(false)?);
    let holder = Process::spawn(hold_until_killed, (mutex.clone(), held.clone()))?;
    while !held.get() {
        std::thread::yield_now();
    }
    let waiters: Vec<_> =
        (0..3).map(|_| Process::spawn(wait_for_the_mutex, (mutex.clone(),))).collect::<Result<_, _>>()?;
    holder.kill()?;
    let told: usize = waiters.iter().map(|waiter| waiter.join().map(usize::from)).sum::<Result<_, _>>()?;
    assert_eq!(told, 1, "the first one recovers, the others find it in order");
    Ok(())
}

fn die_with_the_array(array: Array<u32>) {
    let mut guard = array.lock().unwrap();
    guard[0] = 7;
    kill_me()
}

#[test]
fn by_value_calls_of_an_array_say_it_too() -> multiproc::Result<()> {
    let array = Array::<u32>::new(4)?;
    assert!(Process::spawn(die_with_the_array, (array.clone(),))?.join().is_err());
    assert!(
        array.get(0).is_err()
            && array.set(0, 1).is_err()
            && array.to_vec().is_err()
            && array.fill(0).is_err()
    );
    let guard = array.lock_or_repair(|elements| elements.fill(5));
    drop(guard);
    assert_eq!(array.to_vec()?, [5; 4]);
    Ok(())
}

fn die_with_the_value(value: Value<[u64; 8]>) {
    let mut guard = value.lock();
    guard.set([2; 8]);
    kill_me()
}

#[test]
fn a_value_keeps_its_last_commit() -> multiproc::Result<()> {
    let value = Value::new([1_u64; 8])?;
    assert!(Process::spawn(die_with_the_value, (value.clone(),))?.join().is_err());
    assert_eq!(value.get(), [1; 8]);
    value.set([3; 8]);
    assert_eq!(value.update(|[first, ..]| [first + 1; 8]), [4; 8]);
    Ok(())
}

fn die_with_many(values: Vec<Value<u64>>, arrays: Vec<Array<u8>>) {
    let _own: Vec<Value<u64>> = (0..2_000).map(|n| Value::new(n).unwrap()).collect();
    let _large = Array::<u8>::new(1 << 20).unwrap();
    drop((values, arrays));
    kill_me()
}

#[test]
fn what_a_killed_child_held_is_taken_back_and_what_others_hold_stays() -> multiproc::Result<()> {
    let values: Vec<Value<u64>> = (0..500).map(Value::new).collect::<Result<_, _>>()?;
    let arrays = vec![Array::<u8>::from_slice(&[9; 100_000])?];
    for _ in 0..20 {
        assert!(Process::spawn(die_with_many, (values.clone(), arrays.clone()))?.join().is_err());
        // Whatever is given away anew must not be what is still held.
        let _fresh: Vec<Value<u64>> = (0..500).map(|_| Value::new(u64::MAX)).collect::<Result<_, _>>()?;
        let _large = Array::<u8>::from_slice(&[1; 100_000])?;
        assert!(values.iter().enumerate().all(|(index, value)| value.get() == index as u64));
        assert_eq!(arrays[0].to_vec()?, [9; 100_000]);
    }
    Ok(())
}

fn make_and_return() -> (Value<u64>, Array<u32>) {
    (Value::new(42).unwrap(), Array::from_iter(0..100_000).unwrap())
}

#[test]
fn what_a_child_returns_outlives_it() -> multiproc::Result<()> {
    let child = Process::spawn(make_and_return, ())?;
    let (value, array) = child.join()?;
    let (again, _) = child.join()?;
    again.set(43);
    drop(child);
    assert_eq!((value.get(), array.get(99_999)?), (43, 99_999));
    Ok(())
}

/// Runs `child` in a plain fork of this process, and returns its exit code. Only for processes with one thread that matters.
fn forked(child: impl FnOnce()) -> i32 {
    // SAFETY: the child calls nothing that another thread of its parent could hold: `forked` runs in spawned processes, whose only other
    // threads sleep.
    match unsafe { libc::fork() } {
        0 => {
            let code = i32::from(std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).is_err());
            // SAFETY: ends the child without running its parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waits for the child that was just made.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
        }
    }
}

fn fork_with_a_guard(name: String) {
    let anonymous = Mutex::new(1_u32).unwrap();
    let named = Mutex::create(&name, 1_u32).unwrap();
    let value = Value::new([1_u64; 2]).unwrap();
    let held = (anonymous.clone(), named.clone());
    let guards = (held.0.lock().unwrap(), held.1.lock().unwrap());
    let code = forked(|| {
        // The guards are copies: dropping them gives nothing back, and the locks are another's.
        assert!(anonymous.try_lock().is_err());
        drop(guards);
        assert!(anonymous.try_lock().is_err() && named.try_lock().is_err());
        value.set([2; 2]);
        let own = Mutex::new(5_u32).unwrap();
        assert_eq!(*own.lock().unwrap(), 5);
        // Neither does dropping the handles unlink the name or free the objects.
        drop((named, anonymous, value));
    });
    assert_eq!(code, 0);
    assert!(exists(&name));
}

#[test]
fn a_forked_child_gives_nothing_back_that_is_its_parent_s() -> multiproc::Result<()> {
    let name = unique("fork");
    Process::spawn(fork_with_a_guard, (name.clone(),))?.join()?;
    assert!(!exists(&name));
    Ok(())
}

fn fork_beside_a_guard(name: String) {
    let mutex = Mutex::create(&name, 1_u32).unwrap();
    let value = Value::new([1_u64; 2]).unwrap();
    let guard = mutex.lock().unwrap();
    assert_eq!(
        forked(|| {
            value.set([2; 2]);
            kill_me()
        }),
        -libc::SIGKILL
    );
    assert_eq!(value.get(), [2; 2]);
    drop(guard);
    // The child's end was not an owner's.
    drop(mutex.lock().unwrap());
    // And what the parent still holds was not freed with the child.
    let fresh: Vec<Value<[u64; 2]>> = (0..2_000).map(|_| Value::new([7; 2]).unwrap()).collect();
    assert_eq!((value.get(), fresh[0].get()), ([2; 2], [7; 2]));
}

#[test]
fn a_forked_child_s_death_is_not_its_parent_s() -> multiproc::Result<()> {
    let name = unique("fork");
    Process::spawn(fork_beside_a_guard, (name.clone(),))?.join()?;
    assert!(!exists(&name));
    Ok(())
}

fn open_in_another_namespace(name: String) -> Result<String, String> {
    // SAFETY: a new PID namespace for the children of this process; it has no preconditions.
    if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
        return Ok("may not".to_owned());
    }
    let code = forked(|| {
        let error = Mutex::<u32>::open(&name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OtherNamespace, "{error}");
        let options = multiproc::Segment::options().any_pid_namespace();
        let segment = options.open(&name).unwrap();
        assert_eq!(segment.get::<Mutex<u32>>(&name).unwrap_err().kind(), ErrorKind::OtherNamespace);
        assert_eq!(segment.value("new", 1).unwrap_err().kind(), ErrorKind::OtherNamespace);
    });
    if code == 0 { Ok("refused".to_owned()) } else { Err(format!("exit code {code}")) }
}

#[test]
fn locks_are_refused_across_pid_namespaces() -> multiproc::Result<()> {
    let name = unique("namespace");
    let mutex = Mutex::create(&name, 1_u32)?;
    let answer = Process::spawn(open_in_another_namespace, (name,))?.join()?;
    assert!(matches!(answer.as_deref(), Ok("refused" | "may not")), "{answer:?}");
    drop(mutex.lock()?);
    Ok(())
}

fn hold_by_name(name: String) {
    let mutex = Mutex::create(&name, [0_u32; 2]).unwrap();
    let _guard = mutex.lock().unwrap();
    // Its end takes long: the lock is given away before its descriptors are closed.
    let weight = vec![1_u8; 64 << 20];
    kill_me_with(&weight)
}

fn kill_me_with(weight: &[u8]) -> ! {
    assert!(weight.iter().all(|&byte| byte == 1));
    kill_me()
}

#[test]
fn a_survivor_that_leaves_at_once_removes_the_name() -> multiproc::Result<()> {
    for _ in 0..5 {
        let name = unique("heavy");
        let holder = Process::spawn(hold_by_name, (name.clone(),))?;
        let mutex = loop {
            match Mutex::<[u32; 2]>::open(&name) {
                Ok(mutex) => break mutex,
                Err(error) if error.kind() == ErrorKind::NotFound && holder.is_alive() => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        };
        while mutex.lock().is_ok() && holder.is_alive() {
            std::thread::yield_now();
        }
        drop(mutex);
        let left = exists(&name);
        assert!(holder.join().is_err());
        let _ = multiproc::segment::reap(&name);
        assert!(!left, "the name is left");
    }
    Ok(())
}
