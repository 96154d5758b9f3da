//! Publishes an order book under a name, for `subscribe`, a program of its own:
//!
//! ```text
//! cargo run --example publish                # and at the same time
//! cargo run --example subscribe
//! ```
//!
//! Arguments: the name (`book`), and how many updates (1000, one a millisecond).

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

pub(crate) fn publish(name: &str, updates: u32) -> multiproc::Result<()> {
    let book = Array::<Tick>::create(name, 16)?;
    for update in 0..updates {
        // The owner of the lock may have been a subscriber that was killed: it only reads, so nothing is half-changed.
        let mut book = book.lock_or_repair(|_| ());
        let level = update as usize % 16;
        book[level] = Tick { price: 100.0 + f64::from(update) / 4.0, size: 100 + update, side: update % 2 };
        drop(book);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[allow(dead_code, reason = "the tour publishes under a name of its own")]
fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "book".to_owned());
    let updates = arguments.next().and_then(|updates| updates.parse().ok()).unwrap_or(1000);
    println!("publishing {updates} updates as {name:?}");
    if let Err(error) = publish(&name, updates) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
