//! All the runs of one scenario: how long the operation is, at which steps the blow falls, and the verdict.

use std::time::Instant;

use crate::route::Trail;
use crate::run::{Failure, FailureKind, Outcome, run};
use crate::scenario::{Blow, Expect, Role, Scenario};

/// The first steps are never left out: short operations are those where every instruction counts.
const DENSE: u64 = 200;

/// About how many steps of the rest are tried in a quick run.
const SAMPLES: u64 = 200;

/// After so many failures the rest would only repeat them, at the price of a watchdog each.
const ENOUGH_FAILURES: usize = 3;

/// How thorough to be.
pub(crate) struct Plan {
    /// Every step, and every failure of a control.
    pub(crate) full: bool,
    /// Chooses where sampling starts.
    pub(crate) seed: u64,
}

/// A scenario whatever its stage, for lists.
pub(crate) trait Campaign {
    fn name(&self) -> String;

    /// Runs it all; the answer (in either case) is what to print.
    ///
    /// # Errors
    ///
    /// The scenario has not shown what it must.
    fn conduct(&self, plan: &Plan) -> Result<String, String>;
}

impl<S: Scenario> Campaign for S {
    fn name(&self) -> String {
        Scenario::name(self)
    }

    fn conduct(&self, plan: &Plan) -> Result<String, String> {
        let start = Instant::now();
        let mut log = Log::new(plan, self);
        let verdict = log.fill(self, plan).and_then(|()| log.verdict(self));
        let tail = format!("{}({} runs, {:.1} s)", log.sampling, log.runs, start.elapsed().as_secs_f64());
        match verdict {
            Ok(text) => Ok(format!("{text} {tail}")),
            Err(text) => Err(format!("{text} {tail}")),
        }
    }
}

/// The oracle said `found` at all tried steps from `first` to `last`.
struct Stretch {
    found: String,
    runs: u64,
    first: u64,
    last: u64,
}

/// What the runs have shown so far.
struct Log {
    runs: u64,
    length: u64,
    stretches: Vec<Stretch>,
    /// A line for each failure, and whether it was of the expected kind.
    failures: Vec<(String, bool)>,
    stride: u64,
    sampling: String,
    /// The number of failures after which to stop.
    enough: usize,
}

impl Log {
    fn new<S: Scenario>(plan: &Plan, scenario: &S) -> Self {
        let enough = match scenario.expect() {
            Expect::Holds => ENOUGH_FAILURES,
            _ if plan.full => usize::MAX,
            _ => 1,
        };
        Self {
            runs: 0,
            length: 0,
            stretches: Vec::new(),
            failures: Vec::new(),
            stride: 1,
            sampling: String::new(),
            enough,
        }
    }

    fn fill<S: Scenario>(&mut self, scenario: &S, plan: &Plan) -> Result<(), String> {
        // Without a blow everything must hold, for a control too: else the scenario itself is wrong.
        let whole = run(scenario, Blow::Stall, u64::MAX, None);
        self.runs += 1;
        if let Err(failure) = whole.found {
            return Err(format!(
                "without a blow, after {} steps at {}: {}",
                whole.steps, whole.place, failure.what
            ));
        }
        self.length = whole.steps;
        let trail = Trail::new(whole.counters);
        if !plan.full && self.length > DENSE + SAMPLES {
            self.stride = (self.length - DENSE).div_ceil(SAMPLES);
        }
        // A victim that dashes to its landmark meets few bargers on the way; but a long way is too slow on foot.
        let on_foot = self.length <= DENSE + SAMPLES && scenario.cast().contains(&Role::Barger);
        let offset = plan.seed % self.stride;
        if self.stride > 1 {
            let Self { stride, .. } = self;
            self.sampling = format!("every {stride}th step from {} on, seed {} ", DENSE + offset, plan.seed);
        }
        let mut step = 0;
        loop {
            let landmark = trail.landmark(step).filter(|_| !on_foot);
            let mut outcome = run(scenario, scenario.blow(), step, landmark);
            if matches!(&outcome.found, Err(failure) if failure.kind == FailureKind::Astray) {
                outcome = run(scenario, scenario.blow(), step, None);
            }
            self.runs += 1;
            // An operation that races with its peers is not of the same length every time.
            let last = outcome.finished && step >= self.length || step > 4 * self.length + 1_000;
            let hopeless = self.note(scenario, outcome);
            if last || hopeless || self.failures.len() >= self.enough {
                return Ok(());
            }
            step = match step {
                _ if step + 1 < DENSE => step + 1,
                _ if step < DENSE => DENSE + offset,
                _ => step + self.stride,
            };
        }
    }

    /// Takes a run down. True if further runs are pointless.
    fn note<S: Scenario>(&mut self, scenario: &S, outcome: Outcome) -> bool {
        match outcome.found {
            Ok(found) => {
                let step = outcome.steps;
                match self.stretches.last_mut() {
                    Some(stretch) if stretch.found == found => {
                        stretch.runs += 1;
                        stretch.last = step;
                    }
                    _ => self.stretches.push(Stretch { found, runs: 1, first: step, last: step }),
                }
                false
            }
            Err(Failure { kind, what }) => {
                let line = format!("step {} of {} at {}: {what}", outcome.steps, self.length, outcome.place);
                self.failures.push((line, kind.is_expected(scenario.expect())));
                kind == FailureKind::Staging
            }
        }
    }

    fn verdict<S: Scenario>(&self, scenario: &S) -> Result<String, String> {
        let expect = scenario.expect();
        let unexpected: Vec<&str> =
            self.failures.iter().filter(|(_, expected)| !expected).map(|(line, _)| line.as_str()).collect();
        if !unexpected.is_empty() {
            return Err(unexpected.join("; "));
        }
        if expect == Expect::Holds {
            return self.check_phases(scenario.phases()).map(|()| format!("holds: {}", self.story()));
        }
        let verb = if expect == Expect::Hangs { "hangs" } else { "is violated" };
        match self.failures.as_slice() {
            [] => Err(format!("a control that must fail, and holds: {}", self.story())),
            [(line, _)] => Ok(format!("control, {verb} as it must: {line}")),
            [(line, _), ..] => {
                Ok(format!("control, {verb} as it must, {} times: {line}; …", self.failures.len()))
            }
        }
    }

    /// The answers must come in the given order, each once; with every step tried, all of them.
    fn check_phases(&self, phases: &[&str]) -> Result<(), String> {
        if phases.is_empty() {
            return Ok(());
        }
        let found: Vec<&str> = self.stretches.iter().map(|stretch| stretch.found.as_str()).collect();
        let mut rest = phases.iter();
        let in_order = found.iter().all(|word| rest.any(|phase| phase == word));
        let complete = self.stride > 1 || found.len() == phases.len();
        if in_order && complete {
            return Ok(());
        }
        Err(format!("the answers must be {}, and are: {}", phases.join(", then "), self.story()))
    }

    /// Who said what at which steps; or, where a race decides, how often.
    fn story(&self) -> String {
        let mut words: Vec<(&str, u64)> = Vec::new();
        for stretch in &self.stretches {
            match words.iter_mut().find(|(word, _)| *word == stretch.found) {
                Some((_, runs)) => *runs += stretch.runs,
                None => words.push((&stretch.found, stretch.runs)),
            }
        }
        let parts: Vec<String> = if self.stretches.len() > words.len() + 2 {
            words.iter().map(|(word, runs)| format!("{word} {runs} times")).collect()
        } else {
            let line = |Stretch { found, first, last, .. }: &Stretch| format!("{found} {first}–{last}");
            self.stretches.iter().map(line).collect()
        };
        parts.join(", ")
    }
}
