//! Says hello from another process. Prints exactly `hello bob`.
//!
//! ```text
//! cargo run --example hello_process
//! ```

use multiproc::Process;

fn greet(name: String) {
    println!("hello {name}");
}

pub(crate) fn main() -> multiproc::Result<()> {
    let child = Process::spawn(greet, ("bob".to_owned(),))?;
    child.join()?;
    Ok(())
}
