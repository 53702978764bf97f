//! Serializes users for the Management API, without intermediate values because pages are large.
//!
//! Source: <https://docs.kinde.com/kinde-apis/management/>.

use jiff::Timestamp;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::{Membership, User};
use crate::clock::ApiTime;
use crate::config::Missing;

/// The response in which a user is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An item of `GET /api/v1/users`.
    List,
    /// An item of `GET /api/v1/search/users`, without the phone number.
    Searched,
    /// The response of `GET /api/v1/user`, where the email is called `preferred_email`.
    Single,
}

/// The parts that `expand` requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expand {
    organizations: bool,
    identities: bool,
    billing: bool,
}

impl Expand {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let has = |name| text.unwrap_or_default().split(',').any(|part| part.trim() == name);
        Self { organizations: has("organizations"), identities: has("identities"), billing: has("billing") }
    }
}

/// A user in a response.
pub(crate) struct Shown<'a> {
    pub(crate) user: &'a User,
    pub(crate) shape: Shape,
    pub(crate) expand: Expand,
    pub(crate) missing: Missing,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { user, shape, expand, missing } = *self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &user.id)?;
        let email = if shape == Shape::Single { "preferred_email" } else { "email" };
        let texts = [
            ("provided_id", &user.provided_id),
            (email, &user.email),
            ("phone", &user.phone),
            ("username", &user.username),
            ("last_name", &user.last_name),
            ("first_name", &user.first_name),
            ("picture", &user.picture),
        ];
        for (name, value) in
            texts.into_iter().filter(|(name, _)| shape != Shape::Searched || *name != "phone")
        {
            optional(&mut map, name, value.as_deref(), missing)?;
        }
        map.serialize_entry("is_suspended", &user.is_suspended)?;
        map.serialize_entry("total_sign_ins", &user.total_sign_ins)?;
        map.serialize_entry("failed_sign_ins", &user.failed_sign_ins)?;
        map.serialize_entry("last_signed_in", &user.last_signed_in.map(ApiTime))?;
        map.serialize_entry("created_on", &ApiTime(user.created_on))?;
        if shape == Shape::List {
            let sign_ins = user.last_signed_in.map(|at| organization_sign_ins(&user.organizations, at));
            map.serialize_entry("last_organization_sign_ins", &sign_ins)?;
        }
        if expand.organizations {
            let codes: Vec<&str> = user.organizations.iter().map(|org| org.code.as_str()).collect();
            map.serialize_entry("organizations", &codes)?;
        }
        if expand.identities {
            map.serialize_entry("identities", &identities(user, shape))?;
        }
        if expand.billing && shape != Shape::Searched {
            map.serialize_entry("billing", &Billing::of(user))?;
        }
        map.end()
    }
}

/// Serializes a text or the representation of an absent one.
pub(crate) fn optional<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    value: Option<&str>,
    missing: Missing,
) -> Result<(), M::Error> {
    match (value, missing) {
        (Some(text), _) => map.serialize_entry(name, text),
        (None, Missing::Null) => map.serialize_entry(name, &()),
        (None, Missing::Empty) => map.serialize_entry(name, ""),
        (None, Missing::Absent) => Ok(()),
    }
}

#[derive(Serialize)]
struct OrganizationSignIn<'a> {
    org_code: &'a str,
    last_signed_in: ApiTime,
}

fn organization_sign_ins(organizations: &[Membership], at: Timestamp) -> Vec<OrganizationSignIn<'_>> {
    let codes = organizations.iter().map(|org| org.code.as_str());
    codes.map(|org_code| OrganizationSignIn { org_code, last_signed_in: ApiTime(at) }).collect()
}

#[derive(Serialize)]
struct Identity<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "identity")]
    value: &'a str,
    /// Only in the list; `null` for an identity without a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_id: Option<()>,
}

fn identities(user: &User, shape: Shape) -> Vec<Identity<'_>> {
    let all = [("email", &user.email), ("phone", &user.phone), ("username", &user.username)];
    let present = all.into_iter().filter_map(|(kind, value)| Some((kind, value.as_deref()?)));
    let connection_id = (shape == Shape::List).then_some(());
    present.map(|(kind, value)| Identity { kind, value, connection_id }).collect()
}

#[derive(Serialize)]
struct Billing {
    customer_id: String,
}

impl Billing {
    fn of(user: &User) -> Self {
        Self { customer_id: format!("customer_{}", user.id.trim_start_matches("kp_")) }
    }
}

/// The response of `PATCH /api/v1/user`.
pub(crate) struct Updated<'a> {
    pub(crate) user: &'a User,
    pub(crate) missing: Missing,
}

impl Serialize for Updated<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { user, missing } = *self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &user.id)?;
        optional(&mut map, "given_name", user.first_name.as_deref(), missing)?;
        optional(&mut map, "family_name", user.last_name.as_deref(), missing)?;
        optional(&mut map, "email", user.email.as_deref(), missing)?;
        map.serialize_entry("is_suspended", &user.is_suspended)?;
        map.serialize_entry("is_password_reset_requested", &user.is_password_reset_requested)?;
        map.serialize_entry("picture", &user.picture)?;
        map.end()
    }
}

/// A page of `GET /api/v1/users`.
pub(crate) struct Page<'a> {
    pub(crate) users: &'a [User],
    pub(crate) next_token: Option<String>,
    pub(crate) expand: Expand,
    pub(crate) missing: Missing,
}

impl Serialize for Page<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", "OK")?;
        map.serialize_entry("message", "Success")?;
        map.serialize_entry("users", &Users(self))?;
        optional(&mut map, "next_token", self.next_token.as_deref(), self.missing)?;
        map.end()
    }
}

struct Users<'a>(&'a Page<'a>);

impl Serialize for Users<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Page { users, expand, missing, .. } = self.0;
        let (expand, missing) = (*expand, *missing);
        serializer.collect_seq(users.iter().map(|user| Shown { user, shape: Shape::List, expand, missing }))
    }
}
