//! A child changes a shared value and a shared array. Prints exactly
//!
//! ```text
//! 3.1415927
//! [0, -1, -2, -3, -4, -5, -6, -7, -8, -9]
//! ```

use multiproc::{Array, Process, Value};

fn work(total: Value<f64>, cells: Array<i32>) {
    #[expect(clippy::approx_constant, reason = "these digits are what is printed")]
    total.set(3.1415927);
    for cell in cells.lock().unwrap().iter_mut() {
        *cell = -*cell;
    }
}

pub(crate) fn main() -> multiproc::Result<()> {
    let total = Value::new(0.0)?;
    let cells = Array::from_iter(0..10)?;
    Process::spawn(work, (total.clone(), cells.clone()))?.join()?;
    println!("{}", total.get());
    println!("{:?}", cells.to_vec()?);
    Ok(())
}
