//! Handles on their way: at any depth, of any kind, and only inside a transfer.

use std::collections::BTreeMap;

use multiproc::{Array, ErrorKind, Mutex, Process, RawArray, RawValue, Segment, Value};
use serde::{Deserialize, Serialize};

use super::unique;

#[derive(Serialize, Deserialize)]
struct Job {
    name: String,
    results: Vec<Option<(Value<u64>, Array<f64>)>>,
    by_key: BTreeMap<u8, Mutex<u32>>,
    raw: (RawValue<char>, RawArray<u16>),
    market: Segment,
    bid: Value<f64>,
}

fn work(job: Job) -> (String, Value<u64>) {
    let (value, array) = job.results[1].as_ref().unwrap();
    value.set(7);
    array.lock().unwrap()[2] = 0.5;
    *job.by_key[&9].lock().unwrap() += 1;
    job.raw.0.set('z');
    job.raw.1.set(0, 11);
    job.bid.set(job.market.get::<Value<f64>>("ask").unwrap().get() - 1.0);
    (job.name, value.clone())
}

#[test]
fn handles_inside_arguments_at_any_depth() -> multiproc::Result<()> {
    let name = unique("job");
    let market = Segment::create(&name, 4096)?;
    let (bid, _ask) = (market.value("bid", 0.0)?, market.value("ask", 10.0)?);
    let (value, array, mutex) = (Value::new(0)?, Array::new(3)?, Mutex::new(1)?);
    let raw = (RawValue::new('a')?, RawArray::new(1)?);
    let job = Job {
        name: "job".to_owned(),
        results: vec![None, Some((value.clone(), array.clone()))],
        by_key: [(9, mutex.clone())].into(),
        raw: raw.clone(),
        market: market.clone(),
        bid: bid.clone(),
    };
    let (name, returned) = Process::spawn(work, (job,))?.join()?;
    assert_eq!((name.as_str(), returned.get(), value.get(), array.get(2)?), ("job", 7, 7, 0.5));
    assert_eq!((*mutex.lock()?, raw.0.get(), raw.1.get(0), bid.get()), (2, 'z', 11, 9.0));
    Ok(())
}

#[test]
fn a_handle_whose_name_was_unlinked_still_travels() -> multiproc::Result<()> {
    let name = unique("nameless");
    let value = Value::create(&name, 1)?;
    multiproc::segment::unlink(&name)?;
    Process::spawn(|value: Value<i32>| value.set(2), (value.clone(),))?.join()?;
    assert_eq!(value.get(), 2);
    Ok(())
}

#[test]
fn a_named_handle_comes_back_from_a_child_that_has_ended() -> multiproc::Result<()> {
    let name = unique("back");
    let child = Process::spawn(
        |name: String| Array::<u8>::create_from_slice(&name, &[1, 2, 3]).unwrap(),
        (name.clone(),),
    )?;
    let array = child.join()?;
    drop(child);
    assert_eq!(array.to_vec()?, [1, 2, 3]);
    assert_eq!(Array::<u8>::open(&name)?.len(), 3);
    Ok(())
}

#[test]
fn outside_a_transfer_it_is_an_error_that_says_so() -> multiproc::Result<()> {
    let value = Value::new(1)?;
    let error = serde_json::to_string(&value).unwrap_err().to_string();
    assert!(error.contains("not inside a multiproc transfer"), "{error}");
    let error = serde_json::from_str::<Array<u8>>("1").unwrap_err().to_string();
    assert!(error.contains("not inside a multiproc transfer"), "{error}");
    let segment = Segment::options().anonymous(100)?;
    assert!(serde_json::to_string(&segment).is_err());
    Ok(())
}

#[test]
fn a_view_of_plain_bytes_cannot_be_sent() -> multiproc::Result<()> {
    let name = unique("view");
    let bytes = Segment::create_raw(&name, 8)?;
    let view = bytes.view::<u8>(0, 8)?;
    let error = Process::spawn(|view: RawArray<u8>| view.len(), (view,)).unwrap_err();
    bytes.unlink()?;
    assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
    Ok(())
}
