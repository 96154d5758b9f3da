//! What a test of one operation has to say; [`crate::run`] does the rest.
//!
//! A scenario is a type with a `Stage` (the objects in shared memory, made afresh for each run), a victim, perhaps some
//! peers, and an oracle. Every process of a run is forked from the driver after `prepare`, so all inherit the stage.
//! To add one: implement [`Scenario`], and name it in the list of its module.

use std::time::Duration;

use crate::shared::{Slot, cue, state};
use crate::tracer::Section;

/// What a peer does while the victim dies. Each peer does the same [`Scenario::turn`]; the role says when.
///
/// The order of a run: the victim comes to its section · owners enter · sleepers fall asleep · bargers begin · the
/// victim does its steps and stands still · intruders and passers act, in the order of the cast · the victim is killed
/// (or let go) · intruders and owners leave, bargers stop · all of them and the sleepers must come to an end · idle
/// ones do their turn · the oracle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Comes when all is over. Does nothing before, so it rescues nobody.
    Idle,
    /// Enters before the victim's first step, and leaves when the victim has fallen asleep or is gone.
    Owner,
    /// Has fallen asleep inside its turn before the victim's first step.
    Sleeper,
    /// Does turn after turn, from before the victim's first step until it is gone.
    Barger,
    /// Enters while the victim stands still, stays inside while it is killed, then leaves.
    Intruder,
    /// Enters and leaves while the victim stands still.
    Passer,
}

/// What befalls the victim at the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT when the others have acted: the operation then runs to its end.
    Stall,
}

/// What a scenario must show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expect {
    /// The oracle holds at every step.
    Holds,
    /// A control: at some step, somebody never comes to an end.
    Hangs,
    /// A control: at some step, the oracle objects.
    Violates,
}

/// How the victim ended, for the oracle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fate {
    /// False if it was let go, and so has run to its end.
    pub(crate) killed: bool,
    /// Whether the whole operation was done when the blow fell.
    pub(crate) finished: bool,
}

/// An operation, and what must be true when it is cut short anywhere.
pub(crate) trait Scenario {
    /// What the processes share. Dropped in the driver after each run.
    type Stage;

    /// A short name of lower-case words and dashes.
    fn name(&self) -> String;

    /// The peers. At most [`crate::shared::PEERS`].
    fn cast(&self) -> Vec<Role> {
        Vec::new()
    }

    fn blow(&self) -> Blow {
        Blow::Kill
    }

    fn expect(&self) -> Expect {
        Expect::Holds
    }

    /// How long anybody may take to come to an end. Shorter only for controls, which use it up.
    fn watchdog(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The oracle's answers in the order in which they must come as the step grows, each in one unbroken stretch:
    /// `["old", "new"]` says that there is one instruction at which the operation takes effect, and that nothing
    /// else is ever seen. Empty where the answers depend on a race.
    fn phases(&self) -> &'static [&'static str] {
        &[]
    }

    /// Makes the objects, in the driver. Must start no thread.
    fn prepare(&self) -> Self::Stage;

    /// The victim: prepares itself, then does the operation inside `section.run(…)`, once.
    ///
    /// # Errors
    ///
    /// What went wrong, in words; the run fails.
    fn victim(&self, stage: &Self::Stage, section: &Section) -> Result<(), String>;

    /// A peer's turn. `inside.here()` is to be called between entering and leaving: there owners and intruders wait.
    ///
    /// # Errors
    ///
    /// What went wrong, in words; the run fails.
    fn turn(&self, stage: &Self::Stage, role: Role, inside: &Inside<'_>) -> Result<(), String> {
        let _ = (stage, role, inside);
        Ok(())
    }

    /// A survivor's look at what is left, in a process of its own when everybody has come to an end. Answers with what
    /// it found, in a word or two (see [`Scenario::phases`]).
    ///
    /// # Errors
    ///
    /// What is not as promised.
    fn oracle(&self, stage: &Self::Stage, fate: &Fate) -> Result<&'static str, String>;
}

/// A peer's line to the driver while it does its turn.
pub(crate) struct Inside<'board> {
    pub(crate) slot: &'board Slot,
    pub(crate) role: Role,
}

impl Inside<'_> {
    /// Says that this peer is inside. Returns when it may leave.
    pub(crate) fn here(&self) {
        if self.role == Role::Barger {
            // Nobody waits for its report. But let others find it inside: a section of no length meets nobody.
            std::thread::yield_now();
            return;
        }
        self.slot.report(state::INSIDE);
        if matches!(self.role, Role::Owner | Role::Intruder) {
            self.slot.await_cue(cue::LEAVE);
        }
    }
}
