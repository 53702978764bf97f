//! The user document that an application reads, derived from the state and the metadata.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{
    field::{Field, Identity, Organization, Value},
    ids::UserId,
    observation::Source,
    rfc3339,
    state::UserState,
    version::Micros,
};

/// Metadata that the store keeps beside the state of a user. Describes the stored document, not the user at Kinde.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RowMetadata {
    /// Whether the document shows the claimed email address.
    pub holds_email: bool,
    /// Whether the document shows an email address of the application that kinsync does not replace. The user then does not
    /// compete for the claimed address.
    pub keeps_email: bool,
    /// Whether the document shows the address in lower case. Users then compete for the address in that form.
    pub lowercases_email: bool,
    /// Kinde id or `_id` of the document that shows the claimed email address instead, if one does.
    pub email_held_by: Option<String>,
    /// Time at which the row was inserted, by kinsync's clock.
    pub inserted_at: Micros,
    /// Time at which the row was last changed, by kinsync's clock.
    pub updated_at: Micros,
    /// Source of the newest change.
    pub source: Option<Source>,
    /// Number of the comparison, in the order of the store, by which a scan first found the fields of this row equal to
    /// Kinde's or repaired them; `None`: no scan did, and no proof of a scan covers the row.
    pub compared_since: Option<i64>,
    /// Number of the newest comparison that the writer of the newest change of a field had read; `None`: a scan has
    /// compared the row since that change.
    pub changed_after: Option<i64>,
}

/// A user as an application reads it. In JSON instants are RFC 3339 text, and what is not known is absent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = User))]
#[serde(rename_all = "camelCase")]
pub struct UserDocument {
    /// The id at Kinde.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kinde_id: UserId,
    /// The email address, if this user may show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The email address that this user has at Kinde and another document shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_conflict: Option<EmailConflict>,
    /// Whether Kinde verified the email address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_verified: Option<bool>,
    /// The first name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_name: Option<String>,
    /// The last name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_name: Option<String>,
    /// The phone number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// The username.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The address of the picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The id that the application gave the user at Kinde.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provided_id: Option<String>,
    /// Memberships. Empty if the user has none, absent while no source has listed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organizations: Option<Vec<Organization>>,
    /// Sign-in identities. Empty if the user has none, absent while no source has listed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<Identity>>,
    /// Values of the properties of the settings, by key. A property without a value is absent. Absent while no scan has read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<BTreeMap<String, String>>,
    /// Whether Kinde refuses sign-ins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_suspended: Option<bool>,
    /// Whether the next sign-in requires a new password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_password_reset_requested: Option<bool>,
    /// When the user was created.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Micros,
    /// When kinsync last changed the document.
    #[serde(with = "rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub updated_at: Micros,
    /// When the user last made an authenticated request.
    #[serde(with = "rfc3339::optional", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub last_seen_at: Option<Micros>,
    /// When the user last signed in at Kinde.
    #[serde(with = "rfc3339::optional", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub last_signed_in_at: Option<Micros>,
    /// Whether the user is deleted.
    pub is_deleted: bool,
    /// When the user was deleted.
    #[serde(with = "rfc3339::optional", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub deleted_at: Option<Micros>,
    /// The source of the newest change: `webhook`, `login`, `profile` or `reconcile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub source: Option<Source>,
    /// Values of the application that the document shows under kinsync's keys, by key. kinsync does not change them; the
    /// other members of this object contain the values of kinsync.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::HashMap<String, serde_json::Value>))]
    pub kept: BTreeMap<String, serde_json::Value>,
}

/// An email address that another document shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EmailConflict {
    /// The email address.
    pub email: String,
    /// The Kinde id of the document that shows it, or the `_id` of one that the application created. Absent while the
    /// ownership is not decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
}

impl UserDocument {
    /// Builds the document of a user.
    pub fn new(id: &UserId, state: &UserState, metadata: &RowMetadata) -> Self {
        let text = |field| state.text(field).map(ToOwned::to_owned);
        let flag = |field| match state.value(field) {
            Some(Value::Flag(flag)) => Some(*flag),
            _ => None,
        };
        Self {
            kinde_id: id.clone(),
            email: state
                .shown_email(metadata)
                .or_else(|| state.claimed_email().filter(|_| metadata.keeps_email).map(Cow::Borrowed))
                .map(Cow::into_owned),
            email_conflict: state.email_conflict(metadata),
            email_verified: flag(Field::EmailVerified),
            first_name: text(Field::FirstName),
            last_name: text(Field::LastName),
            phone: text(Field::Phone),
            username: text(Field::Username),
            picture: text(Field::Picture),
            provided_id: text(Field::ProvidedId),
            organizations: state.organizations(),
            identities: state.value(Field::Identities).map(|value| match value {
                Value::Identities(list) => list.clone(),
                _ => Vec::new(),
            }),
            properties: state.properties().map(|properties| {
                properties.values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
            }),
            is_suspended: flag(Field::IsSuspended),
            is_password_reset_requested: flag(Field::IsPasswordResetRequested),
            created_at: state.created_at(metadata),
            updated_at: metadata.updated_at,
            last_seen_at: state.last_seen,
            last_signed_in_at: state.last_signed_in,
            is_deleted: !state.is_live(),
            deleted_at: state.deleted_at(),
            source: metadata.source,
            kept: BTreeMap::new(),
        }
    }
}

impl UserState {
    /// Returns the email address that the document shows: the claimed one, unless another document shows it or this one
    /// keeps an address of the application.
    pub fn shown_email(&self, metadata: &RowMetadata) -> Option<Cow<'_, str>> {
        self.stored_email(metadata).filter(|_| metadata.holds_email && !metadata.keeps_email)
    }

    /// Returns the claimed email address in the form in which the document shows it.
    pub fn stored_email(&self, metadata: &RowMetadata) -> Option<Cow<'_, str>> {
        let email = self.claimed_email()?;
        Some(if metadata.lowercases_email { email.to_lowercase().into() } else { email.into() })
    }

    /// Returns the claimed email address that the document does not show, with the document that shows it.
    pub fn email_conflict(&self, metadata: &RowMetadata) -> Option<EmailConflict> {
        let email = self.stored_email(metadata).filter(|_| !metadata.holds_email && !metadata.keeps_email)?;
        Some(EmailConflict { email: email.into_owned(), held_by: metadata.email_held_by.clone() })
    }

    /// Returns the time at which the user was created: Kinde's `created_on`, else the time of the first event or
    /// snapshot, else the time at which the row was inserted.
    pub fn created_at(&self, metadata: &RowMetadata) -> Micros {
        match (self.value(Field::CreatedOn), self.first_version()) {
            (Some(Value::Time(created_on)), _) => *created_on,
            (_, Some(first)) if first.at > Micros(0) => first.at,
            _ => metadata.inserted_at,
        }
    }

    /// Returns the time of the deletion, or `None` for a live user.
    pub fn deleted_at(&self) -> Option<Micros> {
        if self.is_live() { None } else { self.deleted.as_ref().map(|version| version.at) }
    }

    /// Returns the memberships, sorted by code, or `None` while no source has listed all of them.
    pub fn organizations(&self) -> Option<Vec<Organization>> {
        self.memberships()?.shown(&self.directory)
    }
}
