//! Runs every example scenario, in order, with a tick or a cross each: `cargo run --release --example tour`.

#[path = "../hello_process.rs"]
mod hello_process;
#[path = "../histogram.rs"]
mod histogram;
#[path = "../lock.rs"]
mod lock;
#[path = "../process_ids.rs"]
mod process_ids;
#[path = "../publish.rs"]
mod publish;
#[path = "../recovery.rs"]
mod recovery;
#[path = "../subscribe.rs"]
mod subscribe;
#[path = "../value_array.rs"]
mod value_array;

use std::process::ExitCode;

use multiproc::Process;

/// A heading, and what runs under it.
type Scenario = (&'static str, fn() -> multiproc::Result<()>);

const SCENARIOS: [Scenario; 7] = [
    ("hello_process: a child says hello", hello_process::main),
    ("process_ids: who is whose child", process_ids::main),
    ("lock: ten processes, whole lines", lock::main),
    ("value_array: a value and an array, changed by a child", value_array::main),
    ("recovery: an owner is killed, the next one is told", recovery::main),
    ("publish and subscribe: one array, by name", publish_and_subscribe),
    ("histogram: many processes count into one array", histogram::main),
];

/// The two programs of that name, as two processes.
fn publish_and_subscribe() -> multiproc::Result<()> {
    let name = format!("tour-{}", std::process::id());
    let publisher = Process::spawn(|name: String| publish::publish(&name, 200), (name.clone(),))?;
    let best = loop {
        match subscribe::subscribe(&name) {
            Err(error) if error.kind() == multiproc::ErrorKind::NotFound && publisher.is_alive() => {}
            subscribed => break subscribed?,
        }
    };
    publisher.join()??;
    assert!(best >= 100.0, "a book without prices");
    Ok(())
}

fn main() -> ExitCode {
    let mut failed = 0;
    for (heading, scenario) in SCENARIOS {
        println!("\n== {heading}");
        match std::panic::catch_unwind(scenario) {
            Ok(Ok(())) => println!("✓"),
            Ok(Err(error)) => {
                println!("✗ {error}");
                failed += 1;
            }
            Err(_) => {
                println!("✗ it panicked");
                failed += 1;
            }
        }
    }
    println!("\n{} of {} scenarios work", SCENARIOS.len() - failed, SCENARIOS.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
