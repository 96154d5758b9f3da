//! Reads the order book that `publish` shares, and prints its best price until the publisher is gone. Says plainly what is wrong if
//! there is no publisher, if it was killed in the middle of an update, or if its book holds something else.
//!
//! Arguments: the name (`book`).

use std::time::Duration;

use bytemuck::{Pod, Zeroable};
use multiproc::Array;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Tick {
    price: f64,
    size: u32,
    side: u32,
}

pub(crate) fn subscribe(name: &str) -> multiproc::Result<f64> {
    let book = Array::<Tick>::open(name)?;
    println!("{} levels in {name:?}", book.len());
    let (mut best, mut unchanged) = (0.0, 0);
    // Two hundred milliseconds without an update: the publisher has finished, or is gone.
    while unchanged < 20 {
        let now = book.lock()?.iter().map(|tick| tick.price).fold(0.0, f64::max);
        unchanged = if now > best { 0 } else { unchanged + 1 };
        best = now;
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("last best price: {best}");
    Ok(best)
}

#[allow(dead_code, reason = "the tour subscribes to a name of its own")]
fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| "book".to_owned());
    if let Err(error) = subscribe(&name) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
