//! The one clock of every deadline: CLOCK_MONOTONIC, in nanoseconds, computed once per call.

#![expect(unsafe_code, reason = "clock_gettime is a call into libc")]

use std::time::{Duration, Instant};

/// Until when a call may wait. All doors of a blocking operation end in one function that takes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deadline {
    /// It may not wait at all: the `try_` form, and a zero time-out.
    Now,
    /// Until this many nanoseconds on CLOCK_MONOTONIC.
    At(u64),
    /// For ever.
    Never,
}

impl Deadline {
    /// A time-out from now. Zero means try; one that overflows means for ever.
    pub(crate) fn after(timeout: Duration) -> Deadline {
        if timeout.is_zero() {
            return Deadline::Now;
        }
        u64::try_from(timeout.as_nanos())
            .ok()
            .and_then(|timeout_ns| now_ns().checked_add(timeout_ns))
            .map_or(Deadline::Never, Deadline::At)
    }

    /// A point in time. One that has passed means try.
    pub(crate) fn at(instant: Instant) -> Deadline {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant has no other way to be related to the clock"
        )]
        let now = Instant::now();
        Deadline::after(instant.saturating_duration_since(now))
    }

    pub(crate) fn has_passed(self) -> bool {
        match self {
            Deadline::Now => true,
            Deadline::At(at_ns) => now_ns() >= at_ns,
            Deadline::Never => false,
        }
    }

    /// How long is left; `None` is for ever.
    pub(crate) fn remaining(self) -> Option<Duration> {
        match self {
            Deadline::Now => Some(Duration::ZERO),
            Deadline::At(at_ns) => Some(Duration::from_nanos(at_ns.saturating_sub(now_ns()))),
            Deadline::Never => None,
        }
    }
}

/// CLOCK_MONOTONIC now, in nanoseconds ([clock_gettime(2)](https://man7.org/linux/man-pages/man2/clock_gettime.2.html)).
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live timespec that the call may write. It cannot fail: the clock exists and the pointer is good.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// The same nanoseconds as the kernel wants them.
pub(crate) fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_try_and_overflow_is_for_ever() {
        assert_eq!(Deadline::after(Duration::ZERO), Deadline::Now);
        assert_eq!(Deadline::after(Duration::MAX), Deadline::Never);
        assert!(Deadline::Now.has_passed());
        assert!(!Deadline::Never.has_passed());
        assert!(!Deadline::after(Duration::from_secs(3600)).has_passed());
    }

    #[test]
    fn an_instant_that_has_passed_is_try() {
        #[expect(clippy::disallowed_methods, reason = "the test is about instants")]
        let now = Instant::now();
        assert_eq!(Deadline::at(now), Deadline::Now);
    }
}
