//! Generated observations from small domains, where equal times, equal versions and equal addresses are common.

use kinsync_core::{
    Field, Micros, Observation, Organization, Profile, Properties, Rank, Source, UserId, UserState, Value,
    Version, What,
};
use proptest::{collection::vec, prelude::*, sample::select};

pub(crate) fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a name without control characters")
}

pub(crate) fn event(at: i64, id: &str, what: What) -> Observation {
    Observation { user: user("kp_1"), version: Version::event(Micros(at), id), source: Source::Webhook, what }
}

pub(crate) fn snapshot(at: i64, what: What) -> Observation {
    let version = Version::snapshot(Micros(at), "hash");
    Observation { version, source: Source::Reconcile, ..event(at, "", what) }
}

pub(crate) fn named(name: &str) -> Profile {
    Profile::new().with(Field::FirstName, name)
}

pub(crate) fn fold<'a>(observations: impl IntoIterator<Item = &'a Observation>) -> UserState {
    observations.into_iter().fold(UserState::default(), UserState::observe)
}

fn value(field: Field) -> BoxedStrategy<Value> {
    let text = select(vec!["", "a", "b", "$$NOW"]).prop_map(Value::from);
    match field {
        Field::IsSuspended | Field::IsPasswordResetRequested | Field::EmailVerified => {
            prop_oneof![any::<bool>().prop_map(Value::Flag), Just(Value::Null)].boxed()
        }
        Field::CreatedOn => (0..6_i64).prop_map(|at| Value::Time(Micros(at))).boxed(),
        Field::Organizations => prop_oneof![
            all_memberships().prop_map(Value::Organizations),
            vec(select(vec!["org_a", "org_b"]), 0..3)
                .prop_map(|codes| Value::Organizations(memberships(&codes))),
            Just(Value::Null),
        ]
        .boxed(),
        Field::OrganizationCodes => vec(select(vec!["org_a", "org_b"]), 0..3)
            .prop_map(|codes| Value::Codes(codes.into_iter().map(ToOwned::to_owned).collect()))
            .boxed(),
        Field::Identities => Just(Value::Identities(Vec::new())).boxed(),
        Field::Properties => properties().prop_map(Value::Properties).boxed(),
        _ => prop_oneof![text, Just(Value::Null)].boxed(),
    }
}

/// A read of some properties, with a version of its own: a state has several.
fn properties() -> impl Strategy<Value = Properties> {
    let value = proptest::option::of(select(vec!["a", "b"])).prop_map(|value| value.map(ToOwned::to_owned));
    let values = vec((select(vec!["plan", "tier"]).prop_map(ToOwned::to_owned), value), 0..3);
    (values, version()).prop_map(|(values, version)| Properties::read(values, &version))
}

fn memberships(codes: &[&str]) -> Vec<Organization> {
    let one =
        |code: &&str| Organization { roles: Some(vec!["admin".to_owned()]), ..Organization::new(*code) };
    codes.iter().map(one).collect()
}

/// A membership with roles and permissions that are known or not.
pub(crate) fn membership(code: &'static str) -> impl Strategy<Value = Organization> {
    let keys = || select(vec![None, Some(vec![]), Some(vec!["a".to_owned()]), Some(vec!["b".to_owned()])]);
    (keys(), keys(), select(vec![None, Some(true), Some(false)])).prop_map(
        move |(roles, permissions, is_suspended)| Organization {
            roles,
            permissions,
            is_suspended,
            ..Organization::new(code)
        },
    )
}

pub(crate) const CODES: [&str; 3] = ["org_a", "org_b", "org_c"];

/// A list of all memberships: each code at most once.
pub(crate) fn all_memberships() -> impl Strategy<Value = Vec<Organization>> {
    let [a, b, c] = CODES.map(|code| proptest::option::of(membership(code)));
    (a, b, c).prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect())
}

pub(crate) fn profile() -> impl Strategy<Value = Profile> {
    let observed = select(Field::ALL.to_vec()).prop_flat_map(|field| (Just(field), value(field)));
    vec(observed, 0..5).prop_map(|observed| {
        let mut profile = Profile::new();
        for (field, value) in observed {
            profile.set(field, value);
        }
        profile
    })
}

pub(crate) fn version() -> impl Strategy<Value = Version> {
    let rank = select(vec![Rank::Receipt, Rank::Event, Rank::Event, Rank::Snapshot]);
    let known = (0..6_i64, rank, select(vec!["a", "b"])).prop_map(|(at, rank, tie)| Version {
        at: Micros(at),
        rank,
        tie: tie.into(),
    });
    prop_oneof![9 => known, 1 => Just(Version::provisional())]
}

/// A read of one membership.
pub(crate) fn read() -> impl Strategy<Value = What> {
    select(CODES.to_vec()).prop_flat_map(|code| {
        let read = |membership| What::Membership { code: code.to_owned(), membership };
        proptest::option::of(membership(code)).prop_map(read)
    })
}

/// Facts from events, scans and tokens: everything except a confirmation by two reads.
pub(crate) fn without_confirmation() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => profile().prop_map(What::Fields),
        2 => read(),
        1 => Just(What::Deleted),
        1 => (0..6_i64).prop_map(|at| What::Seen(Micros(at))),
        1 => (0..6_i64).prop_map(|at| What::SignedIn(Micros(at))),
    ]
}

pub(crate) fn observation() -> impl Strategy<Value = Observation> {
    let what = prop_oneof![6 => without_confirmation(), 1 => profile().prop_map(What::Exists)];
    (version(), what).prop_map(|(version, what)| Observation { version, ..event(0, "", what) })
}

pub(crate) fn observations() -> impl Strategy<Value = Vec<Observation>> {
    vec(observation(), 0..12)
}

/// The same observations in another order, some of them several times.
pub(crate) fn shuffled_with_duplicates<T: Clone + std::fmt::Debug + 'static>(
    observations: Vec<T>,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    let again = if observations.is_empty() {
        Just(Vec::new()).boxed()
    } else {
        vec(select(observations.clone()), 0..6).boxed()
    };
    let original = observations.clone();
    again.prop_flat_map(move |again| {
        let all: Vec<T> = observations.iter().cloned().chain(again).collect();
        (Just(original.clone()), Just(all).prop_shuffle())
    })
}
