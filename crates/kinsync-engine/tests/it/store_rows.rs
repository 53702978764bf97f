//! Rows and events to store: plain ones, and hostile ones by proptest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use kinsync_core::{
    Field, FirstVersions, Identity, Micros, Observation, Organization, Profile, Properties, Rank, Register,
    RowMetadata, Source, UserId, UserState, Value, Version, What,
};
use kinsync_engine::internal::store::{Holder, LogEntry, LogSource, Outcome, Row, Store};
use proptest::{collection::vec, option, prelude::*};

pub(crate) fn id(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

/// A user after one event, not stored yet. `email: None` is null.
pub(crate) fn row(user: &str, email: Option<&str>) -> Row {
    let profile = Profile::new()
        .with(Field::FirstName, "Ada")
        .with(Field::Email, email.map_or(Value::Null, Value::from));
    row_with(user, What::Fields(profile))
}

pub(crate) fn tombstone(user: &str) -> Row {
    row_with(user, What::Deleted)
}

fn row_with(user: &str, what: What) -> Row {
    let version = Version::event(Micros(1_700_000_000_123_456), format!("event_of_{user}"));
    let state = UserState::of(&Observation { user: id(user), version, source: Source::Webhook, what });
    let metadata = RowMetadata {
        holds_email: state.claimed_email().is_some(),
        inserted_at: Micros(5_000_001),
        updated_at: Micros(6_000_002),
        source: Some(Source::Webhook),
        ..RowMetadata::default()
    };
    Row { state, metadata, ..Row::unknown(id(user)) }
}

pub(crate) fn with(mut row: Row, field: Field, value: impl Into<Value>) -> Row {
    let version = Version::event(Micros(1_700_000_000_123_456), "event_of_with");
    row.state.fields.remove(&field);
    row.state = row.state.with_register(field, version, value.into());
    row
}

/// As it is after it was written.
pub(crate) fn stored(row: &Row) -> Row {
    Row { revision: row.revision + 1, document: None, ..row.clone() }
}

pub(crate) async fn put(store: &dyn Store, row: &Row) -> Row {
    let outcomes = store.write(std::slice::from_ref(row)).await.unwrap();
    assert_eq!(outcomes, [Outcome::Written], "{}", row.id);
    stored(row)
}

pub(crate) async fn outcome(store: &dyn Store, row: &Row) -> Outcome {
    store.write(std::slice::from_ref(row)).await.unwrap().remove(0)
}

pub(crate) async fn get(store: &dyn Store, user: &str) -> Option<Row> {
    store.load(&[id(user)]).await.unwrap().remove(0)
}

pub(crate) async fn holder(store: &dyn Store, email: &str) -> Option<Holder> {
    store.email_holders(&[email.to_owned()]).await.unwrap().remove(email)
}

pub(crate) fn event(event_id: &str, user: Option<&str>, received_at: i64) -> LogEntry {
    LogEntry {
        id: event_id.into(),
        kind: "user.updated".into(),
        source: LogSource::Webhook,
        version: Some(Version::event(Micros(received_at - 1), event_id)),
        user: user.map(ToOwned::to_owned),
        at: Some(Micros(received_at - 1)),
        received_at: Micros(received_at),
        scheme: "kinde_jwt".into(),
        payload: r#"{"type":"user.updated","$where":"1"}"#.into(),
    }
}

/// Texts that software is known to misinterpret.
pub(crate) const HOSTILE: [&str; 16] = [
    "$$NOW",
    "$$ROOT",
    "$email",
    r#"{"$gt":""}"#,
    "a.b",
    "$set",
    "",
    " ",
    "null",
    "NUL\0in the middle",
    "\u{202e}right to left",
    "😀👩‍👩‍👧‍👦𝒳",
    "Ω≈ç√∫˜µ≤≥÷",
    "'; DROP TABLE users; --",
    "<script>alert(1)</script>",
    "\u{feff}\u{ffff}\u{10ffff}",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(HOSTILE.as_slice()).prop_map(ToOwned::to_owned),
        vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect()),
    ]
}

fn micros() -> impl Strategy<Value = Micros> {
    let edges = prop::sample::select(vec![i64::MIN, i64::MIN + 1, -1, 0, 999, i64::MAX - 1, i64::MAX]);
    prop_oneof![edges, any::<i64>(), 0..2_000_000_000_000_000_i64].prop_map(Micros)
}

fn version() -> impl Strategy<Value = Version> {
    let rank = prop::sample::select(vec![Rank::Provisional, Rank::Receipt, Rank::Event, Rank::Snapshot]);
    let usual = prop::sample::select(vec![1_i64, 2]).prop_map(|at| Version::event(Micros(at), "usual"));
    let any = (micros(), rank, text()).prop_map(|(at, rank, tie)| Version { at, rank, tie: tie.into() });
    prop_oneof![3 => usual, 1 => any]
}

fn organization() -> impl Strategy<Value = Organization> {
    let codes = prop::sample::select(vec!["org_a", "org_b", "$c"]).prop_map(ToOwned::to_owned);
    let list = || option::of(vec(text(), 0..3));
    (codes, list(), list(), option::of(any::<bool>())).prop_map(|(code, roles, permissions, is_suspended)| {
        Organization { roles, permissions, is_suspended, ..Organization::new(code) }
    })
}

/// With a value that only states store.
fn membership() -> impl Strategy<Value = Organization> {
    (organization(), option::of(micros()))
        .prop_map(|(organization, joined_on)| Organization { joined_on, ..organization })
}

fn properties() -> impl Strategy<Value = Properties> {
    let value = (text(), option::of(text()));
    (vec(value, 0..3), micros()).prop_map(|(values, at)| Properties::read(values, &Version::snapshot(at, "")))
}

/// Any value for any field, fitting or not.
fn value() -> impl Strategy<Value = Value> {
    let identity = (text(), option::of(text())).prop_map(|(kind, identity)| Identity { kind, identity });
    let code = prop::sample::select(vec!["org_a", "org_b", "d"]).prop_map(ToOwned::to_owned);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Flag),
        micros().prop_map(Value::Time),
        text().prop_map(|text| Value::Text(text.into())),
        vec(organization(), 0..3).prop_map(Value::Organizations),
        vec(code, 0..3).prop_map(Value::Codes),
        vec(identity, 0..3).prop_map(Value::Identities),
        properties().prop_map(Value::Properties),
    ]
}

/// Values as the sources contain them, in most cases.
fn fitting(field: Field) -> BoxedStrategy<Value> {
    let usual = match field {
        Field::Organizations => vec(membership(), 0..3).prop_map(Value::Organizations).boxed(),
        Field::OrganizationCodes => vec(prop::sample::select(vec!["org_a", "org_b"]), 0..3)
            .prop_map(|codes| Value::Codes(codes.into_iter().map(ToOwned::to_owned).collect()))
            .boxed(),
        Field::CreatedOn => micros().prop_map(Value::Time).boxed(),
        Field::Properties => properties().prop_map(Value::Properties).boxed(),
        _ => text().prop_map(|text| Value::Text(text.into())).boxed(),
    };
    prop_oneof![2 => usual, 1 => value()].boxed()
}

fn fields() -> impl Strategy<Value = BTreeMap<Field, Register>> {
    let one = |field: Field| {
        option::weighted(0.7, (version(), fitting(field)))
            .prop_map(move |observed| observed.map(|(version, value)| (field, Register { version, value })))
    };
    let all: Vec<_> = Field::ALL.into_iter().map(one).collect();
    let join =
        |state: UserState, (field, Register { version, value })| state.with_register(field, version, value);
    all.prop_map(move |all| all.into_iter().flatten().fold(UserState::default(), join).fields)
}

fn state() -> impl Strategy<Value = UserState> {
    let first = (option::of(version()), option::of(micros()), option::of(version()))
        .prop_map(|(event, created_on, read)| FirstVersions { event, created_on, read });
    let versions = (option::of(version()), option::of(version()), first);
    (fields(), versions, option::of(micros()), option::of(micros())).prop_map(
        |(fields, (deleted, confirmed, first), last_seen, last_signed_in)| UserState {
            fields,
            deleted,
            confirmed,
            first,
            last_seen,
            last_signed_in,
            ..UserState::default()
        },
    )
}

fn metadata() -> impl Strategy<Value = RowMetadata> {
    let source =
        prop::sample::select(vec![Source::Webhook, Source::Login, Source::Profile, Source::Reconcile]);
    let comparisons = (option::of(any::<i64>()), option::of(any::<i64>()));
    (any::<bool>(), option::of(text()), micros(), micros(), option::of(source), comparisons).prop_map(
        |(holds_email, email_held_by, inserted_at, updated_at, source, comparisons)| RowMetadata {
            lowercases_email: false,
            holds_email,
            keeps_email: false,
            email_held_by,
            inserted_at,
            updated_at,
            source,
            compared_since: comparisons.0,
            changed_after: comparisons.1,
        },
    )
}

/// Any row at all, of an unknown user.
pub(crate) fn any_row() -> impl Strategy<Value = Row> {
    (state(), metadata(), prop::collection::btree_set(text(), 0..3)).prop_map(
        |(state, metadata, pending_emails)| Row {
            state,
            metadata,
            pending_emails,
            ..Row::unknown(id("of_the_strategy"))
        },
    )
}
