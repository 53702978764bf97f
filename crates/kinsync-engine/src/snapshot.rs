//! Decodes responses of the Management API and of the profile endpoint into fields.
//!
//! Pure. The version of a read is the time of its request by Kinde's clock, so that an event during the read wins.

use aws_lc_rs::digest::{SHA256, digest};
use kinde::{Patch, account::UserProfile, management, response::RequestTiming};
use kinsync_core::{Field, Identity, Micros, Profile, Value, Version};

/// Returns the version of a read with this request time, by Kinde's clock, and this content.
pub fn version(sent_at: Micros, profile: &Profile) -> Version {
    Version::snapshot(sent_at, hash(profile))
}

/// Returns the time of a request by Kinde's clock.
pub fn sent_at(timing: &RequestTiming) -> Micros {
    Micros(timing.as_of.as_microsecond())
}

/// Returns a time, by Kinde's clock, after which the response contains no change.
pub fn not_after(timing: &RequestTiming) -> Micros {
    Micros(timing.not_after.as_microsecond())
}

/// Returns whether a read can determine this field. For [`Field::Organizations`] it determines the memberships, not the
/// roles.
pub fn can_observe(field: Field) -> bool {
    field != Field::IsPasswordResetRequested
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
    builder.set(Field::Identities, user.identities.map(identities));
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

fn identities(list: Vec<management::Identity>) -> Value {
    let entry = |one: management::Identity| Identity { kind: one.identity_type, identity: one.identity };
    Value::Identities(list.into_iter().map(entry).collect())
}

/// Returns the first half of the SHA-256 of the content as hex: a deterministic tie-break between reads of one instant.
fn hash(profile: &Profile) -> String {
    let content =
        serde_json::to_vec(&profile.iter().collect::<Vec<_>>()).expect("fields and their values are JSON");
    let digest = digest(&SHA256, &content);
    digest.as_ref()[..16].iter().fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"))
}
