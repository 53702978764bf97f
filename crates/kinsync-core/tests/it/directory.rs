//! The directory: any order of observations has one result, and a deletion holds against older observations.

use kinsync_core::{
    Directory, Entry, Fact, Field, Memberships, Micros, Organization, Profile, SharedEntries, UserState,
    Value, Version, What,
};
use proptest::{collection::vec, prelude::*};

use crate::strategies::{event, fold, shuffled_with_duplicates, version};

const IDS: [&str; 3] = ["org_a", "role", "permission"];

fn entry() -> impl Strategy<Value = Entry> {
    let text = prop::sample::select(vec!["a", "b"]);
    let fact = prop::sample::select(vec![Fact::Key, Fact::Name]);
    let observed = (fact, text, version())
        .prop_map(|(fact, text, version)| Entry::observed([(fact, Value::from(text))], &version));
    let given = prop::sample::subsequence(vec!["permission".to_owned(), "other".to_owned()], 0..=2);
    let listed = (given, version())
        .prop_map(|(given, version)| Entry::observed([(Fact::Permissions, Value::Codes(given))], &version));
    prop_oneof![3 => observed, 2 => listed, 1 => version().prop_map(|version| Entry::deleted(&version))]
}

fn observation() -> impl Strategy<Value = (String, Entry)> {
    (prop::sample::select(IDS.to_vec()), entry()).prop_map(|(id, entry)| (id.to_owned(), entry))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_order_with_any_duplicates_gives_the_same_directory(
        (original, shuffled) in vec(observation(), 0..9).prop_flat_map(shuffled_with_duplicates),
        at in 0_usize..9,
    ) {
        let directory: Directory = original.into_iter().collect();
        let (one, other) = shuffled.split_at(at.min(shuffled.len()));
        let joined = Directory::from_iter(one.to_vec()).join(Directory::from_iter(other.to_vec()));
        prop_assert_eq!(&joined, &directory);
        let text = serde_json::to_string(&directory).expect("texts and numbers are JSON");
        prop_assert_eq!(serde_json::from_str::<Directory>(&text).expect("what was written"), directory);
    }
}

fn at(micros: i64) -> Version {
    Version::event(Micros(micros), "e")
}

/// A member with a role, as an event at 5 lists it, of permissions that are known or not.
fn member(permissions: Option<&[&str]>) -> UserState {
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let (roles, permissions) = (Some(ids(&["role"])), permissions.map(ids));
    let membership = Organization { roles, permissions, ..Organization::new("org_a") };
    let list = Value::Organizations(vec![membership]);
    UserState::default().with_register(Field::Organizations, at(5), list)
}

fn shown_of(state: UserState, entries: Vec<(&'static str, Entry)>) -> Option<Vec<Organization>> {
    let known = IDS.map(|id| (id.to_owned(), Entry::default())).into_iter();
    let entries = entries.into_iter().map(|(id, entry)| (id.to_owned(), entry));
    state.with_directory(&known.chain(entries).collect()).organizations()
}

fn shown(entries: impl IntoIterator<Item = (&'static str, Entry)>) -> Option<Vec<Organization>> {
    shown_of(member(None), entries.into_iter().collect())
}

/// The permissions of a member with a permission that an event at 5 lists beside the role.
fn listed(entries: Vec<(&'static str, Entry)>) -> Option<Vec<String>> {
    shown_of(member(Some(&["permission"])), entries).expect("listed").remove(0).permissions
}

/// The role, with a list of its permissions at this time.
fn gives(ids: &[&str], micros: i64) -> (&'static str, Entry) {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    ("role", Entry::observed([(Fact::Permissions, Value::Codes(ids))], &at(micros)))
}

fn permission() -> Vec<String> {
    vec!["permission".to_owned()]
}

#[test]
fn a_deletion_counts_against_what_is_not_newer() {
    let roles = |entry| shown([("role", entry)]).expect("listed").remove(0).roles.expect("known");
    assert_eq!(roles(Entry::deleted(&at(4))), ["role"], "the member had the role later");
    assert_eq!(roles(Entry::deleted(&at(5))), Vec::<String>::new());
    assert_eq!(roles(Entry::deleted(&at(5)).join(Entry::observed([], &at(6)))), ["role"]);
    assert_eq!(shown([("org_a", Entry::deleted(&at(4)))]).map(|list| list.len()), Some(1));
    assert_eq!(shown([("org_a", Entry::deleted(&at(5)))]), Some(Vec::new()));
    let again = Entry::deleted(&at(6)).join(Entry::observed([], &at(8)));
    assert_eq!(
        shown([("org_a", again)]),
        Some(Vec::new()),
        "a new organization with the code of the deleted one"
    );
}

#[test]
fn permissions_of_a_role_are_shown_by_key_and_unknown_without_a_list() {
    let of = |state, entries| shown_of(state, entries).expect("listed").remove(0).permissions;
    let permissions = |entries| of(member(Some(&[])), entries);
    let named = ("permission", Entry::observed([(Fact::Key, "read".into())], &at(1)));
    assert_eq!(permissions(vec![named.clone()]), None);
    assert_eq!(permissions(vec![gives(&["permission"], 6), named.clone()]), Some(vec!["read".to_owned()]));
    assert_eq!(permissions(vec![gives(&[], 6), named.clone()]), Some(Vec::new()));
    for given in [&["permission"][..], &[]] {
        let found = of(member(None), vec![gives(given, 6), named.clone()]);
        assert_eq!(found, None, "permissions of the user are unknown");
    }
}

#[test]
fn a_directory_without_every_object_changes_nothing() {
    let part = Directory::from_iter([("org_a".to_owned(), Entry::deleted(&at(9)))]);
    assert_eq!(member(None).with_directory(&part), member(None));
}

#[test]
fn a_permission_that_a_deleted_role_may_have_given_is_unknown() {
    let deleted = || ("role", Entry::deleted(&at(6)));
    assert_eq!(listed(vec![deleted()]), None, "no list of the role was ever read");
    assert_eq!(listed(vec![gives(&[], 6), deleted()]), None, "only a later one");
    assert_eq!(listed(vec![gives(&["permission"], 4), deleted()]), Some(Vec::new()), "the role gave it");
    assert_eq!(listed(vec![gives(&[], 4), deleted()]), Some(permission()), "the role did not give it");
}

#[test]
fn a_permission_that_a_role_may_have_lost_is_unknown() {
    assert_eq!(listed(vec![gives(&[], 7)]), None, "it may have left the role before the first list");
    assert_eq!(listed(vec![gives(&["permission"], 4), gives(&[], 7)]), Some(Vec::new()), "it left the role");
    assert_eq!(listed(vec![gives(&[], 4), gives(&[], 7)]), Some(permission()));
    assert_eq!(listed(vec![gives(&["permission"], 7)]), Some(permission()));
    let membership = Organization {
        roles: Some(vec!["role".to_owned()]),
        permissions: Some(permission()),
        ..Organization::new("org_a")
    };
    let version = Version::snapshot(Micros(6), "h");
    let read = Value::Memberships(Memberships::read("org_a", Some(&membership), &version));
    let read = member(None).with_register(Field::Organizations, version, read);
    let shown = shown_of(read, vec![gives(&["permission"], 4), gives(&[], 7)]).expect("listed").remove(0);
    assert_eq!(shown.permissions, Some(permission()), "a read separates what roles give");
}

#[test]
fn permissions_are_unknown_while_a_list_of_one_role_is() {
    let membership = |permissions| Organization {
        roles: Some(vec!["org_a".to_owned(), "role".to_owned()]),
        permissions,
        ..Organization::new("org_a")
    };
    for listed in [Some(Vec::new()), Some(permission()), None] {
        let list = Value::Organizations(vec![membership(listed)]);
        let state = UserState::default().with_register(Field::Organizations, at(5), list);
        let found = shown_of(state, vec![gives(&["permission"], 4)]).expect("listed").remove(0);
        assert_eq!(found.permissions, None);
    }
}

#[test]
fn a_deleted_permission_is_not_given_by_an_older_list() {
    let later = Organization {
        roles: Some(vec!["role".to_owned()]),
        permissions: Some(Vec::new()),
        ..Organization::new("org_a")
    };
    let state = member(None).with_register(Field::Organizations, at(9), Value::Organizations(vec![later]));
    let other = (
        "role",
        Entry::observed(
            [(Fact::Permissions, Value::Codes(vec!["permission".into(), "org_a".into()]))],
            &at(7),
        ),
    );
    let found =
        shown_of(state, vec![other, ("permission", Entry::deleted(&at(8)))]).expect("listed").remove(0);
    assert_eq!(found.permissions, Some(vec!["org_a".to_owned()]));
}

#[test]
fn permissions_of_roles_are_no_whole_list_while_those_of_the_member_are_unknown() {
    let observed = |at, permissions| {
        let roles = Some(vec!["role".to_owned()]);
        let membership = Organization { roles, permissions, ..Organization::new("org_a") };
        let list = Value::Organizations(vec![membership]);
        event(at, "e", What::Fields(Profile::new().with(Field::Organizations, list)))
    };
    let never = fold(&[observed(5, None)]);
    let earlier = fold(&[observed(3, Some(permission())), observed(5, None)]);
    for state in [never, earlier] {
        let entries = [gives(&["org_a"], 6), ("permission", Entry::default())];
        let directory = entries.map(|(id, entry)| (id.to_owned(), entry)).into_iter().collect();
        let (memberships, code) = (state.memberships().expect("listed"), "org_a");
        assert_eq!(memberships.shown_in(code, &directory).and_then(|shown| shown.permissions), None);
        assert_eq!(memberships.permission_roles(code, &directory), None);
        let of_roles = memberships.permissions_of_roles(code, &directory);
        assert_eq!(of_roles.into_iter().collect::<Vec<_>>(), ["org_a"]);
    }
}

#[test]
fn directories_with_equal_entries_share_them() {
    let decoded = || {
        let role = Entry::observed([(Fact::Key, Value::from("admin"))], &at(1)).shown();
        Directory::from_iter([("role".to_owned(), role)])
    };
    let is_same = |one: &Directory, other: &Directory| {
        let entry = |directory: &Directory| std::ptr::from_ref(directory.entry("role").expect("there"));
        entry(one) == entry(other)
    };
    let (mut one, mut other) = (decoded(), decoded());
    assert!(!is_same(&one, &other));
    let mut shared = SharedEntries::default();
    one.share(&mut shared);
    other.share(&mut shared);
    assert!(is_same(&one, &other));
    assert!(is_same(&one, &one.clone()));
    assert!(is_same(&one, &one.only(&["role".to_owned()])), "nothing is left out");
    assert!(is_same(&one, &decoded().join(one.clone())), "the join equals it");
    let renamed = Entry::observed([(Fact::Key, Value::from("owner"))], &at(2)).shown();
    let renamed = Directory::from_iter([("role".to_owned(), renamed)]);
    assert!(is_same(&renamed, &one.join(renamed.clone())), "the join equals the newer one");
}
