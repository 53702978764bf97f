//! Faults on demand: what goes wrong, how often, and for how long. Seeded, so that a run can be repeated.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::span;

/// A fault with its odds. An unknown setting is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Probability per occasion, 0 to 1.
    pub chance: f64,
    /// How many more times it strikes; without end when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// For HTTP faults, the route (`jwks`, `openid`, `auth`, `token`, `logout`, `introspect`, `revoke`,
    /// `profile`, `users`, `user`, `webhooks`, `event_types`, `events`, or `management` for all under
    /// `/api/v1`); every one when absent. For webhook faults, the event type; every one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

/// The settings that every fault has.
#[derive(Deserialize)]
#[serde(default)]
struct Odds {
    chance: f64,
    times: Option<u64>,
    on: Option<String>,
}

impl Default for Odds {
    fn default() -> Self {
        Self { chance: 1.0, times: None, on: None }
    }
}

/// By hand, because serde lets unknown keys pass beside a flattened or a unit variant.
impl TryFrom<Map<String, Value>> for Fault {
    type Error = String;

    fn try_from(mut settings: Map<String, Value>) -> Result<Self, String> {
        const ODDS: [&str; 3] = ["chance", "times", "on"];
        let odds: Map<String, Value> = ODDS.iter().filter_map(|name| settings.remove_entry(*name)).collect();
        let Odds { chance, times, on } = serde_json::from_value(odds.into()).map_err(|e| e.to_string())?;
        let kind: FaultKind =
            serde_json::from_value(settings.clone().into()).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&kind).map_err(|error| error.to_string())?;
        if let Some(unknown) = settings.keys().find(|name| known.get(name.as_str()).is_none()) {
            let own = known.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
            let names: Vec<String> = own.chain(ODDS).map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "unknown setting `{unknown}`: a fault of this kind has {}",
                names.join(", ")
            ));
        }
        Ok(Self { kind, chance, times, on })
    }
}

impl Fault {
    /// Strikes on every occasion.
    #[must_use]
    pub fn always(kind: FaultKind) -> Self {
        Self { kind, chance: 1.0, times: None, on: None }
    }

    /// Strikes with this probability.
    #[must_use]
    pub fn chance(kind: FaultKind, chance: f64) -> Self {
        Self { chance, ..Self::always(kind) }
    }

    /// Strikes on the next `times` occasions.
    #[must_use]
    pub fn times(kind: FaultKind, times: u64) -> Self {
        Self { times: Some(times), ..Self::always(kind) }
    }

    /// Limits it to a route or an event type.
    #[must_use]
    pub fn on(self, on: &str) -> Self {
        Self { on: Some(on.to_owned()), ..self }
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultKind {
    /// Webhooks: extra copies of a delivery.
    Duplicate {
        /// How many extra.
        #[serde(default = "one_copy")]
        copies: u32,
    },
    /// Webhooks: hold a delivery back until `behind` later ones have been queued, at most for `hold`.
    Reorder {
        /// How many overtake it.
        #[serde(default = "one_copy")]
        behind: u32,
        /// Longest wait for them. Not scaled.
        #[serde(default = "default_hold", with = "span::one")]
        hold: Duration,
    },
    /// Webhooks: wait before the first attempt. Not scaled.
    Delay {
        /// Shortest wait.
        #[serde(with = "span::one")]
        min: Duration,
        /// Longest wait.
        #[serde(with = "span::one")]
        max: Duration,
    },
    /// Webhooks: the event exists, and is never sent.
    Drop,
    /// Webhooks: the change happens without any event, as on Kinde's bulk import.
    Silent,
    /// HTTP: 429 with `RateLimit-Reset`.
    RateLimit {
        /// Seconds in the header.
        reset: u64,
    },
    /// HTTP: this status with Kinde's error body.
    Status {
        /// E.g. 503.
        status: u16,
    },
    /// HTTP: wait before the answer. Not scaled.
    Slow {
        /// Shortest wait.
        #[serde(with = "span::one")]
        min: Duration,
        /// Longest wait.
        #[serde(with = "span::one")]
        max: Duration,
    },
    /// HTTP: `Date` is another time, as by a clock that is not ours.
    WrongDate {
        /// Seconds that the clock is ahead; negative: behind.
        ahead: i64,
    },
    /// HTTP: the connection is cut after half of the body.
    CutBody,
    /// HTTP: a whole answer that holds half of the JSON.
    TruncatedJson,
    /// HTTP: 200 with text that is not JSON.
    Garbage,
    /// `GET /api/v1/users`: 200 with no users and no `next_token`.
    EmptyList,
    /// `GET /api/v1/users`: 200 with no users and a `next_token` that goes on where this page should have begun.
    EmptyPage,
    /// `GET /api/v1/users`: the `next_token` leads to the same page again.
    RepeatedNextToken,
    /// `GET /api/v1/users`: the last page has a `next_token` too, never seen before, that leads to the first.
    EndlessTokens,
    /// `GET /api/v1/users`: the next page starts one too early or one too late.
    PaginationDrift {
        /// Users left out (positive) or shown twice (negative) at the page boundary.
        by: i64,
    },
    /// `GET /api/v1/users` and `GET /api/v1/user`: answered from the state of `lag` ago, as far back as
    /// `delivery.log` changes.
    StaleReplica {
        /// How old the state is. Not scaled.
        #[serde(with = "span::one")]
        lag: Duration,
    },
    /// `GET /api/v1/user`: answered as if there were no such user.
    UserGone {
        /// 404 or 400.
        #[serde(default = "not_found")]
        status: u16,
        /// The id of the one user; everybody when absent.
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

/// A fault and how often it struck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FaultReport {
    /// The fault, with what is left of `times`.
    #[serde(flatten)]
    pub fault: Fault,
    /// How often it struck.
    pub struck: u64,
}

/// What the faults make of one delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryPlan {
    pub(crate) dropped: bool,
    pub(crate) copies: u32,
    pub(crate) delay: Duration,
    pub(crate) reorder: Option<(u32, Duration)>,
}

/// The faults that are on.
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
        self.list.push(FaultReport { fault, struck: 0 });
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    pub(crate) fn reports(&self) -> Vec<FaultReport> {
        self.list.clone()
    }

    /// The faults that strike now among those that `wanted` picks.
    fn strike(&mut self, wanted: impl Fn(&FaultKind) -> bool, places: &[&str]) -> Vec<FaultKind> {
        let Self { list, rng } = self;
        let mut struck = Vec::new();
        for report in list.iter_mut() {
            let fault = &mut report.fault;
            let here = fault.on.as_deref().is_none_or(|on| places.contains(&on));
            if !here || !wanted(&fault.kind) || fault.times == Some(0) {
                continue;
            }
            if rng.random::<f64>() < fault.chance {
                fault.times = fault.times.map(|left| left - 1);
                report.struck += 1;
                struck.push(fault.kind.clone());
            }
        }
        struck
    }

    /// Whether a change of this type stays without an event.
    pub(crate) fn silences(&mut self, event_type: &str) -> bool {
        !self.strike(|kind| matches!(kind, FaultKind::Silent), &[event_type]).is_empty()
    }

    /// What becomes of a delivery of this event type.
    pub(crate) fn plan(&mut self, event_type: &str) -> DeliveryPlan {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{Delay, Drop, Duplicate, Reorder};
            matches!(kind, Duplicate { .. } | Reorder { .. } | Delay { .. } | Drop)
        };
        let mut plan = DeliveryPlan::default();
        for kind in self.strike(wanted, &[event_type]) {
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

    /// The HTTP faults that strike a request to this route.
    pub(crate) fn on_request(&mut self, route: &str, is_management: bool) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{CutBody, Garbage, RateLimit, Slow, Status, TruncatedJson, WrongDate};
            matches!(
                kind,
                RateLimit { .. }
                    | Status { .. }
                    | Slow { .. }
                    | WrongDate { .. }
                    | CutBody
                    | TruncatedJson
                    | Garbage
            )
        };
        let places: &[&str] = if is_management { &[route, "management"] } else { &[route] };
        self.strike(wanted, places)
    }

    /// The faults of the user list that strike a page.
    pub(crate) fn on_page(&mut self) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| {
            use FaultKind::{
                EmptyList, EmptyPage, EndlessTokens, PaginationDrift, RepeatedNextToken, StaleReplica,
            };
            matches!(
                kind,
                EmptyList
                    | EmptyPage
                    | EndlessTokens
                    | RepeatedNextToken
                    | PaginationDrift { .. }
                    | StaleReplica { .. }
            )
        };
        self.strike(wanted, &["users", "management"])
    }

    /// The faults that strike the reading of this user.
    pub(crate) fn on_read(&mut self, user: &str) -> Vec<FaultKind> {
        let wanted = |kind: &FaultKind| match kind {
            FaultKind::StaleReplica { .. } => true,
            FaultKind::UserGone { id, .. } => id.as_ref().is_none_or(|id| id == user),
            _ => false,
        };
        self.strike(wanted, &["user", "management"])
    }

    pub(crate) fn between(&mut self, min: Duration, max: Duration) -> Duration {
        if max <= min { min } else { self.rng.random_range(min..=max) }
    }

    /// A wait lengthened by up to `fraction` of itself.
    pub(crate) fn jitter(&mut self, wait: Duration, fraction: f64) -> Duration {
        wait.mul_f64(1.0 + fraction.clamp(0.0, 10.0) * self.rng.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_strikes_so_many_times_and_no_more() {
        let mut faults = Faults::new(1, &[Fault::times(FaultKind::Drop, 2).on("user.updated")]);
        assert!(!faults.plan("user.created").dropped);
        let dropped = (0..5).filter(|_| faults.plan("user.updated").dropped).count();
        assert_eq!((dropped, faults.reports()[0].struck), (2, 2));
    }

    #[test]
    fn the_same_seed_strikes_the_same_deliveries() {
        let run = |seed| {
            let mut faults = Faults::new(seed, &[Fault::chance(FaultKind::Duplicate { copies: 1 }, 0.5)]);
            (0..64).map(|_| faults.plan("user.created").copies).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn a_fault_is_written_as_flat_json() {
        let fault: Fault =
            serde_json::from_str(r#"{"kind":"delay","min":"1s","max":"2s","chance":0.5}"#).unwrap();
        assert_eq!(fault.chance.to_string(), "0.5");
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"dealy"}"#).is_err());
        let report = FaultReport { fault, struck: 3 };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<FaultReport>(&text).unwrap(), report);
    }

    #[test]
    fn an_unknown_setting_of_a_fault_is_refused_by_name() {
        let refused = [
            (r#"{"kind":"duplicate","copeis":2}"#, "`copeis`"),
            (r#"{"kind":"drop","min":"1s"}"#, "`min`"),
            (r#"{"kind":"drop","chnace":0.1}"#, "`chnace`"),
            (r#"{"kind":"status"}"#, "`status`"),
            (r#"{"kind":"drop","chance":"often"}"#, "often"),
        ];
        for (text, named) in refused {
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
