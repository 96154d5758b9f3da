//! Arrays: slices under a lock, copies without one.

#![expect(unsafe_code, reason = "slices of a raw array are handed out on the caller's word")]

use multiproc::{Array, Error, ErrorKind, Ordering, Process, RawArray, Segment, TryLockError, plain};

use super::{exists, unique};

plain! {
    #[derive(Debug, PartialEq)]
    struct Tick {
        price: f64,
        size: u32,
        side: u32,
    }
}

fn negate(cells: Array<i32>) {
    for cell in cells.lock().unwrap().iter_mut() {
        *cell = -*cell;
    }
}

#[test]
fn smoke() -> multiproc::Result<()> {
    let cells = Array::from_iter(0..10)?;
    Process::spawn(negate, (cells.clone(),))?.join()?;
    assert_eq!(cells.to_vec()?, [0, -1, -2, -3, -4, -5, -6, -7, -8, -9]);
    assert_eq!((cells.len(), cells.get(3)?), (10, -3));
    cells.set(3, 33)?;
    assert_eq!(cells.update(3, |cell| cell + 1)?, 34);
    cells.write_from(8, &[80, 90])?;
    let mut last = [0; 3];
    cells.read_into(7, &mut last)?;
    assert_eq!(last, [-7, 80, 90]);
    assert_eq!(cells.iter()?.filter(|&cell| cell > 0).count(), 3);
    cells.fill(1)?;
    assert_eq!(cells.lock()?.iter().sum::<i32>(), 10);
    Ok(())
}

#[test]
fn any_element_and_any_length() -> multiproc::Result<()> {
    let empty = Array::<f64>::new(0)?;
    assert!(empty.is_empty() && empty.to_vec()?.is_empty() && empty.lock()?.is_empty());
    let rows = Array::<[f64; 3]>::new(4)?;
    rows.lock()?[2][1] = 7.0;
    assert_eq!(rows.get(2)?, [0.0, 7.0, 0.0]);
    let ticks = Array::from_slice(&[Tick { price: 1.5, size: 3, side: 1 }; 2])?;
    assert_eq!(ticks.get(1)?.price, 1.5);
    for len in [1, 7, 100, 300, 1_000, 5_000, 40_000, 1_000_000] {
        let array = Array::from_iter((0..len).map(|index| index as u32))?;
        let copy = RawArray::from_slice(&array.to_vec()?)?;
        assert!(copy.to_vec().iter().enumerate().all(|(index, &element)| element == index as u32));
        assert!(std::ptr::addr_of!(array.lock()?[0]).addr() % 128 == 0);
    }
    let units = Array::<()>::new(usize::MAX >> 1)?;
    assert_eq!(units.len(), usize::MAX >> 1);
    Ok(())
}

#[test]
fn a_bad_index_panics_as_a_slice_does() -> multiproc::Result<()> {
    let cells = Array::from_iter(0..3)?;
    let raw = RawArray::from_iter(0..3)?;
    let text =
        |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned().unwrap_or_default();
    let outside = std::panic::catch_unwind(|| cells.get(3)).unwrap_err();
    assert_eq!(text(outside), "index out of bounds: the len is 3 but the index is 3");
    let outside = std::panic::catch_unwind(|| raw.set(9, 1)).unwrap_err();
    assert_eq!(text(outside), "index out of bounds: the len is 3 but the index is 9");
    for start in [2, 4, usize::MAX] {
        assert!(std::panic::catch_unwind(|| cells.write_from(start, &[0, 0])).is_err());
        assert!(std::panic::catch_unwind(|| raw.read_into(start, &mut [0, 0])).is_err());
    }
    // And the lock is free afterwards.
    assert_eq!(cells.to_vec()?, [0, 1, 2]);
    Ok(())
}

#[test]
fn impossible_sizes_are_errors_before_anything_is_written() {
    let name = unique("huge");
    for len in [usize::MAX, usize::MAX / 8, 1 << 50] {
        for error in [
            Array::<f64>::create(&name, len).unwrap_err(),
            Array::<f64>::new(len).unwrap_err(),
            RawArray::<u64>::create(&name, len).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::NoRoom, "{error}");
        }
        assert!(!exists(&name));
    }
}

#[test]
fn by_name_with_what_differs_said() -> multiproc::Result<()> {
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    #[repr(C)]
    struct Large {
        fields: [f64; 3],
    }
    let name = unique("book");
    let missing = Array::<Tick>::open(&name).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(
        missing.to_string(),
        format!("cannot open array {name:?}: no segment of that name (is the publisher running?)")
    );
    let book = Array::<Tick>::create(&name, 16)?;
    book.lock()?[7] = Tick { price: 101.25, size: 300, side: 0 };
    assert_eq!(Array::<Tick>::open(&name)?.get(7)?.size, 300);
    assert_eq!(Array::<Tick>::open_or_create(&name, 16)?.len(), 16);
    let text = |error: Error| error.to_string().replace(&name, "book");
    assert_eq!(
        text(Array::<Large>::open(&name).unwrap_err()),
        "cannot open array \"book\": elements are Tick of 16 bytes, this program's are Large of 24 bytes"
    );
    assert_eq!(
        text(Array::<Tick>::open_or_create(&name, 17).unwrap_err()),
        "cannot open array \"book\": it has 16 elements, this program expects 17"
    );
    assert_eq!(
        text(RawArray::<Tick>::open(&name).unwrap_err()),
        "cannot open raw array \"book\": it is an array, not a raw array"
    );
    drop(book);
    assert!(!exists(&name));
    Ok(())
}

mod elsewhere {
    multiproc::plain! {
        /// The same name, size and alignment as the other `Tick`, but other fields.
        pub struct Tick {
            pub price: f64,
            pub size: i32,
            pub side: u32,
        }
    }
}

#[test]
fn another_layout_under_the_same_name_is_told_apart() -> multiproc::Result<()> {
    let name = unique("layout");
    let _book = Array::<Tick>::create(&name, 1)?;
    let error = Array::<elsewhere::Tick>::open(&name).unwrap_err().to_string().replace(&name, "book");
    assert_eq!(
        error,
        "cannot open array \"book\": elements are Tick of 16 bytes with the layout [('price', '<f8'), ('size', '<u4'), \
         ('side', '<u4')], this program's are Tick of 16 bytes with the layout [('price', '<f8'), ('size', '<i4'), ('side', '<u4')]"
    );
    Ok(())
}

#[test]
fn the_guard_excludes_everybody() -> multiproc::Result<()> {
    let cells = Array::<u64>::new(2)?;
    let guard = cells.lock()?;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            assert!(matches!(cells.try_lock(), Err(TryLockError::WouldBlock)));
            let short = std::time::Duration::from_millis(2);
            assert!(matches!(cells.lock_timeout(short), Err(TryLockError::TimedOut)));
        });
    });
    drop(guard);
    assert!(cells.try_lock().is_ok());
    Ok(())
}

fn tally(counts: RawArray<u64>) {
    for n in 0..1_000 {
        counts.fetch_add(n % counts.len(), 1, Ordering::Relaxed);
    }
}

#[test]
fn raw_arrays_have_atomic_elements() -> multiproc::Result<()> {
    let counts = RawArray::<u64>::new(10)?;
    let children: Vec<_> =
        (0..2).map(|_| Process::spawn(tally, (counts.clone(),))).collect::<Result<_, _>>()?;
    tally(counts.clone());
    for child in children {
        child.join()?;
    }
    assert_eq!(counts.to_vec(), [300; 10]);
    assert_eq!(counts.swap(0, 7, Ordering::Relaxed), 300);
    assert_eq!(counts.compare_exchange(0, 7, 8, Ordering::AcqRel, Ordering::Relaxed), Ok(7));
    assert_eq!((counts.fetch_max(0, 9, Ordering::Relaxed), counts.load(0, Ordering::Acquire)), (8, 9));
    counts.store(0, 1, Ordering::Release);
    assert_eq!((counts.fetch_min(0, 0, Ordering::Relaxed), counts.get(0)), (1, 0));
    let mut own = RawArray::from_slice(&[1, 2, 3])?;
    // SAFETY: nobody else has this array.
    let slice = unsafe { own.as_mut_slice() };
    slice[0] = 9;
    // SAFETY: as above.
    assert_eq!(unsafe { own.as_slice() }, [9, 2, 3]);
    Ok(())
}

#[test]
fn a_large_write_from_an_odd_address_arrives_whole() -> multiproc::Result<()> {
    let source: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    let (locked, raw) = (Array::<u8>::new(source.len())?, RawArray::<u8>::new(source.len())?);
    for start in [0, 1, 16, 4095] {
        locked.write_from(start, &source[start..])?;
        raw.write_from(start, &source[start..]);
        let (mut from_locked, mut from_raw) = (vec![0; source.len() - start], vec![0; source.len() - start]);
        locked.read_into(start, &mut from_locked)?;
        raw.read_into(start, &mut from_raw);
        assert!(from_locked == source[start..] && from_raw == source[start..]);
    }
    Ok(())
}

#[test]
fn large_arrays_made_and_dropped_by_many_threads_are_never_the_same() {
    // Two threads once got the same memory: one swept up what the other was just making.
    std::thread::scope(|threads| {
        for mark in 1..=4 {
            threads.spawn(move || {
                for _ in 0..300 {
                    let array = Array::<u64>::new(10_000).unwrap();
                    let mut elements = array.lock().unwrap();
                    assert!(elements.iter().all(|&element| element == 0), "a fresh array is zero");
                    elements.fill(mark);
                    assert!(elements.iter().all(|&element| element == mark), "and nobody else's");
                }
            });
        }
    });
}

#[test]
fn a_racing_read_of_a_small_integer_is_not_torn() -> multiproc::Result<()> {
    let numbers = RawArray::<u32>::new(3)?;
    let halves = RawArray::<u16>::new(3)?;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..200_000_u32 {
                numbers.set(1, if round % 2 == 0 { u32::MAX } else { 0 });
                halves.write_from(1, &[if round % 2 == 0 { u16::MAX } else { 0 }]);
            }
        });
        for _ in 0..200_000 {
            assert!(matches!(numbers.get(1), 0 | u32::MAX));
            assert!(matches!(halves.get(1), 0 | u16::MAX));
        }
    });
    Ok(())
}

#[test]
fn in_a_segment_beside_others() -> multiproc::Result<()> {
    let name = unique("market");
    let market = Segment::create(&name, 1 << 16)?;
    let book = market.array::<Tick>("book", 100)?;
    let counts = market.raw_array::<u32>("counts", 5)?;
    counts.set(4, 4);
    book.set(99, Tick { price: 1.0, size: 2, side: 3 })?;
    let again = Segment::open(&name)?;
    assert_eq!(again.get::<Array<Tick>>("book")?.get(99)?.side, 3);
    assert_eq!(again.get::<RawArray<u32>>("counts")?.get(4), 4);
    Ok(())
}
