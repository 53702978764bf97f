//! Why a user is as it is.

use std::collections::{BTreeMap, BTreeSet};

use kinsync_core::{Identity, Part, UserState, Value};
use kinsync_engine::internal::{
    explain as engine,
    reconcile::record::{self, DriftKind},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Time, runs::DriftKindSchema, users::User};

/// Every observation of a user that is known, what came of each, and what the next scan would do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The stored user; absent when only events are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The rule of the database that refuses the document of the user; absent when none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedDocument>,
    /// Keys that a rule of the database keeps out of the document, each with the rule; `*` for all but the marks of a
    /// deletion and a suspension.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused_keys: BTreeMap<String, String>,
    /// The known memberships; absent when only events are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memberships: Option<Memberships>,
    /// The observations that changed the user, oldest first: those of the newest 1,000 entries of the log.
    pub observations: Vec<Observation>,
    /// Number of older entries of the log that are not among the observations.
    pub older_entries_omitted: u64,
    /// Ids of damaged entries: their content was changed after kinsync wrote them. They are not among the observations.
    pub damaged_entries: Vec<String>,
    /// What the next scan would do with the user.
    pub next_scan: NextScan,
}

/// A rule of the database that refuses the document of a user. The user is stored as soon as the rule allows it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedDocument {
    /// The rule: the index or the part of the validator.
    pub reason: String,
    /// When it refused the user first.
    pub since: Time,
    /// Whether the database has no document of the user at all.
    pub is_missing: bool,
}

/// What is known of the memberships of a user.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memberships {
    /// Whether a source has listed all memberships. If not, the user may have others.
    pub are_all_known: bool,
    /// The memberships, sorted by code.
    pub list: Vec<Membership>,
}

/// What is known of one membership.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The code of the organization.
    pub code: String,
    /// Keys of the roles; absent while they are unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// The permissions; absent while they are unknown, for example because a list of one of the roles is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<Permission>>,
}

/// A permission of a member.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Permission {
    /// The key.
    pub key: String,
    /// Keys of the roles that give it. Empty: an event or a read listed it for the user.
    pub roles: Vec<String>,
}

/// One observation of a user.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// When it was true, by Kinde's clock; absent for a token, which every other source supersedes, and for an event
    /// that could not be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// When kinsync received it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Time>,
    /// An event type, the type of an entry of kinsync such as `kinsync.scan.read`, or `read` or `token` for one that is not in the
    /// log.
    pub kind: String,
    /// The id in the event log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// What came of it.
    pub outcome: String,
    /// The values that it carried.
    pub fields: Vec<ObservedField>,
}

/// The value of one field in an observation, or of one part of a membership or one property in it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObservedField {
    /// The key in the user document.
    pub field: String,
    /// With `field` = `organizations`: the part of a membership. Each part has an outcome of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The code of the organization of the part; absent: every organization that the observation does not contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// With `field` = `properties`: the key of the property. Each property has an outcome of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub property: Option<String>,
    /// The value, as the user document shows it; of `permissions`, those that the source listed for the user.
    pub value: FieldValue,
    /// Whether the stored user has this value from this observation.
    pub is_current: bool,
    /// The newer observation that counts instead: of the same field or part, of the end of the membership, or, for permissions, of
    /// the roles. Of several of one time it names each that contains this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
    /// The `eventId` of each of those observations; empty if they are not in the log, or older than the entries in the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub superseded_by_entries: Vec<String>,
}

/// The value of a field, as the user document shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum FieldValue {
    /// No value.
    Null,
    /// Yes or no.
    Flag(bool),
    /// An instant.
    Time(Time),
    /// A text.
    Text(String),
    /// Keys of roles or permissions.
    Codes(Vec<String>),
    /// Sign-in identities.
    Identities(Vec<Identity>),
    /// Properties.
    Properties(BTreeMap<String, String>),
}

/// What the next scan would do with a user.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum NextScan {
    /// Nothing: the stored user equals Kinde's.
    Unchanged,
    /// It would find a difference.
    Drift {
        /// How the user differs.
        #[schema(value_type = DriftKindSchema)]
        kind: DriftKind,
        /// The fields that differ.
        fields: Vec<String>,
    },
    /// Kinde could not be read.
    Unknown {
        /// Why not.
        reason: String,
    },
}

impl From<&Value> for FieldValue {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Flag(flag) => Self::Flag(*flag),
            Value::Time(at) => Self::Time((*at).into()),
            Value::Text(text) => Self::Text(text.to_string()),
            Value::Codes(list) => Self::Codes(list.clone()),
            // An explanation has their parts instead.
            Value::Organizations(list) => Self::Codes(list.iter().map(|one| one.code.clone()).collect()),
            Value::Memberships(memberships) => Self::Codes(memberships.codes().collect()),
            Value::Identities(list) => Self::Identities(list.clone()),
            Value::Properties(properties) => Self::Properties(
                properties.values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            ),
        }
    }
}

impl From<&UserState> for Memberships {
    fn from(state: &UserState) -> Self {
        let directory = &state.directory;
        let membership = |known: &kinsync_core::Memberships, code: String| {
            let permissions = known.permission_roles(&code, directory);
            let permission = |(key, roles): (&str, BTreeSet<&str>)| Permission {
                key: key.to_owned(),
                roles: roles.into_iter().map(ToOwned::to_owned).collect(),
            };
            Membership {
                roles: known.shown_in(&code, directory).and_then(|shown| shown.roles),
                permissions: permissions.map(|list| list.into_iter().map(permission).collect()),
                code,
            }
        };
        let known = state.memberships();
        let list = known.map(|known| known.codes().map(|code| membership(known, code)).collect());
        Self { are_all_known: state.organizations().is_some(), list: list.unwrap_or_default() }
    }
}

impl From<&engine::ExplainedObservation> for Observation {
    fn from(observation: &engine::ExplainedObservation) -> Self {
        Self {
            at: observation.at.map(Time::from),
            received_at: observation.received_at.map(Time::from),
            kind: observation.kind.clone(),
            event_id: observation.event_id.clone(),
            outcome: observation.outcome.clone(),
            fields: observation.fields.iter().map(Into::into).collect(),
        }
    }
}

impl From<&engine::ExplainedField> for ObservedField {
    fn from(field: &engine::ExplainedField) -> Self {
        Self {
            field: field.field.to_owned(),
            part: field.part,
            organization: field.organization.clone(),
            property: field.property.clone(),
            value: (&field.value).into(),
            is_current: field.is_set,
            superseded_by: field.superseded_by.clone(),
            superseded_by_entries: field.superseded_by_entries.clone(),
        }
    }
}

impl From<&record::Drift> for NextScan {
    fn from(drift: &record::Drift) -> Self {
        let fields = drift.fields.iter().map(|field| field.key().to_owned()).collect();
        Self::Drift { kind: drift.kind, fields }
    }
}
