//! Who is who: prints the ids of the main process and its parent, then of a child and its parent. The child's
//! `parent process` is the main process's `process id`.
//!
//! ```text
//! main line
//! parent process: 100
//! process id: 200
//! function f
//! parent process: 200
//! process id: 201
//! hello bob
//! ```

use multiproc::Process;
use multiproc::{current_process, parent_process};

fn info(title: &str) {
    println!("{title}");
    // A process that this crate did not start knows its parent's id all the same, from the system.
    let parent = parent_process().map_or_else(std::os::unix::process::parent_id, |parent| parent.pid());
    println!("parent process: {parent}");
    println!("process id: {}", current_process().pid());
}

fn f(name: String) {
    info("function f");
    println!("hello {name}");
}

pub(crate) fn main() -> multiproc::Result<()> {
    info("main line");
    Process::spawn(f, ("bob".to_owned(),))?.join()?;
    Ok(())
}
