//! One run: a fresh stage, a victim that gets as far as step `k`, its end, and what the survivors make of it.

use std::time::{Duration, Instant};

use crate::child::{Answer, Child, Status, assert_single_threaded};
use crate::route::Landmark;
use crate::scenario::{Blow, Expect, Fate, Inside, Role, Scenario};
use crate::shared::{Board, PEERS, Shared, Slot, cue, state};
use crate::tracer::{Stop, Tracee};

/// How long an intruder or passer that neither gets through nor falls asleep (it spins) may hold up a run.
const GRACE: Duration = Duration::from_millis(20);

/// After so many turns a barger draws [`BREATH`], and the victim gets somewhere: to one that is stepped, a thousand times
/// slower than its rivals, a lock would otherwise never be free.
const BARGES: u32 = 100;
const BREATH: Duration = Duration::from_micros(500);

/// How long a sleeper may take to fall asleep.
const BEDTIME: Duration = Duration::from_secs(10);

/// What a run has shown.
pub(crate) struct Outcome {
    /// The oracle's word, or what failed.
    pub(crate) found: Result<String, Failure>,
    /// Steps done: less than asked for if the end came before.
    pub(crate) steps: u64,
    /// Where the victim stood when the blow fell.
    pub(crate) place: String,
    /// Whether it stood at the end.
    pub(crate) finished: bool,
    /// Where it came past, if it was stepped from the start.
    pub(crate) counters: Vec<u64>,
}

/// What went wrong, for a reader.
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) what: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Somebody never came to an end.
    Hang,
    /// Somebody objected, or crashed.
    Violation,
    /// The scene could not be set: nothing is known about the object.
    Staging,
    /// The victim missed its landmark: nothing is known, walk there.
    Astray,
}

impl FailureKind {
    /// Whether this is what `expect` waits for.
    pub(crate) fn is_expected(self, expect: Expect) -> bool {
        matches!((self, expect), (Self::Hang, Expect::Hangs) | (Self::Violation, Expect::Violates))
    }
}

fn hang(what: String) -> Failure {
    Failure { kind: FailureKind::Hang, what }
}

fn violation(what: String) -> Failure {
    Failure { kind: FailureKind::Violation, what }
}

fn staging(what: String) -> Failure {
    Failure { kind: FailureKind::Staging, what }
}

fn astray() -> Failure {
    Failure { kind: FailureKind::Astray, what: "the victim went another way".into() }
}

/// A peer and its line to us.
struct Peer<'board> {
    role: Role,
    name: String,
    child: Child,
    slot: &'board Slot,
}

/// Runs `scenario` once; the blow falls after `step` steps, or at the end of the operation if that comes first.
/// With a `landmark`, the victim runs there before it is stepped.
pub(crate) fn run<S: Scenario>(scenario: &S, blow: Blow, step: u64, landmark: Option<Landmark>) -> Outcome {
    let board = Board::new();
    let stage = scenario.prepare();
    assert_single_threaded();
    let mut outcome = Outcome {
        found: Ok(String::new()),
        steps: 0,
        place: String::new(),
        finished: false,
        counters: Vec::new(),
    };
    outcome.found = play(scenario, &stage, &board, blow, (step, landmark), &mut outcome);
    outcome
}

fn play<S: Scenario>(
    scenario: &S,
    stage: &S::Stage,
    board: &Shared<Board>,
    blow: Blow,
    (step, landmark): (u64, Option<Landmark>),
    outcome: &mut Outcome,
) -> Result<String, Failure> {
    let patience = scenario.watchdog();
    let mut tracee =
        Tracee::start(board, |section| scenario.victim(stage, section), Instant::now() + BEDTIME)
            .map_err(staging)?;
    let mut peers = raise(scenario, stage, board);
    set_scene(&mut peers)?;

    if landmark.is_some_and(|landmark| !tracee.head_for(landmark)) {
        return Err(astray());
    }
    let stepped = walk(&mut tracee, &peers, step, patience);
    outcome.steps = tracee.steps();
    outcome.place = tracee.place();
    outcome.finished = tracee.stop() == Stop::End;
    outcome.counters = tracee.counters();
    if tracee.is_astray() {
        // Whatever became of it there.
        return Err(astray());
    }
    if let Err(mut failure) = stepped {
        // Its own words, where it had any, say more than where it stood.
        let words = board.victim.text();
        if !words.is_empty() {
            failure.what = format!("the victim: {words}");
        }
        return Err(failure);
    }

    let survivor = match blow {
        Blow::Kill => {
            act(&mut peers);
            tracee.kill();
            None
        }
        Blow::Stall => {
            tracee.suspend().map_err(violation)?;
            act(&mut peers);
            Some(tracee.resume())
        }
    };

    for peer in &peers {
        if matches!(peer.role, Role::Owner | Role::Intruder | Role::Barger) {
            peer.slot.give(cue::LEAVE);
        }
    }
    let deadline = Instant::now() + patience;
    for peer in peers.iter_mut().filter(|peer| peer.role != Role::Idle) {
        finish(&mut peer.child, peer.slot, &peer.name, deadline)?;
    }
    if let Some(mut victim) = survivor {
        finish(&mut victim, &board.victim, "the victim", deadline)?;
    }
    for peer in peers.iter_mut().filter(|peer| peer.role == Role::Idle) {
        peer.slot.give(cue::ENTER);
        finish(&mut peer.child, peer.slot, &peer.name, Instant::now() + patience)?;
    }

    let fate = Fate { killed: blow == Blow::Kill, finished: outcome.finished };
    let mut oracle = Child::fork(&board.oracle, || scenario.oracle(stage, &fate).map(str::to_owned));
    finish(&mut oracle, &board.oracle, "the oracle", Instant::now() + patience)
}

/// Forks the peers, who wait for their cues.
fn raise<'board, S: Scenario>(scenario: &S, stage: &S::Stage, board: &'board Board) -> Vec<Peer<'board>> {
    let cast = scenario.cast();
    assert!(cast.len() <= PEERS, "{} peers at most", PEERS);
    cast.into_iter()
        .zip(&board.peers)
        .enumerate()
        .map(|(index, (role, slot))| {
            let inside = Inside { slot, role };
            let child = Child::fork(slot, || {
                slot.await_cue(cue::ENTER);
                slot.report(state::ENTERING);
                for turn in 1_u32.. {
                    scenario.turn(stage, role, &inside)?;
                    if role != Role::Barger || slot.cue() == cue::LEAVE {
                        break;
                    }
                    if turn % BARGES == 0 {
                        std::thread::sleep(BREATH);
                    }
                }
                Ok(String::new())
            });
            Peer { role, name: format!("peer {index} ({role:?})"), child, slot }
        })
        .collect()
}

/// Brings those in position who must be there before the first step.
fn set_scene(peers: &mut [Peer<'_>]) -> Result<(), Failure> {
    for role in [Role::Owner, Role::Sleeper, Role::Barger] {
        for peer in peers.iter_mut().filter(|peer| peer.role == role) {
            peer.slot.give(cue::ENTER);
            let came = settle(peer, BEDTIME);
            let wanted = match role {
                Role::Owner => Came::Inside,
                Role::Sleeper => Came::Asleep,
                _ => came,
            };
            if came != wanted {
                let text = peer.slot.text();
                return Err(staging(format!("{} is {came:?} before the first step {text}", peer.name)));
            }
        }
    }
    Ok(())
}

/// Lets the victim do `step` steps. One that falls asleep on the way is the owners' cue to leave.
fn walk(tracee: &mut Tracee, peers: &[Peer<'_>], step: u64, patience: Duration) -> Result<(), Failure> {
    let _shared = tracee.share_cpu();
    while tracee.steps() < step {
        match tracee.stop() {
            Stop::End => break,
            Stop::Inside => tracee.advance(),
            Stop::Asleep => {
                for peer in peers.iter().filter(|peer| peer.role == Role::Owner) {
                    peer.slot.give(cue::LEAVE);
                }
                let woken = tracee.await_wake(Instant::now() + patience);
                if let Ok(Stop::Asleep) = woken {
                    return Err(hang(format!("the victim never wakes at step {}", tracee.steps())));
                }
                woken
            }
        }
        .map_err(violation)?;
    }
    Ok(())
}

/// Lets those act who wait for the victim to stand still, one after the other.
fn act(peers: &mut [Peer<'_>]) {
    for peer in peers.iter_mut().filter(|peer| matches!(peer.role, Role::Intruder | Role::Passer)) {
        peer.slot.give(cue::ENTER);
        // Any answer will do: the victim may well hold what the peer wants.
        settle(peer, GRACE);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    Inside,
    Through,
    Asleep,
    Nowhere,
}

/// Waits until a peer that got its cue is where it can get to.
fn settle(peer: &mut Peer<'_>, limit: Duration) -> Came {
    let deadline = Instant::now() + limit;
    loop {
        let seen = peer.slot.state();
        match seen {
            state::INSIDE if matches!(peer.role, Role::Owner | Role::Intruder) => {
                return Came::Inside;
            }
            state::ENTERING if peer.role == Role::Barger => return Came::Inside,
            state::DONE | state::FAILED => return Came::Through,
            state::ENTERING if peer.child.is_asleep() && peer.slot.state() == seen => {
                return Came::Asleep;
            }
            _ if Instant::now() >= deadline => return Came::Nowhere,
            _ if matches!(peer.child.poll(), Some(Status::Exited(_) | Status::Killed(_))) => {
                return Came::Through;
            }
            _ => Child::doze(peer.slot, seen),
        }
    }
}

fn finish(child: &mut Child, slot: &Slot, name: &str, deadline: Instant) -> Result<String, Failure> {
    match child.answer(slot, deadline) {
        Answer::Good(text) => Ok(text),
        Answer::Bad(text) => Err(violation(format!("{name}: {text}"))),
        Answer::Late if child.is_asleep() => Err(hang(format!("{name} sleeps for ever"))),
        Answer::Late => Err(hang(format!("{name} never comes to an end"))),
    }
}
