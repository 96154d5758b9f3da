//! Values: numbers as atomics, everything else whole.

#![expect(clippy::disallowed_methods, reason = "deadlines are instants")]

use bytemuck::{CheckedBitPattern, NoUninit};
use multiproc::{
    Error, ErrorKind, List, Ordering, Process, RawValue, Segment, Text, TryLockError, Value, plain,
};

use super::{exists, unique};

plain! {
    #[derive(Debug, PartialEq)]
    struct Position {
        x: f64,
        y: f64,
        z: f64,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, NoUninit, CheckedBitPattern)]
#[repr(u8)]
enum Light {
    Red,
    Green,
}

#[test]
fn smoke() -> multiproc::Result<()> {
    macro_rules! holds {
        ($($first:expr => $second:expr),+ $(,)?) => {$(
            let value = Value::new($first)?;
            assert_eq!(value.get(), $first);
            value.set($second);
            assert_eq!(value.get(), $second);
            let raw = RawValue::new($first)?;
            assert_eq!(raw.get(), $first);
            raw.set($second);
            assert_eq!((raw.get(), raw.clone().get_checked()), ($second, Ok($second)));
        )+};
    }
    holds! {
        1_u8 => 255_u8, -1_i8 => 1_i8, 1_u16 => 2_u16, -1_i16 => 3_i16, 1_u32 => u32::MAX, i32::MIN => 7_i32,
        1_u64 => u64::MAX, i64::MIN => 0_i64, 1_usize => 2_usize, -1_isize => 1_isize, 0.5_f32 => f32::MAX, -0.0 => f64::INFINITY,
        true => false, 'a' => 'ß', Light::Red => Light::Green, 1_u128 => u128::MAX, [1_u8; 3] => [2_u8; 3],
        [7_u64; 9] => [8_u64; 9], () => (),
        Position { x: 1.0, y: 2.0, z: 3.0 } => Position { x: -1.0, y: -2.0, z: -3.0 },
        Text::<16>::truncated("bob") => Text::<16>::truncated("alice"),
        List::<u16, 4>::from_slice(&[1]).unwrap() => List::<u16, 4>::from_slice(&[1, 2, 3]).unwrap(),
    }
    Ok(())
}

#[test]
fn numbers_have_std_s_atomic_operations() -> multiproc::Result<()> {
    use Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
    let n = Value::new(6_i32)?;
    assert_eq!((n.fetch_add(4, Relaxed), n.load(Acquire)), (6, 10));
    assert_eq!((n.fetch_sub(3, Relaxed), n.swap(5, AcqRel)), (10, 7));
    assert_eq!((n.fetch_max(9, SeqCst), n.fetch_min(1, SeqCst), n.get()), (5, 9, 1));
    assert_eq!(n.compare_exchange(1, 2, AcqRel, Relaxed), Ok(1));
    assert_eq!(n.compare_exchange(1, 3, AcqRel, Relaxed), Err(2));
    assert_eq!(
        (n.fetch_or(5, Relaxed), n.fetch_and(6, Relaxed), n.fetch_xor(1, Relaxed), n.get()),
        (2, 7, 6, 7)
    );
    n.store(i32::MAX, Relaxed);
    assert_eq!((n.fetch_add(1, Relaxed), n.get()), (i32::MAX, i32::MIN));

    let x = Value::new(1.5_f64)?;
    assert_eq!((x.fetch_add(1.0, Relaxed), x.fetch_sub(0.25, Relaxed), x.get()), (1.5, 2.5, 2.25));
    assert_eq!((x.fetch_max(3.0, Relaxed), x.fetch_min(2.0, Relaxed), x.get()), (2.25, 3.0, 2.0));
    assert_eq!(x.compare_exchange(2.0, 4.0, AcqRel, Relaxed), Ok(2.0));
    assert_eq!(x.update(f64::sqrt), 2.0);
    Ok(())
}

fn count(small: Value<u8>, whole: Value<u64>, share: Value<f64>, pair: Value<[u64; 2]>) {
    for _ in 0..2_000 {
        small.fetch_add(1, Ordering::Relaxed);
        whole.update(|n| n + 1);
        share.fetch_add(0.5, Ordering::Relaxed);
        pair.update(|[a, b]| [a + 1, b + 2]);
    }
}

#[test]
fn no_increment_of_any_process_is_lost() -> multiproc::Result<()> {
    let (small, whole, share, pair) = (Value::new(0)?, Value::new(0)?, Value::new(0.0)?, Value::new([0, 0])?);
    let arguments = || (small.clone(), whole.clone(), share.clone(), pair.clone());
    let children: Vec<_> = (0..3).map(|_| Process::spawn(count, arguments())).collect::<Result<_, _>>()?;
    count(small.clone(), whole.clone(), share.clone(), pair.clone());
    for child in children {
        child.join()?;
    }
    assert_eq!(
        (small.get(), whole.get(), share.get(), pair.get()),
        ((8_000 % 256) as u8, 8_000, 4_000.0, [8_000, 16_000])
    );
    Ok(())
}

fn write_pairs(pair: Value<[u64; 9]>, stop: Value<bool>) -> u64 {
    let mut n = 0;
    while !stop.get() {
        n += 1;
        pair.set([n; 9]);
    }
    n
}

#[test]
fn a_reader_sees_whole_values_and_none_older_than_the_last() -> multiproc::Result<()> {
    let (pair, stop) = (Value::new([0; 9])?, Value::new(false)?);
    let writer = Process::spawn(write_pairs, (pair.clone(), stop.clone()))?;
    let mut last = 0;
    while last < 20_000 {
        let seen = pair.get();
        assert_eq!(seen, [seen[0]; 9]);
        assert!(seen[0] >= last, "{} after {last}", seen[0]);
        last = seen[0];
    }
    stop.set(true);
    assert!(writer.join()? >= last);
    Ok(())
}

#[test]
fn a_guard_commits_when_it_is_dropped_and_not_while_panicking() -> multiproc::Result<()> {
    let pair = Value::new([1, 2])?;
    let mut guard = pair.lock();
    guard.set([3, 4]);
    assert_eq!((guard.get(), pair.get()), ([3, 4], [1, 2]));
    assert_eq!(guard.update(|[a, b]| [b, a]), [4, 3]);
    drop(guard);
    assert_eq!(pair.get(), [4, 3]);

    let other = pair.clone();
    let panicked = std::thread::spawn(move || {
        let mut guard = other.lock();
        guard.set([9, 9]);
        panic!("in the middle");
    });
    assert!(panicked.join().is_err());
    assert_eq!(pair.get(), [4, 3]);

    let number = Value::new(1)?;
    let mut guard = number.lock();
    guard.set(2);
    assert_eq!(number.fetch_add(1, Ordering::Relaxed), 2);
    assert_eq!(guard.get(), 3);
    Ok(())
}

#[test]
fn a_destructor_that_runs_while_panicking_can_still_write() -> multiproc::Result<()> {
    struct Writes(Value<[u32; 3]>);
    impl Drop for Writes {
        fn drop(&mut self) {
            assert_eq!(self.0.update(|[first, ..]| [first + 1; 3]), [1; 3]);
        }
    }
    let value = Value::new([0; 3])?;
    let writes = Writes(value.clone());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _writes = writes;
        panic!("for another reason");
    }));
    assert!(panicked.is_err());
    assert_eq!(value.get(), [1; 3]);
    Ok(())
}

#[test]
fn try_lock_and_lock_timeout_say_that_another_has_it() -> multiproc::Result<()> {
    let value = Value::new([0_u64; 2])?;
    let guard = value.lock();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            assert!(matches!(value.try_lock(), Err(TryLockError::WouldBlock)));
            let short = std::time::Duration::from_millis(2);
            assert!(matches!(value.lock_timeout(short), Err(TryLockError::TimedOut)));
            assert!(matches!(value.lock_timeout(std::time::Duration::ZERO), Err(TryLockError::WouldBlock)));
            let error = Error::from(value.lock_deadline(std::time::Instant::now() + short).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    });
    drop(guard);
    value.try_lock().unwrap().set([1, 1]);
    assert_eq!(value.get(), [1, 1]);
    Ok(())
}

#[test]
fn by_name() -> multiproc::Result<()> {
    let name = unique("value");
    let value = Value::create(&name, 1.5)?;
    assert_eq!(Value::create(&name, 2.5).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let other = Value::<f64>::open(&name)?;
    other.set(2.5);
    assert_eq!((value.get(), Value::open_or_create(&name, 0.0)?.get()), (2.5, 2.5));
    drop((value, other));
    assert!(!exists(&name));
    assert_eq!(Value::open_or_create(&name, 0.25)?.get(), 0.25);
    Ok(())
}

#[test]
fn another_type_is_named_with_what_was_expected() -> multiproc::Result<()> {
    let name = unique("typed");
    let _value = Value::create(&name, 1_u64)?;
    let wrong = |error: Error| (error.kind(), error.to_string().replace(&name, "px"));
    assert_eq!(
        wrong(Value::<f64>::open(&name).unwrap_err()),
        (
            ErrorKind::TypeMismatch,
            "cannot open value \"px\": it holds u64 of 8 bytes, this program's is f64 of 8 bytes".to_owned()
        )
    );
    assert_eq!(
        wrong(multiproc::Array::<u64>::open(&name).unwrap_err()),
        (ErrorKind::TypeMismatch, "cannot open array \"px\": it is a value, not an array".to_owned())
    );
    Ok(())
}

#[test]
fn bits_that_are_no_value_are_said_to_be_so() -> multiproc::Result<()> {
    let name = unique("bits");
    let light = RawValue::create(&name, Light::Red)?;
    let offset = Segment::open(&name)?.objects()?[0].offset;
    // A program that knows nothing of the type writes a 7 into it.
    let file =
        std::fs::OpenOptions::new().write(true).open(std::path::Path::new("/dev/shm").join(&name)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7], offset as u64 + 64).unwrap();
    assert!(light.get_checked().is_err());
    assert!(std::panic::catch_unwind(|| light.get()).is_err());
    light.set(Light::Green);
    assert_eq!(light.get(), Light::Green);
    Ok(())
}

#[test]
fn a_million_values_share_one_descriptor() -> multiproc::Result<()> {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let first = Value::new(0_u64)?;
    let before = descriptors();
    let values: Vec<Value<u64>> = (0..100_000).map(Value::new).collect::<Result<_, _>>()?;
    // Other tests open and close some meanwhile; a descriptor each would be far more.
    assert!(descriptors() < before + 1_000);
    assert!(values.iter().enumerate().all(|(index, value)| value.get() == index as u64));
    drop(first);
    Ok(())
}
