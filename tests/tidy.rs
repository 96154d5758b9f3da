//! What lints cannot see: the floors of the house, headings, unsafe addresses, forgotten files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the cellar up. A file imports from lower floors, and on its own floor from rooms named before its own.
const FLOORS: [&[&str]; 8] = [
    &["error", "primitive"],
    &["sys"],
    &["plain", "raw"],
    &["segment", "transfer"],
    &["handle", "sync", "value", "array"],
    &["process"],
    &[],
    &["lib"],
];

/// Inside a room with files of its own: their order. What is not named may be used by no other file of the room.
const ROOMS: [(&str, &[&str]); 7] = [
    (
        "sys",
        &["clock", "futex", "robust", "host", "memory", "shm", "image", "spawn", "keeper", "model", "mod"],
    ),
    ("plain", &["identity", "number", "list", "text", "mod"]),
    ("raw", &["copy", "flip", "lock", "liveness", "mod"]),
    (
        "segment",
        &[
            "name",
            "layout",
            "options",
            "room",
            "preamble",
            "life",
            "participant",
            "directory",
            "attachment",
            "family",
            "object",
            "named",
            "raw",
            "mod",
        ],
    ),
    ("value", &["store", "mod", "guard", "locked", "raw"]),
    ("array", &["mod", "guard", "locked", "raw"]),
    (
        "process",
        &[
            "outcome", "task", "handover", "report", "child", "children", "current", "handle", "entry",
            "start", "builder", "mod",
        ],
    ),
];

/// Files that may have unsafe code in them, and nowhere else.
const UNSAFE: [&str; 9] = [
    "sys/",
    "plain/",
    "segment/",
    "array/",
    "value/",
    "sync/",
    "raw/copy.rs",
    "process/entry.rs",
    "raw/lock",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name == "target") {
            // Of a package below: what it was built into.
        } else if path.is_dir() {
            files.extend(files_below(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Every source file, by its path below `src`, without tests, comments and strings that span no line.
fn sources() -> BTreeMap<String, String> {
    let source = root().join("src");
    let of = |path: &PathBuf| path.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
    files_below(&source, ".rs").iter().map(|path| (of(path), fs::read_to_string(path).unwrap())).collect()
}

/// The code that ships: what stands before the file's tests, without comment lines.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
    let shipped = shipped.split("#[cfg(all(test").next().unwrap_or("");
    let lines = shipped.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

fn floor_of(room: &str) -> Option<(usize, usize)> {
    FLOORS.iter().enumerate().find_map(|(floor, rooms)| {
        rooms.iter().position(|&other| other == room).map(|position| (floor, position))
    })
}

/// The paths that a file names after `crate::`, groups opened.
fn imports(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let is_macro = start > 0 && code.as_bytes()[start - 1] == b'$';
        let path = &code[start + "crate::".len()..];
        let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(path.len());
        let head: Vec<String> =
            path[..end].split("::").filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if is_macro && head.first().is_some_and(|first| first == "__private") {
            continue;
        }
        if path[end..].starts_with('{') && path[..end].ends_with("::") {
            let group = &path[end + 1..path.find('}').unwrap_or(path.len())];
            for item in group.split(',') {
                let item = item.trim().split("::").next().unwrap_or("").to_owned();
                paths.push(head.iter().cloned().chain([item]).collect());
            }
        } else {
            paths.push(head);
        }
    }
    paths
}

#[test]
fn imports_go_down_the_floors() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let room = room_of(&file);
        let Some(own) = floor_of(room) else {
            wrong.push(format!("{file}: the room {room:?} is on no floor"));
            continue;
        };
        if room == "lib" {
            continue;
        }
        for path in imports(&code(&text)) {
            let Some(other) = path.first() else { continue };
            match floor_of(other) {
                // What the root exports: names of floor 0, for docs and signatures.
                None if ["Error", "ErrorKind", "Result", "Ordering"].contains(&other.as_str()) => {}
                None => wrong.push(format!("{file}: `crate::{}` is no room", path.join("::"))),
                Some(_) if other == room => {}
                Some(floor) if floor < own => {}
                Some(_) => wrong.push(format!("{file}: imports {} from above", path.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rooms_have_no_cycles() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (room, order) in ROOMS {
        let place = |name: &str| order.iter().position(|&other| other == name);
        for (file, text) in sources.iter().filter(|(file, _)| file.starts_with(&format!("{room}/"))) {
            let inner = file[room.len() + 1..].split('/').next().unwrap().trim_end_matches(".rs");
            let Some(own) = place(inner) else {
                wrong.push(format!("{file}: has no place in the room"));
                continue;
            };
            // The room's `mod.rs` may see its children.
            if inner == "mod" {
                continue;
            }
            let text = code(text).replace(&format!("crate::{room}::"), "super::");
            for (start, _) in text.match_indices("super::") {
                if text[..start].ends_with("super::") {
                    continue;
                }
                let rest = &text[start + "super::".len()..];
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // In a folder of the room, `super` is that folder.
                let is_deeper = file[room.len() + 1..].contains('/');
                if let Some(other) = place(&name)
                    && !is_deeper
                    && other > own
                    && name != "mod"
                {
                    wrong.push(format!("{file}: uses {name}, which comes after it"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests/it", "tests/step", "benches", "examples", "models/src"] {
        for file in files_below(&root().join(folder), ".rs") {
            let text = fs::read_to_string(&file).unwrap();
            let starts = text.starts_with("//! ") || text.starts_with("#![doc = include_str!");
            if !starts {
                wrong.push(file.display().to_string());
            }
        }
    }
    assert!(wrong.is_empty(), "no heading:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_has_an_address() {
    for (file, text) in sources() {
        let is_unsafe = code(&text).contains("unsafe {") || code(&text).contains("unsafe impl");
        if is_unsafe {
            assert!(UNSAFE.iter().any(|place| file.starts_with(place)), "{file} is no place for unsafe code");
            let says_why =
                text.contains("expect(unsafe_code, reason =") || text.contains("expect(\n    unsafe_code");
            assert!(says_why, "{file} does not say why");
        }
    }
}

#[test]
fn atomics_come_from_primitive_and_the_clock_from_sys() {
    for (file, text) in sources() {
        let code = code(&text);
        let names_atomics = code.contains("sync::atomic") && file != "primitive.rs";
        assert!(!names_atomics, "{file} names core's atomics: loom could not stand in for them");
        let names_clock = code.contains("clock_gettime") && file != "sys/clock.rs";
        assert!(!names_clock, "{file} has a clock of its own");
    }
}

#[test]
fn files_and_examples_stay_comfortable() {
    for (file, text) in sources() {
        assert!(
            text.lines().count() <= 800,
            "{file} has {} lines: look for the second room",
            text.lines().count()
        );
    }
    for file in files_below(&root().join("examples"), ".rs") {
        let text = fs::read_to_string(&file).unwrap();
        let lines =
            text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
        let is_tour = file.ends_with("tour/main.rs");
        assert!(is_tour || lines.count() <= 60, "{} has more than sixty lines of code", file.display());
    }
}

#[test]
fn nothing_is_unfinished() {
    // Spelt so that this file does not find itself.
    let words = ["todo", "unimplemented", "dbg"].map(|word| format!("{word}!("));
    let marks = ["FIX", "XX"].map(|mark| format!("{mark}{}", if mark == "FIX" { "ME" } else { "X" }));
    for folder in ["src", "tests", "benches", "examples"] {
        for file in files_below(&root().join(folder), ".rs") {
            let text = fs::read_to_string(&file).unwrap();
            for word in words.iter().chain(&marks) {
                assert!(!text.contains(word.as_str()), "{} holds {word}", file.display());
            }
        }
    }
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(root().join(target).exists(), "{document} links to {target}");
            }
        }
    }
}
