//! The parts of memberships and the properties in an explanation: each has an outcome of its own.

use kinsync_core::{
    Field, Micros, Observation, Organization, Profile, Properties, Source, UserId, Value, Version, What,
};
use kinsync_engine::internal::{
    explain::{ExplainedField, ExplainedObservation, explain},
    store::EventFilter,
};

use crate::{
    pipeline::{deliver, event_entry},
    rebuild::{id, observe},
    roles::keys,
    stores::{Fresh, on_every_store},
};

on_every_store! {
    an_event_still_sets_roles_after_a_newer_list_of_codes
    a_list_without_an_organization_supersedes_its_parts_and_no_other_ones
    a_read_of_a_membership_supersedes_roles_and_the_permissions_that_they_make_unknown
    a_read_of_one_property_supersedes_no_other_one
}

const USER: &str = "kp_ada";

/// A read of Kinde, seconds after the time of the events.
fn read(at: i64, what: What) -> Observation {
    let version = Version::snapshot(Micros((1_700_000_000 + at) * 1_000_000), format!("h{at}"));
    Observation { user: id(USER), version, source: Source::Reconcile, what }
}

fn codes(codes: &[&str]) -> What {
    What::Fields(Profile::new().with(Field::OrganizationCodes, Value::Codes(keys(codes))))
}

async fn explained(fresh: &Fresh) -> Vec<ExplainedObservation> {
    let row = fresh.store.load(&[UserId::parse(USER).expect("an id")]).await.expect("the store answers");
    let filter = EventFilter { user: Some(USER.into()), limit: 100, ..EventFilter::default() };
    let events = fresh.store.events(&filter).await.expect("the store answers");
    explain(row[0].as_ref(), &events)
}

/// The parts of the memberships in the only observation of this type, or with this id.
fn parts(explained: &[ExplainedObservation], name: &str) -> Vec<String> {
    let is_it = |one: &&ExplainedObservation| one.kind == name || one.event_id.as_deref() == Some(name);
    let [one] = explained.iter().filter(is_it).collect::<Vec<_>>()[..] else { panic!("{explained:?}") };
    let part = |field: &ExplainedField| {
        let value = match &field.value {
            Value::Codes(keys) => keys.join(" and "),
            Value::Flag(flag) => flag.to_string(),
            other => format!("{other:?}"),
        };
        // Without the time.
        let by = field.superseded_by.as_deref().and_then(|by| by.split(" of ").next());
        let outcome = match (field.is_set, by) {
            (true, None) => "set".to_owned(),
            (false, Some(by)) => format!("superseded by {by}"),
            (false, None) => "not in the store".to_owned(),
            (true, Some(by)) => panic!("set and superseded by {by}"),
        };
        let organization = field.organization.as_deref().unwrap_or("any other");
        format!("{organization} {:?} = {value}: {outcome}", field.part.expect("a part of a membership"))
    };
    one.fields.iter().filter(|field| field.field == "organizations").map(part).collect()
}

fn event(at: i64, event_id: &str, organizations: &str) -> kinsync_engine::internal::queue::Entry {
    event_entry(
        "user.updated",
        at,
        event_id,
        &format!(r#"{{"id":"{USER}","organizations":{organizations}}}"#),
    )
}

async fn an_event_still_sets_roles_after_a_newer_list_of_codes(fresh: Fresh) {
    let listed =
        r#"[{"code":"org_1","roles":[{"id":"r1","key":"admin"}],"permissions":[{"id":"p1","key":"read"}]}]"#;
    let (engine, _dir) = deliver(&fresh, [event(1, "e1", listed)]).await;
    engine.stop().await;
    observe(&*fresh.store, [read(2, codes(&["org_1"]))]).await;
    let explained = explained(&fresh).await;
    let expected = [
        "org_1 Member = true: superseded by kinsync.check.read",
        "org_1 Roles = admin: set",
        "org_1 Permissions = read: set",
        "any other Member = false: superseded by kinsync.check.read",
    ];
    assert_eq!(parts(&explained, "e1"), expected, "{}", fresh.name);
    let expected = ["org_1 Member = true: set", "any other Member = false: set"];
    assert_eq!(parts(&explained, "kinsync.check.read"), expected, "{}", fresh.name);
    let outcomes: Vec<&str> = explained.iter().map(|one| one.outcome.as_str()).collect();
    assert_eq!(outcomes, ["set 2 of 4 fields", "set 2 of 2 fields"], "{}", fresh.name);
}

async fn a_list_without_an_organization_supersedes_its_parts_and_no_other_ones(fresh: Fresh) {
    let both = r#"[{"code":"org_1","roles":[{"id":"r1","key":"admin"}]},{"code":"org_2","roles":[{"id":"r2","key":"member"}]}]"#;
    let one = r#"[{"code":"org_1"}]"#;
    let (engine, _dir) = deliver(&fresh, [event(1, "e1", both), event(2, "e2", one)]).await;
    engine.stop().await;
    let expected = [
        "org_1 Member = true: superseded by user.updated e2",
        "org_1 Roles = admin: set",
        "org_2 Member = true: superseded by user.updated e2",
        "org_2 Roles = r2: superseded by user.updated e2",
        "any other Member = false: superseded by user.updated e2",
    ];
    assert_eq!(parts(&explained(&fresh).await, "e1"), expected, "{}", fresh.name);

    // The member joins again, so the newer list and not the absence supersedes the membership; the roles stay removed.
    observe(&*fresh.store, [read(3, codes(&["org_1", "org_2"]))]).await;
    let explained = explained(&fresh).await;
    let expected = [
        "org_1 Member = true: superseded by kinsync.check.read",
        "org_1 Roles = admin: set",
        "org_2 Member = true: superseded by kinsync.check.read",
        "org_2 Roles = r2: superseded by user.updated e2",
        "any other Member = false: superseded by kinsync.check.read",
    ];
    assert_eq!(parts(&explained, "e1"), expected, "{}", fresh.name);
}

async fn a_read_of_a_membership_supersedes_roles_and_the_permissions_that_they_make_unknown(fresh: Fresh) {
    let listed =
        r#"[{"code":"org_1","roles":[{"id":"r1","key":"admin"}],"permissions":[{"id":"p1","key":"read"}]}]"#;
    let (engine, _dir) = deliver(&fresh, [event(1, "e1", listed)]).await;
    engine.stop().await;
    let membership = Organization { roles: Some(Vec::new()), ..Organization::new("org_1") };
    let what = |membership| What::Membership { code: "org_1".into(), membership };
    observe(&*fresh.store, [read(2, what(Some(membership)))]).await;
    let expected = [
        "org_1 Member = true: superseded by kinsync.check.read",
        "org_1 Roles = r1: superseded by kinsync.check.read",
        "org_1 Permissions = p1: superseded by kinsync.check.read",
        "any other Member = false: set",
    ];
    let read_parts = ["org_1 Member = true: set", "org_1 Roles = : set"];
    let found = explained(&fresh).await;
    assert_eq!(parts(&found, "e1"), expected, "{}", fresh.name);
    assert_eq!(parts(&found, "kinsync.check.read"), read_parts, "{}", fresh.name);
    assert_eq!(found[1].outcome, "is a member of org_1; set 2 of 2 fields");

    // Of a read that is not in the log, the parts that it still determines.
    let row = fresh.store.load(&[id(USER)]).await.expect("the store answers");
    assert_eq!(parts(&explain(row[0].as_ref(), &[]), "read"), read_parts, "{}", fresh.name);

    // A read without the membership removes it.
    observe(&*fresh.store, [read(3, what(None))]).await;
    let found = explained(&fresh).await;
    assert_eq!(parts(&found, "e1")[3], "any other Member = false: set", "{}", fresh.name);
    let outcomes: Vec<&str> = found.iter().map(|one| one.outcome.as_str()).collect();
    let expected =
        ["set 1 of 4 fields", "is a member of org_1; superseded", "is no member of org_1; set 1 of 1 field"];
    assert_eq!(outcomes, expected, "{}", fresh.name);
}

async fn a_read_of_one_property_supersedes_no_other_one(fresh: Fresh) {
    let properties = |at, values: &[(&str, &str)]| {
        let version = read(at, What::Deleted).version;
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
        let values = Properties::read(values, &version);
        let what = What::Fields(Profile::new().with(Field::Properties, Value::Properties(values)));
        Observation { what, ..read(at, What::Deleted) }
    };
    let both = properties(1, &[("plan", "pro"), ("tier", "gold")]);
    observe(&*fresh.store, [both]).await;
    observe(&*fresh.store, [properties(2, &[("plan", "free")])]).await;
    let shown = |explained: &[ExplainedObservation]| {
        let field = |one: &ExplainedField| {
            let key = one.property.clone().expect("a property");
            (key, one.value.clone(), one.is_set, one.superseded_by.is_some())
        };
        explained.iter().map(|one| one.fields.iter().map(field).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let one = |key: &str, value: &str, is_set: bool| (key.to_owned(), Value::from(value), is_set, !is_set);
    let (plan, tier) = (one("plan", "free", true), one("tier", "gold", true));
    let logged = explained(&fresh).await;
    assert_eq!(shown(&logged), [vec![one("plan", "pro", false), tier.clone()], vec![plan.clone()]]);
    assert!(logged[0].outcome.contains("set 1 of 2"), "{}", logged[0].outcome);
    // Both reads still determine a value when the log does not have them.
    let row = fresh.store.load(&[id(USER)]).await.expect("the store answers");
    assert_eq!(shown(&explain(row[0].as_ref(), &[])), [vec![tier], vec![plan]]);
}
