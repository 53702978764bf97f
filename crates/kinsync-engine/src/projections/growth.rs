//! Sign-ups, deletions and active users of a day, of the tenant and of each organization.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kinde::event;
use kinsync_core::Micros;
use serde::{Deserialize, Serialize};

use super::Projection;
use crate::{
    decode,
    log_entry::{DELETED, LogEntry, LogSource},
};

/// Organizations with figures of their own. Those of the others are summed.
const ORGANIZATIONS: usize = 1000;

/// Growth on a day. Each number counts a user once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Growth {
    /// Users with a `user.created` event.
    pub sign_ups: u64,
    /// Users with a `user.deleted` event, or with a deletion that a scan found.
    pub deletions: u64,
    /// Users that signed up or in at Kinde (`user.authenticated`), and users with an entry of a token or of a profile read.
    pub active_users: u64,
    /// The organizations with most active users, by code.
    pub organizations: BTreeMap<String, OrganizationGrowth>,
    /// The sum of the other organizations.
    pub other_organizations: OrganizationGrowth,
}

/// Growth of an organization on a day. Counts users with an entry of this day that names the organization.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrganizationGrowth {
    /// Its active users.
    pub active_users: u64,
    /// Its users that signed up.
    pub sign_ups: u64,
    /// Its users that were deleted.
    pub deletions: u64,
}

/// Counts the entries of a day. The ids of users are in memory only.
#[derive(Debug, Default)]
pub(super) struct Projector {
    users: HashMap<String, User>,
}

#[derive(Debug, Default)]
struct User {
    signed_up: bool,
    deleted: bool,
    active: bool,
    organizations: HashSet<String>,
}

impl Projection for Projector {
    type Figures = Growth;

    const NAME: &'static str = "growth";

    fn add(&mut self, entry: &LogEntry) {
        let Some(id) = &entry.user else { return };
        let user = self.users.entry(id.clone()).or_default();
        match entry.kind.as_str() {
            event::USER_CREATED => (user.signed_up, user.active) = (true, true),
            event::USER_AUTHENTICATED => user.active = true,
            event::USER_DELETED => user.deleted = true,
            _ => user.deleted |= entry.cause() == Some(DELETED),
        }
        user.active |= matches!(entry.source, LogSource::Login | LogSource::Profile);
        user.organizations.extend(organizations(entry));
    }

    fn figures(self) -> Growth {
        let mut growth = Growth::default();
        let mut organizations: HashMap<String, OrganizationGrowth> = HashMap::new();
        for User { signed_up, deleted, active, organizations: codes } in self.users.into_values() {
            growth.sign_ups += u64::from(signed_up);
            growth.deletions += u64::from(deleted);
            growth.active_users += u64::from(active);
            if signed_up || deleted || active {
                let of_user = OrganizationGrowth {
                    active_users: active.into(),
                    sign_ups: signed_up.into(),
                    deletions: deleted.into(),
                };
                for code in codes {
                    organizations.entry(code).or_default().add(of_user);
                }
            }
        }
        let mut ranked: Vec<(String, OrganizationGrowth)> = organizations.into_iter().collect();
        ranked.sort_by(|(code, one), (other_code, other)| other.cmp(one).then_with(|| code.cmp(other_code)));
        for (_, other) in ranked.drain(ranked.len().min(ORGANIZATIONS)..) {
            growth.other_organizations.add(other);
        }
        growth.organizations = ranked.into_iter().collect();
        growth
    }
}

impl OrganizationGrowth {
    fn add(&mut self, other: Self) {
        self.active_users += other.active_users;
        self.sign_ups += other.sign_ups;
        self.deletions += other.deletions;
    }
}

/// Returns the organizations that an entry names its user a member of.
fn organizations(entry: &LogEntry) -> BTreeSet<String> {
    let state = decode::state_of(entry, Micros(i64::MAX)).ok().flatten();
    let memberships = state.as_ref().and_then(|state| state.memberships());
    memberships.map(|memberships| memberships.codes().collect()).unwrap_or_default()
}
