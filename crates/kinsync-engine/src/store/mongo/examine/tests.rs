//! Indexes and validators, each with what is found.

use bson::{Document, doc};

use super::{indexes, validator, written::Written};
use crate::store::{
    Severity, StoreProblem,
    mongo::keys::{FieldMapping, Keys},
};

const ERROR: Option<Severity> = Some(Severity::Error);
const WARNING: Option<Severity> = Some(Severity::Warning);

fn written() -> Written {
    Written::by(&Keys::new(&FieldMapping::default()).expect("the default keys are valid"))
}

/// Examines one index with these options.
fn of_index(key: Document, options: Document) -> Vec<StoreProblem> {
    let mut index = doc! { "name": "own", "key": key };
    index.extend(options);
    indexes::indexes(&[index], &written(), "users")
}

fn check_index(key: Document, options: Document, expect: Option<Severity>) {
    let text = format!("{key} {options}");
    let found = of_index(key, options);
    assert_eq!(found.first().map(|problem| problem.severity), expect, "{text}: {found:?}");
}

#[test]
fn a_unique_index_conflicts_where_two_users_can_have_equal_keys() {
    let unique = || doc! { "unique": true };
    let sparse = || doc! { "unique": true, "sparse": true };
    let partial = |filter: Document| doc! { "unique": true, "partialFilterExpression": filter };
    check_index(doc! { "username": 1 }, doc! {}, None);
    for key in ["username", "phone", "email", "tenant", "profile.slug"] {
        check_index(doc! { key: 1 }, unique(), ERROR);
        check_index(doc! { key: 1 }, doc! { "unique": true, "hidden": true }, ERROR);
        check_index(doc! { key: 1 }, sparse(), None);
        check_index(doc! { key: 1 }, partial(doc! { key: { "$gt": "" } }), None);
        check_index(doc! { key: 1 }, partial(doc! { "isDeleted": false }), ERROR);
    }
    check_index(doc! { "kindeId": 1 }, unique(), None);
    check_index(doc! { "kindeId": 1, "tenant": 1 }, unique(), None);
    check_index(doc! { "tenant": 1, "email": 1 }, unique(), ERROR);
    check_index(doc! { "tenant": 1, "email": 1 }, sparse(), None);
    check_index(doc! { "isDeleted": 1, "email": 1 }, sparse(), ERROR);
    check_index(doc! { "tenant": 1, "email": 1 }, partial(doc! { "email": { "$exists": true } }), None);
    check_index(doc! { "slug": 1 }, partial(doc! { "tenant": { "$type": "string" } }), None);
    check_index(doc! { "slug": 1 }, partial(doc! { "tenant": { "$exists": false } }), ERROR);
    check_index(doc! { "organizations.code": 1 }, unique(), WARNING);
    check_index(doc! { "firstName": 1 }, sparse(), WARNING);
    let collated =
        |strength: i32| doc! { "unique": true, "collation": { "locale": "en", "strength": strength } };
    check_index(doc! { "kindeId": 1 }, collated(2), ERROR);
    check_index(doc! { "kindeId": 1 }, collated(3), None);
    let mut ignoring_case = partial(doc! { "email": { "$gt": "" } });
    ignoring_case.extend(collated(2));
    check_index(doc! { "email": 1 }, ignoring_case, WARNING);
}

#[test]
fn an_index_over_two_arrays_is_named() {
    check_index(doc! { "organizations.code": 1, "tags": 1 }, doc! {}, WARNING);
    check_index(doc! { "organizations.code": 1, "identities.kind": 1 }, doc! {}, WARNING);
    check_index(doc! { "organizations.code": 1, "organizations.roles": 1 }, doc! {}, None);
    check_index(doc! { "organizations.code": 1, "email": 1 }, doc! {}, None);
    check_index(doc! { "tags": 1, "email": 1 }, doc! {}, None);
}

#[test]
fn the_commands_that_resolve_an_index_are_named() {
    let fix = |key: Document| of_index(key, doc! { "unique": true }).remove(0).fix;
    let fixed = fix(doc! { "tenantId": 1, "profile.name": 1 });
    let commands = "db.users.dropIndex(\"own\"); db.users.createIndex({ tenantId: 1, \"profile.name\": 1 }, { name: \"own\", \
                    unique: true, partialFilterExpression: { tenantId: { $exists: true }, \"profile.name\": { $exists: true } } })";
    assert!(fixed.contains(commands), "{fixed}");
    assert!(fix(doc! { "email": 1 }).contains("`db.users.dropIndex(\"own\")`"));
}

/// Examines a validator. Returns the severities with the start of each finding.
fn of_validator(rule: Document, options: Document) -> Vec<StoreProblem> {
    let mut all = doc! { "validator": rule };
    all.extend(options);
    validator::validator(&all, &written(), "users")
}

fn check_validator(rule: Document, expect: &[(Severity, &str)]) {
    let text = rule.to_string();
    let found = of_validator(rule, doc! {});
    assert_eq!(found.len(), expect.len(), "{text}: {found:?}");
    for (problem, (severity, part)) in found.iter().zip(expect) {
        assert!(problem.severity == *severity && problem.what.contains(part), "{text}: {problem:?}");
    }
}

#[test]
fn a_validator_conflicts_where_it_refuses_what_kinsync_writes() {
    let schema = |schema: Document| doc! { "$jsonSchema": schema };
    let (error, warning) = (Severity::Error, Severity::Warning);
    check_validator(
        schema(doc! { "required": ["tenant", "kindeId", "createdAt", "_id"] }),
        &[(error, "`tenant`")],
    );
    check_validator(schema(doc! { "required": ["phone"] }), &[(error, "leaves out")]);
    check_validator(doc! { "tenant": { "$exists": true } }, &[(error, "`tenant`")]);
    check_validator(doc! { "$and": [{ "tenant": { "$type": "string" } }] }, &[(error, "`tenant`")]);
    check_validator(doc! { "tenant": { "$exists": false } }, &[]);
    let typed = |key: &str, kind: &str| schema(doc! { "properties": { key: { "bsonType": kind } } });
    check_validator(typed("kindeId", "int"), &[(error, "no user")]);
    check_validator(typed("createdAt", "string"), &[(warning, "the type date")]);
    check_validator(typed("createdAt", "date"), &[]);
    check_validator(typed("tenant", "int"), &[]);
    let restricted = doc! { "properties": { "source": { "enum": ["web"] }, "phone": { "pattern": "^x" } } };
    check_validator(schema(restricted), &[(warning, "`enum`"), (warning, "`pattern`")]);
    let closed = doc! { "additionalProperties": false, "properties": { "_id": {}, "kindeId": {} } };
    check_validator(schema(closed), &[(error, "`kinsync`")]);
    check_validator(doc! { "$expr": true }, &[(warning, "not examined")]);
    let demanding = || schema(doc! { "required": ["tenant"] });
    assert!(of_validator(demanding(), doc! { "validationAction": "warn" }).is_empty());
    assert!(of_validator(demanding(), doc! { "validationLevel": "off" }).is_empty());
}

#[test]
fn the_command_that_resolves_a_required_key_keeps_the_rest_of_the_validator() {
    let rule = doc! { "$jsonSchema": { "required": ["tenant", "kindeId"], "title": "user" } };
    let fix = of_validator(rule, doc! {}).remove(0).fix;
    let command = r#"db.runCommand({ collMod: "users", validator: {"$jsonSchema":{"required":["kindeId"],"title":"user"}} })"#;
    assert!(fix.contains(command), "{fix}");
    let only = doc! { "$jsonSchema": { "required": ["tenant"] } };
    let fix = of_validator(only, doc! {}).remove(0).fix;
    assert!(fix.contains(r#"validator: {"$jsonSchema":{}}"#), "{fix}");
}
