//! What an application reads of a user: the state, made visible.

use serde::Serialize;

use crate::{
    field::{Field, Group, Identity, Organization, Value},
    ids::UserId,
    observation::Source,
    state::UserState,
    version::Micros,
};

/// What a user document shows beyond the state: facts of the store, not of the user.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Whether the claimed email is this user's to show.
    pub holds_email: bool,
    /// Who shows the claimed email instead, if somebody does.
    pub email_held_by: Option<String>,
    /// When the row was made, by kinsync's clock.
    pub inserted_at: Micros,
    /// When the row was last changed, by kinsync's clock.
    pub updated_at: Micros,
    /// Which way the last change came.
    pub source: Option<Source>,
}

/// A user as an application reads it. Instants are microseconds since 1970 here; each store and
/// each route writes them in its own way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are those of the user document")]
pub struct UserDocument {
    pub kinde_id: UserId,
    pub email: Option<String>,
    /// Who holds the address that this user has at Kinde, when it is not this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_conflict: Option<EmailConflict>,
    pub email_verified: Option<bool>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub phone: Option<String>,
    pub username: Option<String>,
    pub picture: Option<String>,
    pub provided_id: Option<String>,
    pub organizations: Vec<Organization>,
    pub identities: Vec<Identity>,
    pub is_suspended: bool,
    pub is_password_reset_requested: bool,
    pub created_at: Micros,
    pub updated_at: Micros,
    pub last_seen_at: Option<Micros>,
    pub last_signed_in_at: Option<Micros>,
    pub is_deleted: bool,
    pub deleted_at: Option<Micros>,
    pub source: Option<Source>,
}

/// An address that another row holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EmailConflict {
    /// The address.
    pub email: String,
    /// The Kinde id of the holder, or the `_id` of a row that kinsync did not make. `None` while
    /// it is being settled.
    pub held_by: Option<String>,
}

impl UserDocument {
    /// The document of a user.
    pub fn new(id: &UserId, state: &UserState, standing: &Standing) -> Self {
        let text = |field| state.text(field).map(ToOwned::to_owned);
        let flag = |field| matches!(state.value(field), Some(Value::Flag(true)));
        Self {
            kinde_id: id.clone(),
            email: state.shown_email(standing).map(ToOwned::to_owned),
            email_conflict: state.email_conflict(standing),
            email_verified: match state.value(Field::EmailVerified) {
                Some(Value::Flag(verified)) => Some(*verified),
                _ => None,
            },
            first_name: text(Field::FirstName),
            last_name: text(Field::LastName),
            phone: text(Field::Phone),
            username: text(Field::Username),
            picture: text(Field::Picture),
            provided_id: text(Field::ProvidedId),
            organizations: state.organizations(),
            identities: match state.value(Field::Identities) {
                Some(Value::Identities(list)) => list.clone(),
                _ => Vec::new(),
            },
            is_suspended: flag(Field::IsSuspended),
            is_password_reset_requested: flag(Field::IsPasswordResetRequested),
            created_at: state.created_at(standing),
            updated_at: standing.updated_at,
            last_seen_at: state.last_seen,
            last_signed_in_at: state.last_signed_in,
            is_deleted: !state.is_live(),
            deleted_at: state.deleted_at(),
            source: standing.source,
        }
    }
}

impl UserState {
    /// The email that the document shows: the claimed one, if it is this user's to show.
    pub fn shown_email(&self, standing: &Standing) -> Option<&str> {
        self.claimed_email().filter(|_| standing.holds_email)
    }

    /// The claimed email that the document does not show, and who shows it.
    pub fn email_conflict(&self, standing: &Standing) -> Option<EmailConflict> {
        let email = self.claimed_email().filter(|_| !standing.holds_email)?;
        Some(EmailConflict { email: email.to_owned(), held_by: standing.email_held_by.clone() })
    }

    /// When the user came to be: Kinde's `created_on`, else the first event or snapshot that told a
    /// time, else when the row was made.
    pub fn created_at(&self, standing: &Standing) -> Micros {
        match (self.value(Field::CreatedOn), &self.first) {
            (Some(Value::Time(created_on)), _) => *created_on,
            (_, Some(first)) if first.at > Micros(0) => first.at,
            _ => standing.inserted_at,
        }
    }

    /// When the user was deleted, if the user is.
    pub fn deleted_at(&self) -> Option<Micros> {
        if self.is_live() { None } else { self.deleted.as_ref().map(|version| version.at) }
    }

    /// The user's memberships. Events tell them with roles, scans tell the codes alone: when a
    /// scan is newer, its codes decide and the known roles of those codes stay.
    pub fn organizations(&self) -> Vec<Organization> {
        let told = self.fields.get(&Field::Organizations);
        let scanned = self.fields.get(&Field::OrganizationCodes);
        let known: &[Organization] = match told.map(|register| &register.value) {
            Some(Value::Organizations(list)) => list,
            _ => &[],
        };
        match scanned.map(|register| (&register.version, &register.value)) {
            Some((version, Value::Codes(codes))) if told.is_none_or(|told| told.version < *version) => {
                codes.iter().map(|code| membership(code, known)).collect()
            }
            _ => known.to_vec(),
        }
    }

    /// The fields of one group that were ever told.
    pub fn told_in(&self, group: Group) -> impl Iterator<Item = (Field, &crate::Register)> {
        self.fields
            .iter()
            .map(|(field, register)| (*field, register))
            .filter(move |(f, _)| f.group() == group)
    }
}

fn membership(code: &str, known: &[Organization]) -> Organization {
    known.iter().find(|organization| organization.code == code).cloned().unwrap_or_else(|| Organization {
        code: code.to_owned(),
        roles: Vec::new(),
        permissions: Vec::new(),
    })
}
