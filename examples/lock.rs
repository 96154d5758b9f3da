//! Ten processes share one lock and print `hello world 0` … `hello world 9`, in any order, whole lines only.

use std::io::Write;

use multiproc::{Mutex, Process};

fn greet(stdout: Mutex<()>, number: u32) -> multiproc::Result<()> {
    let _only_me = stdout.lock()?;
    // In pieces, so that without the lock the lines would mix.
    for piece in ["hello ", "world "] {
        print!("{piece}");
        std::io::stdout().flush().expect("stdout is open");
    }
    println!("{number}");
    Ok(())
}

pub(crate) fn main() -> multiproc::Result<()> {
    let stdout = Mutex::new(())?;
    let children: Vec<_> =
        (0..10).map(|number| Process::spawn(greet, (stdout.clone(), number))).collect::<Result<_, _>>()?;
    for child in children {
        child.join()??;
    }
    Ok(())
}
