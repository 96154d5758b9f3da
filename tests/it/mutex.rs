//! The mutex: std's behaviour, and what a death adds to it.

#![expect(clippy::disallowed_methods, reason = "deadlines are instants")]

use std::time::{Duration, Instant};

use multiproc::{ErrorKind, Mutex, Process, Segment, TryLockError};

use super::{exists, unique};

fn deposit(account: Mutex<[i64; 2]>) {
    for _ in 0..2_000 {
        let mut account = account.lock().unwrap();
        account[0] += 1;
        account[1] -= 1;
    }
}

#[test]
fn smoke() -> multiproc::Result<()> {
    let account = Mutex::new([0, 0])?;
    let children: Vec<_> =
        (0..3).map(|_| Process::spawn(deposit, (account.clone(),))).collect::<Result<_, _>>()?;
    deposit(account.clone());
    for child in children {
        child.join()?;
    }
    assert_eq!(*account.lock()?, [8_000, -8_000]);
    Ok(())
}

#[test]
fn try_lock_and_its_siblings() -> multiproc::Result<()> {
    let mutex = Mutex::new(7_u32)?;
    let guard = mutex.try_lock().unwrap();
    // This thread's own lock counts as held.
    assert!(matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            assert!(matches!(mutex.lock_timeout(Duration::ZERO), Err(TryLockError::WouldBlock)));
            let before = Instant::now();
            assert!(matches!(mutex.lock_timeout(Duration::from_millis(5)), Err(TryLockError::TimedOut)));
            assert!(before.elapsed() >= Duration::from_millis(5));
            let deadline = Instant::now() + Duration::from_millis(5);
            assert!(matches!(mutex.lock_deadline(deadline), Err(TryLockError::TimedOut)));
            assert!(Instant::now() >= deadline);
            assert!(matches!(mutex.lock_deadline(before), Err(TryLockError::WouldBlock)));
        });
    });
    drop(guard);
    assert_eq!(*mutex.lock_timeout(Duration::from_secs(5)).unwrap(), 7);
    Ok(())
}

#[test]
fn a_waiter_is_woken() -> multiproc::Result<()> {
    let mutex = Mutex::new(0_u32)?;
    for round in 0..200 {
        let guard = mutex.lock()?;
        std::thread::scope(|threads| {
            let waiter = threads.spawn(|| *mutex.lock().unwrap() += 1);
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            drop(guard);
            waiter.join().unwrap();
        });
    }
    assert_eq!(*mutex.lock()?, 200);
    Ok(())
}

#[test]
fn relocking_panics_and_leaves_the_lock_held_once() -> multiproc::Result<()> {
    let mutex = Mutex::new(0_u32)?;
    let guard = mutex.lock()?;
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(mutex.lock())));
    let text = again.unwrap_err();
    assert!(text.downcast_ref::<&str>().unwrap().contains("holds the lock already"));
    drop(guard);
    drop(mutex.try_lock().unwrap());
    Ok(())
}

#[test]
fn a_panic_gives_the_lock_back() -> multiproc::Result<()> {
    let mutex = Mutex::new(0_u32)?;
    let other = mutex.clone();
    let panicked = std::thread::spawn(move || {
        let mut guard = other.lock().unwrap();
        *guard = 5;
        panic!("in the section");
    });
    assert!(panicked.join().is_err());
    assert_eq!(*mutex.lock()?, 5);
    Ok(())
}

#[test]
fn by_name_and_in_a_segment() -> multiproc::Result<()> {
    let name = unique("mutex");
    let mutex = Mutex::create(&name, [1_u64; 20])?;
    Mutex::<[u64; 20]>::open(&name)?.lock()?[19] = 9;
    assert_eq!(mutex.lock()?[19], 9);
    assert_eq!(Mutex::<[u64; 21]>::open(&name).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(Mutex::open_or_create(&name, [0_u64; 20])?.lock()?[19], 9);
    drop(mutex);
    assert!(!exists(&name));

    let segment = Segment::create(&name, 4096)?;
    let mutex = segment.mutex("ledger", 5_u8)?;
    assert_eq!(segment.mutex("ledger", 6_u8).unwrap_err().kind(), ErrorKind::AlreadyExists);
    *segment.get::<Mutex<u8>>("ledger")?.lock()? = 7;
    assert_eq!(*mutex.lock()?, 7);
    Ok(())
}

#[test]
fn a_forgotten_guard_does_not_fault_the_next_lock() -> multiproc::Result<()> {
    std::thread::spawn(|| -> multiproc::Result<()> {
        for by_name in [false, true] {
            let name = unique("forgotten");
            let mutex = if by_name { Mutex::create(&name, 1_u32)? } else { Mutex::new(1_u32)? };
            std::mem::forget(mutex.lock()?);
            drop(mutex);
            // The list of this thread still names the forgotten lock: it must still be mapped, and nobody else's.
            let others: Vec<Mutex<u32>> = (0..2_000).map(|_| Mutex::new(0)).collect::<Result<_, _>>()?;
            for other in &others {
                *other.lock()? += 1;
            }
            let libc_s = std::sync::Mutex::new(0);
            *libc_s.lock().unwrap() += 1;
            // The mapping is kept, and with it the name.
            assert_eq!(exists(&name), by_name);
            let _ = multiproc::segment::unlink(&name);
        }
        Ok(())
    })
    .join()
    .unwrap()
}

#[test]
fn dropping_a_handle_while_another_s_guard_is_held_leaks_nothing() -> multiproc::Result<()> {
    fn many(name: String) -> Result<(), String> {
        let mutex = Mutex::create(&name, 1_u32).map_err(|error| error.to_string())?;
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let guard = mutex.lock().unwrap();
        for _ in 0..100 {
            drop(Mutex::<u32>::open(&name).map_err(|error| error.to_string())?);
        }
        drop(guard);
        if descriptors() == before {
            Ok(())
        } else {
            Err(format!("{before} descriptors, then {}", descriptors()))
        }
    }
    let name = unique("two");
    assert_eq!(Process::spawn(many, (name.clone(),))?.join()?, Ok(()));
    assert!(!exists(&name));
    Ok(())
}

#[test]
fn many_locks_in_any_order() -> multiproc::Result<()> {
    let locks: Vec<Mutex<usize>> = (0..300).map(Mutex::new).collect::<Result<_, _>>()?;
    let mut guards: Vec<_> = locks.iter().map(|lock| Some(lock.lock().unwrap())).collect();
    for step in [7, 11, 13, 1] {
        for index in (0..guards.len()).step_by(step) {
            guards[index] = None;
        }
        for index in (0..guards.len()).step_by(step * 2) {
            guards[index] = Some(locks[index].lock().unwrap());
        }
    }
    assert!(guards.iter().flatten().all(|guard| **guard < 300));
    drop(guards);
    locks.iter().for_each(|lock| drop(lock.try_lock().unwrap()));
    Ok(())
}
