//! Decides from evidence whether a failure is about one user or about the store.
//!
//! A user that fails while writes of other users succeed has a problem of its own. A user that
//! fails while nothing succeeds proves nothing: it may be an outage, a full disk or a revoked role.
//! So a failure counts only if the write of another user succeeded since the failure before it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::random;

/// Subjects remembered at most. More of them fail only in an outage, which proves nothing.
const MAX_SUBJECTS: usize = 10_000;

/// The longest pause between two attempts, in multiples of the first one.
const MAX_PAUSE: u32 = 8;

/// What failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// The store carried out the call and refused this user's part of it.
    Row,
    /// The whole call failed. It may have been a lost connection.
    Call,
    /// A call failed that concerns no user.
    Store,
}

impl Scope {
    /// Counted failures after which the entries of a user become dead letters. A call fails by chance, and on a bad
    /// network at every other attempt; a refusal of one row does not.
    fn failures_needed(self) -> u32 {
        match self {
            Self::Row => 3,
            Self::Call => 12,
            Self::Store => u32::MAX,
        }
    }
}

/// What becomes of the entries of a subject that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Retry them apart from the others.
    Retry,
    /// Retry them likewise. There is no evidence: nothing was written since the last failure.
    RetryUnproved,
    /// Dead-letter them: others were written between the failures.
    DeadLetter,
}

/// What failed and what succeeded, for all workers of a projector.
#[derive(Debug)]
pub(super) struct Evidence {
    first_pause: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Calls that wrote a user.
    successes: u64,
    /// By user id, or by entry id for an entry that is about no user.
    failed: HashMap<String, Failed>,
}

#[derive(Debug)]
struct Failed {
    attempts: u32,
    /// Failures with a success between them and the failure before.
    counted: u32,
    /// Successes at the time of the last failure.
    successes: u64,
}

impl Evidence {
    pub(super) fn new(first_pause: Duration) -> Self {
        Self { first_pause, inner: Mutex::default() }
    }

    /// Whether the subject failed before and was not written since.
    pub(super) fn has_failed(&self, subject: &str) -> bool {
        self.lock().failed.contains_key(subject)
    }

    /// Records that a user was written.
    pub(super) fn wrote(&self) {
        self.lock().successes += 1;
    }

    /// Removes a subject: it was applied, or is a dead letter.
    pub(super) fn remove(&self, subject: &str) {
        self.lock().failed.remove(subject);
    }

    /// Records a failure. Returns what becomes of the entries and the pause before a retry.
    pub(super) fn failed(&self, subject: &str, scope: Scope) -> (Verdict, Duration) {
        let mut inner = self.lock();
        let successes = inner.successes;
        let is_full = inner.failed.len() >= MAX_SUBJECTS && !inner.failed.contains_key(subject);
        if is_full {
            return (Verdict::Retry, self.pause(MAX_PAUSE));
        }
        let first = Failed { attempts: 0, counted: 0, successes };
        let failed = inner.failed.entry(subject.to_owned()).or_insert(first);
        let is_proved = failed.successes < successes;
        failed.counted += u32::from(is_proved && scope != Scope::Store);
        failed.successes = successes;
        failed.attempts = failed.attempts.saturating_add(1);
        let verdict = match () {
            () if failed.counted >= scope.failures_needed() => Verdict::DeadLetter,
            () if is_proved || failed.attempts == 1 || scope == Scope::Store => Verdict::Retry,
            () => Verdict::RetryUnproved,
        };
        (verdict, self.pause(1 << failed.attempts.min(MAX_PAUSE)))
    }

    fn pause(&self, times: u32) -> Duration {
        random::jitter(self.first_pause * times.min(MAX_PAUSE), 0.5..=1.0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_dead_lettered(evidence: &Evidence, scope: Scope) -> bool {
        evidence.failed("kp_a", scope).0 == Verdict::DeadLetter
    }

    #[test]
    fn failures_without_a_success_between_them_prove_nothing() {
        let evidence = Evidence::new(Duration::from_millis(1));
        evidence.wrote();
        assert!((0..1_000).all(|_| !is_dead_lettered(&evidence, Scope::Row)));
        evidence.wrote();
        assert!((0..1_000).all(|_| !is_dead_lettered(&evidence, Scope::Row)), "one success counts once");
    }

    #[test]
    fn a_user_that_fails_between_successes_becomes_a_dead_letter() {
        for (scope, failures) in [(Scope::Row, 4), (Scope::Call, 13)] {
            let evidence = Evidence::new(Duration::from_millis(1));
            let dead_lettered_after = (1..100).find(|_| {
                let is_dead_lettered = is_dead_lettered(&evidence, scope);
                evidence.wrote();
                is_dead_lettered
            });
            assert_eq!(dead_lettered_after, Some(failures), "{scope:?}");
        }
    }

    #[test]
    fn the_pause_doubles_to_a_bound_and_two_processes_do_not_retry_at_one_moment() {
        let first = Duration::from_secs(1);
        let pauses = |failure: usize| -> Vec<Duration> {
            let evidence = || Evidence::new(first);
            (0..100)
                .map(|_| {
                    let evidence = evidence();
                    for _ in 1..failure {
                        evidence.failed("kp_a", Scope::Row);
                    }
                    evidence.failed("kp_a", Scope::Row).1
                })
                .collect()
        };
        for (failure, longest) in [(1, 2), (2, 4), (3, 8), (4, 8), (100, 8)] {
            let (longest, pauses) = (first * longest, pauses(failure));
            assert!(pauses.iter().all(|one| (longest / 2..=longest).contains(one)), "{failure}: {pauses:?}");
            let early = pauses.iter().filter(|one| **one < longest * 3 / 4).count();
            assert!((1..100).contains(&early), "{failure}: {pauses:?}");
        }
    }

    #[test]
    fn a_call_that_concerns_no_user_sets_no_user_aside() {
        let evidence = Evidence::new(Duration::from_millis(1));
        for _ in 0..1_000 {
            assert_eq!(evidence.failed("kp_a", Scope::Store).0, Verdict::Retry);
            evidence.wrote();
        }
        assert!(!is_dead_lettered(&evidence, Scope::Row), "its failures count as none of the user's");
    }

    #[test]
    fn a_success_of_the_user_clears_its_failures() {
        let evidence = Evidence::new(Duration::from_millis(1));
        for _ in 0..3 {
            assert!(!is_dead_lettered(&evidence, Scope::Row));
            evidence.wrote();
        }
        evidence.remove("kp_a");
        assert!(!is_dead_lettered(&evidence, Scope::Row) && evidence.has_failed("kp_a"));
    }
}
