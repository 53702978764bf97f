//! Daily figures, from the event log.

use std::{collections::BTreeMap, time::Duration};

use kinsync_engine::internal::projections::{self, Day, Record};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Longer than Kinde repeats a delivery.
const LONGEST_LAG: Duration = Duration::from_hours(72);

/// Which days to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, clap::Args)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DaysQuery {
    /// The first day, in UTC, such as `2026-11-01`. Default: 29 days before the last one.
    #[arg(long, value_name = "DAY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = Date)]
    pub since: Option<Day>,
    /// The last day. Default: today. At most 400 days are listed.
    #[arg(long, value_name = "DAY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, format = Date)]
    pub until: Option<Day>,
}

/// Growth by day, oldest first. Days without entries in the event log are left out. The figures are as of the last computation, which
/// `projections.every` sets.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrowthReport {
    /// Whether the log has entries of these days, and no figures of them were computed yet.
    #[serde(default)]
    pub is_pending: bool,
    /// The days.
    pub days: Vec<GrowthDay>,
}

/// Growth on a day. Each number counts a user once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrowthDay {
    /// The day of receipt, in UTC.
    #[schema(value_type = String, format = Date)]
    pub day: Day,
    /// Users with a `user.created` event.
    pub sign_ups: u64,
    /// Users with a `user.deleted` event, or with a deletion that a scan found.
    pub deletions: u64,
    /// Users that signed up or in at Kinde, and users with an entry of a token or of a profile read.
    pub active_users: u64,
    /// The organizations with most active users, by code. A user counts in the organizations that an entry of the day names.
    pub organizations: BTreeMap<String, OrganizationGrowth>,
    /// The sum of the other organizations.
    pub other_organizations: OrganizationGrowth,
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub basis: Basis,
}

/// Growth of an organization on a day.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationGrowth {
    /// Its active users.
    pub active_users: u64,
    /// Its users that signed up.
    pub sign_ups: u64,
    /// Its users that were deleted.
    pub deletions: u64,
}

/// What the figures of a day count.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Basis {
    /// Entries of the event log.
    pub counted_entries: u64,
    /// Damaged ones of them, which have no figures.
    pub damaged_entries: u64,
    /// Whether the event log has lost entries of the day since. The figures are kept, and cannot be computed again.
    pub is_kept: bool,
}

/// The operation of kinsync by day, oldest first. Days without entries in the event log are left out. The figures are as of the last
/// computation, which `projections.every` sets.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemReport {
    /// Whether the log has entries of these days, and no figures of them were computed yet.
    #[serde(default)]
    pub is_pending: bool,
    /// The days.
    pub days: Vec<SystemDay>,
    /// The lag over all days.
    pub lag: LagPercentiles,
}

/// The operation of kinsync on a day.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemDay {
    /// The day of receipt, in UTC.
    #[schema(value_type = String, format = Date)]
    pub day: Day,
    /// Deliveries by event type.
    pub deliveries: BTreeMap<String, u64>,
    /// Time from an event to the receipt of its delivery.
    pub lag: LagPercentiles,
    /// Differences from Kinde that scans and checks found, by cause: `deleted`, `restored`, `membership`, `fields`, or `unknown`.
    pub drift: BTreeMap<String, u64>,
    /// Entries of the event log by source.
    pub entries: BTreeMap<String, u64>,
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub basis: Basis,
}

/// Percentiles of the time from an event to the receipt of its delivery, in seconds, with an error of at most 5 %. A longer time than three
/// days is no lag: Kinde repeats a delivery for 36 hours, so the event was sent again, or imported.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LagPercentiles {
    /// Number of deliveries with a time of the event, up to three days before the receipt.
    pub count: u64,
    /// Number of deliveries with an earlier time of the event. The percentiles leave them out.
    #[serde(default)]
    pub older: u64,
    /// Half of them took at most this long; absent without deliveries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// 95 % took at most this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// 99 % took at most this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl From<Vec<(Day, Record<projections::Growth>)>> for GrowthReport {
    fn from(days: Vec<(Day, Record<projections::Growth>)>) -> Self {
        let day = |(day, record): (Day, Record<projections::Growth>)| {
            let basis = Basis::of(&record);
            let projections::Growth { sign_ups, deletions, active_users, organizations, other_organizations } =
                record.figures;
            let organizations = organizations.into_iter().map(|(code, one)| (code, one.into())).collect();
            let other_organizations = other_organizations.into();
            GrowthDay { day, sign_ups, deletions, active_users, organizations, other_organizations, basis }
        };
        Self { is_pending: false, days: days.into_iter().map(day).collect() }
    }
}

impl From<projections::OrganizationGrowth> for OrganizationGrowth {
    fn from(growth: projections::OrganizationGrowth) -> Self {
        let projections::OrganizationGrowth { active_users, sign_ups, deletions } = growth;
        Self { active_users, sign_ups, deletions }
    }
}

impl From<Vec<(Day, Record<projections::System>)>> for SystemReport {
    fn from(days: Vec<(Day, Record<projections::System>)>) -> Self {
        let mut all = projections::Lag::default();
        let mut day = |(day, record): (Day, Record<projections::System>)| {
            let basis = Basis::of(&record);
            let projections::System { deliveries, lag, drift, entries } = record.figures;
            all.merge(&lag);
            SystemDay { day, deliveries, lag: (&lag).into(), drift, entries, basis }
        };
        let days = days.into_iter().map(&mut day).collect();
        Self { is_pending: false, days, lag: (&all).into() }
    }
}

impl From<&projections::Lag> for LagPercentiles {
    fn from(lag: &projections::Lag) -> Self {
        let recent = lag.up_to(LONGEST_LAG);
        let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|share| recent.percentile(share));
        Self { count: recent.count(), older: lag.count() - recent.count(), p50, p95, p99, max }
    }
}

impl Basis {
    fn of<F>(record: &Record<F>) -> Self {
        let Record { entries, damaged, is_kept, .. } = record;
        Self { counted_entries: *entries, damaged_entries: *damaged, is_kept: *is_kept }
    }
}
