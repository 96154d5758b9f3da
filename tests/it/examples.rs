//! The examples, run as a user runs them, and what they print.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::{exists, unique};

/// An example that cargo has built beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(|deps| deps.parent()).unwrap();
    let program: PathBuf = folder.join("examples").join(name);
    assert!(program.exists(), "`cargo test` builds {}", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn printed(name: &str) -> String {
    let output = example(name).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    stdout(&output)
}

#[test]
fn hello_process() {
    assert_eq!(printed("hello_process"), "hello bob\n");
}

#[test]
fn process_ids() {
    let printed = printed("process_ids");
    let ids: Vec<u32> = printed
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    assert!(ids.contains(&std::process::id()), "{printed}");
    let distinct: std::collections::HashSet<u32> = ids.into_iter().collect();
    assert!(distinct.len() >= 3, "this test, the parent and the child: {printed}");
}

#[test]
fn lock() {
    let printed = printed("lock");
    let mut lines: Vec<&str> = printed.lines().collect();
    lines.sort_unstable();
    let expected: Vec<String> = (0..10).map(|number| format!("hello world {number}")).collect();
    assert_eq!(lines, expected);
}

#[test]
fn value_array() {
    assert_eq!(printed("value_array"), "3.1415927\n[0, -1, -2, -3, -4, -5, -6, -7, -8, -9]\n");
}

#[test]
fn recovery() {
    let printed = printed("recovery");
    assert!(printed.contains("was killed by signal 9"), "{printed}");
    assert!(printed.ends_with("parent: found [30, 40]\nparent: goes on with [50, 50]\n"), "{printed}");
}

#[test]
fn histogram() {
    let files = ["Cargo.toml", "README.md", "src/lib.rs"]
        .map(|file| format!("{}/{file}", env!("CARGO_MANIFEST_DIR")));
    let bytes: u64 = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    let output = example("histogram").args(files).output().unwrap();
    assert!(output.status.success());
    assert!(stdout(&output).starts_with(&format!("3 files, {bytes} bytes, ")), "{}", stdout(&output));
}

#[test]
fn publish_and_subscribe() {
    let name = unique("published");
    let mut publisher = example("publish").args([&name, "100000"]).stdout(Stdio::null()).spawn().unwrap();
    while !exists(&name) {
        assert!(publisher.try_wait().unwrap().is_none(), "the publisher ended");
        std::thread::yield_now();
    }
    let subscriber = example("subscribe").arg(&name).stdout(Stdio::piped()).spawn().unwrap();
    let second = example("publish").arg(&name).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(second.stderr).unwrap(),
        format!("cannot create array {name:?}: the name is taken\n")
    );
    std::thread::sleep(std::time::Duration::from_millis(100));
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    let subscribed = subscriber.wait_with_output().unwrap();
    // The publisher may have been killed while it held the lock: then the subscriber says so.
    let text = stdout(&subscribed);
    assert!(text.starts_with(&format!("16 levels in {name:?}\n")), "{text}");
    assert!(!exists(&name), "the last one to detach removes the name, whoever was killed");

    let alone = example("subscribe").arg(&name).output().unwrap();
    assert_eq!(alone.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(alone.stderr).unwrap(),
        format!("cannot open array {name:?}: no segment of that name (is the publisher running?)\n")
    );
}

#[test]
fn subscribe_says_what_it_found_instead() {
    let name = unique("other-book");
    let _book = multiproc::Array::<[f64; 3]>::create(&name, 4).unwrap();
    let output = example("subscribe").arg(&name).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!(
            "cannot open array {name:?}: elements are [f64; 3] of 24 bytes, this program's are Tick of 16 bytes\n"
        )
    );
}

#[test]
fn the_tour_has_a_tick_for_each() {
    let printed = printed("tour");
    assert_eq!(printed.matches('✓').count(), 7, "{printed}");
    assert!(!printed.contains('✗'));
}
