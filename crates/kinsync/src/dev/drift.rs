//! Compares the store with Kinde, user by user and field by field, and classifies each difference.
//!
//! A user that differs is *in flight* (a delivery is pending), *lost* (the store shows what was delivered; the missing
//! change was never delivered, and a scan repairs it) or *unexplained* (the store does not show what was delivered).
//! At rest the last number must be 0.

use std::collections::{HashMap, HashSet};

use kinde_emulator::User;
use kinsync_core::UserDocument;
use serde::Serialize;

use super::history::{self, History, UserHistory};

/// Numbers of users that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Drift {
    /// At Kinde and not in the store.
    pub(crate) missing: u64,
    /// In both, with a field that differs.
    pub(crate) outdated: u64,
    /// Deleted at Kinde and not in the store.
    pub(crate) should_be_deleted: u64,
    /// Of all these: the change was never delivered.
    pub(crate) lost: u64,
    /// Of all these: a delivery is pending or being stored.
    pub(crate) in_flight: u64,
    /// Of all these: the change was delivered and is not in the store.
    pub(crate) unexplained: u64,
    /// In the store and never at this Kinde, for example from an earlier run. Not counted as drift.
    pub(crate) unknown: u64,
    /// The unexplained users with their fields.
    #[serde(skip)]
    pub(crate) details: Vec<(String, Vec<&'static str>)>,
}

impl Drift {
    /// Number of users that differ.
    pub(crate) fn users(&self) -> u64 {
        self.missing + self.outdated + self.should_be_deleted
    }

    fn classify(&mut self, id: &str, store: &Stored<'_>, history: &History, pending: &HashSet<&str>) {
        let fields = store.unexplained(id, history.user(id));
        if pending.contains(id) {
            self.in_flight += 1;
        } else if fields.is_empty() {
            self.lost += 1;
        } else {
            self.unexplained += 1;
            self.details.push((id.to_owned(), fields));
        }
    }
}

/// Compares all users. `history` must have been read after `kinde`.
pub(super) fn compare(kinde: &[User], stored: &[UserDocument], history: &History) -> Drift {
    let store = Stored::new(stored);
    let at_kinde: HashMap<&str, &User> = kinde.iter().map(|user| (user.id.as_str(), user)).collect();
    let pending = history.pending_users();
    let mut drift = Drift::default();
    let not_at_kinde = store.documents.keys().filter(|id| !at_kinde.contains_key(**id)).copied();
    for id in at_kinde.keys().copied().chain(not_at_kinde) {
        let count = match (at_kinde.get(id), store.documents.get(id)) {
            (Some(_), None) => &mut drift.missing,
            (Some(user), Some(document)) if is_outdated(user, document) => &mut drift.outdated,
            (None, Some(document)) if !document.is_deleted && history.user(id).is_none() => {
                drift.unknown += 1;
                continue;
            }
            (None, Some(document)) if !document.is_deleted => &mut drift.should_be_deleted,
            _ => continue,
        };
        *count += 1;
        drift.classify(id, &store, history, &pending);
    }
    drift
}

fn is_outdated(user: &User, document: &UserDocument) -> bool {
    let stored = history::stored(document, document.email.as_deref());
    document.is_deleted || !history::differences(&history::at_kinde(user), &stored).is_empty()
}

/// The documents of the store by user id.
struct Stored<'a> {
    documents: HashMap<&'a str, &'a UserDocument>,
    /// Emails of users that are not deleted.
    emails: HashSet<&'a str>,
}

impl<'a> Stored<'a> {
    fn new(documents: &'a [UserDocument]) -> Self {
        let live = documents.iter().filter(|document| !document.is_deleted);
        Self {
            emails: live.filter_map(|document| document.email.as_deref()).collect(),
            documents: documents.iter().map(|document| (document.kinde_id.as_str(), document)).collect(),
        }
    }

    /// The differences between the store and the delivered events.
    fn unexplained(&self, id: &str, history: Option<&UserHistory>) -> Vec<&'static str> {
        match (history, self.documents.get(id)) {
            (Some(history), None) if history.is_delivered => vec!["the user"],
            (Some(history), Some(document)) if history.is_deleted != document.is_deleted => vec!["isDeleted"],
            (Some(history), Some(document)) if !history.is_deleted => {
                history.unexplained(&history::stored(document, self.email_of(document)))
            }
            _ => Vec::new(),
        }
    }

    /// The email of a document, or the one that a conflict with another document hides.
    fn email_of<'r>(&self, document: &'r UserDocument) -> Option<&'r str> {
        let hidden = document.email_conflict.as_ref().map(|conflict| conflict.email.as_str());
        document.email.as_deref().or(hidden.filter(|email| self.emails.contains(email)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use kinde_emulator::{Config, Emulator, Fault, FaultKind, NewUser, Profile, UserEdit, WebhookSpec};
    use kinsync_core::{Organization, UserId};

    use super::*;

    fn document(id: &str, first_name: &str) -> UserDocument {
        let state = kinsync_core::UserState::default();
        let id = UserId::parse(id).unwrap();
        let mut document = UserDocument::new(&id, &state, &kinsync_core::RowMetadata::default());
        document.first_name = Some(first_name.to_owned());
        document.email = Some("ada@example.com".to_owned());
        let code = "org_590d7f1a86a".to_owned();
        document.organizations = Some(vec![Organization::new(code)]);
        document
    }

    /// An emulator with deliveries that are all answered 200.
    async fn kinde() -> Emulator {
        let kinde = Emulator::start(Config::default()).await.unwrap();
        let endpoint = axum::Router::new().fallback(async || "");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, endpoint).await });
        kinde.add_webhook(WebhookSpec::new(format!("http://{address}").parse().unwrap()));
        kinde
    }

    async fn drift(kinde: &Emulator, history: &mut History, stored: &[UserDocument]) -> Drift {
        kinde.quiesce(Duration::from_secs(10)).await.unwrap();
        let users = kinde.users();
        let at = Timestamp::from_microsecond(kinsync_engine::Clock::system().now().0).unwrap();
        for user in &users {
            history.sample(at, user);
        }
        history.read(&kinde.deliveries(), |id| kinde.event(id));
        compare(&users, stored, history)
    }

    fn ada() -> NewUser {
        let email = Some("ada@example.com".to_owned());
        NewUser { id: Some("kp_a".into()), email, first_name: Some("Ada".into()), ..NewUser::default() }
    }

    fn rename(kinde: &Emulator, first_name: &str) {
        let edit = UserEdit { first_name: Some(first_name.into()), ..UserEdit::default() };
        kinde.update_user("kp_a", edit).unwrap();
    }

    #[tokio::test]
    async fn a_delivered_change_that_is_not_stored_is_unexplained() {
        let (kinde, mut history) = (kinde().await, History::default());
        kinde.create_user(ada()).unwrap();
        let missing = drift(&kinde, &mut history, &[]).await;
        assert_eq!((missing.missing, missing.unexplained, missing.lost), (1, 1, 0));
        let outdated = drift(&kinde, &mut history, &[document("kp_a", "Ida")]).await;
        assert_eq!((outdated.outdated, outdated.unexplained), (1, 1));
        assert_eq!(outdated.details, [("kp_a".to_owned(), vec!["firstName"])]);
        let drift = drift(&kinde, &mut history, &[document("kp_a", "Ada")]).await;
        assert_eq!(drift, Drift::default());
    }

    #[tokio::test]
    async fn a_change_that_was_never_delivered_is_lost() {
        let (kinde, mut history) = (kinde().await, History::default());
        kinde.create_user(ada()).unwrap();
        kinde.set_fault(Fault::always(FaultKind::Drop));
        rename(&kinde, "Ida");
        kinde.create_user(NewUser { id: Some("kp_b".into()), ..NewUser::default() }).unwrap();
        let lost = drift(&kinde, &mut history, &[document("kp_a", "Ada")]).await;
        assert_eq!((lost.outdated, lost.missing, lost.lost, lost.unexplained), (1, 1, 2, 0));
        kinde.delete_user("kp_a", Profile::Remove).unwrap();
        let deleted = drift(&kinde, &mut history, &[document("kp_a", "Ada")]).await;
        assert_eq!((deleted.should_be_deleted, deleted.missing, deleted.lost), (1, 1, 2));
    }

    #[tokio::test]
    async fn a_repaired_user_with_a_lost_next_change_is_not_unexplained() {
        let (kinde, mut history) = (kinde().await, History::default());
        kinde.create_user(ada()).unwrap();
        kinde.set_fault(Fault::always(FaultKind::Drop));
        rename(&kinde, "Ida");
        rename(&kinde, "Eda");
        let repaired = drift(&kinde, &mut history, &[document("kp_a", "Ida")]).await;
        assert_eq!((repaired.lost, repaired.unexplained), (1, 0), "a scan read it between the two changes");
        kinde.clear_faults();
        rename(&kinde, "Uda");
        let not_stored = drift(&kinde, &mut history, &[document("kp_a", "Ida")]).await;
        assert_eq!((not_stored.lost, not_stored.unexplained), (0, 1));
    }

    #[tokio::test]
    async fn a_user_that_was_never_at_this_kinde_is_no_drift() {
        let kinde = kinde().await;
        let drift = drift(&kinde, &mut History::default(), &[document("test", "Ada")]).await;
        assert_eq!((drift.users(), drift.unknown), (0, 1));
    }
}
