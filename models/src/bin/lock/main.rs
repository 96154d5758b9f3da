//! The robust lock: one word, a status word beside it, and the kernel's robust-list walk.
//!
//! What must hold: one owner, who is never robbed; after an owner's death every later owner is told until one
//! recovers, and nobody is told without a death; no live process waits for ever; no livelock.
//! An owner counts from the step that puts its tid into the word, so one that was killed before it touched the
//! data is reported too: the survivors cannot know better.
//!
//! `cargo run --release --bin lock`, with `-- deep` for more.

mod checks;

use models::{Model, Steps, Suite, order};
use std::process::ExitCode;

const MAX: usize = 4;

// The word: the owner as process + 1, and two flags.
const OWNER: u8 = 7;
const OWNER_DIED: u8 = 8;
const WAITERS: u8 = 16;

const UNREPORTED: &str = "the death of an owner was not reported";
const FALSELY_TOLD: &str = "told OwnerDied without a death";
const TWO_OWNERS: &str = "two owners";
const ROBBED: &str = "an owner was robbed";
const SLEEPS_ON_FREE: &str = "a live waiter sleeps on a free lock for ever";
const SLEEPS_ON_DEAD: &str = "a live waiter sleeps, its owner is gone";

/// How an owner lets go when WAITERS is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unlock {
    /// `WAKE_OP{word := WAITERS, wake 1}`; by an owner that took a bare WAITERS without having slept
    /// `WAKE_OP{word := 0, wake all}`.
    Chosen,
    /// `WAKE_OP{word := 0, wake all}` always: for kernels before 6.2.
    WakeAll,
    /// The fallback without `WAKE_OP`: the two forms of `Chosen`, store and wake as two steps.
    TwoSteps,
    /// glibc's: swap in 0, then wake 1.
    Glibc,
    /// Store WAITERS, wake 1, and if that woke nobody CAS WAITERS to 0.
    StoreThenClear,
}

/// How long a process is ready to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    ForEver,
    Not,
    /// May be late at any moment, and looks at the word once more before it leaves.
    Timed,
    /// Leaves when it is late, without another look.
    TimedNaive,
}

/// When a taker that saw OWNER_DIED writes `status <- inconsistent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum StatusStore {
    BeforeLink,
    AfterLink,
    /// Before the CAS: not yet an owner.
    BeforeTake,
}

/// Where an owner learns whether to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    ByStatus,
    /// From the OWNER_DIED bit of the word that it took, and from nothing else.
    ByWord,
}

/// One configuration.
#[derive(Clone, Debug)]
struct Lock {
    rounds: Vec<u8>,
    wait: [Wait; MAX],
    recovers: [bool; MAX],
    kills: u8,
    stops: u8,
    unlock: Unlock,
    linked: bool,
    bounded_sleeps: bool,
    spurious_wakes: bool,
    waiters_after_sleep: bool,
    /// The kernel rings the pending slot only for a word that is 0.
    old_kernel: bool,
    pending_while_asleep: bool,
    status_store: StatusStore,
    told: Told,
}

impl Lock {
    /// Processes with so many rounds each, and so many kills among them.
    fn new(rounds: &[u8], kills: u8) -> Lock {
        Lock {
            rounds: rounds.to_vec(),
            wait: [Wait::ForEver; MAX],
            recovers: [true; MAX],
            kills,
            stops: 0,
            unlock: Unlock::Chosen,
            linked: true,
            bounded_sleeps: false,
            spurious_wakes: false,
            waiters_after_sleep: true,
            old_kernel: false,
            pending_while_asleep: true,
            status_store: StatusStore::BeforeLink,
            told: Told::ByStatus,
        }
    }
}

/// The step a process takes next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum At {
    LockPending,
    FastTake,
    Load,
    MarkTooEarly,
    Take,
    SetWaiters,
    Wait,
    Sleep,
    // From here on the word is mine …
    Mark,
    Link,
    LockPendingOff,
    MarkLate,
    Enter,
    Section,
    SectionEnd,
    UnlockPending,
    Unlink,
    FastRelease,
    SlowRelease,
    // … and here no longer.
    WakeOne,
    WakeAll,
    ClearWaiters,
    UnlockPendingOff,
    GiveUp,
    Done,
}

impl At {
    fn owns(self) -> bool {
        (At::Mark..=At::SlowRelease).contains(&self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Life {
    Alive,
    /// Killed; the kernel will look at the word.
    Walked,
    /// Killed; the kernel will wake one.
    Rings,
    Dead,
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Process {
    at: At,
    life: Life,
    rounds: u8,
    /// The word when it was last loaded.
    seen: u8,
    pending: bool,
    linked: bool,
    asleep: bool,
    slept: bool,
    late: bool,
    /// Took a bare WAITERS without having slept.
    bare: bool,
    /// The word that it took said OWNER_DIED.
    saw_death: bool,
}

impl Process {
    fn fresh(at: At, life: Life, rounds: u8) -> Process {
        Process {
            at,
            life,
            rounds,
            seen: 0,
            pending: false,
            linked: false,
            asleep: false,
            slept: false,
            late: false,
            bare: false,
            saw_death: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    word: u8,
    inconsistent: bool,
    /// Ghost: an owner died, and nobody has recovered since.
    owed: bool,
    /// Ghost: what went wrong at an entry.
    unreported: bool,
    falsely_told: bool,
    kills: u8,
    stops: u8,
    processes: [Process; MAX],
}

impl State {
    /// Every way to wake one sleeper; the unchanged state when there is none.
    fn wake_one(&self, mut each: impl FnMut(State, bool)) {
        let mut woke = false;
        for sleeper in 0..MAX {
            if self.processes[sleeper].asleep {
                let mut t = *self;
                t.processes[sleeper].asleep = false;
                each(t, true);
                woke = true;
            }
        }
        if !woke {
            each(*self, false);
        }
    }

    fn wake_all(&mut self) {
        self.processes.iter_mut().for_each(|process| process.asleep = false);
    }
}

impl Lock {
    /// The kernel at the end of a killed process: one lock, linked or pending or both.
    fn walk(&self, s: &State, i: usize) -> State {
        let mut t = *s;
        let process = s.processes[i];
        t.processes[i] = Process::fresh(At::Done, Life::Dead, 0);
        let looks_free = if self.old_kernel { s.word == 0 } else { s.word & OWNER == 0 };
        if process.pending && looks_free {
            t.processes[i].life = Life::Rings;
        } else if (process.pending || process.linked) && s.word & OWNER == i as u8 + 1 {
            t.word = s.word & WAITERS | OWNER_DIED;
            if s.word & WAITERS != 0 {
                t.processes[i].life = Life::Rings;
            }
        }
        t
    }

    fn accidents(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        if s.kills > 0 {
            let mut t = *s;
            t.kills -= 1;
            t.processes[i].life = Life::Walked;
            t.processes[i].asleep = false;
            t.owed |= s.word & OWNER == i as u8 + 1;
            steps.optional(i, "KILLED", t);
        }
        if s.stops > 0 {
            let mut t = *s;
            t.stops -= 1;
            t.processes[i].life = Life::Stopped;
            steps.optional(i, "STOPPED for ever", t);
        }
    }

    fn sleep(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let mut t = *s;
        let process = &mut t.processes[i];
        let asleep = process.asleep;
        *process = Process { at: At::Load, asleep: false, slept: true, pending: true, ..*process };
        let mut late = t;
        late.processes[i].late = true;
        match (asleep, self.wait[i]) {
            (true, Wait::Timed | Wait::TimedNaive) => {
                steps.optional(i, "timed lock: the deadline has passed", late);
            }
            (true, _) => {
                // A bounded sleep always ends; where the owner lives it only starts again.
                let ends = self.bounded_sleeps && s.word & OWNER == 0;
                if ends {
                    steps.fair(i, "lock: a bounded sleep ends", t);
                } else if self.spurious_wakes {
                    steps.optional(i, "lock: wakes for no reason", t);
                }
            }
            (false, wait) => {
                steps.fair(i, "lock: woken", t);
                if wait == Wait::Timed {
                    steps.fair(i, "timed lock: woken, and late", late);
                } else if wait == Wait::TimedNaive {
                    late.processes[i].at = At::GiveUp;
                    steps.fair(i, "timed lock: woken, late, leaves at once", late);
                }
            }
        }
    }

    /// Unlocking when the CAS to 0 has failed. Blind stores are right: others can only have set WAITERS.
    fn slow_release(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let mut t = *s;
        let bare = s.processes[i].bare;
        match self.unlock {
            Unlock::WakeAll => self.release_all(t, i, steps),
            Unlock::Chosen if bare => self.release_all(t, i, steps),
            Unlock::Chosen => {
                t.word = WAITERS;
                t.processes[i].at = At::UnlockPendingOff;
                t.wake_one(|t, _| steps.fair(i, "unlock: WAKE_OP{word := WAITERS, wake 1}", t));
            }
            Unlock::TwoSteps if bare => {
                t.word = 0;
                t.processes[i].at = At::WakeAll;
                steps.fair(i, "unlock: stores 0", t);
            }
            Unlock::TwoSteps | Unlock::StoreThenClear => {
                t.word = WAITERS;
                t.processes[i].at = At::WakeOne;
                steps.fair(i, "unlock: stores WAITERS", t);
            }
            Unlock::Glibc => {
                t.word = 0;
                t.processes[i].at = At::WakeOne;
                steps.fair(i, "unlock: swaps in 0", t);
            }
        }
    }

    fn release_all(&self, mut t: State, i: usize, steps: &mut Steps<State>) {
        t.word = 0;
        t.wake_all();
        t.processes[i].at = At::UnlockPendingOff;
        steps.fair(i, "unlock: WAKE_OP{word := 0, wake all}", t);
    }

    /// The next step of a live process.
    fn step(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let tid = i as u8 + 1;
        let me = s.processes[i];
        let mut t = *s;
        let my = &mut t.processes[i];
        // Where it goes, and what it did.
        let (at, what) = match me.at {
            At::LockPending => {
                my.pending = true;
                (At::FastTake, "lock: pending <- node")
            }
            At::FastTake if s.word == 0 => {
                t.word = tid;
                (At::Link, "lock: CAS 0 -> tid")
            }
            At::FastTake => (At::Load, "lock: CAS 0 -> tid fails"),
            At::Load => {
                my.seen = s.word;
                if s.word & OWNER == 0 {
                    let early = self.status_store == StatusStore::BeforeTake;
                    let marks = early && s.word & OWNER_DIED != 0;
                    (if marks { At::MarkTooEarly } else { At::Take }, "lock: loads, free")
                } else if self.wait[i] == Wait::Not || me.late {
                    (At::GiveUp, "lock: loads, owned, will not wait")
                } else if s.word & WAITERS != 0 {
                    (At::Wait, "lock: loads, owned, WAITERS set")
                } else {
                    (At::SetWaiters, "lock: loads, owned")
                }
            }
            At::MarkTooEarly => {
                t.inconsistent = true;
                (At::Take, "lock: status <- inconsistent, before the CAS")
            }
            At::Take if s.word == me.seen => {
                let kept = me.seen & WAITERS;
                let again = me.slept && self.waiters_after_sleep;
                my.bare = kept != 0 && !me.slept;
                my.saw_death = me.seen & OWNER_DIED != 0;
                my.seen = 0;
                my.slept = false;
                my.late = false;
                let marks = my.saw_death && self.status_store == StatusStore::BeforeLink;
                t.word = tid | kept | if again { WAITERS } else { 0 };
                (if marks { At::Mark } else { At::Link }, "lock: CAS free -> tid")
            }
            At::Take => (At::Load, "lock: CAS free -> tid fails"),
            At::SetWaiters if s.word == me.seen => {
                t.word |= WAITERS;
                my.seen = t.word;
                (At::Wait, "lock: CAS sets WAITERS")
            }
            At::SetWaiters => (At::Load, "lock: CAS sets WAITERS fails"),
            At::Wait if me.pending && !self.pending_while_asleep => {
                my.pending = false;
                (At::Wait, "lock: pending <- null before the sleep")
            }
            At::Wait if s.word == me.seen => {
                my.asleep = true;
                my.seen = 0;
                (At::Sleep, "lock: futex_wait, asleep")
            }
            At::Wait => {
                my.pending = true;
                (At::Load, "lock: futex_wait returns at once")
            }
            At::Sleep => return self.sleep(s, i, steps),
            At::Mark => {
                t.inconsistent = true;
                (At::Link, "lock: status <- inconsistent")
            }
            At::Link => {
                my.linked = self.linked;
                let after = if self.linked { At::LockPendingOff } else { At::MarkLate };
                (after, if self.linked { "lock: links" } else { "lock: stays pending" })
            }
            At::LockPendingOff => {
                my.pending = false;
                (At::MarkLate, "lock: pending <- null")
            }
            At::MarkLate => {
                let marks = me.saw_death && self.status_store == StatusStore::AfterLink;
                t.inconsistent |= marks;
                (At::Enter, if marks { "lock: status <- inconsistent" } else { "lock: took it" })
            }
            At::Enter => {
                let told = match self.told {
                    Told::ByStatus => s.inconsistent,
                    Told::ByWord => me.saw_death,
                };
                my.saw_death = false;
                t.unreported = s.owed && !told;
                t.falsely_told = told && !s.owed;
                if told && self.recovers[i] {
                    (At::Section, "enters, told OwnerDied")
                } else {
                    (At::SectionEnd, if told { "enters, told OwnerDied" } else { "enters" })
                }
            }
            At::Section => {
                t.inconsistent = false;
                t.owed = false;
                (At::SectionEnd, "recover(): status <- clean")
            }
            At::SectionEnd => (At::UnlockPending, "leaves the section"),
            At::UnlockPending => {
                my.pending = true;
                (if self.linked { At::Unlink } else { At::FastRelease }, "unlock: pending <- node")
            }
            At::Unlink => {
                my.linked = false;
                (At::FastRelease, "unlock: unlinks")
            }
            At::FastRelease if s.word == tid => {
                t.word = 0;
                (At::UnlockPendingOff, "unlock: CAS tid -> 0")
            }
            At::FastRelease => (At::SlowRelease, "unlock: CAS tid -> 0 fails"),
            At::SlowRelease => return self.slow_release(s, i, steps),
            At::WakeOne => {
                let clears = self.unlock == Unlock::StoreThenClear;
                s.wake_one(|mut t, woke| {
                    let clears = clears && !woke;
                    t.processes[i].at = if clears { At::ClearWaiters } else { At::UnlockPendingOff };
                    steps.fair(i, if woke { "unlock: wakes 1" } else { "unlock: wakes nobody" }, t);
                });
                return;
            }
            At::WakeAll => {
                t.wake_all();
                (At::UnlockPendingOff, "unlock: wakes all")
            }
            At::ClearWaiters if s.word == WAITERS => {
                t.word = 0;
                (At::UnlockPendingOff, "unlock: CAS WAITERS -> 0")
            }
            At::ClearWaiters => (At::UnlockPendingOff, "unlock: CAS WAITERS -> 0 fails"),
            At::UnlockPendingOff | At::GiveUp => {
                let again = if me.rounds == 1 { At::Done } else { At::LockPending };
                *my = Process::fresh(again, Life::Alive, me.rounds - 1);
                (again, if me.at == At::GiveUp { "gives up" } else { "unlock: pending <- null" })
            }
            At::Done => return,
        };
        t.processes[i].at = at;
        steps.fair(i, what, t);
    }
}

impl Model for Lock {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [Process::fresh(At::Done, Life::Dead, 0); MAX];
        for (process, &rounds) in processes.iter_mut().zip(&self.rounds) {
            *process = Process::fresh(At::LockPending, Life::Alive, rounds);
        }
        State {
            word: 0,
            inconsistent: false,
            owed: false,
            unreported: false,
            falsely_told: false,
            kills: self.kills,
            stops: self.stops,
            processes,
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<State>) {
        for i in 0..self.rounds.len() {
            let process = s.processes[i];
            match process.life {
                Life::Alive if process.at == At::Done => {}
                Life::Alive => {
                    self.accidents(s, i, steps);
                    self.step(s, i, steps);
                }
                Life::Walked => steps.fair(i, "(kernel) looks at the word", self.walk(s, i)),
                Life::Rings => s.wake_one(|mut t, _| {
                    t.processes[i].life = Life::Dead;
                    steps.fair(i, "(kernel) wakes one", t);
                }),
                Life::Dead | Life::Stopped => {}
            }
        }
    }

    fn violation(&self, s: &State) -> Option<&'static str> {
        if s.unreported {
            return Some(UNREPORTED);
        }
        if s.falsely_told {
            return Some(FALSELY_TOLD);
        }
        let lives = |process: &Process| matches!(process.life, Life::Alive | Life::Stopped);
        let owns = |i: &usize| lives(&s.processes[*i]) && s.processes[*i].at.owns();
        let mut owners = (0..MAX).filter(owns);
        match (owners.next(), owners.next()) {
            (Some(_), Some(_)) => Some(TWO_OWNERS),
            (Some(owner), None) => (s.word & OWNER != owner as u8 + 1).then_some(ROBBED),
            _ => None,
        }
    }

    fn end_violation(&self, s: &State) -> Option<&'static str> {
        let owner = (s.word & OWNER) as usize;
        if owner != 0 && s.processes[owner - 1].life == Life::Stopped {
            return None; // an owner that is stopped for ever may hold up everybody
        }
        let waits = |process: &Process| process.life == Life::Alive && process.at != At::Done;
        let why = if owner == 0 { SLEEPS_ON_FREE } else { SLEEPS_ON_DEAD };
        s.processes.iter().any(waits).then_some(why)
    }

    fn canonical(&self, s: &State) -> State {
        let owner = s.word & OWNER;
        let class = |i: usize| (self.wait[i], self.recovers[i]);
        let order: [usize; MAX] = order(self.rounds.len(), class, |i| {
            let process = Process { seen: s.processes[i].seen & !OWNER, ..s.processes[i] };
            (process, owner == i as u8 + 1)
        });
        let rename = |word: u8| match word & OWNER {
            0 => word,
            tid => {
                let new = order.iter().position(|&old| old as u8 + 1 == tid).unwrap() as u8;
                word & !OWNER | (new + 1)
            }
        };
        let mut t = *s;
        t.word = rename(s.word);
        t.processes = order.map(|i| Process { seen: rename(s.processes[i].seen), ..s.processes[i] });
        t
    }
}

fn main() -> ExitCode {
    let mut suite = Suite::from_arguments();
    checks::protocol(&mut suite);
    checks::reports(&mut suite);
    checks::waits(&mut suite);
    checks::old_kernels(&mut suite);
    if suite.is_deep() {
        checks::deep(&mut suite);
    }
    suite.finish()
}
