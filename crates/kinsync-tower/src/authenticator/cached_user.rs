//! A user in the cache, with what requests need of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64},
    },
};

use kinsync_core::{UserDocument, UserState};
use kinsync_engine::internal::known_users::KnownUser;

use crate::document::Json;

/// A user as loaded from the store.
pub(crate) struct CachedUser {
    pub(crate) document: Arc<UserDocument>,
    /// By code of the organization: what the roles give, where the document has no permissions because those of the user are not
    /// known.
    pub(crate) permissions_of_roles: BTreeMap<String, Vec<String>>,
    /// Serialized on first use.
    json: OnceLock<Json>,
    /// `lastSeenAt` as loaded, or as it will be written, in microseconds; `i64::MIN` if it is absent. Beside the document, so that a usual
    /// request touches neither that nor the pending writes.
    pub(super) seen_at: AtomicI64,
    /// `deleted` or `suspended`: the reason to reject requests.
    pub(super) refused: Option<&'static str>,
    /// Whether Kinde's profile endpoint has more to say: only tokens and sign-ins are known of the user, or another user
    /// has the email address, which changes owner if Kinde has verified it for this user.
    pub(super) is_unconfirmed: bool,
    /// Whether the store has no document of the user, because a rule of the database refuses it.
    pub(super) is_document_refused: bool,
    /// Whether a reload was requested since the last load. A request that was lost is repeated when the user is too old.
    pub(super) is_reloading: AtomicBool,
}

impl CachedUser {
    pub(super) fn of(KnownUser { row, is_document_refused }: &KnownUser) -> Arc<Self> {
        let document = Arc::new(row.document());
        let refused = match () {
            () if document.is_deleted => Some("deleted"),
            () if document.is_suspended == Some(true) => Some("suspended"),
            () => None,
        };
        let has_open_conflict = document.email_conflict.is_some() && !row.state.has_verified_email();
        let is_unconfirmed = row.state.has_no_kinde_fields() || has_open_conflict;
        let seen_at = AtomicI64::new(document.last_seen_at.map_or(i64::MIN, |at| at.0));
        let is_document_refused = *is_document_refused && refused.is_none();
        let permissions_of_roles = permissions_of_roles(&row.state, &document);
        Arc::new(Self {
            document,
            permissions_of_roles,
            json: OnceLock::new(),
            seen_at,
            refused,
            is_unconfirmed,
            is_document_refused,
            is_reloading: AtomicBool::new(false),
        })
    }

    /// Returns the document for the user's own client. Without properties: a private one may be among them.
    pub(crate) fn json(&self) -> &Json {
        self.json.get_or_init(|| Json::of(&UserDocument { properties: None, ..(*self.document).clone() }))
    }

    /// Whether the difference changes nothing for a request.
    pub(super) fn is_equivalent_to(&self, other: &Self) -> bool {
        let flags = |user: &Self| (user.refused, user.is_unconfirmed, user.is_document_refused);
        flags(self) == flags(other)
            && self.document == other.document
            && self.permissions_of_roles == other.permissions_of_roles
    }
}

fn permissions_of_roles(state: &UserState, document: &UserDocument) -> BTreeMap<String, Vec<String>> {
    let Some(memberships) = state.memberships() else { return BTreeMap::new() };
    let incomplete = document.organizations.iter().flatten().filter(|one| one.permissions.is_none());
    let given = incomplete.map(|one| {
        let keys = memberships.permissions_of_roles(&one.code, &state.directory);
        (one.code.clone(), keys.into_iter().map(str::to_owned).collect())
    });
    given.filter(|(_, keys): &(_, Vec<_>)| !keys.is_empty()).collect()
}

impl std::fmt::Debug for CachedUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedUser").field("refused", &self.refused).finish_non_exhaustive()
    }
}
