//! `Value` larger than a word: two copies, a version, and a writer lock whose owner's death needs no report.
//!
//! The copy in use is the version's low bit. A writer fills the other one and then counts the version up; a reader
//! copies and looks whether the version is still the same. A copy is two words here, and version *v* holds the value
//! *v* in both of them.
//!
//! What must hold: nobody returns a torn value, one that was not there while it looked, or one older than it returned
//! before; nothing that was committed is overwritten by somebody who did not see it; nobody alive waits for ever.
//! The lock is one CAS with its pending slot and its link (the rest of it is `lock`'s business); the kernel marks
//! it one step after the kill, and only where the slot or the link leads there.
//!
//! `cargo run --release --bin value`, with `-- deep` for more.

use models::{Model, Steps, Suite, order};
use std::process::ExitCode;

const MAX: usize = 5;
/// The lock word of a dead owner; otherwise it is 0 or the owner as process + 1.
const OWNER_DIED: u8 = 0x80;

const TORN: &str = "torn";
const FOREIGN: &str = "a value of another time";
const OLDER: &str = "older than one already returned";
const LOST: &str = "a commit was overwritten unseen";
const BLOCKED: &str = "a live process waits for ever";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// Stores a value that it had before.
    Set,
    /// `update`, or a guard: copies out, lets the user change the copy, then commits it or (a panic) does not.
    Change,
    /// `Change`, but copies out before it locks.
    ChangeCopiesFirst,
    /// Copies without the lock.
    Get,
    /// Copies under the lock, for readers that were overtaken too often.
    LockedGet,
}

/// How a holder makes its death known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Linked,
    PendingOnly,
    /// Pending-only, but clears the slot when it has the lock, as the linked form does.
    ClearsPending,
    /// Linked, but unlinks before it sets the slot.
    UnlinksFirst,
}

/// What a reader compares at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Compare {
    Version,
    Parity,
    Nothing,
}

#[derive(Clone, Debug)]
struct Value {
    /// What each process does, in which form, and how often.
    crew: Vec<(Work, Form, u8)>,
    kills: u8,
    compare: Compare,
    flips_first: bool,
    one_copy: bool,
}

impl Value {
    fn new(crew: &[(Work, Form, u8)], kills: u8) -> Value {
        let crew = crew.to_vec();
        Value { crew, kills, compare: Compare::Version, flips_first: false, one_copy: false }
    }

    /// Which of the two copies belongs to `version`.
    fn copy_of(&self, version: u8) -> usize {
        if self.one_copy { 0 } else { usize::from(version & 1) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum At {
    Begin,
    Lock,
    Take,
    Link,
    PendingOff,
    // Under the lock, or without it where one only reads.
    Version,
    CopyOut0,
    CopyOut1,
    Compare,
    Write0,
    Write1,
    Commit,
    Unlock,
    Unlink,
    Release,
    End,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Life {
    Alive,
    Killed,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Process {
    at: At,
    life: Life,
    rounds: u8,
    pending: bool,
    linked: bool,
    version: u8,
    copied: [u8; 2],
    /// Ghost: the youngest value that it returned.
    returned: u8,
}

impl Process {
    fn fresh(at: At, life: Life, rounds: u8) -> Process {
        Process { at, life, rounds, pending: false, linked: false, version: 0, copied: [0; 2], returned: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Fault {
    None,
    Torn,
    Foreign,
    Older,
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    lock: u8,
    version: u8,
    copies: [[u8; 2]; 2],
    kills: u8,
    fault: Fault,
    processes: [Process; MAX],
}

impl Value {
    fn step(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let (work, form, _) = self.crew[i];
        let me = s.processes[i];
        let mut t = *s;
        let my = &mut t.processes[i];
        let reads_only = matches!(work, Work::Get | Work::LockedGet);
        let links = matches!(form, Form::Linked | Form::UnlinksFirst);
        let in_use = self.copy_of(me.version);
        let idle = self.copy_of(me.version + 1);
        let (at, what) = match me.at {
            At::Begin if matches!(work, Work::Get | Work::ChangeCopiesFirst) => {
                my.version = s.version;
                (At::CopyOut0, "reads the version")
            }
            At::Begin | At::Lock => {
                my.pending = true;
                (At::Take, "lock: pending <- node")
            }
            At::Take if s.lock == 0 || s.lock == OWNER_DIED => {
                t.lock = i as u8 + 1;
                (At::Link, "lock: CAS -> tid (a death needs no repair)")
            }
            At::Take => return,
            At::Link => {
                my.linked = links;
                let clears = links || form == Form::ClearsPending;
                (if clears { At::PendingOff } else { At::Version }, "lock: links, or stays pending")
            }
            At::PendingOff => {
                my.pending = false;
                (At::Version, "lock: pending <- null")
            }
            At::Version if work == Work::ChangeCopiesFirst => {
                (At::Write0, "keeps the version that it read before")
            }
            At::Version => {
                my.version = s.version;
                let stores = work == Work::Set;
                if self.flips_first && stores {
                    t.version += 1;
                }
                (if stores { At::Write0 } else { At::CopyOut0 }, "reads the version")
            }
            At::CopyOut0 => {
                my.copied[0] = s.copies[in_use][0];
                (At::CopyOut1, "copies word 0")
            }
            At::CopyOut1 => {
                my.copied[1] = s.copies[in_use][1];
                let next = match work {
                    Work::Get | Work::LockedGet => At::Compare,
                    Work::ChangeCopiesFirst => At::Lock,
                    Work::Set | Work::Change => At::Write0,
                };
                if next == At::Write0 {
                    // The closure runs, or the guard is out; a panic leaves without a commit.
                    let mut panics = *s;
                    panics.processes[i] = Process { at: At::Unlock, copied: [0; 2], version: 0, ..me };
                    steps.optional(i, "copies word 1, panics", panics);
                }
                (next, "copies word 1")
            }
            At::Compare => {
                let same = match self.compare {
                    _ if work == Work::LockedGet => true,
                    Compare::Version => s.version == me.version,
                    Compare::Parity => s.version & 1 == me.version & 1,
                    Compare::Nothing => true,
                };
                if same {
                    t.fault = match me.copied {
                        [first, second] if first != second => Fault::Torn,
                        [value, _] if value < me.version || value > s.version => Fault::Foreign,
                        [value, _] if value < me.returned => Fault::Older,
                        _ => Fault::None,
                    };
                    my.returned = me.copied[0];
                    my.copied = [0; 2];
                    my.version = 0;
                    let locked = work == Work::LockedGet;
                    (if locked { At::Unlock } else { At::End }, "the version is the same, returns")
                } else {
                    my.copied = [0; 2];
                    my.version = 0;
                    (At::Begin, "the version has moved, again")
                }
            }
            At::Write0 => {
                // What was copied out is one less than what is written; a set writes what it likes.
                t.copies[idle][0] = if work == Work::Set { me.version } else { me.copied[0] } + 1;
                (At::Write1, "writes word 0 of the idle copy")
            }
            At::Write1 => {
                t.copies[idle][1] = if work == Work::Set { me.version } else { me.copied[1] } + 1;
                (At::Commit, "writes word 1 of the idle copy")
            }
            At::Commit => {
                let flipped = self.flips_first && work == Work::Set;
                if !flipped && s.version != me.version {
                    t.fault = Fault::Lost;
                }
                my.copied = [0; 2];
                my.version = 0;
                t.version = me.version + 1;
                (At::Unlock, "version <- v + 1, the commit")
            }
            At::Unlock if form == Form::UnlinksFirst => {
                my.linked = false;
                (At::Unlink, "unlock: unlinks, too early")
            }
            At::Unlock => {
                my.pending = true;
                (if links { At::Unlink } else { At::Release }, "unlock: pending <- node")
            }
            At::Unlink => {
                my.linked = false;
                my.pending = true;
                (At::Release, "unlock: unlinks")
            }
            At::Release => {
                t.lock = 0;
                (At::End, "unlock: word <- 0")
            }
            At::End => {
                let again = if me.rounds == 1 { At::Done } else { At::Begin };
                let reads_again = reads_only && again == At::Begin;
                let returned = if reads_again { me.returned } else { 0 };
                *my = Process { returned, ..Process::fresh(again, Life::Alive, me.rounds - 1) };
                (again, "pending <- null")
            }
            At::Done => return,
        };
        t.processes[i].at = at;
        steps.fair(i, what, t);
    }
}

impl Model for Value {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [Process::fresh(At::Done, Life::Dead, 0); MAX];
        for (process, &(_, _, rounds)) in processes.iter_mut().zip(&self.crew) {
            *process = Process::fresh(At::Begin, Life::Alive, rounds);
        }
        let copies = [[0; 2]; 2];
        State { lock: 0, version: 0, copies, kills: self.kills, fault: Fault::None, processes }
    }

    fn steps(&self, s: &State, steps: &mut Steps<State>) {
        for i in 0..self.crew.len() {
            let process = s.processes[i];
            match process.life {
                Life::Alive if process.at == At::Done => {}
                Life::Alive => {
                    if s.kills > 0 {
                        let mut t = *s;
                        t.kills -= 1;
                        t.processes[i].life = Life::Killed;
                        steps.optional(i, "KILLED", t);
                    }
                    self.step(s, i, steps);
                }
                Life::Killed => {
                    let mut t = *s;
                    if (process.pending || process.linked) && s.lock == i as u8 + 1 {
                        t.lock = OWNER_DIED;
                    }
                    t.processes[i] = Process::fresh(At::Done, Life::Dead, 0);
                    steps.fair(i, "(kernel) marks the lock", t);
                }
                Life::Dead => {}
            }
        }
    }

    fn violation(&self, s: &State) -> Option<&'static str> {
        match s.fault {
            Fault::None => None,
            Fault::Torn => Some(TORN),
            Fault::Foreign => Some(FOREIGN),
            Fault::Older => Some(OLDER),
            Fault::Lost => Some(LOST),
        }
    }

    fn end_violation(&self, s: &State) -> Option<&'static str> {
        let waits = |process: &Process| process.life == Life::Alive && process.at != At::Done;
        s.processes.iter().any(waits).then_some(BLOCKED)
    }

    fn canonical(&self, s: &State) -> State {
        let class = |i: usize| (self.crew[i].0, self.crew[i].1);
        let owner = usize::from(s.lock).checked_sub(1);
        let order: [usize; MAX] = order(self.crew.len(), class, |i| (s.processes[i], owner == Some(i)));
        let mut t = *s;
        t.processes = order.map(|i| s.processes[i]);
        if let Some(new) = order.iter().position(|&old| owner == Some(old)) {
            t.lock = new as u8 + 1;
        }
        t
    }
}

fn main() -> ExitCode {
    use Form::{ClearsPending, Linked, PendingOnly, UnlinksFirst};
    use Work::{Change, ChangeCopiesFirst, Get, LockedGet, Set};
    let mut suite = Suite::from_arguments();
    let small = || Value::new(&[(Set, PendingOnly, 2), (Set, PendingOnly, 2), (Get, Linked, 2)], 1);
    suite.fails(
        "control: no second look at the version",
        TORN,
        Value { compare: Compare::Nothing, ..small() },
    );
    suite.fails(
        "control: compares the version's low bit only",
        TORN,
        Value { compare: Compare::Parity, ..small() },
    );
    suite.fails("control: flips before it writes", FOREIGN, Value { flips_first: true, ..small() });
    suite.fails("control: one copy", TORN, Value { one_copy: true, ..small() });
    suite.fails(
        "control: a change that copies out before it locks",
        LOST,
        Value::new(&[(ChangeCopiesFirst, Linked, 1), (Set, PendingOnly, 1)], 0),
    );
    suite.fails(
        "control: a pending-only holder clears the slot",
        BLOCKED,
        Value::new(&[(Set, ClearsPending, 1), (Change, Linked, 1)], 1),
    );
    suite.fails(
        "control: a linked holder unlinks before it sets the slot",
        BLOCKED,
        Value::new(&[(Change, UnlinksFirst, 1), (Set, PendingOnly, 1)], 1),
    );
    suite.holds(
        "2 set x 2, 1 get x 2, 2 kills",
        Value::new(&[(Set, PendingOnly, 2), (Set, PendingOnly, 2), (Get, Linked, 2)], 2),
    );
    suite.holds(
        "2 set x 3, 2 get x 2, 1 kill",
        Value::new(&[(Set, PendingOnly, 3), (Set, PendingOnly, 3), (Get, Linked, 2), (Get, Linked, 2)], 1),
    );
    suite.holds(
        "3 set x 2, 1 get x 3, 2 kills",
        Value::new(
            &[(Set, PendingOnly, 2), (Set, PendingOnly, 2), (Set, PendingOnly, 2), (Get, Linked, 3)],
            2,
        ),
    );
    suite.holds(
        "mix: set pending-only x 2, set linked, change linked x 2, get x 2, 2 kills",
        Value::new(&[(Set, PendingOnly, 2), (Set, Linked, 1), (Change, Linked, 2), (Get, Linked, 2)], 2),
    );
    suite.holds(
        "mix: change linked x 2, change pending-only x 2, set x 1, locked get x 2, 2 kills",
        Value::new(
            &[
                (Change, Linked, 2),
                (Change, PendingOnly, 2),
                (Set, PendingOnly, 1),
                (LockedGet, PendingOnly, 2),
            ],
            2,
        ),
    );
    if suite.is_deep() {
        suite.holds(
            "deep: set x 1, change linked x 2, change pending-only x 1, 2 get x 1, 2 kills",
            Value::new(
                &[
                    (Set, PendingOnly, 1),
                    (Change, Linked, 2),
                    (Change, PendingOnly, 1),
                    (Get, Linked, 1),
                    (Get, Linked, 1),
                ],
                2,
            ),
        );
        suite.holds(
            "deep: 2 set x 3, 2 get x 2, 2 kills",
            Value::new(
                &[(Set, PendingOnly, 3), (Set, PendingOnly, 3), (Get, Linked, 2), (Get, Linked, 2)],
                2,
            ),
        );
    }
    suite.finish()
}
