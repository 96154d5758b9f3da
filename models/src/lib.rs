//! A small explicit-state checker, under sequential consistency.
//!
//! It visits every state of a [`Model`] breadth first, so that a counterexample is as short as can be.
//! Every step is either *fair* (a program step of a live process or a step of the kernel: it will happen if
//! nothing else can) or *optional* (a kill, a stop, a time-out, a spurious wake-up: it may happen). A state
//! without fair steps is an end. Four things are checked:
//!
//! - no state is a violation ([`Model::violation`]);
//! - no end is one ([`Model::end_violation`]): nobody alive waits there for ever;
//! - from every state fair steps alone can still come to an end (no livelock);
//! - the search was complete: a limit that cut it short is never "as expected".
//!
//! Processes that run the same program are interchangeable. [`Model::canonical`] may name one representative
//! of all states that differ in nothing but who is who; that divides the states of *n* equal processes by up to *n*!.
//! It only ever has to return a renamed state, never a unique one, so a lazy implementation is sound.
//!
//! [`Suite`] runs many models and knows which of them must fail, and for what reason.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::process::ExitCode;
use std::time::Instant;

/// A protocol, its processes, the kernel around them, and what must be true.
pub trait Model {
    /// Everything there is at one moment, ghost variables included.
    type State: Copy + Eq + Hash + Debug;

    /// The first state.
    fn start(&self) -> Self::State;

    /// Every step that can be taken in `state`.
    fn steps(&self, state: &Self::State, steps: &mut Steps<Self::State>);

    /// What is wrong with `state`, if anything.
    fn violation(&self, state: &Self::State) -> Option<&'static str>;

    /// What is wrong with ending in `state`, if anything.
    fn end_violation(&self, state: &Self::State) -> Option<&'static str>;

    /// `state` with its interchangeable processes in a preferred order.
    fn canonical(&self, state: &Self::State) -> Self::State {
        *state
    }
}

/// One step, and the state that it leads to.
#[derive(Debug)]
struct Step<S> {
    state: S,
    actor: usize,
    what: &'static str,
    fair: bool,
}

/// The steps out of one state, as a model names them.
#[derive(Debug)]
pub struct Steps<S> {
    list: Vec<Step<S>>,
}

impl<S> Steps<S> {
    /// A step that happens if nothing else can.
    pub fn fair(&mut self, actor: usize, what: &'static str, state: S) {
        self.list.push(Step { state, actor, what, fair: true });
    }

    /// A step that may happen, or never.
    pub fn optional(&mut self, actor: usize, what: &'static str, state: S) {
        self.list.push(Step { state, actor, what, fair: false });
    }
}

/// The indices `0..N`, those below `len` sorted by `key` among equals of `class`. For [`Model::canonical`].
///
/// Only processes of one class change places: what a process does must depend on its class and its state alone.
pub fn order<const N: usize, C: PartialEq, K: Ord>(
    len: usize,
    class: impl Fn(usize) -> C,
    key: impl Fn(usize) -> K,
) -> [usize; N] {
    let mut order = std::array::from_fn(|index| index);
    for first in 0..len {
        for second in first + 1..len {
            if class(first) == class(second) && key(order[second]) < key(order[first]) {
                order.swap(first, second);
            }
        }
    }
    order
}

/// What a search found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every state was seen and none is wrong.
    Holds,
    /// The first wrong state is wrong for this reason.
    Fails(&'static str),
    /// There were more states than the limit.
    Incomplete,
}

/// The reason given when some state can no longer come to an end.
pub const LIVELOCK: &str = "livelock: no end can be reached";

const MAX_STATES: usize = 120_000_000;

struct Search<'a, M: Model> {
    model: &'a M,
    symmetric: bool,
    states: Vec<M::State>,
    /// The state from which each was first reached.
    parents: Vec<u32>,
    index: Index,
    /// Targets of fair steps, state after state; `edge_ends[i]` is where those of state `i` stop.
    edges: Vec<u32>,
    edge_ends: Vec<usize>,
    ends: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, symmetric: bool) -> Self {
        let mut search = Search {
            model,
            symmetric,
            states: Vec::new(),
            parents: Vec::new(),
            index: Index::new(),
            edges: Vec::new(),
            edge_ends: Vec::new(),
            ends: 0,
        };
        let start = search.representative(&model.start());
        search.number_of(start, 0);
        search
    }

    fn representative(&self, state: &M::State) -> M::State {
        if self.symmetric { self.model.canonical(state) } else { *state }
    }

    /// The number of `state`, which is given one if it is new.
    fn number_of(&mut self, state: M::State, parent: u32) -> u32 {
        match self.index.find_or_insert(&self.states, &state) {
            Some(number) => number,
            None => {
                self.states.push(state);
                self.parents.push(parent);
                self.states.len() as u32 - 1
            }
        }
    }

    /// Runs to the end, or to the first wrong state, whose number comes with the verdict.
    fn run(&mut self) -> (Verdict, Option<usize>) {
        let mut steps = Steps { list: Vec::new() };
        let mut at = 0;
        while at < self.states.len() {
            if self.states.len() > MAX_STATES {
                return (Verdict::Incomplete, None);
            }
            let state = self.states[at];
            if let Some(reason) = self.model.violation(&state) {
                return (Verdict::Fails(reason), Some(at));
            }
            steps.list.clear();
            self.model.steps(&state, &mut steps);
            let edges_before = self.edges.len();
            for step in &steps.list {
                let target = self.representative(&step.state);
                let number = self.number_of(target, at as u32);
                if step.fair {
                    self.edges.push(number);
                }
            }
            if self.edges.len() == edges_before {
                self.ends += 1;
                if let Some(reason) = self.model.end_violation(&state) {
                    return (Verdict::Fails(reason), Some(at));
                }
            }
            self.edge_ends.push(self.edges.len());
            at += 1;
        }
        match self.first_that_cannot_end() {
            Some(lost) => (Verdict::Fails(LIVELOCK), Some(lost)),
            None => (Verdict::Holds, None),
        }
    }

    /// Sweeps backwards until nothing changes: most fair steps lead to higher numbers, so this takes few sweeps.
    fn first_that_cannot_end(&self) -> Option<usize> {
        let mut can_end = vec![false; self.states.len()];
        loop {
            let mut changed = false;
            for at in (0..self.states.len()).rev() {
                if can_end[at] {
                    continue;
                }
                let first = if at == 0 { 0 } else { self.edge_ends[at - 1] };
                let targets = &self.edges[first..self.edge_ends[at]];
                if targets.is_empty() || targets.iter().any(|&target| can_end[target as usize]) {
                    can_end[at] = true;
                    changed = true;
                }
            }
            if !changed {
                return can_end.iter().position(|can| !can);
            }
        }
    }

    /// Prints how `at` is reached. The path is replayed without renaming, so that names stay what they are.
    fn print_trace(&self, at: usize) {
        let mut path = vec![at];
        while *path.last().unwrap() != 0 {
            path.push(self.parents[*path.last().unwrap()] as usize);
        }
        let mut state = self.model.start();
        for &next in path.iter().rev().skip(1) {
            let mut steps = Steps { list: Vec::new() };
            self.model.steps(&state, &mut steps);
            let wanted = &self.states[next];
            let step = steps.list.iter().find(|step| self.representative(&step.state) == *wanted);
            let step = step.expect("a step of the search can be taken again");
            println!("        P{} {}", step.actor, step.what);
            state = step.state;
        }
        println!("        => {state:?}");
    }
}

/// State to number: open addressing, linear probing, at most half full. The states themselves lie elsewhere.
struct Index {
    /// Upper half of the hash, and the number.
    slots: Vec<(u32, u32)>,
    used: usize,
}

const VACANT: (u32, u32) = (0, u32::MAX);

impl Index {
    fn new() -> Index {
        Index { slots: vec![VACANT; 1 << 12], used: 0 }
    }

    /// The number of `state`, or `None` after its slot was filled with the number of the next new state.
    fn find_or_insert<S: Eq + Hash>(&mut self, states: &[S], state: &S) -> Option<u32> {
        if self.used * 2 >= self.slots.len() {
            self.grow(states);
        }
        let hash = hash_of(state);
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        while self.slots[slot] != VACANT {
            let (its_tag, number) = self.slots[slot];
            if its_tag == tag && states[number as usize] == *state {
                return Some(number);
            }
            slot = (slot + 1) & mask;
        }
        self.slots[slot] = (tag, states.len() as u32);
        self.used += 1;
        None
    }

    fn grow<S: Hash>(&mut self, states: &[S]) {
        let mask = self.slots.len() * 2 - 1;
        let mut slots = vec![VACANT; mask + 1];
        for &entry in self.slots.iter().filter(|&&entry| entry != VACANT) {
            let mut slot = hash_of(&states[entry.1 as usize]) as usize & mask;
            while slots[slot] != VACANT {
                slot = (slot + 1) & mask;
            }
            slots[slot] = entry;
        }
        self.slots = slots;
    }
}

fn hash_of(state: &impl Hash) -> u64 {
    let mut hasher = Mixer(0);
    state.hash(&mut hasher);
    hasher.finish()
}

/// Multiply and rotate, as rustc's own tables do, with a final mix because the low bits choose the slot.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64); // the discriminants of enums
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        let folded = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        folded ^ (folded >> 29)
    }
}

/// Many checks, one line each, and whether all came out as they must.
///
/// Arguments of the program: `deep` adds the larger checks, `whole` does without the renaming of equal processes,
/// `trace` prints the counterexample of each control; any other argument is a piece of the names to run.
#[derive(Debug)]
pub struct Suite {
    deep: bool,
    whole: bool,
    trace: bool,
    filter: Option<String>,
    checks: usize,
    unexpected: usize,
    started: Instant,
}

impl Suite {
    /// A suite with the program's own arguments.
    pub fn from_arguments() -> Suite {
        let mut suite = Suite {
            deep: false,
            whole: false,
            trace: false,
            filter: None,
            checks: 0,
            unexpected: 0,
            started: now(),
        };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "deep" => suite.deep = true,
                "whole" => suite.whole = true,
                "trace" => suite.trace = true,
                _ => suite.filter = Some(argument),
            }
        }
        suite
    }

    /// Whether the larger checks were asked for.
    pub fn is_deep(&self) -> bool {
        self.deep
    }

    /// A protocol that must hold.
    pub fn holds<M: Model>(&mut self, name: &str, model: M) {
        self.check(name, &model, Verdict::Holds);
    }

    /// A control that must fail, and for this reason: one that fails for another shows nothing.
    pub fn fails<M: Model>(&mut self, name: &str, reason: &'static str, model: M) {
        self.check(name, &model, Verdict::Fails(reason));
    }

    fn check<M: Model>(&mut self, name: &str, model: &M, expected: Verdict) {
        if self.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            return;
        }
        let started = now();
        let mut search = Search::new(model, !self.whole);
        let (verdict, at) = search.run();
        let as_expected = verdict == expected;
        self.checks += 1;
        self.unexpected += usize::from(!as_expected);
        let verdict = match verdict {
            Verdict::Holds => "holds".to_string(),
            Verdict::Fails(reason) => format!("FAILS: {reason}"),
            Verdict::Incomplete => "too many states".to_string(),
        };
        println!(
            "{name:<78} {:>10} states {:>6} ends {:>5.1} s  {verdict}  {}",
            search.states.len(),
            search.ends,
            started.elapsed().as_secs_f32(),
            tag(as_expected),
        );
        if self.trace || !as_expected {
            at.inspect(|&at| search.print_trace(at));
        }
    }

    /// The last line, and the exit code: a failure if anything was unexpected or nothing was run.
    pub fn finish(self) -> ExitCode {
        let fine = self.unexpected == 0 && self.checks > 0;
        let seconds = self.started.elapsed().as_secs_f32();
        println!("{} checks, {} unexpected, {seconds:.1} s  {}", self.checks, self.unexpected, tag(fine));
        if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn tag(as_expected: bool) -> &'static str {
    if as_expected { "[as expected]" } else { "[UNEXPECTED]" }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the crate above has one clock for its deadlines; here is only a stopwatch"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that may stick at one value.
    struct Counter {
        last: u8,
        bad: Option<u8>,
        loops: bool,
    }

    impl Model for Counter {
        type State = u8;

        fn start(&self) -> u8 {
            0
        }

        fn steps(&self, &state: &u8, steps: &mut Steps<u8>) {
            if state < self.last {
                steps.fair(0, "counts", state + 1);
            } else if self.loops {
                steps.fair(0, "stays", state);
            }
        }

        fn violation(&self, &state: &u8) -> Option<&'static str> {
            (Some(state) == self.bad).then_some("bad")
        }

        fn end_violation(&self, &state: &u8) -> Option<&'static str> {
            (state > 200).then_some("too far")
        }
    }

    fn verdict(model: Counter) -> Verdict {
        Search::new(&model, true).run().0
    }

    #[test]
    fn each_kind_of_mistake_is_found() {
        assert_eq!(verdict(Counter { last: 100, bad: None, loops: false }), Verdict::Holds);
        assert_eq!(verdict(Counter { last: 100, bad: Some(7), loops: false }), Verdict::Fails("bad"));
        assert_eq!(verdict(Counter { last: 201, bad: None, loops: false }), Verdict::Fails("too far"));
        assert_eq!(verdict(Counter { last: 100, bad: None, loops: true }), Verdict::Fails(LIVELOCK));
    }

    #[test]
    fn order_keeps_classes_in_their_places() {
        let key = |index: usize| [3, 9, 1, 2, 0][index];
        assert_eq!(order::<5, _, _>(4, |index| index == 1, key), [2, 1, 3, 0, 4]);
    }
}
