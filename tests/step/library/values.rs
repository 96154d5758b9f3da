//! Values and arrays.

use std::sync::atomic::{Ordering, compiler_fence};

use multiproc::{Array, Value};

use super::{Wide, ensure, said, whole};
use crate::campaign::Campaign;
use crate::scenario::{Blow, Fate, Inside, Role, Scenario};
use crate::tracer::Section;

const OLD: u8 = 1;
const NEW: u8 = 2;
const OTHER: u8 = 3;

pub(super) fn scenarios() -> Vec<Box<dyn Campaign>> {
    use Operation::{Guard, Set, Update};
    use Role::{Barger, Idle, Intruder, Owner, Passer, Sleeper};
    let old_new: &'static [&'static str] = &["old", "new"];
    let mut all: Vec<Box<dyn Campaign>> = Vec::new();
    let mut add = |name, operation, peers_write, cast: &[Role], blow, phases| {
        let cast = cast.to_vec();
        all.push(Box::new(Writing { name, operation, peers_write, cast, blow, phases }));
    };
    add("set", Set, false, &[Idle], Blow::Kill, old_new);
    add("update", Update, false, &[Idle], Blow::Kill, old_new);
    add("guard", Guard, false, &[Idle], Blow::Kill, old_new);
    add("set-read", Set, false, &[Passer, Barger], Blow::Kill, old_new);
    add("set-read-stalled", Set, false, &[Passer, Barger], Blow::Stall, &["new"]);
    add("set-barged", Set, true, &[Barger], Blow::Kill, &[]);
    add("update-barged", Update, true, &[Barger, Barger], Blow::Kill, &[]);
    add("set-contended", Set, true, &[Owner, Sleeper], Blow::Kill, &[]);
    add("update-contended", Update, true, &[Owner, Sleeper], Blow::Kill, &[]);
    add("set-intruded", Set, true, &[Owner, Sleeper, Intruder], Blow::Kill, &[]);
    all.push(Box::new(Adding));
    let mut add = |name, cast: &[Role], blow, phases| {
        let cast = cast.to_vec();
        all.push(Box::new(Filling { name, cast, blow, phases }));
    };
    let stretches: &'static [&'static str] = &["old", "old, told", "mixed, told", "new, told", "new"];
    add("alone", &[], Blow::Kill, stretches);
    add("contended", &[Owner, Sleeper], Blow::Kill, &[]);
    add("barged", &[Barger], Blow::Kill, &[]);
    add("stalled", &[Owner, Passer, Passer], Blow::Stall, &[]);
    all
}

/// A value that is too large for one store.
struct Writing {
    name: &'static str,
    operation: Operation,
    peers_write: bool,
    cast: Vec<Role>,
    blow: Blow,
    phases: &'static [&'static str],
}

/// What the victim does in its section.
enum Operation {
    Set,
    /// In the linked form, for it calls user code.
    Update,
    /// `lock`, change, drop.
    Guard,
}

impl Scenario for Writing {
    type Stage = Value<Wide>;

    fn name(&self) -> String {
        format!("value-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn phases(&self) -> &'static [&'static str] {
        self.phases
    }

    fn prepare(&self) -> Value<Wide> {
        Value::new([OLD; 64]).expect("there is room")
    }

    fn victim(&self, value: &Value<Wide>, section: &Section) -> Result<(), String> {
        match self.operation {
            Operation::Set => section.run(|| value.set([NEW; 64])),
            Operation::Update => drop(section.run(|| value.update(|old| old.map(|_| NEW)))),
            Operation::Guard => section.run(|| value.lock().set([NEW; 64])),
        }
        Ok(())
    }

    fn turn(&self, value: &Value<Wide>, role: Role, inside: &Inside<'_>) -> Result<(), String> {
        whole(&value.get())?;
        match (self.peers_write, role) {
            (false, _) => inside.here(),
            (true, Role::Owner | Role::Intruder) => {
                let mut guard = value.lock();
                whole(&guard.get())?;
                inside.here();
                guard.set([OTHER; 64]);
            }
            (true, _) => {
                value.set([OTHER; 64]);
                inside.here();
            }
        }
        whole(&value.get())?;
        Ok(())
    }

    fn oracle(&self, value: &Value<Wide>, fate: &Fate) -> Result<&'static str, String> {
        let found = whole(&value.get())?;
        ensure(whole(&value.lock().get())? == found, || "two looks, two values".into())?;
        for next in [7, 8] {
            value.set([next; 64]);
            value.update(|value| value.map(|byte| byte + 10));
            ensure(value.get() == [next + 10; 64], || "the next writer's is not there".into())?;
        }
        match found {
            OLD if !fate.finished && fate.killed => Ok("old"),
            NEW => Ok("new"),
            OTHER if self.peers_write => Ok("another's"),
            other => Err(format!("the value is {other}")),
        }
    }
}

/// A number is one word: it is added, or not.
struct Adding;

impl Scenario for Adding {
    type Stage = Value<f64>;

    fn name(&self) -> String {
        "value-number".into()
    }

    fn phases(&self) -> &'static [&'static str] {
        &["old", "new"]
    }

    fn prepare(&self) -> Value<f64> {
        Value::new(1.5).expect("there is room")
    }

    fn victim(&self, value: &Value<f64>, section: &Section) -> Result<(), String> {
        section.run(|| value.fetch_add(1.0, multiproc::Ordering::Relaxed));
        Ok(())
    }

    fn oracle(&self, value: &Value<f64>, _: &Fate) -> Result<&'static str, String> {
        match value.update(|number| number + 10.0) {
            11.5 => Ok("old"),
            12.5 => Ok("new"),
            other => Err(format!("{other} after 1.5 and at most 11")),
        }
    }
}

/// Several elements of an array, changed under its lock.
struct Filling {
    name: &'static str,
    cast: Vec<Role>,
    blow: Blow,
    phases: &'static [&'static str],
}

const LEN: usize = 5;

/// Element after element: all are equal when it is done.
fn fill(elements: &mut [u64], number: u64) {
    for element in elements {
        *element = number;
        compiler_fence(Ordering::SeqCst);
    }
}

impl Scenario for Filling {
    type Stage = Array<u64>;

    fn name(&self) -> String {
        format!("array-{}", self.name)
    }

    fn cast(&self) -> Vec<Role> {
        self.cast.clone()
    }

    fn blow(&self) -> Blow {
        self.blow
    }

    fn phases(&self) -> &'static [&'static str] {
        self.phases
    }

    fn prepare(&self) -> Array<u64> {
        Array::from_slice(&[OLD.into(); LEN]).expect("there is room")
    }

    fn victim(&self, array: &Array<u64>, section: &Section) -> Result<(), String> {
        section
            .run(|| array.lock().map(|mut elements| fill(&mut elements, NEW.into())))
            .map_err(|died| said(&died))
    }

    fn turn(&self, array: &Array<u64>, _: Role, inside: &Inside<'_>) -> Result<(), String> {
        let mut elements = array.lock_or_repair(|elements| fill(elements, OTHER.into()));
        ensure(elements.iter().all(|element| *element == elements[0]), || {
            format!("mixed, and nobody was told: {elements:?}")
        })?;
        elements[0] = 99;
        inside.here();
        fill(&mut elements, OTHER.into());
        Ok(())
    }

    fn oracle(&self, array: &Array<u64>, fate: &Fate) -> Result<&'static str, String> {
        let (told, elements) = match array.lock() {
            Ok(elements) => (false, elements.to_vec()),
            Err(died) => (true, died.into_guard().to_vec()),
        };
        // The short forms say so too, for as long as nobody recovers; and afterwards nobody does.
        let refused = array.get(0).is_err() && array.set(0, 4).is_err() && array.to_vec().is_err();
        let accepted = array.get(0).is_ok() && array.to_vec().is_ok();
        ensure(if told { refused } else { accepted }, || {
            format!("told is {told}, and the short forms differ")
        })?;
        let mut repaired = false;
        drop(array.lock_or_repair(|_| repaired = true));
        ensure(repaired == told && array.set(0, 4).is_ok(), || format!("repair after told is {told}"))?;

        let (old, new) = ([OLD.into(); LEN], [NEW.into(); LEN]);
        let others = [OTHER.into(); LEN];
        let mixed = (1..LEN).any(|done| {
            elements[..done] == new[..done]
                && [old, others].iter().any(|before| elements[done..] == before[done..])
        });
        Ok(match (told, elements.as_slice()) {
            (true, _) if fate.finished || !fate.killed => return Err("told, and nobody died inside".into()),
            (false, elements) if elements == old => "old",
            (false, elements) if elements == new => "new",
            (true, elements) if elements == old => "old, told",
            (true, elements) if elements == new => "new, told",
            (true, _) if mixed => "mixed, told",
            (told, elements) if !self.cast.is_empty() && elements == others => {
                if told {
                    "another's, told"
                } else {
                    "another's"
                }
            }
            (_, elements) => return Err(format!("{elements:?}")),
        })
    }
}
