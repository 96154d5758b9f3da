//! What is checked of the lock: the protocol, its variants, and the controls that must fail.

use crate::{FALSELY_TOLD, Lock, MAX, SLEEPS_ON_FREE, StatusStore, Told, UNREPORTED, Unlock, Wait};
use models::Suite;

/// Who is woken by unlock, and the forms that lose a wake-up.
pub(crate) fn protocol(suite: &mut Suite) {
    let with = |unlock, rounds: &[u8], kills| Lock { unlock, ..Lock::new(rounds, kills) };
    let pending_only = |rounds: &[u8], kills| Lock { linked: false, ..Lock::new(rounds, kills) };
    suite.holds("control: glibc's unlock, 3 x 1, no kill", with(Unlock::Glibc, &[1, 1, 1], 0));
    suite.fails("control: glibc's unlock, 3 x 1, 1 kill", SLEEPS_ON_FREE, with(Unlock::Glibc, &[1, 1, 1], 1));
    suite.fails(
        "control: store WAITERS, wake 1, CAS it to 0, 3 x (2,1,1), 1 kill",
        SLEEPS_ON_FREE,
        with(Unlock::StoreThenClear, &[2, 1, 1], 1),
    );
    suite.fails(
        "control: store and wake as two steps, 3 x (2,2,1), 1 kill",
        SLEEPS_ON_FREE,
        with(Unlock::TwoSteps, &[2, 2, 1], 1),
    );
    suite.holds(
        "  the same with bounded sleeps, 3 x 2, 2 kills",
        Lock { bounded_sleeps: true, ..with(Unlock::TwoSteps, &[2, 2, 2], 2) },
    );
    suite.holds("linked, 3 x 2, 2 kills", Lock::new(&[2, 2, 2], 2));
    suite.holds("linked, 4 x 1, 2 kills", Lock::new(&[1, 1, 1, 1], 2));
    suite.holds("pending-only, 3 x 2, 2 kills", pending_only(&[2, 2, 2], 2));
    suite.holds("pending-only, 4 x 1, 3 kills", pending_only(&[1, 1, 1, 1], 3));
    suite.holds("wake all, 3 x 2, 2 kills", with(Unlock::WakeAll, &[2, 2, 2], 2));
    suite.holds(
        "WAITERS not set again after a sleep, 3 x 2, 2 kills",
        Lock { waiters_after_sleep: false, ..Lock::new(&[2, 2, 2], 2) },
    );
    suite.fails(
        "control: pending cleared while asleep, 3 x 1, 1 kill",
        SLEEPS_ON_FREE,
        Lock { pending_while_asleep: false, ..Lock::new(&[1, 1, 1], 1) },
    );
}

/// Who is told.
pub(crate) fn reports(suite: &mut Suite) {
    let nobody = [false; MAX];
    let some = [true, false, false, false];
    suite.holds("nobody recovers, 3 x 2, 3 kills", Lock { recovers: nobody, ..Lock::new(&[2, 2, 2], 3) });
    suite.holds("nobody recovers, 4 x 1, 3 kills", Lock { recovers: nobody, ..Lock::new(&[1, 1, 1, 1], 3) });
    suite.holds("one of three recovers, 3 x 2, 3 kills", Lock { recovers: some, ..Lock::new(&[2, 2, 2], 3) });
    suite.holds(
        "one of four recovers, pending-only, 4 x 1, 3 kills",
        Lock { recovers: some, linked: false, ..Lock::new(&[1, 1, 1, 1], 3) },
    );
    suite.holds(
        "status stored after link and pending <- null, 3 x 2, 3 kills",
        Lock { recovers: some, status_store: StatusStore::AfterLink, ..Lock::new(&[2, 2, 2], 3) },
    );
    suite.fails(
        "control: told by the OWNER_DIED bit alone, 3 x 1, 1 kill",
        UNREPORTED,
        Lock { recovers: nobody, told: Told::ByWord, ..Lock::new(&[1, 1, 1], 1) },
    );
    suite.fails(
        "control: status stored before the CAS that takes it, 4 x 1, 1 kill",
        FALSELY_TOLD,
        Lock { status_store: StatusStore::BeforeTake, ..Lock::new(&[1, 1, 1, 1], 1) },
    );
}

/// Time-outs, tries, stops and wakes for no reason.
pub(crate) fn waits(suite: &mut Suite) {
    use Wait::{ForEver, Not, Timed, TimedNaive};
    let waiting = |wait, rounds: &[u8], kills| Lock { wait, ..Lock::new(rounds, kills) };
    suite.holds("2 timed + 1, 3 x 2, 2 kills", waiting([Timed, Timed, ForEver, ForEver], &[2, 2, 2], 2));
    suite.holds(
        "try + timed + 2, 4 x (1,1,1,2), 1 kill",
        waiting([ForEver, Timed, ForEver, Not], &[1, 1, 1, 2], 1),
    );
    suite.fails(
        "control: a late waiter leaves without another look, 3 x 1, no kill",
        SLEEPS_ON_FREE,
        waiting([ForEver, TimedNaive, ForEver, ForEver], &[1, 1, 1], 0),
    );
    suite.holds(
        "wakes for no reason, 3 x 2, 2 kills",
        Lock { spurious_wakes: true, ..Lock::new(&[2, 2, 2], 2) },
    );
    suite.fails(
        "control: a woken waiter STOPPED for ever, 3 x 2, 1 stop",
        SLEEPS_ON_FREE,
        Lock { stops: 1, ..Lock::new(&[2, 2, 2], 0) },
    );
    suite.holds(
        "  the same with bounded sleeps, 3 x 2, 1 stop, 1 kill",
        Lock { stops: 1, bounded_sleeps: true, ..Lock::new(&[2, 2, 2], 1) },
    );
}

/// Kernels that ring the pending slot only for a word of 0.
pub(crate) fn old_kernels(suite: &mut Suite) {
    let old = |unlock, rounds: &[u8], kills| Lock { old_kernel: true, unlock, ..Lock::new(rounds, kills) };
    suite.fails(
        "control: old kernel, wake 1, 3 x 1, 1 kill",
        SLEEPS_ON_FREE,
        old(Unlock::Chosen, &[1, 1, 1], 1),
    );
    suite.holds(
        "  the same with bounded sleeps, 3 x 2, 2 kills",
        Lock { bounded_sleeps: true, ..old(Unlock::Chosen, &[2, 2, 2], 2) },
    );
    suite.holds("old kernel, wake all, 3 x 2, 1 kill", old(Unlock::WakeAll, &[2, 2, 2], 1));
    suite.fails(
        "control: old kernel, wake all, 4 x 1, 2 kills",
        SLEEPS_ON_FREE,
        old(Unlock::WakeAll, &[1, 1, 1, 1], 2),
    );
    suite.holds(
        "  the same with bounded sleeps, 4 x 1, 2 kills",
        Lock { bounded_sleeps: true, ..old(Unlock::WakeAll, &[1, 1, 1, 1], 2) },
    );
}

/// More processes, rounds and kills.
pub(crate) fn deep(suite: &mut Suite) {
    use Wait::{ForEver, Not, Timed};
    let some = [true, false, false, false];
    suite.holds("deep: linked, 4 x (2,2,1,1), 2 kills", Lock::new(&[2, 2, 1, 1], 2));
    suite.holds("deep: linked, 3 x 3, 3 kills", Lock::new(&[3, 3, 3], 3));
    suite.holds(
        "deep: one of four recovers, 4 x (2,2,1,1), 2 kills",
        Lock { recovers: some, ..Lock::new(&[2, 2, 1, 1], 2) },
    );
    suite.holds("deep: pending-only, 4 x 2, 2 kills", Lock { linked: false, ..Lock::new(&[2, 2, 2, 2], 2) });
    suite.holds(
        "deep: try + timed + 2, 4 x (1,1,1,2), 2 kills",
        Lock { wait: [ForEver, Timed, ForEver, Not], ..Lock::new(&[1, 1, 1, 2], 2) },
    );
    suite.holds(
        "deep: wakes for no reason, 4 x 1, 3 kills",
        Lock { spurious_wakes: true, ..Lock::new(&[1, 1, 1, 1], 3) },
    );
    suite.holds(
        "deep: bounded sleeps, old kernel, one stopped, 4 x 1, 2 kills",
        Lock { stops: 1, bounded_sleeps: true, old_kernel: true, ..Lock::new(&[1, 1, 1, 1], 2) },
    );
}
