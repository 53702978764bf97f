//! Memberships: the result of a set of observations is the one of the definition, and what was revoked does not come back.

use kinsync_core::{
    Field, Memberships, Micros, Observation, Organization, Profile, UserState, Value, Version, What,
};
use proptest::{collection::vec, prelude::*};

use crate::strategies::{
    CODES, all_memberships, event, fold, read, shuffled_with_duplicates, snapshot, version,
};

/// Lists by events, lists of codes by scans, and reads of one membership.
fn observation() -> impl Strategy<Value = Observation> {
    let list = |list| What::Fields(Profile::new().with(Field::Organizations, Value::Organizations(list)));
    let what = prop_oneof![3 => all_memberships().prop_map(list), 1 => all_memberships().prop_map(codes), 2 => read()];
    (version(), what).prop_map(|(version, what)| Observation { version, ..event(0, "", what) })
}

fn codes(list: Vec<Organization>) -> What {
    let codes = list.into_iter().map(|organization| organization.code).collect();
    What::Fields(Profile::new().with(Field::OrganizationCodes, Value::Codes(codes)))
}

/// What an observation says about one code: nothing, no member, or this membership.
#[expect(
    clippy::option_option,
    reason = "the outer one: whether it says anything; the inner one: whether the user is a member"
)]
fn about(observation: &Observation, code: &str) -> Option<Option<Organization>> {
    match &observation.what {
        What::Membership { code: read, membership } => (read == code).then(|| membership.clone()),
        What::Fields(profile) => Some(match profile.iter().next()?.1 {
            Value::Organizations(list) => list.iter().find(|one| one.code == code).cloned(),
            Value::Codes(codes) => codes.iter().any(|one| one == code).then(|| Organization::new(code)),
            _ => None,
        }),
        _ => None,
    }
}

/// The membership by definition: the newest presence against the newest absence, and of each value the newest one that is
/// newer than the absence; of permissions the newest one that is not older than the roles.
fn expected(observations: &[Observation], code: &str) -> Option<Organization> {
    let all: Vec<(&Version, Option<Organization>)> =
        observations.iter().filter_map(|one| Some((&one.version, about(one, code)?))).collect();
    let absent = all.iter().filter(|(_, one)| one.is_none()).map(|(version, _)| *version).max();
    let present: Vec<(&Version, &Organization)> = all
        .iter()
        .filter(|(version, _)| Some(*version) > absent)
        .filter_map(|(version, one)| Some((*version, one.as_ref()?)))
        .collect();
    (!present.is_empty()).then(|| {
        let roles = present.iter().filter_map(|(version, one)| Some((*version, one.roles.clone()?))).max();
        let permissions =
            present.iter().filter_map(|(version, one)| Some((*version, one.permissions.clone()?)));
        let permissions = permissions
            .max()
            .filter(|(version, _)| roles.as_ref().is_none_or(|(newest, _)| version.at >= newest.at));
        let suspended = present.iter().filter_map(|(version, one)| Some((*version, one.is_suspended?))).max();
        Organization {
            roles: roles.map(|(_, roles)| roles),
            permissions: permissions.map(|(_, permissions)| permissions),
            is_suspended: suspended.map(|(_, suspended)| suspended),
            ..Organization::new(code)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn any_order_with_any_duplicates_shows_the_memberships_of_the_definition(
        (original, shuffled) in vec(observation(), 0..9).prop_flat_map(shuffled_with_duplicates),
    ) {
        let state = fold(&shuffled);
        prop_assert_eq!(&state, &fold(&original));
        let is_listed = original.iter().any(|one| matches!(one.what, What::Fields(_)));
        let members: Vec<_> = CODES.into_iter().filter_map(|code| expected(&original, code)).collect();
        // The registers, with ids: the document shows permissions only with the lists of roles.
        let found = state.memberships().and_then(Memberships::organizations);
        prop_assert_eq!(found, is_listed.then_some(members));
        let text = serde_json::to_string(&state).unwrap();
        prop_assert_eq!(serde_json::from_str::<UserState>(&text).unwrap(), state);
    }

    #[test]
    fn a_list_newer_than_everything_leaves_nothing_of_the_codes_that_it_does_not_contain(
        observations in vec(observation(), 0..9), list in all_memberships(),
    ) {
        let list = event(99, "e", What::Fields(Profile::new().with(Field::Organizations, Value::Organizations(list))));
        let after = fold(observations.iter().chain([&list]));
        let shown = after.organizations().unwrap();
        let alone = fold([&list]).organizations().unwrap();
        prop_assert_eq!(shown.len(), alone.len());
        let size = |state: &UserState| serde_json::to_string(&state.fields[&Field::Organizations]).unwrap().len();
        if alone.is_empty() {
            prop_assert_eq!(size(&after), size(&fold([&list])), "a departed member leaves no trace");
        }
    }
}

fn member(roles: &[&str], permissions: Option<&[&str]>) -> Organization {
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    Organization {
        roles: Some(keys(roles)),
        permissions: permissions.map(keys),
        ..Organization::new("org_a")
    }
}

fn listed(at: i64, list: &[Organization]) -> Observation {
    let list = Value::Organizations(list.to_vec());
    event(at, "e", What::Fields(Profile::new().with(Field::Organizations, list)))
}

fn scanned(at: i64, list: &[&str]) -> Observation {
    snapshot(at, codes(list.iter().map(|code| Organization::new(*code)).collect()))
}

fn roles(state: &UserState) -> Option<Vec<String>> {
    state.organizations()?.into_iter().find(|one| one.code == "org_a")?.roles
}

#[test]
fn a_revoked_role_does_not_come_back_when_a_list_of_codes_shows_the_member_again() {
    let admin = listed(1, &[member(&["admin"], None)]);
    let (left, back) = (scanned(2, &[]), scanned(3, &["org_a"]));
    for order in
        [[&admin, &left, &back], [&back, &left, &admin], [&left, &back, &admin], [&back, &admin, &left]]
    {
        let state = fold(order);
        assert_eq!(
            state.organizations(),
            Some(vec![Organization::new("org_a")]),
            "a member of unknown roles"
        );
    }
    let again = listed(4, &[member(&["member"], None)]);
    assert_eq!(roles(&fold([&again, &admin, &left, &back])), Some(vec!["member".to_owned()]));
}

#[test]
fn a_null_list_is_no_membership_and_an_absent_key_says_nothing() {
    let admin = listed(1, &[member(&["admin"], None)]);
    let absent = event(2, "e", What::Fields(Profile::new().with(Field::FirstName, "Ada")));
    assert!(roles(&fold([&admin, &absent])).is_some());
    let null = event(3, "e", What::Fields(Profile::new().with(Field::Organizations, Value::Null)));
    assert_eq!(fold([&admin, &absent, &null]).organizations(), Some(Vec::new()));
    let codes = snapshot(3, What::Fields(Profile::new().with(Field::OrganizationCodes, Value::Null)));
    assert_eq!(fold([&admin, &codes]).organizations(), Some(Vec::new()));
}

#[test]
fn permissions_do_not_outlive_a_change_of_the_roles() {
    let admin = listed(1, &[member(&["admin"], Some(&["delete"]))]);
    let read = |at, roles: &[&str], permissions| {
        let membership = Some(member(roles, permissions));
        snapshot(at, What::Membership { code: "org_a".to_owned(), membership })
    };
    let shown =
        |observations: &[&Observation]| fold(observations.iter().copied()).organizations().unwrap().remove(0);
    assert_eq!(shown(&[&admin, &read(2, &[], None)]), member(&[], None), "unknown until they are read");
    assert_eq!(shown(&[&admin, &read(2, &[], Some(&["read"]))]), member(&[], Some(&["read"])));
    let late = listed(1, &[member(&["owner"], Some(&["all"]))]);
    assert_eq!(
        shown(&[&read(2, &[], None), &late]),
        member(&[], None),
        "nor does a late event bring them back"
    );
}

#[test]
fn a_read_of_one_membership_shows_nothing_about_the_others_and_is_no_list() {
    let membership = Some(member(&["admin"], None));
    let read = snapshot(5, What::Membership { code: "org_a".to_owned(), membership });
    assert_eq!(fold([&read]).organizations(), None, "not all memberships are known");
    let both = listed(1, &[Organization::new("org_b")]);
    let shown = fold([&read, &both]).organizations().unwrap();
    assert_eq!(shown, [member(&["admin"], None), Organization::new("org_b")]);
    let gone = snapshot(6, What::Membership { code: "org_a".to_owned(), membership: None });
    assert_eq!(fold([&read, &both, &gone]).organizations(), Some(vec![Organization::new("org_b")]));
}

#[test]
fn a_stored_list_of_an_earlier_version_is_read_as_an_observation() {
    let text = r#"{"fields":{
        "organizations":{"version":{"t":1,"r":"event","i":"e"},"value":{"organizations":[{"code":"org_a","roles":["admin"]}]}},
        "organizationCodes":{"version":{"t":2,"r":"snapshot","i":"h"},"value":{"codes":["org_a","org_b"]}}
    },"deleted":null,"confirmed":null,"first":{"event":null,"createdOn":null,"read":null},"lastSeen":null,"lastSignedIn":null}"#;
    let state: UserState = serde_json::from_str(text).unwrap();
    let expect = [Organization { permissions: None, ..member(&["admin"], None) }, Organization::new("org_b")];
    assert_eq!(state.organizations(), Some(expect.to_vec()));
    assert_eq!(state.fields.keys().collect::<Vec<_>>(), [&Field::Organizations]);
    assert_eq!(state.fields[&Field::Organizations].version.at, Micros(2));
}
