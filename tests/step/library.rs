//! Scenarios over the crate's public face: what a kill at any instruction leaves, and what survivors make of it.
//!
//! The bounded sleeps are off, so a lost wake-up is a hang and is found.

mod family;
mod locks;
mod segments;
mod values;

use std::time::{Duration, Instant};

use crate::campaign::Campaign;
use crate::child::{Answer, Child};
use crate::shared::Board;

pub(crate) fn scenarios() -> Vec<Box<dyn Campaign>> {
    // Inherited by all that are forked.
    multiproc::__private::set_sleep_bound_ns(0);
    let mut all = locks::scenarios();
    all.extend(values::scenarios());
    all.extend(segments::scenarios());
    all.extend(family::scenarios());
    all
}

/// Runs `body` in a process that then ends at once, as if killed: nothing is dropped but what `body` drops.
fn in_one_that_dies(body: impl FnOnce() -> multiproc::Result<()>) {
    let board = Board::new();
    let mut child = Child::fork(&board.victim, || match body() {
        Ok(()) => Ok(String::new()),
        Err(error) => Err(said(&error)),
    });
    let answer = child.answer(&board.victim, Instant::now() + Duration::from_secs(10));
    assert!(matches!(answer, Answer::Good(_)), "the stage cannot be set: {}", board.victim.text());
    // The answer comes before the end, and the stage is set when the kernel is through with it.
    child.kill();
}

fn said(error: &dyn std::fmt::Display) -> String {
    error.to_string()
}

fn ensure(condition: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(complaint()) }
}

/// A value of 64 equal bytes; any other was torn.
type Wide = [u8; 64];

fn whole(wide: &Wide) -> Result<u8, String> {
    ensure(wide.iter().all(|byte| *byte == wide[0]), || format!("torn: {wide:?}"))?;
    Ok(wide[0])
}
