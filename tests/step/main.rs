//! The single-step killer: kills a process at every machine instruction of an operation, and asks the survivors.
//!
//! ```text
//! cargo test --test step                             quick: short operations whole, long ones sampled
//! cargo test --test step -- --full                   every step
//! cargo test --test step -- --filter mutex           scenarios whose name contains the word
//! cargo test --test step -- --seed 7                 other samples
//! ```
//!
//! It brings its own `main`, because it forks without exec: a harness with threads could not. One line per scenario says
//! what was found at which steps; the exit code is non-zero if one has failed. The controls are scenarios of objects
//! that are known to break, and pass when the tool sees them break. Where ptrace is refused (some containers, Miri,
//! emulators) it says so and counts everything as skipped.

#![expect(
    clippy::disallowed_methods,
    reason = "the judge shares neither atomics nor clock with the crate that it judges"
)]

mod campaign;
mod child;
mod controls;
mod library;
mod route;
mod run;
mod scenario;
mod shared;
mod tracer;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use campaign::{Campaign, Plan};

/// Scenarios that a quick run leaves out.
const SLOW: [&str; 2] = ["array-barged", "name-open-or-create-barged"];

/// The scenarios, controls first: when one of them fails, the rest means nothing.
fn scenarios() -> Vec<Box<dyn Campaign>> {
    let mut all = controls::scenarios();
    all.extend(library::scenarios());
    all
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut chosen = scenarios();
    chosen.retain(|scenario| options.chooses(&scenario.name()));
    if !options.plan.full {
        // Stepped in slow motion beside a barger, these take minutes: they are run with every step only.
        chosen.retain(|scenario| !SLOW.contains(&scenario.name().as_str()));
    }
    if options.list {
        for scenario in &chosen {
            println!("{}: test", scenario.name());
        }
        return ExitCode::SUCCESS;
    }
    if let Err(error) = tool_works() {
        println!("skipped: this machine does not let the test single-step a process ({error})");
        println!("0 passed, 0 failed, {} skipped", chosen.len());
        return ExitCode::SUCCESS;
    }

    let (mut passed, mut failed) = (0, 0);
    for scenario in &chosen {
        let (word, text) = match scenario.conduct(&options.plan) {
            Ok(text) => ("ok  ", text),
            Err(text) => ("FAIL", text),
        };
        *(if word == "FAIL" { &mut failed } else { &mut passed }) += 1;
        println!("{word} {}: {text}", scenario.name());
        // A reader that went away is no reason to stop testing.
        let _ = std::io::stdout().flush();
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tool_works() -> Result<(), String> {
    if cfg!(miri) {
        return Err("Miri runs no real instructions".into());
    }
    child::keep_dead_children();
    child::assert_single_threaded();
    tracer::probe()
}

/// The command line: our own options, and those of the usual harness, which cargo and its kin pass to every test.
struct Options {
    plan: Plan,
    list: bool,
    /// Only tests marked "ignored" are asked for, and there are none.
    none: bool,
    exact: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut options = Self {
            plan: Plan { full: false, seed: clock },
            list: false,
            none: false,
            exact: false,
            filters: Vec::new(),
            skips: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let (name, mut value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let mut value =
                || value.take().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
            match name {
                "--full" => options.plan.full = true,
                "--seed" => {
                    options.plan.seed = value()?.parse().map_err(|error| format!("--seed: {error}"))?
                }
                "--filter" => options.filters.push(value()?),
                "--skip" => options.skips.push(value()?),
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--ignored" => options.none = true,
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {
                    drop(value()?)
                }
                _ if name.starts_with('-') => {}
                _ => options.filters.push(argument),
            }
        }
        Ok(options)
    }

    fn chooses(&self, name: &str) -> bool {
        let matches = |filter: &String| {
            if self.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        !self.none
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}
