use kinsync_core::{
    Field, Micros, Organization, Profile, Properties, RowMetadata, UserDocument, Value, Version, What,
};

use crate::strategies::{event, fold, named, snapshot, user};

fn organization(code: &str, role: &str) -> Organization {
    Organization {
        roles: Some(vec![role.to_owned()]),
        permissions: Some(Vec::new()),
        ..Organization::new(code)
    }
}

fn holding() -> RowMetadata {
    RowMetadata {
        holds_email: true,
        inserted_at: Micros(100),
        updated_at: Micros(200),
        ..RowMetadata::default()
    }
}

#[test]
fn a_newer_scan_decides_the_memberships_and_keeps_the_roles_from_events() {
    let memberships = vec![organization("org_a", "admin"), organization("org_b", "member")];
    let event = event(
        1,
        "e1",
        What::Fields(Profile::new().with(Field::Organizations, Value::Organizations(memberships))),
    );
    let codes = |at, codes: &[&str]| {
        let codes = Value::Codes(codes.iter().map(ToString::to_string).collect());
        snapshot(at, What::Fields(Profile::new().with(Field::OrganizationCodes, codes)))
    };
    let shown = |scan| fold([&event, &scan]).organizations().unwrap();
    let codes_of = |list: Vec<Organization>| list.into_iter().map(|o| (o.code, o.roles)).collect::<Vec<_>>();
    let newer = codes_of(shown(codes(2, &["org_b", "org_c"])));
    assert_eq!(newer, [("org_b".into(), Some(vec!["member".to_string()])), ("org_c".into(), None)]);
    assert_eq!(shown(codes(0, &["org_c"])).len(), 2, "an older scan decides nothing");
    let none = Profile::new().with(Field::OrganizationCodes, Value::Null);
    assert_eq!(shown(snapshot(2, What::Fields(none))), [], "null means no membership");
}

/// An observed value. Fields without a line here are texts.
fn observed(field: Field) -> Value {
    match field {
        Field::IsSuspended | Field::IsPasswordResetRequested | Field::EmailVerified => true.into(),
        Field::Organizations => Value::Organizations(vec![organization("org_a", "admin")]),
        Field::Identities => Value::Identities(Vec::new()),
        Field::CreatedOn => Micros(1).into(),
        Field::OrganizationCodes => Value::Codes(vec!["org_a".to_owned()]),
        Field::Properties => {
            let read = [("plan".to_owned(), Some("pro".to_owned()))];
            Value::Properties(Properties::read(read, &Version::snapshot(Micros(1), "")))
        }
        _ => "text".into(),
    }
}

#[test]
fn every_observed_field_is_in_the_document_under_its_key() {
    let profile = Field::ALL.into_iter().fold(Profile::new(), |all, field| all.with(field, observed(field)));
    let state = fold([&snapshot(1, What::Fields(profile))]);
    let document = serde_json::to_value(UserDocument::new(&user("kp_1"), &state, &holding())).unwrap();
    for field in Field::ALL {
        let key = match field {
            Field::CreatedOn => "createdAt",
            Field::OrganizationCodes => "organizations",
            field => field.key(),
        };
        assert!(document.get(key).is_some(), "{key} is missing in {document}");
    }
}

#[test]
fn what_no_source_has_observed_is_absent_and_what_is_known_to_be_empty_is_empty() {
    let json = |profile: Profile| {
        let state = fold([&snapshot(1, What::Fields(profile))]);
        serde_json::to_value(UserDocument::new(&user("kp_1"), &state, &holding())).unwrap()
    };
    let unknown = json(named("Ada"));
    for key in ["organizations", "identities", "isSuspended", "isPasswordResetRequested"] {
        assert_eq!(unknown.get(key), None, "{key}");
    }
    let codes = Value::Codes(vec!["org_a".to_owned()]);
    let from_scan = json(Profile::new().with(Field::OrganizationCodes, codes));
    assert_eq!(from_scan["organizations"], serde_json::json!([{ "code": "org_a" }]));
    let empty = json(
        Profile::new()
            .with(Field::Organizations, Value::Organizations(Vec::new()))
            .with(Field::Identities, Value::Identities(Vec::new()))
            .with(Field::IsSuspended, false),
    );
    assert_eq!(empty["organizations"], serde_json::json!([]));
    assert_eq!(empty["identities"], serde_json::json!([]));
    assert_eq!(empty["isSuspended"], false);
}

#[test]
fn a_conflict_names_the_address_and_the_user_that_shows_it() {
    let state = fold([&event(1, "e1", What::Fields(Profile::new().with(Field::Email, "a@example.com")))]);
    let shown = UserDocument::new(&user("kp_1"), &state, &holding());
    assert_eq!(shown.email.as_deref(), Some("a@example.com"));
    assert_eq!(shown.email_conflict, None);
    let held = RowMetadata { holds_email: false, email_held_by: Some("kp_2".into()), ..holding() };
    let hidden = UserDocument::new(&user("kp_1"), &state, &held);
    assert_eq!(hidden.email, None);
    let conflict = hidden.email_conflict.unwrap();
    assert_eq!((conflict.email.as_str(), conflict.held_by.as_deref()), ("a@example.com", Some("kp_2")));
}

#[test]
fn a_tombstone_shows_the_time_of_deletion_and_no_email() {
    let profile = named("Ada").with(Field::Email, "a@example.com");
    let state = fold([&event(1, "e1", What::Fields(profile)), &event(5, "e5", What::Deleted)]);
    let document = UserDocument::new(&user("kp_1"), &state, &holding());
    assert!(document.is_deleted);
    assert_eq!(document.deleted_at, Some(Micros(5)));
    assert_eq!(document.email, None);
    assert_eq!(document.email_conflict, None);
}

#[test]
fn created_at_prefers_the_time_from_kinde() {
    let first = event(7, "e7", What::Fields(named("Ada")));
    let created = snapshot(9, What::Fields(Profile::new().with(Field::CreatedOn, Micros(3))));
    let at = |state: &kinsync_core::UserState| state.created_at(&holding());
    assert_eq!(at(&fold([&first, &created])), Micros(3));
    assert_eq!(at(&fold([&first])), Micros(7));
    assert_eq!(at(&fold([])), Micros(100), "the time of insertion");
    let timeless = event(0, "e0", What::Fields(named("Ada")));
    assert_eq!(at(&fold([&timeless])), Micros(100), "not 1970");
}
