//! Injected faults: their kinds, probabilities and limits. Seeded, so that a run can be repeated.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::span;

/// A fault and when it occurs. Unknown settings are rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Fault {
    /// The kind of the fault and its settings.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Probability per delivery or request, from 0 to 1.
    pub chance: f64,
    /// Number of occurrences that remain; unlimited if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// For HTTP faults the route (`jwks`, `openid`, `auth`, `token`, `logout`, `introspect`, `revoke`,
    /// `profile`, `users`, `user`, `organizations`, `organization`, `members`, `member_roles`, `member_permissions`,
    /// `roles`, `role_permissions`, `role_users`, `permissions`, `properties`, `property_definitions`, `search`, `webhooks`, `event_types`,
    /// `events`, or `management` for all under `/api/v1`), for webhook faults the event type; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// The settings that all faults have.
#[derive(Deserialize)]
#[serde(default)]
struct Occurrence {
    chance: f64,
    times: Option<u64>,
    on: Option<String>,
}

impl Default for Occurrence {
    fn default() -> Self {
        Self { chance: 1.0, times: None, on: None }
    }
}

/// Not derived, because serde accepts unknown keys beside a flattened field.
impl TryFrom<Map<String, Value>> for Fault {
    type Error = String;

    fn try_from(mut settings: Map<String, Value>) -> Result<Self, String> {
        const COMMON: [&str; 3] = ["chance", "times", "on"];
        let common: Map<String, Value> =
            COMMON.iter().filter_map(|name| settings.remove_entry(*name)).collect();
        let Occurrence { chance, times, on } =
            serde_json::from_value(common.into()).map_err(|e| e.to_string())?;
        let kind: FaultKind =
            serde_json::from_value(settings.clone().into()).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&kind).map_err(|error| error.to_string())?;
        if let Some(unknown) = settings.keys().find(|name| known.get(name.as_str()).is_none()) {
            let own = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
            let names: Vec<String> = own.chain(COMMON).map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "unknown setting `{unknown}`: a fault of this kind has {}",
                names.join(", ")
            ));
        }
        Ok(Self { kind, chance, times, on })
    }
}

impl Fault {
    /// Creates a fault that always occurs.
    #[must_use]
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, chance: 1.0, times: None, on: None }
    }

    /// Creates a fault that occurs with this probability.
    #[must_use]
    pub fn chance(kind: FaultKind, chance: f64) -> Self {
        Self { chance, ..Self::always(kind) }
    }

    /// Creates a fault that occurs the next `times` times.
    #[must_use]
    pub fn times(kind: FaultKind, times: u64) -> Self {
        Self { times: Some(times), ..Self::always(kind) }
    }

    /// Limits the fault to a route or an event type.
    #[must_use]
    pub fn on(self, on: &str) -> Self {
        Self { on: Some(on.to_owned()), ..self }
    }
}

/// The kind of a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultKind {
    /// Webhooks: sends extra copies of a delivery.
    Duplicate {
        /// Number of extra copies.
        #[serde(default = "one_copy")]
        copies: u32,
    },
    /// Webhooks: holds a delivery back until `behind` later ones have been queued, at most for `hold`.
    Reorder {
        /// Number of later deliveries that overtake it.
        #[serde(default = "one_copy")]
        behind: u32,
        /// Longest time to hold it back. Not scaled.
        #[serde(default = "default_hold", with = "span::one")]
        hold: Duration,
    },
    /// Webhooks: delays the first attempt. Not scaled.
    Delay {
        /// Shortest delay.
        #[serde(with = "span::one")]
        min: Duration,
        /// Longest delay.
        #[serde(with = "span::one")]
        max: Duration,
    },
    /// Webhooks: does not send the event. The event exists.
    Drop,
    /// Webhooks: creates no event for the change, as Kinde's bulk import does.
    Silent,
    /// HTTP: responds with 429 and `RateLimit-Reset`.
    RateLimit {
        /// Value of the header in seconds.
        reset: u64,
    },
    /// HTTP: responds with this status and an error body as Kinde's.
    Status {
        /// Status, for example 503.
        status: u16,
    },
    /// HTTP: delays the response. Not scaled.
    Slow {
        /// Shortest delay.
        #[serde(with = "span::one")]
        min: Duration,
        /// Longest delay.
        #[serde(with = "span::one")]
        max: Duration,
    },
    /// HTTP: sends a `Date` that differs from the time, as with a wrong clock.
    WrongDate {
        /// Seconds by which the clock is ahead; negative if it is behind.
        ahead: i64,
    },
    /// HTTP: sends a `Date` without a value, which counts as none.
    MissingDate,
    /// HTTP: closes the connection after half of the body.
    CutBody,
    /// HTTP: sends a complete response with the first half of the JSON.
    TruncatedJson,
    /// HTTP: responds with 200 and text that is not JSON.
    Garbage,
    /// Lists of the Management API: responds with 200, no entries and no `next_token`.
    EmptyList,
    /// Lists of the Management API: responds with 200, no entries and a `next_token` for the page that was requested.
    EmptyPage,
    /// Lists of the Management API: sends a `next_token` for the same page.
    RepeatedNextToken,
    /// Lists of the Management API: sends a new `next_token` on the last page, for the first page.
    EndlessTokens,
    /// Lists of the Management API: starts the next page too early or too late.
    PaginationDrift {
        /// Entries that are skipped (positive) or repeated (negative) between two pages.
        by: i64,
    },
    /// Members of an organization: the list contains no role of any member. Permissions of a member: the list names no roles.
    NoRoles,
    /// Search for users, properties of a user: the results contain no property of any user.
    NoProperties,
    /// Users and members: responds with the state of `lag` ago, at most `delivery.log` changes back. The deletion of an
    /// organization, a role or a permission has no earlier state.
    StaleReplica {
        /// Age of the state. Not scaled.
        #[serde(with = "span::one")]
        lag: Duration,
    },
    /// `GET /api/v1/user`: responds as if the user did not exist.
    UserNotFound {
        /// 404 or 400.
        #[serde(default = "not_found")]
        status: u16,
        /// The id of the user; all users if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
}

fn not_found() -> u16 {
    404
}

fn one_copy() -> u32 {
    1
}

fn default_hold() -> Duration {
    Duration::from_secs(1)
}

/// A fault and the number of its occurrences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FaultReport {
    /// The fault; `times` is the number of occurrences that remain.
    #[serde(flatten)]
    pub fault: Fault,
    /// Number of occurrences.
    pub occurrences: u64,
}

/// The faults of one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryPlan {
    pub(crate) dropped: bool,
    pub(crate) copies: u32,
    pub(crate) delay: Duration,
    pub(crate) reorder: Option<(u32, Duration)>,
}

/// The active faults.
pub(crate) struct Faults {
    list: Vec<FaultReport>,
    rng: StdRng,
}

impl Faults {
    pub(crate) fn new(seed: u64, faults: &[Fault]) -> Self {
        let mut table = Self { list: Vec::new(), rng: StdRng::seed_from_u64(seed) };
        faults.iter().cloned().for_each(|fault| table.set(fault));
        table
    }

    pub(crate) fn set(&mut self, fault: Fault) {
        self.list.push(FaultReport { fault, occurrences: 0 });
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    pub(crate) fn reports(&self) -> Vec<FaultReport> {
        self.list.clone()
    }

    /// Returns the faults selected by `wanted` that occur now.
    fn occurring(&mut self, wanted: impl Fn(&FaultKind) -> bool, targets: &[&str]) -> Vec<FaultKind> {
        let Self { list, rng } = self;
        let mut occurring = Vec::new();
        for report in list.iter_mut() {
            let fault = &mut report.fault;
            let applies = fault.on.as_deref().is_none_or(|on| targets.contains(&on));
            if !applies || !wanted(&fault.kind) || fault.times == Some(0) {
                continue;
            }
            if rng.random::<f64>() < fault.chance {
                fault.times = fault.times.map(|left| left - 1);
                report.occurrences += 1;
                occurring.push(fault.kind.clone());
            }
        }
        occurring
    }

    /// Whether the event of this type is suppressed.
    pub(crate) fn suppresses(&mut self, event_type: &str) -> bool {
        !self.occurring(|kind| matches!(kind, FaultKind::Silent), &[event_type]).is_empty()
    }

    /// Returns the faults of a delivery of this event type.
    pub(crate) fn plan(&mut self, event_type: &str) -> DeliveryPlan {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{Delay, Drop, Duplicate, Reorder};
            matches!(kind, Duplicate { .. } | Reorder { .. } | Delay { .. } | Drop)
        };
        let mut plan = DeliveryPlan::default();
        for kind in self.occurring(wanted, &[event_type]) {
            match kind {
                FaultKind::Duplicate { copies } => plan.copies += copies,
                FaultKind::Reorder { behind, hold } => plan.reorder = Some((behind, hold)),
                FaultKind::Delay { min, max } => plan.delay += self.between(min, max),
                FaultKind::Drop => plan.dropped = true,
                _ => {}
            }
        }
        plan
    }

    /// Returns the HTTP faults of a request to this route.
    pub(crate) fn on_request(&mut self, route: &str, is_management: bool) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{
                CutBody, Garbage, MissingDate, RateLimit, Slow, Status, TruncatedJson, WrongDate,
            };
            matches!(
                kind,
                RateLimit { .. }
                    | Status { .. }
                    | Slow { .. }
                    | WrongDate { .. }
                    | MissingDate
                    | CutBody
                    | TruncatedJson
                    | Garbage
            )
        };
        let targets: &[&str] = if is_management { &[route, "management"] } else { &[route] };
        self.occurring(wanted, targets)
    }

    /// Whether this list, which has no pages, is empty.
    pub(crate) fn empties(&mut self, route: &str) -> bool {
        !self.occurring(|kind| matches!(kind, FaultKind::EmptyList), &[route, "management"]).is_empty()
    }

    /// Returns the faults of a page of this list.
    pub(crate) fn on_page(&mut self, route: &str) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{
                EmptyList, EmptyPage, EndlessTokens, NoProperties, NoRoles, PaginationDrift,
                RepeatedNextToken, StaleReplica,
            };
            matches!(
                kind,
                EmptyList
                    | EmptyPage
                    | EndlessTokens
                    | NoProperties
                    | NoRoles
                    | RepeatedNextToken
                    | PaginationDrift { .. }
                    | StaleReplica { .. }
            )
        };
        self.occurring(wanted, &[route, "management"])
    }

    /// Returns the faults of reading this user.
    pub(crate) fn on_read(&mut self, user: &str) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| match kind {
            FaultKind::StaleReplica { .. } => true,
            FaultKind::UserNotFound { id, .. } => id.as_ref().is_none_or(|id| id == user),
            _ => false,
        };
        self.occurring(wanted, &["user", "management"])
    }

    pub(crate) fn between(&mut self, min: Duration, max: Duration) -> Duration {
        if max <= min { min } else { self.rng.random_range(min..=max) }
    }

    /// Extends a delay by a random share of up to `fraction`.
    pub(crate) fn jitter(&mut self, wait: Duration, fraction: f64) -> Duration {
        wait.mul_f64(1.0 + fraction.clamp(0.0, 10.0) * self.rng.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_fault_occurs_exactly_that_often() {
        let mut faults = Faults::new(1, &[Fault::times(FaultKind::Drop, 2).on("user.updated")]);
        assert!(!faults.plan("user.created").dropped);
        let dropped = (0..5).filter(|_| faults.plan("user.updated").dropped).count();
        assert_eq!((dropped, faults.reports()[0].occurrences), (2, 2));
    }

    #[test]
    fn the_same_seed_selects_the_same_deliveries() {
        let run = |seed| {
            let mut faults = Faults::new(seed, &[Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.5)]);
            (0..64).map(|_| faults.plan("user.created").copies).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn a_fault_is_flat_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"kind":"delay","min":"1s","max":"2s","chance":0.5}"#).unwrap();
        assert_eq!(fault.chance.to_string(), "0.5");
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"dealy"}"#).is_err());
        let report = FaultReport { fault, occurrences: 3 };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<FaultReport>(&text).unwrap(), report);
    }

    #[test]
    fn an_unknown_setting_is_named_in_the_error() {
        let rejected = [
            (r#"{"kind":"duplicate","copeis":2}"#, "`copeis`"),
            (r#"{"kind":"drop","min":"1s"}"#, "`min`"),
            (r#"{"kind":"drop","chnace":0.1}"#, "`chnace`"),
            (r#"{"kind":"status"}"#, "`status`"),
            (r#"{"kind":"drop","chance":"often"}"#, "often"),
        ];
        for (text, named) in rejected {
            let error = serde_json::from_str::<Fault>(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let known = serde_json::from_str::<Fault>(r#"{"kind":"duplicate","copeis":2}"#).unwrap_err();
        assert!(known.to_string().contains("`copies`, `kind`, `chance`"), "{known}");
        let from_toml: Fault = toml::from_str("kind = \"delay\"\nmin = \"1s\"\nmax = \"2s\"").unwrap();
        assert!(
            from_toml
                == Fault::always(FaultKind::Delay {
                    min: Duration::from_secs(1),
                    max: Duration::from_secs(2)
                })
        );
    }
}
