//! Reference counts of an object in shared memory, with a ledger for each process that survives its death.
//!
//! A process has one ledger entry for the object (0, PENDING or HELD) and a robust word that says that it lives.
//! Acquire: entry <- PENDING, references + 1, entry <- HELD. Release: entry <- 0, references - 1, and who
//! brings them to 0 frees the object. Post: a holder counts the message, then commits it. Receive, under the
//! channel's robust lock: acquire, consume the message; then take its count off. Take-back, by a survivor that
//! took the dead one's word: HELD is released for it, PENDING is cleared and no more.
//!
//! What must hold: the object is never freed while a live process holds it or a message carries it; it is freed
//! once; without a kill it does not leak; each kill leaks one count at most; every dead process's entry is cleared
//! while anybody lives. A kill comes before any step, a taker's included; each robust word of a victim is marked
//! by a step of its own.
//!
//! `cargo run --release --bin ledger`, with `-- deep` for more.

use models::{Model, Steps, Suite, order};
use std::process::ExitCode;

const MAX: usize = 4;
/// A robust word of a dead owner; otherwise it is 0 or the owner as process + 1.
const OWNER_DIED: u8 = 0x80;

const EARLY: &str = "freed while somebody holds it";
const TWICE: &str = "released or freed twice";
const LEAKED: &str = "leaked without a kill";
const LEAKED_MORE: &str = "a kill leaked more than one count";
const NOT_TAKEN_BACK: &str = "a dead process's entry was never taken back";
const STUCK: &str = "a live process waits for ever";

/// What a process does, one after the other. Receiving waits for a message, creating for a free object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Job {
    Create,
    Post,
    Receive,
    Release,
}
use Job::{Create, Post, Receive, Release};

/// The order of the steps of a receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ReceiveOrder {
    AcquireConsumeUncount,
    ConsumeAcquireUncount,
    /// Takes the message's count off while the message can still be delivered again.
    AcquireUncountConsume,
    /// Takes the message's count off before it has one of its own.
    ConsumeUncountAcquire,
}

/// What may differ from the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    None,
    /// Acquire: references + 1, entry <- HELD; no PENDING.
    CountsThenHolds,
    /// Release: references - 1, then entry <- 0.
    ReleasesBeforeClearing,
    /// Take-back: references - 1, then entry <- 0.
    TakesBackBeforeClearing,
    /// Take-back: PENDING is released like HELD.
    ReleasesPending,
    /// Take-back without the dead one's word.
    TakesBackUnlocked,
    /// Post: commits, then counts.
    CommitsBeforeCounting,
}

/// What a kill is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kill {
    /// All threads of a process stop at the same moment.
    AtOnce,
    /// The thread that owns the robust word of the process may be gone while another still takes steps.
    ThreadByThread,
    /// The same, and a taker waits until the whole process is gone.
    ThreadByThreadAwaited,
}

#[derive(Clone, Debug)]
struct Ledger {
    jobs: Vec<&'static [Job]>,
    kills: u8,
    receive: ReceiveOrder,
    change: Change,
    kill: Kill,
    /// How many counts one kill may leak.
    leak: u8,
    /// Looks at no end: whether something is freed too early, and nothing else.
    safety_only: bool,
}

impl Ledger {
    fn new(jobs: &[&'static [Job]], kills: u8) -> Ledger {
        Ledger {
            jobs: jobs.to_vec(),
            kills,
            receive: ReceiveOrder::AcquireConsumeUncount,
            change: Change::None,
            kill: Kill::AtOnce,
            leak: 1,
            safety_only: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Entry {
    Empty,
    Pending,
    Held,
}

/// The step that a process takes next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum At {
    /// Between two jobs, or after the last one: may take back too.
    Between,
    Allocate,
    CreatedHold,
    Count,
    Commit,
    // Receive: the channel's lock is mine until `UnlockChannel`.
    Begin,
    AcquirePending,
    AcquireCount,
    AcquireHold,
    Consume,
    UnlockChannel,
    Uncount,
    // Release.
    Clear,
    Decrement,
    Free,
    // Take-back of `victim`.
    Look,
    TakeBackClear,
    TakeBackDecrement,
    TakeBackFree,
    TakeBackEnd,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Life {
    Alive,
    /// Its robust word is marked already; this thread still runs.
    Doomed,
    Killed,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Process {
    at: At,
    life: Life,
    /// Jobs done.
    done: u8,
    /// Shared: the ledger's entry and the robust word of the process.
    entry: Entry,
    word: u8,
    /// What it believes to hold.
    handle: bool,
    /// Whose ledger it is taking back, as process + 1.
    victim: u8,
    /// Take-back: the entry that it read has a count to take off.
    counted: bool,
    /// Receive: what is done already.
    consumed: bool,
    uncounted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    allocated: bool,
    references: u8,
    messages: u8,
    /// The lock of the channel's receiving side.
    channel: u8,
    kills: u8,
    twice: bool,
    processes: [Process; MAX],
}

impl State {
    fn decrement(&mut self) {
        self.twice |= self.references == 0;
        self.references = self.references.saturating_sub(1);
    }

    fn free(&mut self) {
        self.twice |= !self.allocated;
        self.allocated = false;
    }

    fn runs(&self, i: usize) -> bool {
        matches!(self.processes[i].life, Life::Alive | Life::Doomed)
    }
}

impl Ledger {
    fn job(&self, s: &State, i: usize) -> Option<Job> {
        self.jobs[i].get(usize::from(s.processes[i].done)).copied()
    }

    /// Starts the next job, if it can start.
    fn begin(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let mut t = *s;
        let my = &mut t.processes[i];
        let what = match self.job(s, i) {
            Some(Create) if !s.allocated => {
                my.entry = Entry::Pending;
                my.at = At::Allocate;
                "create: entry <- PENDING"
            }
            Some(Post) => {
                let commits = self.change == Change::CommitsBeforeCounting;
                my.at = if commits { At::Commit } else { At::Count };
                "post: begins"
            }
            Some(Receive) if s.messages > 0 && matches!(s.channel, 0 | OWNER_DIED) => {
                t.channel = i as u8 + 1;
                my.at = At::Begin;
                "receive: locks the channel, sees a message"
            }
            Some(Release) => {
                my.handle = false;
                let first = self.change == Change::ReleasesBeforeClearing;
                my.at = if first { At::Decrement } else { At::Clear };
                "release: begins"
            }
            _ => return,
        };
        steps.fair(i, what, t);
    }

    fn take_back(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        for victim in (0..self.jobs.len()).filter(|&victim| victim != i) {
            let its = s.processes[victim];
            let awaited = self.kill != Kill::ThreadByThreadAwaited || its.life == Life::Dead;
            let unlocked = self.change == Change::TakesBackUnlocked;
            if its.word == OWNER_DIED && awaited {
                let mut t = *s;
                t.processes[i].at = At::Look;
                t.processes[i].victim = victim as u8 + 1;
                if !unlocked {
                    t.processes[victim].word = i as u8 + 1;
                }
                steps.fair(i, "take-back: takes the dead one's word", t);
            }
        }
    }

    /// Where a receive goes on from here.
    fn after_receive_step(&self, me: &Process) -> At {
        use ReceiveOrder::*;
        let acquire = (!me.handle).then_some(At::AcquirePending);
        let consume = (!me.consumed).then_some(At::Consume);
        let uncount = (!me.uncounted).then_some(At::Uncount);
        let unlock = At::UnlockChannel;
        let locked = match self.receive {
            AcquireConsumeUncount => acquire.or(consume).unwrap_or(unlock),
            ConsumeAcquireUncount => consume.or(acquire).unwrap_or(unlock),
            AcquireUncountConsume => acquire.or(uncount).or(consume).unwrap_or(unlock),
            ConsumeUncountAcquire => consume.or(uncount).or(acquire).unwrap_or(unlock),
        };
        match locked {
            At::AcquirePending if self.change == Change::CountsThenHolds => At::AcquireCount,
            step => step,
        }
    }

    fn step(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let me = s.processes[i];
        let mut t = *s;
        let victim = usize::from(me.victim).saturating_sub(1);
        macro_rules! my {
            ($field:ident) => {
                t.processes[i].$field
            };
        }
        let next_job = |t: &mut State| {
            let my = &mut t.processes[i];
            (my.consumed, my.uncounted) = (false, false);
            my.done += 1;
            At::Between
        };
        let (at, what) = match me.at {
            At::Between => {
                self.begin(s, i, steps);
                self.take_back(s, i, steps);
                return;
            }
            At::Allocate => {
                t.allocated = true;
                t.references = 1;
                (At::CreatedHold, "create: allocates, references <- 1")
            }
            At::CreatedHold => {
                my!(entry) = Entry::Held;
                my!(handle) = true;
                (next_job(&mut t), "create: entry <- HELD")
            }
            At::Count => {
                t.references += 1;
                let last = self.change == Change::CommitsBeforeCounting;
                (if last { next_job(&mut t) } else { At::Commit }, "post: references + 1")
            }
            At::Commit => {
                t.messages += 1;
                let first = self.change == Change::CommitsBeforeCounting;
                (if first { At::Count } else { next_job(&mut t) }, "post: commits the message")
            }
            At::Begin => (self.after_receive_step(&me), "receive: decodes the message"),
            At::AcquirePending => {
                my!(entry) = Entry::Pending;
                (At::AcquireCount, "acquire: entry <- PENDING")
            }
            At::AcquireCount => {
                t.references += 1;
                (At::AcquireHold, "acquire: references + 1")
            }
            At::AcquireHold => {
                my!(entry) = Entry::Held;
                my!(handle) = true;
                (self.after_receive_step(&t.processes[i]), "acquire: entry <- HELD")
            }
            At::Consume => {
                t.messages -= 1;
                my!(consumed) = true;
                (self.after_receive_step(&t.processes[i]), "receive: consumes the message")
            }
            At::UnlockChannel => {
                t.channel = 0;
                let at = if me.uncounted { next_job(&mut t) } else { At::Uncount };
                (at, "receive: unlocks the channel")
            }
            At::Uncount => {
                t.decrement();
                my!(uncounted) = true;
                let locked = s.channel == i as u8 + 1;
                let at = match locked {
                    true => self.after_receive_step(&t.processes[i]),
                    false if t.references == 0 => At::Free,
                    false => next_job(&mut t),
                };
                (at, "receive: references - 1, the message's")
            }
            At::Clear => {
                my!(entry) = Entry::Empty;
                let last = self.change == Change::ReleasesBeforeClearing;
                let at = match last {
                    true if s.references == 0 => At::Free,
                    true => next_job(&mut t),
                    false => At::Decrement,
                };
                (at, "release: entry <- 0")
            }
            At::Decrement => {
                t.decrement();
                let first = self.change == Change::ReleasesBeforeClearing;
                let at = match first {
                    true => At::Clear,
                    false if t.references == 0 => At::Free,
                    false => next_job(&mut t),
                };
                (at, "release: references - 1")
            }
            At::Free => {
                t.free();
                (next_job(&mut t), "frees the object")
            }
            At::Look => {
                let counts = match s.processes[victim].entry {
                    Entry::Empty => None,
                    Entry::Pending => Some(self.change == Change::ReleasesPending),
                    Entry::Held => Some(true),
                };
                let first = self.change == Change::TakesBackBeforeClearing;
                let at = match counts {
                    None => At::TakeBackEnd,
                    Some(true) if first => At::TakeBackDecrement,
                    Some(_) => At::TakeBackClear,
                };
                my!(counted) = counts == Some(true) && !first;
                (at, "take-back: reads the entry")
            }
            At::TakeBackClear => {
                t.processes[victim].entry = Entry::Empty;
                let at = if me.counted { At::TakeBackDecrement } else { At::TakeBackEnd };
                (at, "take-back: entry <- 0")
            }
            At::TakeBackDecrement => {
                t.decrement();
                my!(counted) = false;
                let clears = self.change == Change::TakesBackBeforeClearing;
                let at = match t.references {
                    0 => At::TakeBackFree,
                    _ if clears => At::TakeBackClear,
                    _ => At::TakeBackEnd,
                };
                (at, "take-back: references - 1")
            }
            At::TakeBackFree => {
                t.free();
                let clears = self.change == Change::TakesBackBeforeClearing;
                let at = if clears { At::TakeBackClear } else { At::TakeBackEnd };
                (at, "take-back: frees the object")
            }
            At::TakeBackEnd => {
                t.processes[victim].word = 0;
                my!(victim) = 0;
                my!(counted) = false;
                (At::Between, "take-back: the dead one's word <- 0")
            }
        };
        my!(at) = at;
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
            if self.kill != Kill::AtOnce && s.processes[i].word == i as u8 + 1 {
                t.processes[i].life = Life::Doomed;
                t.processes[i].word = OWNER_DIED;
                steps.optional(i, "KILLED, the thread that owns its word first", t);
            }
        }
    }

    /// One step for each robust word that is still the victim's.
    fn walk(&self, s: &State, i: usize, steps: &mut Steps<State>) {
        let tid = i as u8 + 1;
        let mut left = false;
        for owner in 0..self.jobs.len() {
            if s.processes[owner].word == tid {
                let mut t = *s;
                t.processes[owner].word = OWNER_DIED;
                steps.fair(i, "(kernel) marks the word of a process", t);
                left = true;
            }
        }
        if s.channel == tid {
            let mut t = *s;
            t.channel = OWNER_DIED;
            steps.fair(i, "(kernel) marks the channel's lock", t);
            left = true;
        }
        if !left {
            let mut t = *s;
            let Process { entry, word, .. } = s.processes[i];
            t.processes[i] = Process { entry, word, ..fresh(Life::Dead, 0) };
            steps.fair(i, "(kernel) is done", t);
        }
    }
}

fn fresh(life: Life, word: u8) -> Process {
    Process {
        at: At::Between,
        life,
        done: 0,
        entry: Entry::Empty,
        word,
        handle: false,
        victim: 0,
        counted: false,
        consumed: false,
        uncounted: false,
    }
}

impl Model for Ledger {
    type State = State;

    fn start(&self) -> State {
        let mut processes = [fresh(Life::Dead, 0); MAX];
        for (i, process) in processes[..self.jobs.len()].iter_mut().enumerate() {
            *process = fresh(Life::Alive, i as u8 + 1);
        }
        State {
            allocated: false,
            references: 0,
            messages: 0,
            channel: 0,
            kills: self.kills,
            twice: false,
            processes,
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<State>) {
        for i in 0..self.jobs.len() {
            match s.processes[i].life {
                Life::Alive | Life::Doomed => {
                    self.accidents(s, i, steps);
                    self.step(s, i, steps);
                }
                Life::Killed => self.walk(s, i, steps),
                Life::Dead => {}
            }
        }
    }

    fn violation(&self, s: &State) -> Option<&'static str> {
        if s.twice {
            return Some(TWICE);
        }
        let held = (0..MAX).any(|i| s.runs(i) && s.processes[i].handle) || s.messages > 0;
        (held && !s.allocated).then_some(EARLY)
    }

    fn end_violation(&self, s: &State) -> Option<&'static str> {
        if self.safety_only {
            return None;
        }
        let live = || (0..self.jobs.len()).filter(|&i| s.runs(i));
        let stuck = |i: usize| {
            let can_receive = self.job(s, i) == Some(Receive) && s.messages > 0;
            s.processes[i].at != At::Between || can_receive
        };
        if live().any(stuck) {
            return Some(STUCK);
        }
        let open = |process: &Process| process.entry != Entry::Empty || process.word != 0;
        if live().count() > 0 && s.processes.iter().any(|p| p.life == Life::Dead && open(p)) {
            return Some(NOT_TAKEN_BACK);
        }
        let killed = self.kills - s.kills;
        if killed == 0 {
            return s.allocated.then_some(LEAKED);
        }
        let handles = live().filter(|&i| s.processes[i].handle).count() as u8;
        let not_cleared = s.processes.iter().filter(|p| p.life == Life::Dead && open(p)).count();
        let accounted = s.messages + handles + not_cleared as u8;
        (s.references > accounted + self.leak * killed).then_some(LEAKED_MORE)
    }

    fn canonical(&self, s: &State) -> State {
        let rank = |i: usize| {
            let mut process = s.processes[i];
            process.victim = (process.victim != 0).into();
            process.word = match process.word {
                0 => 0,
                OWNER_DIED => 1,
                tid => 2 + u8::from(tid == i as u8 + 1),
            };
            (process, s.channel == i as u8 + 1)
        };
        let order: [usize; MAX] = order(self.jobs.len(), |i| self.jobs[i], rank);
        let rename = |tid: u8| match order.iter().position(|&old| old as u8 + 1 == tid) {
            Some(new) => new as u8 + 1,
            None => tid,
        };
        let mut t = *s;
        t.channel = rename(s.channel);
        t.processes = order.map(|i| {
            let process = s.processes[i];
            Process { word: rename(process.word), victim: rename(process.victim), ..process }
        });
        t
    }
}

const MAKER: &[Job] = &[Create, Post, Post, Release];
const TAKER: &[Job] = &[Receive, Release];
const RELAY: &[Job] = &[Receive, Post, Release];
const AGAIN: &[Job] = &[Create, Post, Release, Create, Release];
const TWO: &[Job] = &[Receive, Receive, Release];
const IDLE: &[Job] = &[];

fn main() -> ExitCode {
    let mut suite = Suite::from_arguments();
    let trio = || Ledger::new(&[MAKER, TAKER, TAKER], 2);
    let changed = |change| Ledger { change, ..trio() };
    let received = |receive| Ledger { receive, ..trio() };

    suite.holds("maker and 2 receivers, no kill: freed once", Ledger::new(&[MAKER, TAKER, TAKER], 0));
    suite.holds("maker, relay, 2 receivers, no kill", Ledger::new(&[MAKER, RELAY, TAKER, TAKER], 0));
    suite.holds("made again after it was freed, no kill", Ledger::new(&[AGAIN, TAKER], 0));
    suite.holds("maker and 2 receivers, 2 kills", trio());
    suite.holds("maker, 1 that receives twice, 1 idle, 2 kills", Ledger::new(&[MAKER, TWO, IDLE], 2));
    suite.holds("made again, 1 receiver, 1 idle, 2 kills", Ledger::new(&[AGAIN, TAKER, IDLE], 2));
    suite.holds("maker and 2 receivers, 1 idle, 2 kills", Ledger::new(&[MAKER, TAKER, TAKER, IDLE], 2));
    suite.fails(
        "control: consumes the message before it acquires, 2 kills",
        LEAKED_MORE,
        received(ReceiveOrder::ConsumeAcquireUncount),
    );
    suite.holds(
        "  the same, if a kill may leak two counts: nothing worse",
        Ledger { leak: 2, ..received(ReceiveOrder::ConsumeAcquireUncount) },
    );
    suite.holds("counts, then HELD, no PENDING: leaks no more, 2 kills", changed(Change::CountsThenHolds));
    suite.fails(
        "control: release counts off before it clears the entry",
        EARLY,
        changed(Change::ReleasesBeforeClearing),
    );
    suite.fails(
        "control: take-back counts off before it clears the entry",
        TWICE,
        changed(Change::TakesBackBeforeClearing),
    );
    suite.fails("control: take-back releases PENDING", TWICE, changed(Change::ReleasesPending));
    suite.fails("control: take-back without the word", TWICE, changed(Change::TakesBackUnlocked));
    suite.fails("control: post commits before it counts", EARLY, changed(Change::CommitsBeforeCounting));
    suite.fails(
        "control: the message's count is taken off before it is consumed",
        EARLY,
        received(ReceiveOrder::AcquireUncountConsume),
    );
    suite.fails(
        "control: the message's count is taken off before the acquire",
        EARLY,
        received(ReceiveOrder::ConsumeUncountAcquire),
    );
    suite.fails(
        "control: a thread outlives the word of its process",
        EARLY,
        Ledger { kill: Kill::ThreadByThread, safety_only: true, ..trio() },
    );
    suite.holds(
        "  the same, the taker waits until the whole process is gone, 2 kills",
        Ledger { kill: Kill::ThreadByThreadAwaited, ..trio() },
    );
    if suite.is_deep() {
        suite.holds(
            "deep: maker and 2 receivers, 1 idle, 3 kills",
            Ledger::new(&[MAKER, TAKER, TAKER, IDLE], 3),
        );
        suite
            .holds("deep: maker, relay, 2 receivers, 2 kills", Ledger::new(&[MAKER, RELAY, TAKER, TAKER], 2));
        suite.holds(
            "deep: made again, 2 receivers, 1 idle, 3 kills",
            Ledger::new(&[AGAIN, TAKER, TAKER, IDLE], 3),
        );
    }
    suite.finish()
}
