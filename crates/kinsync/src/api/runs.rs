//! Scans of all users at Kinde, and what they found.

use std::{borrow::Cow, collections::BTreeMap};

use kinsync_core::{Field, Source};
use kinsync_engine::internal::reconcile::{
    MembershipTally, PropertyTally,
    record::{self, DriftKind},
};
use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

use super::{Time, health::WebhookSilence};

/// The scans that are kept, newest first.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RunList {
    /// The scans, without examples.
    pub runs: Vec<RunSummary>,
    /// Ids of scans that another version of kinsync stored and this version cannot decode.
    pub undecodable: Vec<String>,
}

/// A scan, without examples.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// Identifies the scan.
    pub id: String,
    /// What it was to do.
    pub mode: RunMode,
    /// In mode `approve`: the run that held the deletions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approves: Option<String>,
    /// The run that carried out the deletions that this one held; absent before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// When it started.
    pub started_at: Time,
    /// When it ended; absent while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// How it ended.
    pub outcome: RunOutcome,
    /// Why it failed, in outcome `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the previous complete scan started; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Pages that were read from Kinde.
    pub pages: u64,
    /// Users on these pages.
    pub users: u64,
    /// Users with a stored state that equals Kinde's.
    pub unchanged: u64,
    /// Users that differed, by kind of difference.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub drift: BTreeMap<DriftKind, u64>,
    /// Users with a different value, by field.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub fields: BTreeMap<Field, u64>,
    /// Users with a change that no webhook delivered although an event exists for it.
    pub missed_by_webhook: u64,
    /// These users, by the source of what was known before; `nothing` for users that were not known.
    pub previous_source: BTreeMap<String, u64>,
    /// Users that changed since the previous scan, by the source of their newest change.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub changes_by_source: BTreeMap<Source, u64>,
    /// What was compared of the roles of members; absent if `reconcile.roles` is off, and if that was not due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<ComparedRoles>,
    /// What was compared of the properties of users; absent if that was not due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub properties: Option<ComparedProperties>,
}

/// What a scan compared of the roles of members.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedRoles {
    /// Organizations with a list of members.
    pub organizations: u64,
    /// Members in these lists.
    pub members: u64,
    /// Members with roles other than the known ones. They count in `drift` as `changed` too.
    pub changed: u64,
    /// Members with unknown roles, suspension or time of joining.
    pub filled_in: u64,
    /// Organizations, roles and permissions that differed from what was stored.
    pub directory_changed: u64,
    /// Members with permissions that are still unknown: `reconcile.permission_reads` limits the reads of one scan.
    pub unknown_permissions: u64,
    /// Why roles were not compared, or not all, with the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

/// What a scan compared of the properties of users.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComparedProperties {
    /// Users in the list.
    pub users: u64,
    /// Users with a property that differed from the known one or was unknown. They count in `drift` as `filled_in` too.
    pub changed: u64,
    /// Why properties were not compared, or not all, with the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

impl From<&PropertyTally> for ComparedProperties {
    fn from(found: &PropertyTally) -> Self {
        Self { users: found.users, changed: found.changed, not_compared: found.not_compared.clone() }
    }
}

impl From<&MembershipTally> for ComparedRoles {
    fn from(found: &MembershipTally) -> Self {
        Self {
            organizations: found.organizations,
            members: found.members,
            changed: found.changed,
            filled_in: found.filled_in,
            directory_changed: found.directory_changed,
            unknown_permissions: found.unknown_permissions,
            not_compared: found.not_compared.clone(),
        }
    }
}

/// A scan.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Run {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "its fields are those of the document")]
    pub summary: RunSummary,
    /// Whether deletions or removals that this run held can be approved now. `false` after their approval, and after a newer run
    /// replaced them.
    #[serde(rename = "awaitsApproval", default)]
    pub awaits_approval: bool,
    /// Some of the users that differed, at most 50.
    pub examples: Vec<Drift>,
}

/// What a scan is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunMode {
    /// Load all users and delete none.
    Backfill,
    /// Find and repair every difference.
    Reconcile,
    /// Find every difference and change nothing.
    DryRun,
    /// Reconcile, and carry out deletions that an earlier run held.
    Approve,
    /// Delete all users, because an operator approved that Kinde lists none.
    ApproveEmptyTenant,
}

/// How a scan ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    /// It has not ended.
    Running,
    /// Every user was compared.
    Complete,
    /// Every user was compared, by this run and an interrupted one that it continued; deletions were not looked for.
    Resumed,
    /// The process ended before the scan did.
    Interrupted,
    /// It could not continue.
    Failed,
}

/// Describes [`DriftKind`] in the OpenAPI document.
#[derive(Debug)]
pub struct DriftKindSchema;

impl PartialSchema for DriftKindSchema {
    fn schema() -> RefOr<Schema> {
        let names = DriftKind::ALL.map(DriftKind::as_str);
        let kinds = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names));
        kinds.description(Some("How a stored user differed from Kinde's.")).into()
    }
}

impl ToSchema for DriftKindSchema {
    fn name() -> Cow<'static, str> {
        "DriftKind".into()
    }
}

/// A user that differed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// The Kinde id.
    pub user: String,
    /// How the user differed.
    #[schema(value_type = DriftKindSchema)]
    pub kind: DriftKind,
    /// The fields that differed.
    #[schema(value_type = Vec<String>)]
    pub fields: Vec<Field>,
    /// The newest change that was known, by Kinde's clock; absent for users that were not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_at: Option<Time>,
    /// The source of that change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub previous_source: Option<Source>,
}

/// What the newest complete scan found.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftReport {
    /// The newest complete scan; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// Why the webhook is probably disabled; absent while it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_silence: Option<WebhookSilence>,
}

/// A request for a scan. An empty body requests a scan that approves nothing.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScanRequest {
    /// Carry out the deletions that this run held, if they are still right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve: Option<String>,
    /// Delete all users, if Kinde still lists none. Default: false.
    #[serde(default)]
    #[schema(required = false)]
    pub approve_empty_tenant: bool,
}

/// The scan was requested; a process that shares the store starts it within seconds.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanRequested {
    /// When the request was recorded.
    pub requested_at: Time,
    /// The run with the held deletions that are approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve: Option<String>,
    /// Whether the deletion of all users of an empty tenant is approved.
    pub approve_empty_tenant: bool,
}

impl RunSummary {
    /// The summary of a run, with what the other runs say about it.
    pub fn new(run: &record::Run, runs: &[record::Run]) -> Self {
        let approval = record::RunMode::Approve(run.id.clone());
        let by = runs.iter().find(|other| other.is_complete() && other.mode == approval);
        Self { approved_by: by.map(|by| by.id.clone()), ..run.into() }
    }
}

impl Run {
    /// The run, with what the other runs say about it. `is_held` is whether the store still has what it held.
    pub fn new(run: &record::Run, runs: &[record::Run], is_held: bool) -> Self {
        let summary = RunSummary::new(run, runs);
        let is_settled = runs.iter().any(|other| settles(other, run));
        let awaits_approval = is_held && !is_settled && summary.approved_by.is_none();
        Self { summary, awaits_approval, ..run.into() }
    }
}

/// Whether a run found all users as they should be that an earlier one held: it carried out the same under another run's id, or Kinde lists
/// them again. A run that could not compare them all says nothing about them.
fn settles(run: &record::Run, earlier: &record::Run) -> bool {
    use record::{
        DriftKind::Undetermined,
        RunMode::{Approve, ApproveEmptyTenant, Backfill, DryRun, Reconcile},
    };
    let deletes = match run.mode {
        Reconcile | Approve(_) | ApproveEmptyTenant => true,
        Backfill | DryRun => false,
    };
    let tally = &run.tally;
    let is_clean = tally.held() == 0 && tally.of(Undetermined) == 0;
    let has_roles = run.memberships.as_ref().is_some_and(|found| found.not_compared.is_none());
    let has_all = has_roles || earlier.memberships.is_none();
    // By the counter of the store: the clocks of two processes may differ.
    deletes && run.is_complete() && run.start > earlier.start && is_clean && has_all
}

impl From<&record::Run> for RunSummary {
    fn from(run: &record::Run) -> Self {
        let (mode, approves) = match &run.mode {
            record::RunMode::Backfill => (RunMode::Backfill, None),
            record::RunMode::Reconcile => (RunMode::Reconcile, None),
            record::RunMode::DryRun => (RunMode::DryRun, None),
            record::RunMode::Approve(run) => (RunMode::Approve, Some(run.clone())),
            record::RunMode::ApproveEmptyTenant => (RunMode::ApproveEmptyTenant, None),
        };
        let (outcome, reason) = match &run.outcome {
            record::Outcome::Running => (RunOutcome::Running, None),
            record::Outcome::Complete => (RunOutcome::Complete, None),
            record::Outcome::Resumed => (RunOutcome::Resumed, None),
            record::Outcome::Cut => (RunOutcome::Interrupted, None),
            record::Outcome::Failed { reason } => (RunOutcome::Failed, Some(reason.clone())),
        };
        let tally = &run.tally;
        Self {
            id: run.id.clone(),
            mode,
            approves,
            approved_by: None,
            started_at: run.started_at.into(),
            ended_at: run.ended_at.map(Time::from),
            outcome,
            reason,
            since: run.before.map(|before| before.began.into()),
            pages: tally.pages,
            users: tally.users,
            unchanged: tally.unchanged,
            drift: tally.drift.clone(),
            fields: tally.fields.clone(),
            missed_by_webhook: tally.missed(),
            previous_source: tally.previous_source.clone(),
            changes_by_source: tally.changes_by_source.clone(),
            roles: run.memberships.as_ref().map(Into::into),
            properties: run.properties.as_ref().map(Into::into),
        }
    }
}

impl From<&record::Run> for Run {
    fn from(run: &record::Run) -> Self {
        let awaits_approval = run.tally.held() > 0 && run.mode != record::RunMode::DryRun;
        let examples = run.tally.examples.iter().map(Into::into).collect();
        Self { summary: run.into(), awaits_approval, examples }
    }
}

impl From<&record::Drift> for Drift {
    fn from(drift: &record::Drift) -> Self {
        Self {
            user: drift.user.to_string(),
            kind: drift.kind,
            fields: drift.fields.clone(),
            known_at: drift.known_at.map(Time::from),
            previous_source: drift.previous_source,
        }
    }
}

impl RunMode {
    /// The name in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::DryRun => "dry_run",
            Self::Approve => "approve",
            Self::ApproveEmptyTenant => "approve_empty_tenant",
        }
    }
}

impl RunOutcome {
    /// The name in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Resumed => "resumed",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(start: i64, drift: &Value, memberships: &Value) -> record::Run {
        let run = json!({
            "id": format!("run_{start}"), "mode": "reconcile", "startedAt": 1000 - start, "endedAt": null, "outcome": "complete",
            "start": start, "drift": drift, "memberships": memberships,
        });
        serde_json::from_value(run).expect("a record of a run")
    }

    #[test]
    fn a_later_run_settles_what_it_could_compare() {
        let (nothing, unknown) = (&json!({}), &json!({ "undetermined": 1 }));
        let (no_roles, all_roles) = (&json!(null), &json!({ "members": 9 }));
        let lists_failed = &json!({ "notCompared": "Kinde lists no roles" });
        let removals = &json!({ "removal_held": 25 });
        let (held, held_with_roles) = (run(5, removals, no_roles), run(5, removals, all_roles));
        for (later, by_users, by_roles) in [
            (run(6, nothing, no_roles), true, false),
            (run(6, nothing, all_roles), true, true),
            (run(6, nothing, lists_failed), true, false),
            (run(6, unknown, all_roles), false, false),
            (run(6, &json!({ "deletion_held": 1 }), all_roles), false, false),
            // The clock of its process is ahead.
            (run(4, nothing, all_roles), false, false),
        ] {
            assert_eq!(settles(&later, &held), by_users, "{later:?}");
            assert_eq!(settles(&later, &held_with_roles), by_roles, "{later:?}");
        }
        let backfill = record::Run { mode: record::RunMode::Backfill, ..run(6, nothing, all_roles) };
        assert!(!settles(&backfill, &held), "it looks for no deletion");
    }
}
