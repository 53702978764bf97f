//! The directory: any order of observations has one result, and a deletion holds against older observations.

use kinsync_core::{Directory, Entry, Fact, Field, Micros, Organization, UserState, Value, Version};
use proptest::{collection::vec, prelude::*};

use crate::strategies::{shuffled_with_duplicates, version};

const IDS: [&str; 3] = ["org_a", "role", "permission"];

fn entry() -> impl Strategy<Value = Entry> {
    let text = prop::sample::select(vec!["a", "b"]);
    let fact = prop::sample::select(vec![Fact::Key, Fact::Name]);
    let observed = (fact, text, version())
        .prop_map(|(fact, text, version)| Entry::observed([(fact, Value::from(text))], &version));
    let taken = (version(), version()).prop_map(|(version, taken)| {
        let given = Value::Codes(vec!["permission".to_owned()]);
        Entry::observed([(Fact::Permissions, given)], &version)
            .without_permissions(["other".to_owned()], &taken)
    });
    prop_oneof![3 => observed, 1 => taken, 1 => version().prop_map(|version| Entry::deleted(&version))]
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

/// A member with a role, as an event at 5 lists it.
fn member() -> UserState {
    let membership = Organization { roles: Some(vec!["role".to_owned()]), ..Organization::new("org_a") };
    let list = Value::Organizations(vec![membership]);
    UserState::default().with_register(Field::Organizations, at(5), list)
}

fn shown(entries: impl IntoIterator<Item = (&'static str, Entry)>) -> Option<Vec<Organization>> {
    let known = IDS.map(|id| (id.to_owned(), Entry::default())).into_iter();
    let entries = entries.into_iter().map(|(id, entry)| (id.to_owned(), entry));
    member().with_directory(&known.chain(entries).collect()).organizations()
}

#[test]
fn a_deletion_counts_against_what_is_not_newer() {
    let roles = |entry| shown([("role", entry)]).expect("listed").remove(0).roles.expect("known");
    assert_eq!(roles(Entry::deleted(&at(4))), ["role"], "the member had the role later");
    assert_eq!(roles(Entry::deleted(&at(5))), Vec::<String>::new());
    assert_eq!(roles(Entry::deleted(&at(5)).join(Entry::observed([], &at(6)))), ["role"]);
    assert_eq!(shown([("org_a", Entry::deleted(&at(4)))]).map(|list| list.len()), Some(1));
    assert_eq!(shown([("org_a", Entry::deleted(&at(5)))]), Some(Vec::new()));
}

#[test]
fn permissions_of_a_role_are_shown_by_key_and_unknown_without_a_list() {
    let permissions =
        |entries: Vec<(&'static str, Entry)>| shown(entries).expect("listed").remove(0).permissions;
    let given = |ids: &[&str]| {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        ("role", Entry::observed([(Fact::Permissions, Value::Codes(ids))], &at(6)))
    };
    let named = ("permission", Entry::observed([(Fact::Key, "read".into())], &at(1)));
    assert_eq!(permissions(vec![named.clone()]), None);
    assert_eq!(permissions(vec![given(&["permission"]), named.clone()]), Some(vec!["read".to_owned()]));
    assert_eq!(permissions(vec![given(&[]), named]), None, "permissions of the user are unknown");
}

#[test]
fn a_directory_without_every_object_changes_nothing() {
    let part = Directory::from_iter([("org_a".to_owned(), Entry::deleted(&at(9)))]);
    assert_eq!(member().with_directory(&part), member());
}
