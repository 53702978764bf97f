//! Maps the user formats of Kinde to fields: of events, of the Management API, and of the profile endpoint.
//!
//! Pure. A new synced field needs one line for each format that carries it.

use kinde::{Patch, account::UserProfile, event, management};
use kinsync_core::{Field, Identity, Micros, Organization, Profile, Value};

/// Returns the fields of a user in an event.
pub fn of_event(user: event::User) -> Profile {
    // Without `..`, so that the compiler finds a member of Kinde that is not decided here.
    let event::User {
        id: _,
        email,
        first_name,
        last_name,
        phone,
        username,
        is_suspended,
        is_password_reset_requested,
        organizations,
        extra: _,
    } = user;
    let mut builder = ProfileBuilder::default();
    builder.text(Field::Email, email);
    builder.text(Field::FirstName, first_name);
    builder.text(Field::LastName, last_name);
    builder.text(Field::Phone, phone);
    builder.text(Field::Username, username);
    builder.set(Field::IsSuspended, is_suspended.map(Value::Flag));
    builder.set(Field::IsPasswordResetRequested, is_password_reset_requested.map(Value::Flag));
    builder.set(Field::Organizations, organizations.map(memberships));
    builder.0
}

/// Returns the fields of a user of the Management API, from the list or from a single read. Its sign-in counters are not
/// synced.
pub fn of_user(user: management::User) -> Profile {
    let mut builder = ProfileBuilder::default();
    builder.text(Field::Email, user.email);
    builder.text(Field::FirstName, user.first_name);
    builder.text(Field::LastName, user.last_name);
    builder.text(Field::Phone, user.phone);
    builder.text(Field::Username, user.username);
    builder.text(Field::Picture, user.picture);
    builder.text(Field::ProvidedId, user.provided_id);
    builder.set(Field::IsSuspended, user.is_suspended.map(Value::Flag));
    builder.set(Field::OrganizationCodes, user.organizations.map(Value::Codes));
    builder.set(Field::Identities, user.identities.map(sign_in_identities));
    if let Some(created_on) = user.created_on {
        builder.set(Field::CreatedOn, Patch::Value(Value::Time(Micros(created_on.as_microsecond()))));
    }
    builder.0
}

/// Returns the fields of a response of the profile endpoint.
pub fn of_profile(profile: UserProfile) -> Profile {
    let mut builder = ProfileBuilder::default();
    builder.text(Field::Email, profile.email);
    builder.text(Field::FirstName, profile.given_name);
    builder.text(Field::LastName, profile.family_name);
    builder.text(Field::Username, profile.preferred_username);
    builder.text(Field::Picture, profile.picture);
    builder.text(Field::ProvidedId, profile.provided_id);
    builder.set(Field::EmailVerified, profile.email_verified.map(Value::Flag));
    builder.0
}

#[derive(Default)]
struct ProfileBuilder(Profile);

impl ProfileBuilder {
    fn text(&mut self, field: Field, text: Patch<String>) {
        self.set(field, text.map(|text| Value::Text(text.into())));
    }

    fn set(&mut self, field: Field, value: Patch<Value>) {
        match value {
            Patch::Absent => {}
            Patch::Null => self.0.set(field, Value::Null),
            Patch::Value(value) => self.0.set(field, value),
        }
    }
}

fn memberships(list: Vec<event::Membership>) -> Value {
    let ids = |named: Patch<Vec<event::Assignment>>| {
        let mut ids: Vec<String> = match named {
            Patch::Absent => return None,
            Patch::Null => Vec::new(),
            Patch::Value(named) => named.into_iter().filter_map(|named| named.id.or(named.key)).collect(),
        };
        ids.sort();
        Some(ids)
    };
    let membership = |organization: event::Membership| Organization {
        roles: ids(organization.roles),
        permissions: ids(organization.permissions),
        ..Organization::new(organization.code)
    };
    Value::Organizations(list.into_iter().map(membership).collect())
}

fn sign_in_identities(list: Vec<management::Identity>) -> Value {
    let entry = |one: management::Identity| Identity { kind: one.identity_type, identity: one.identity };
    Value::Identities(list.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;

    use super::*;

    /// A user with all members, of which only the presence matters here.
    fn complete() -> (event::User, management::User, UserProfile) {
        let event = event::User {
            is_suspended: Patch::Null,
            is_password_reset_requested: Patch::Null,
            organizations: Patch::Null,
            ..event::User::default()
        };
        let mut user = management::User::default();
        (user.email, user.first_name, user.last_name) = (Patch::Null, Patch::Null, Patch::Null);
        (user.phone, user.username, user.picture) = (Patch::Null, Patch::Null, Patch::Null);
        (user.provided_id, user.organizations, user.identities) = (Patch::Null, Patch::Null, Patch::Null);
        user.created_on = Some(Timestamp::UNIX_EPOCH);
        let mut profile = UserProfile::default();
        profile.email_verified = Patch::Null;
        (event, user, profile)
    }

    #[test]
    fn every_field_has_a_source() {
        let (event, user, profile) = complete();
        let profiles = [of_event(event), of_user(user), of_profile(profile)];
        let sources: BTreeSet<Field> =
            profiles.iter().flat_map(Profile::iter).map(|(field, _)| field).collect();
        // Properties have a list of their own.
        let others = Field::ALL.into_iter().filter(|field| *field != Field::Properties);
        assert_eq!(sources, others.collect());
    }
}
