//! The short way to a step: run at full speed to a landmark close before it, and single-step only the rest.
//!
//! NB: a step costs 23 µs on a virtual machine (each trap goes through the hypervisor; measured on an AMD EPYC), so an
//! operation of 10,000 instructions would take a quarter of a second to walk through, 10,000 times. The recorded first
//! run says which addresses were executed, in which order; one that had been executed only a few times until then is a
//! landmark for a hardware breakpoint. A victim that takes another way (it races, say) is found out by missing its
//! landmark, and is stepped from the start instead.

use std::collections::HashMap;

/// Where a run stood after each of its steps.
pub(crate) struct Trail {
    counters: Vec<u64>,
    /// How often the address had been come to, this time included.
    visits: Vec<u64>,
}

/// Run until `address` has been come to `visits` times: that is after `steps` steps.
#[derive(Clone, Copy)]
pub(crate) struct Landmark {
    pub(crate) address: u64,
    pub(crate) visits: u64,
    pub(crate) steps: u64,
}

impl Trail {
    pub(crate) fn new(counters: Vec<u64>) -> Self {
        let mut seen = HashMap::new();
        let mut before = None;
        let visits = counters
            .iter()
            .map(|counter| {
                let count = seen.entry(*counter).or_insert(0);
                // A repeated string instruction is a step for each repetition, but one visit for a breakpoint.
                if before.replace(*counter) != Some(*counter) {
                    *count += 1;
                }
                *count
            })
            .collect();
        Self { counters, visits }
    }

    /// The landmark from which `step` is cheapest to reach, if it beats walking all the way.
    pub(crate) fn landmark(&self, step: u64) -> Option<Landmark> {
        let mut best = None;
        // A stop at a breakpoint costs about what a step costs.
        let mut least = step;
        let start = *self.counters.first()?;
        for (index, &address) in self.counters.iter().enumerate().skip(1).rev() {
            let steps = index as u64;
            if steps > step {
                continue;
            }
            let rest = step - steps;
            if rest >= least {
                break;
            }
            let visits = self.visits[index];
            let repeats = self.counters[index - 1] == address;
            // The start itself may or may not count as a visit to it.
            if visits + rest < least && !repeats && address != start {
                least = visits + rest;
                best = Some(Landmark { address, visits, steps });
            }
        }
        best
    }
}
