//! How the store differs from Kinde right now: user by user and field by field, and whose doing it is.
//!
//! Each user who differs is *on the way* (a delivery is), *lost* (the store is exactly what the delivered events say,
//! so what is missing was never delivered), or *behind* (kinsync was told and the store does not show it). At rest,
//! the last number is kinsync's own, and must be 0.

use std::collections::{BTreeSet, HashMap, HashSet};

use kinde_emulator::User;
use kinsync_core::{Micros, Organization, UserDocument};
use serde::Serialize;
use serde_json::Value;

use super::ledger::{Ledger, Told};

/// Kinde takes its own time of a sign-in a moment before the event's.
const SIGN_IN_TOLERANCE_MICROS: i64 = 50_000;

/// How the store differs from Kinde.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drift {
    /// At Kinde, and not in the store.
    pub(crate) missing: u64,
    /// In both, with a field that differs.
    pub(crate) stale: u64,
    /// Deleted at Kinde, and not in the store.
    pub(crate) should_be_deleted: u64,
    /// Of these: nothing that was delivered is missing.
    pub(crate) lost: u64,
    /// Of these: a delivery is on its way, or being stored.
    pub(crate) on_the_way: u64,
    /// Of these: kinsync was told, and does not show it.
    pub(crate) unexplained: u64,
    /// In the store, and never at this Kinde: made by hand, or by an earlier run. No drift.
    pub(crate) strangers: u64,
    /// Users who are behind, with the fields: for the log.
    #[serde(skip)]
    pub(crate) behind: Vec<(String, Vec<&'static str>)>,
}

impl Drift {
    /// Users who differ.
    pub(crate) fn users(&self) -> u64 {
        self.missing + self.stale + self.should_be_deleted
    }
}

/// The fields that events carry, as one side has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Face {
    email: Option<String>,
    first_name: Option<String>,
    last_name: Option<String>,
    phone: Option<String>,
    username: Option<String>,
    is_suspended: bool,
    is_password_reset_requested: bool,
    organizations: BTreeSet<Organization>,
    signed_in: Option<i64>,
}

impl Face {
    fn at_kinde(user: &User) -> Self {
        let keys = |grants: &[kinde_emulator::Grant]| {
            grants.iter().map(|grant| grant.key.clone()).collect::<BTreeSet<_>>().into_iter().collect()
        };
        Self {
            email: user.email.clone().filter(|email| !email.is_empty()),
            first_name: user.first_name.clone(),
            last_name: user.last_name.clone(),
            phone: user.phone.clone().filter(|phone| !phone.is_empty()),
            username: user.username.clone(),
            is_suspended: user.is_suspended,
            is_password_reset_requested: user.is_password_reset_requested,
            organizations: (user.organizations.iter())
                .map(|member| Organization {
                    code: member.code.clone(),
                    roles: keys(&member.roles),
                    permissions: keys(&member.permissions),
                })
                .collect(),
            signed_in: user.last_signed_in.map(jiff::Timestamp::as_microsecond),
        }
    }

    fn told(told: &Told) -> Self {
        let text = |name| told.field(name).and_then(Value::as_str).map(str::to_owned);
        let filled = |name| text(name).filter(|text| !text.is_empty());
        let flag = |name| told.field(name).and_then(Value::as_bool).unwrap_or_default();
        let organizations = told.field("organizations").and_then(Value::as_array);
        Self {
            email: filled("email"),
            first_name: text("first_name"),
            last_name: text("last_name"),
            phone: filled("phone"),
            username: text("username"),
            is_suspended: flag("is_suspended"),
            is_password_reset_requested: flag("is_password_reset_requested"),
            organizations: organizations.into_iter().flatten().map(membership).collect(),
            signed_in: told.signed_in.map(jiff::Timestamp::as_microsecond),
        }
    }

    fn stored(document: &UserDocument, email: Option<&str>) -> Self {
        Self {
            email: email.map(str::to_owned),
            first_name: document.first_name.clone(),
            last_name: document.last_name.clone(),
            phone: document.phone.clone(),
            username: document.username.clone(),
            is_suspended: document.is_suspended,
            is_password_reset_requested: document.is_password_reset_requested,
            organizations: document.organizations.iter().cloned().collect(),
            signed_in: document.last_signed_in_at.map(|Micros(at)| at),
        }
    }

    /// The fields that differ from those stored.
    fn differs(&self, stored: &Self) -> Vec<&'static str> {
        let apart = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) => a.abs_diff(b) > SIGN_IN_TOLERANCE_MICROS.unsigned_abs(),
            (a, b) => a != b,
        };
        let fields = [
            ("email", self.email != stored.email),
            ("firstName", self.first_name != stored.first_name),
            ("lastName", self.last_name != stored.last_name),
            ("phone", self.phone != stored.phone),
            ("username", self.username != stored.username),
            ("isSuspended", self.is_suspended != stored.is_suspended),
            (
                "isPasswordResetRequested",
                self.is_password_reset_requested != stored.is_password_reset_requested,
            ),
            ("organizations", self.organizations != stored.organizations),
            ("lastSignedInAt", apart(self.signed_in, stored.signed_in)),
        ];
        fields.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| field).collect()
    }
}

fn membership(organization: &Value) -> Organization {
    let keys = |name: &str| {
        let grants = organization[name].as_array().into_iter().flatten();
        let keys: BTreeSet<String> =
            grants.filter_map(|grant| grant["key"].as_str()).map(str::to_owned).collect();
        keys.into_iter().collect()
    };
    Organization {
        code: organization["code"].as_str().unwrap_or_default().to_owned(),
        roles: keys("roles"),
        permissions: keys("permissions"),
    }
}

fn is_stale(user: &User, row: &UserDocument) -> bool {
    row.is_deleted || !Face::at_kinde(user).differs(&Face::stored(row, row.email.as_deref())).is_empty()
}

/// Compares all users. The ledger must have been read after the users of Kinde.
pub(super) fn compare(kinde: &[User], stored: &[UserDocument], ledger: &Ledger) -> Drift {
    let store = Stored::new(stored);
    let at_kinde: HashMap<&str, &User> = kinde.iter().map(|user| (user.id.as_str(), user)).collect();
    let awaited = ledger.awaited();
    let mut drift = Drift::default();
    let gone = store.rows.keys().filter(|id| !at_kinde.contains_key(**id)).copied();
    for id in at_kinde.keys().copied().chain(gone) {
        let count = match (at_kinde.get(id), store.rows.get(id)) {
            (Some(_), None) => &mut drift.missing,
            (Some(user), Some(row)) if is_stale(user, row) => &mut drift.stale,
            (None, Some(row)) if !row.is_deleted && !ledger.knows(id) => {
                drift.strangers += 1;
                continue;
            }
            (None, Some(row)) if !row.is_deleted => &mut drift.should_be_deleted,
            _ => continue,
        };
        *count += 1;
        drift.explain(id, &store, ledger, &awaited);
    }
    drift
}

impl Drift {
    fn explain(&mut self, id: &str, store: &Stored<'_>, ledger: &Ledger, awaited: &HashSet<&str>) {
        let owed = store.owed(id, ledger.told(id));
        if awaited.contains(id) {
            self.on_the_way += 1;
        } else if owed.is_empty() {
            self.lost += 1;
        } else {
            self.unexplained += 1;
            self.behind.push((id.to_owned(), owed));
        }
    }
}

/// The rows of the store, by id.
struct Stored<'a> {
    rows: HashMap<&'a str, &'a UserDocument>,
    shown: HashSet<&'a str>,
}

impl<'a> Stored<'a> {
    fn new(rows: &'a [UserDocument]) -> Self {
        let live = rows.iter().filter(|row| !row.is_deleted);
        Self {
            shown: live.filter_map(|row| row.email.as_deref()).collect(),
            rows: rows.iter().map(|row| (row.kinde_id.as_str(), row)).collect(),
        }
    }

    /// What the store does not show although it was told.
    fn owed(&self, id: &str, told: Option<&Told>) -> Vec<&'static str> {
        match (told, self.rows.get(id)) {
            (None, None) => Vec::new(),
            (None, Some(_)) => vec!["a user of whom nothing was told"],
            (Some(_), None) => vec!["the user"],
            (Some(told), Some(row)) if told.is_deleted != row.is_deleted => vec!["isDeleted"],
            (Some(told), Some(_)) if told.is_deleted => Vec::new(),
            (Some(told), Some(row)) => Face::told(told).differs(&Face::stored(row, self.email_of(row))),
        }
    }

    /// The address that the row shows, or would if another row did not hold it.
    fn email_of<'r>(&self, row: &'r UserDocument) -> Option<&'r str> {
        let held = row.email_conflict.as_ref().map(|conflict| conflict.email.as_str());
        row.email.as_deref().or(held.filter(|email| self.shown.contains(email)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinde_emulator::{Config, Emulator, Fault, FaultKind, NewUser, UserEdit, WebhookSpec};
    use kinsync_core::UserId;

    use super::*;

    fn document(id: &str, first: &str) -> UserDocument {
        let state = kinsync_core::UserState::default();
        let id = UserId::parse(id).unwrap();
        let mut document = UserDocument::new(&id, &state, &kinsync_core::Standing::default());
        document.first_name = Some(first.to_owned());
        document.email = Some("ada@example.com".to_owned());
        let code = "org_590d7f1a86a".to_owned();
        document.organizations = vec![Organization { code, roles: vec![], permissions: vec![] }];
        document
    }

    /// A Kinde whose every delivery is answered 200 by an open door.
    async fn kinde() -> Emulator {
        let kinde = Emulator::start(Config::default()).await.unwrap();
        let door = axum::Router::new().fallback(async || "");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, door).await });
        kinde.add_webhook(WebhookSpec::new(format!("http://{address}").parse().unwrap()));
        kinde
    }

    async fn drift(kinde: &Emulator, stored: &[UserDocument]) -> Drift {
        kinde.quiesce(Duration::from_secs(10)).await.unwrap();
        let users = kinde.users();
        let mut ledger = Ledger::default();
        for user in &users {
            ledger.meet(&user.id);
        }
        ledger.read(&kinde.deliveries(), |id| kinde.event(id));
        compare(&users, stored, &ledger)
    }

    fn ada() -> NewUser {
        let email = Some("ada@example.com".to_owned());
        NewUser { id: Some("kp_a".into()), email, first_name: Some("Ada".into()), ..NewUser::default() }
    }

    #[tokio::test]
    async fn what_was_told_and_is_not_stored_is_kinsyncs_own() {
        let kinde = kinde().await;
        kinde.create_user(ada()).unwrap();
        let missing = drift(&kinde, &[]).await;
        assert_eq!((missing.missing, missing.unexplained, missing.lost), (1, 1, 0));
        let stale = drift(&kinde, &[document("kp_a", "Ida")]).await;
        assert_eq!((stale.stale, stale.unexplained), (1, 1));
        assert_eq!(stale.behind, [("kp_a".to_owned(), vec!["firstName"])]);
        assert_eq!(drift(&kinde, &[document("kp_a", "Ada")]).await, Drift::default());
    }

    #[tokio::test]
    async fn what_was_never_delivered_is_lost_and_no_fault_of_kinsync() {
        let kinde = kinde().await;
        kinde.create_user(ada()).unwrap();
        kinde.set_fault(Fault::always(FaultKind::Drop));
        kinde
            .update_user("kp_a", UserEdit { first_name: Some("Ida".into()), ..UserEdit::default() })
            .unwrap();
        kinde.create_user(NewUser { id: Some("kp_b".into()), ..NewUser::default() }).unwrap();
        let lost = drift(&kinde, &[document("kp_a", "Ada")]).await;
        assert_eq!((lost.stale, lost.missing, lost.lost, lost.unexplained), (1, 1, 2, 0));
        kinde.delete_user("kp_a", kinde_emulator::tenant::Profile::Remove).unwrap();
        let gone = drift(&kinde, &[document("kp_a", "Ada")]).await;
        assert_eq!((gone.should_be_deleted, gone.missing, gone.lost), (1, 1, 2));
    }

    #[tokio::test]
    async fn a_user_made_by_hand_is_a_stranger_and_no_drift() {
        let kinde = kinde().await;
        let found = drift(&kinde, &[document("test", "Ada")]).await;
        assert_eq!((found.users(), found.strangers), (0, 1));
    }
}
