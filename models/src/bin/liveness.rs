//! The robust word of a participant's entry, which a parked keeper thread owns on behalf of its process.
//!
//! As first written, the attaching thread does the work: pending <- node, CAS word 0 or OWNER_DIED -> its own
//! tid, link the node into the *keeper's* list, word <- the keeper's tid, pending <- null, generation + 1. To
//! detach: pending <- node, word <- its own tid, unlink, word <- 0, pending <- null.
//! Here the kernel walks each thread's list and pending slot by a step of its own, in any order, and marks a word only
//! if it names that very thread.
//!
//! What must hold: a dead process leaves 0 or OWNER_DIED behind and never its tid; no entry has two live owners
//! and none is robbed; the node is never in two lists at once. For a list that leads into a node which somebody
//! else has linked since is a list whose rest the kernel cannot find: each keeper here owns one more word (say, its
//! entry in another segment) behind this node, and that must be marked as well.
//!
//! `cargo run --release --bin liveness`, with `-- deep` for more.

use models::{Model, Steps, Suite, order};
use std::process::ExitCode;

const MAX: usize = 4;
/// The word: 0, this, or the tid of a thread.
const OWNER_DIED: u8 = 0x80;

const STALE: &str = "a dead thread's tid stays in the word";
const TWO_LISTS: &str = "the node is in two lists at once";
const DERAILED: &str = "a walk was led astray: another word keeps a dead tid";
const TWO_OWNERS: &str = "two live owners";
const ROBBED: &str = "a live owner was robbed";
const SAME_GENERATION: &str = "two owners of one generation";
const STUCK: &str = "a live process waits for ever";

/// Who attaches and detaches, and in which order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// As first written.
    ByWorker,
    /// One thread does everything: the keeper, asked by the attaching thread, or the main thread for itself.
    ByKeeper,
    /// `ByWorker`, but links before the CAS.
    LinksFirst,
    /// `ByWorker`, but clears the pending slot before it stores the keeper's tid.
    StoresWithoutPending,
    /// `ByWorker`, but stores the keeper's tid before it links.
    StoresBeforeLink,
}

/// How a kill comes over the threads of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kill {
    /// All stop at once; the kernel walks their lists in any order.
    AtOnce,
    /// The same, and the keeper's list is walked first.
    KeeperFirst,
    /// One thread may be gone, and walked, while the one that attaches still takes steps.
    ThreadByThread,
}

#[derive(Clone, Debug)]
struct Liveness {
    rounds: Vec<u8>,
    kills: u8,
    form: Form,
    kill: Kill,
    /// Each owner writes down who it is, before it links; who takes an OWNER_DIED links only when that one is gone
    /// with all its threads.
    waits_until_gone: bool,
    /// Goes on when the node is in two lists, to see what comes of it.
    shrugs: bool,
}

impl Liveness {
    fn new(form: Form, kill: Kill, rounds: &[u8], kills: u8) -> Liveness {
        let rounds = rounds.to_vec();
        Liveness { rounds, kills, form, kill, waits_until_gone: false, shrugs: false }
    }

    /// The thread that attaches.
    fn actor(&self, i: usize) -> u8 {
        if self.form == Form::ByKeeper { keeper(i) } else { worker(i) }
    }
}

fn worker(i: usize) -> u8 {
    2 * i as u8 + 1
}

fn keeper(i: usize) -> u8 {
    2 * i as u8 + 2
}

/// The process of a thread, if `word` names one.
fn process_of(word: u8) -> Option<usize> {
    (word != 0 && word != OWNER_DIED).then(|| usize::from(word - 1) / 2)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum At {
    AttachPending,
    LinkTooEarly,
    Claim,
    // From here on the entry is mine …
    AskWho,
    GiveBack,
    WriteWho,
    Link,
    PendingOffTooEarly,
    StoreKeeper,
    AttachPendingOff,
    CountGeneration,
    Attached,
    StoreWorker,
    Unlink,
    EraseWho,
    Free,
    // … and here no longer.
    DetachPendingOff,
    Refused,
    Done,
}

impl At {
    fn owns(self) -> bool {
        (At::AskWho..=At::Free).contains(&self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Life {
    Alive,
    /// The thread that does not attach is gone; the other has some steps left.
    Doomed,
    Killed,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Process {
    at: At,
    life: Life,
    rounds: u8,
    /// The pending slot of the thread that attaches.
    pending: bool,
    /// The keeper's list leads to the node.
    linked: bool,
    worker_walked: bool,
    keeper_walked: bool,
    took_dead: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    word: u8,
    /// Whose list the node's own pointers belong to, and who wrote himself down: process + 1.
    links: u8,
    who: u8,
    generation: u8,
    /// Ghost: the generation of the last owner that was attached completely.
    last_attached: u8,
    same_generation: bool,
    derailed: bool,
    kills: u8,
    processes: [Process; MAX],
}

fn fresh(at: At, life: Life, rounds: u8) -> Process {
    Process {
        at,
        life,
        rounds,
        pending: false,
        linked: false,
        worker_walked: false,
        keeper_walked: false,
        took_dead: false,
    }
}

impl Liveness {
    fn step(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let me = s.processes[i];
        let mut t = *s;
        let my = &mut t.processes[i];
        let one_thread = self.form == Form::ByKeeper;
        let (at, what) = match me.at {
            At::AttachPending => {
                my.pending = true;
                let early = self.form == Form::LinksFirst;
                (if early { At::LinkTooEarly } else { At::Claim }, "attach: pending <- node")
            }
            At::LinkTooEarly => {
                my.linked = true;
                t.links = i as u8 + 1;
                (At::Claim, "attach: links, before the CAS")
            }
            At::Claim if s.word == 0 || s.word == OWNER_DIED => {
                my.took_dead = s.word == OWNER_DIED;
                t.word = self.actor(i);
                let next = match self.form {
                    Form::LinksFirst => At::StoreKeeper,
                    Form::StoresBeforeLink => At::StoreKeeper,
                    _ if self.waits_until_gone => At::AskWho,
                    _ => At::Link,
                };
                (next, "attach: CAS 0 or OWNER_DIED -> tid")
            }
            At::Claim => {
                my.linked = false; // what was linked too early
                (At::Refused, "attach: taken by somebody else")
            }
            At::AskWho => {
                let gone = s.who == 0 || s.processes[usize::from(s.who) - 1].life == Life::Dead;
                let fine = gone || !me.took_dead;
                (if fine { At::WriteWho } else { At::GiveBack }, "attach: is the dead one gone?")
            }
            At::GiveBack => {
                t.word = OWNER_DIED;
                (At::Refused, "attach: word <- OWNER_DIED, not yet")
            }
            At::WriteWho => {
                t.who = i as u8 + 1;
                (At::Link, "attach: writes down who it is")
            }
            At::Link => {
                my.linked = true;
                t.links = i as u8 + 1;
                let next = match self.form {
                    Form::ByKeeper | Form::StoresBeforeLink => At::AttachPendingOff,
                    Form::StoresWithoutPending => At::PendingOffTooEarly,
                    _ => At::StoreKeeper,
                };
                (next, "attach: links the node into the keeper's list")
            }
            At::PendingOffTooEarly => {
                my.pending = false;
                (At::StoreKeeper, "attach: pending <- null, too early")
            }
            At::StoreKeeper => {
                t.word = keeper(i);
                let links = self.form == Form::StoresBeforeLink;
                (if links { At::Link } else { At::AttachPendingOff }, "attach: word <- keeper's tid")
            }
            At::AttachPendingOff => {
                my.pending = false;
                (At::CountGeneration, "attach: pending <- null")
            }
            At::CountGeneration => {
                t.generation += 1;
                t.same_generation |= t.generation == s.last_attached;
                t.last_attached = t.generation;
                (At::Attached, "attach: generation + 1")
            }
            At::Attached => {
                my.pending = true;
                (if one_thread { At::Unlink } else { At::StoreWorker }, "detach: pending <- node")
            }
            At::StoreWorker => {
                t.word = worker(i);
                (At::Unlink, "detach: word <- own tid")
            }
            At::Unlink => {
                my.linked = false;
                t.links = 0;
                let erases = self.waits_until_gone;
                (if erases { At::EraseWho } else { At::Free }, "detach: unlinks")
            }
            At::EraseWho => {
                t.who = 0;
                (At::Free, "detach: erases who it was")
            }
            At::Free => {
                t.word = 0;
                (At::DetachPendingOff, "detach: word <- 0")
            }
            At::DetachPendingOff | At::Refused => {
                let again = if me.rounds == 1 { At::Done } else { At::AttachPending };
                let doomed = Process { at: again, rounds: me.rounds - 1, ..me };
                *my = Process { pending: false, took_dead: false, ..doomed };
                (again, "pending <- null")
            }
            At::Done => return,
        };
        t.processes[i].at = at;
        steps.fair(i, what, t);
    }

    fn accidents(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let mut t = *s;
        if s.processes[i].life == Life::Doomed {
            t.processes[i].life = Life::Killed;
            steps.fair(i, "KILLED, the last thread too", t);
        } else if s.kills > 0 {
            t.kills -= 1;
            t.processes[i].life = Life::Killed;
            steps.optional(i, "KILLED", t);
            if self.kill == Kill::ThreadByThread {
                t.processes[i].life = Life::Doomed;
                self.other_walk(&t, i, steps, "KILLED, one thread first; (kernel) walks its list");
            }
        }
    }

    /// The walk of the thread that does not attach.
    fn other_walk(&self, s: &State, i: usize, steps: &mut Steps<State>, what: &'static str) {
        let mut t = *s;
        if self.form == Form::ByKeeper {
            walk_worker(&mut t, i, false);
        } else {
            walk_keeper(&mut t, i, false);
        }
        steps.optional(i, what, t);
    }

    fn walks(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let process = s.processes[i];
        let keeper_acts = self.form == Form::ByKeeper;
        let waits = self.kill == Kill::KeeperFirst && !process.keeper_walked;
        if !process.worker_walked && !waits {
            let mut t = *s;
            walk_worker(&mut t, i, process.pending && !keeper_acts);
            steps.fair(i, "(kernel) walks the worker's list", t);
        }
        if !process.keeper_walked {
            let mut t = *s;
            walk_keeper(&mut t, i, process.pending && keeper_acts);
            steps.fair(i, "(kernel) walks the keeper's list", t);
        }
        if process.worker_walked && process.keeper_walked {
            let mut t = *s;
            t.processes[i] = fresh(At::Done, Life::Dead, 0);
            steps.fair(i, "(kernel) the process is gone", t);
        }
    }
}

fn walk_worker(t: &mut State, i: usize, pending: bool) {
    t.processes[i].worker_walked = true;
    if pending && t.word == worker(i) {
        t.word = OWNER_DIED;
    }
}

fn walk_keeper(t: &mut State, i: usize, pending: bool) {
    let linked = t.processes[i].linked;
    t.processes[i].keeper_walked = true;
    if (linked || pending) && t.word == keeper(i) {
        t.word = OWNER_DIED;
    }
    // The rest of the list is found through the node's own pointers.
    t.derailed |= linked && t.links != i as u8 + 1;
}

impl Model for Liveness {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [fresh(At::Done, Life::Dead, 0); MAX];
        for (process, &rounds) in processes.iter_mut().zip(&self.rounds) {
            *process = fresh(At::AttachPending, Life::Alive, rounds);
        }
        State {
            word: 0,
            links: 0,
            who: 0,
            generation: 0,
            last_attached: 0,
            same_generation: false,
            derailed: false,
            kills: self.kills,
            processes,
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<State>) {
        for i in 0..self.rounds.len() {
            match s.processes[i].life {
                Life::Alive if s.processes[i].at == At::Done => {}
                Life::Alive | Life::Doomed => {
                    self.accidents(s, i, steps);
                    self.step(s, i, steps);
                }
                Life::Killed => self.walks(s, i, steps),
                Life::Dead => {}
            }
        }
    }

    fn violation(&self, s: &State) -> Option<&'static str> {
        let in_list = |p: &&Process| p.linked && !p.keeper_walked;
        if !self.shrugs && s.processes.iter().filter(in_list).count() > 1 {
            return Some(TWO_LISTS);
        }
        if s.derailed {
            return Some(DERAILED);
        }
        if s.same_generation {
            return Some(SAME_GENERATION);
        }
        let owner = process_of(s.word);
        if owner.is_some_and(|i| s.processes[i].life == Life::Dead) {
            return Some(STALE);
        }
        let owns = |i: &usize| s.processes[*i].life == Life::Alive && s.processes[*i].at.owns();
        let mut owners = (0..MAX).filter(owns);
        match (owners.next(), owners.next()) {
            (Some(_), Some(_)) => Some(TWO_OWNERS),
            (Some(i), None) => (owner != Some(i)).then_some(ROBBED),
            _ => None,
        }
    }

    fn end_violation(&self, s: &State) -> Option<&'static str> {
        let waits = |process: &Process| process.life == Life::Alive && process.at != At::Done;
        s.processes.iter().any(waits).then_some(STUCK)
    }

    fn canonical(&self, s: &State) -> State {
        let owner = process_of(s.word);
        let key = |i: usize| {
            let named = |field: u8| field == i as u8 + 1;
            (s.processes[i], owner == Some(i), named(s.links), named(s.who))
        };
        let order: [usize; MAX] = order(self.rounds.len(), |_| (), key);
        let new = |old: usize| order.iter().position(|&index| index == old).unwrap();
        let rename = |field: u8| {
            if field == 0 { 0 } else { new(usize::from(field) - 1) as u8 + 1 }
        };
        let mut t = *s;
        t.links = rename(s.links);
        t.who = rename(s.who);
        t.word = match owner {
            None => s.word,
            Some(i) if s.word == worker(i) => worker(new(i)),
            Some(i) => keeper(new(i)),
        };
        t.processes = order.map(|i| s.processes[i]);
        t
    }
}

fn main() -> ExitCode {
    use Form::*;
    use Kill::*;
    let mut suite = Suite::from_arguments();
    let new = Liveness::new;
    suite.holds("by the keeper, 3 x 2, 2 kills", new(ByKeeper, AtOnce, &[2, 2, 2], 2));
    suite.holds("by the keeper, 4 x (2,2,1,1), 2 kills", new(ByKeeper, AtOnce, &[2, 2, 1, 1], 2));
    suite.holds(
        "by the keeper, thread by thread, 3 x 2, 3 kills",
        new(ByKeeper, ThreadByThread, &[2, 2, 2], 3),
    );
    suite.holds("by another thread, 3 x 2, no kill", new(ByWorker, AtOnce, &[2, 2, 2], 0));
    suite.fails(
        "as first written: by another thread, 3 x 1, 1 kill",
        TWO_LISTS,
        new(ByWorker, AtOnce, &[1, 1, 1], 1),
    );
    suite.fails(
        "  what comes of it",
        DERAILED,
        Liveness { shrugs: true, ..new(ByWorker, AtOnce, &[1, 1, 1], 1) },
    );
    suite.holds(
        "  if the kernel always walked the keeper's list first, 3 x 2, 2 kills",
        new(ByWorker, KeeperFirst, &[2, 2, 2], 2),
    );
    suite.holds(
        "  if the successor waits until the dead one is gone, 3 x 2, 2 kills",
        Liveness { waits_until_gone: true, ..new(ByWorker, AtOnce, &[2, 2, 2], 2) },
    );
    suite.fails(
        "  that, and the keeper dies before the attaching thread, 2 x 1, 1 kill",
        STALE,
        Liveness { waits_until_gone: true, ..new(ByWorker, ThreadByThread, &[1, 1], 1) },
    );
    suite.fails("control: links before the CAS, no kill", TWO_LISTS, new(LinksFirst, AtOnce, &[1, 1], 0));
    suite.fails(
        "control: stores the keeper's tid without pending, 1 kill",
        STALE,
        new(StoresWithoutPending, KeeperFirst, &[1, 1], 1),
    );
    suite.fails(
        "control: stores the keeper's tid before it links, 1 kill",
        STALE,
        new(StoresBeforeLink, KeeperFirst, &[1, 1], 1),
    );
    if suite.is_deep() {
        suite.holds(
            "deep: by the keeper, thread by thread, 4 x 2, 3 kills",
            new(ByKeeper, ThreadByThread, &[2, 2, 2, 2], 3),
        );
    }
    suite.finish()
}
