//! Compares Kinde's schemas of its events with the fields that kinsync reads.

use std::collections::BTreeSet;

use kinde::{
    event::{self, User},
    management::EventType,
};

/// Events that carry the fields of a user.
const WITH_FIELDS: [&str; 2] = [event::USER_CREATED, event::USER_UPDATED];
/// The fields in Kinde's schema of `user.updated` (in its documentation in 2026-04). The schema lacks `email` and `username`,
/// which events carry nevertheless.
const DECLARED: [&str; 7] = [
    "id",
    "first_name",
    "last_name",
    "phone",
    "is_suspended",
    "is_password_reset_requested",
    "organizations",
];

/// The fields that Kinde no longer declares, and those that it declares and kinsync does not read, each with its event.
pub(super) fn differences(types: &[EventType]) -> Vec<String> {
    let types = types.iter().filter(|kind| WITH_FIELDS.contains(&kind.code.as_str()));
    types.flat_map(of_type).collect()
}

/// Empty when the schema does not list the fields of a user.
fn of_type(kind: &EventType) -> Vec<String> {
    let user = kind
        .schema
        .as_ref()
        .and_then(|schema| schema.pointer("/properties/data/properties/user/properties")?.as_object());
    let Some(user) = user else { return Vec::new() };
    let declared: BTreeSet<&str> = user.keys().map(String::as_str).collect();
    let removed = DECLARED.into_iter().filter(|name| !declared.contains(name));
    let new = declared.iter().filter(|name| !User::MEMBERS.contains(name));
    let removed = removed.map(|name| format!("{} no longer has {name}", kind.code));
    removed.chain(new.map(|name| format!("{} has {name}, which kinsync does not read", kind.code))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(code: &str, members: &[&str], expect: &[&str]) {
        let user: Value = members.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
        let of_data = json!({ "properties": { "user": { "properties": user } } });
        assert_eq!(
            differences(&[kind(code, json!({ "properties": { "data": of_data } }))]),
            expect,
            "{code}"
        );
    }

    fn kind(code: &str, schema: Value) -> EventType {
        let mut kind = EventType::default();
        (kind.code, kind.schema) = (code.to_owned(), Some(schema));
        kind
    }

    #[test]
    fn a_field_that_a_schema_lacks_or_adds_is_reported() {
        check("user.updated", &DECLARED, &[]);
        check("user.created", &User::MEMBERS, &[]);
        let without = &DECLARED[..6];
        check("user.updated", without, &["user.updated no longer has organizations"]);
        let with = [&User::MEMBERS[..], &["nickname"]].concat();
        check("user.created", &with, &["user.created has nickname, which kinsync does not read"]);
        check("user.deleted", &["id"], &[]);
        let says_nothing = kind("user.updated", json!({ "properties": { "data": { "type": "object" } } }));
        assert_eq!(differences(&[says_nothing]), Vec::<String>::new());
    }
}
