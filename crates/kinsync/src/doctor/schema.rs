//! Whether Kinde's own schemas of its events still name what is read of a user.

use std::collections::BTreeSet;

use kinde::{event::User, management::EventType};

/// Events that tell fields of a user.
const TELLING: [&str; 2] = ["user.created", "user.updated"];
/// What Kinde's schema of `user.updated` has (seen in its documentation in 2026-04). It leaves out `email` and `username`,
/// which events have all the same, so that these are not missed here.
const DECLARED: [&str; 7] = [
    "id",
    "first_name",
    "last_name",
    "phone",
    "is_suspended",
    "is_password_reset_requested",
    "organizations",
];

/// What of a user Kinde no longer declares, and what it declares that is not read; each with its event.
pub(super) fn differences(types: &[EventType]) -> Vec<String> {
    let telling = types.iter().filter(|kind| TELLING.contains(&kind.code.as_str()));
    telling.flat_map(of_type).collect()
}

/// Nothing, where the schema does not say what a user has.
fn of_type(kind: &EventType) -> Vec<String> {
    let user = kind
        .schema
        .as_ref()
        .and_then(|schema| schema.pointer("/properties/data/properties/user/properties")?.as_object());
    let Some(user) = user else { return Vec::new() };
    let declared: BTreeSet<&str> = user.keys().map(String::as_str).collect();
    let gone = DECLARED.into_iter().filter(|name| !declared.contains(name));
    let new = declared.iter().filter(|name| !User::MEMBERS.contains(name));
    let gone = gone.map(|name| format!("{} has no {name} any more", kind.code));
    gone.chain(new.map(|name| format!("{} has {name}, which is not read", kind.code))).collect()
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
    fn what_a_schema_no_longer_names_or_newly_names_is_told() {
        check("user.updated", &DECLARED, &[]);
        check("user.created", &User::MEMBERS, &[]);
        let without = &DECLARED[..6];
        check("user.updated", without, &["user.updated has no organizations any more"]);
        let with = [&User::MEMBERS[..], &["nickname"]].concat();
        check("user.created", &with, &["user.created has nickname, which is not read"]);
        check("user.deleted", &["id"], &[]);
        let says_nothing = kind("user.updated", json!({ "properties": { "data": { "type": "object" } } }));
        assert_eq!(differences(&[says_nothing]), Vec::<String>::new());
    }
}
