//! Generates events in the shape of Kinde's webhook payloads, without code of kinsync.
//!
//! Source: <https://docs.kinde.com/integrate/webhooks/about-webhooks/> and the types of `@kinde/webhooks`.

use bson::{RawDocumentBuf, rawdoc};
use jiff::Timestamp;
use jiff::tz::Offset;

/// The offset of Kinde's timestamps.
const SYDNEY: Offset = Offset::constant(10);

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `user.created`.
    Created,
    /// `user.updated`.
    Updated,
    /// `user.authenticated`, which has no profile.
    Authenticated,
}

impl Kind {
    /// The `type` in the payload.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "user.created",
            Self::Updated => "user.updated",
            Self::Authenticated => "user.authenticated",
        }
    }
}

/// One event of one user.
#[derive(Debug, Clone)]
pub struct Event {
    /// Number of the event, unique in a run.
    pub number: u64,
    /// Number of the user.
    pub user: u64,
    /// Type of the event.
    pub kind: Kind,
    /// Time in Unix microseconds.
    pub at: i64,
    /// Value by which the state after this event is recognized in the store.
    pub last_name: String,
}

impl Event {
    /// `event_` and 32 hex digits that start with the time in milliseconds, as Kinde's ids do.
    pub fn id(&self) -> String {
        format!("event_{:012x}{:010x}{:010x}", self.at / 1000, mix(self.number) >> 24, self.number)
    }

    /// The user's id at Kinde.
    pub fn user_id(&self) -> String {
        user_id(self.user)
    }

    /// The payload as JSON text: about 450 bytes for created and updated.
    pub fn payload(&self) -> String {
        let at = Timestamp::from_microsecond(self.at).expect("the time is in range");
        let at = at.display_with_offset(SYDNEY);
        let (id, kind, user) = (self.id(), self.kind.as_str(), self.user());
        format!(
            r#"{{"data":{{"user":{user}}},"event_id":"{id}","source":"admin","timestamp":"{at:.6}","type":"{kind}"}}"#
        )
    }

    fn user(&self) -> String {
        let Self { user, last_name, .. } = self;
        let id = self.user_id();
        if self.kind == Kind::Authenticated {
            return format!(r#"{{"id":"{id}"}}"#);
        }
        format!(
            r#"{{"email":"{email}","first_name":"Daniel","id":"{id}","is_password_reset_requested":false,"is_suspended":false,"last_name":"{last_name}","organizations":[{{"code":"{ORG}","permissions":null,"roles":null}}],"phone":null,"username":"daniel{user}"}}"#,
            email = email(*user),
        )
    }

    /// The fields that the raw driver sets for this event.
    pub fn fields(&self) -> RawDocumentBuf {
        let at = bson::DateTime::from_millis(self.at / 1000);
        if self.kind == Kind::Authenticated {
            return rawdoc! { "lastSignedInAt": at };
        }
        rawdoc! {
            "email": email(self.user),
            "firstName": "Daniel",
            "lastName": self.last_name.as_str(),
            "username": format!("daniel{}", self.user),
            "organizations": [{ "code": ORG, "roles": [], "permissions": [] }],
            "isSuspended": false,
            "isDeleted": false,
            "updatedAt": at,
            "source": "webhook",
        }
    }
}

const ORG: &str = "org_590d7f1a86a";

fn email(user: u64) -> String {
    format!("daniel.rivers.{user}@example.com")
}

/// The id at Kinde of the user with this number.
pub fn user_id(user: u64) -> String {
    format!("kp_{:016x}{:016x}", mix(user), user)
}

/// A bijection that spreads numbers over all 64-bit values (the finalizer of `SplitMix64`).
fn mix(number: u64) -> u64 {
    let seed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let a = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}

/// Generates events with increasing numbers and times in steps of one microsecond.
#[derive(Debug)]
pub struct Source {
    next: u64,
    start: i64,
}

impl Source {
    /// Starts at the current time.
    pub fn now() -> Self {
        Self { next: 0, start: Timestamp::now().as_microsecond() }
    }

    /// The next event.
    pub fn event(&mut self, user: u64, kind: Kind) -> Event {
        let number = self.next;
        let at = self.start + i64::try_from(number).expect("a run has few events");
        self.next += 1;
        Event { number, user, kind, at, last_name: format!("Rivers{number:07}") }
    }

    /// Creations and updates of many users; one event in five is a creation.
    pub fn traffic(&mut self, users: u64, count: usize) -> Vec<Event> {
        let mut random = fastrand::Rng::with_seed(self.next);
        let mut one = || {
            let kind = if random.u8(..5) == 0 { Kind::Created } else { Kind::Updated };
            self.event(random.u64(..users), kind)
        };
        (0..count).map(|_| one()).collect()
    }

    /// Four events for each user, user by user: created, updated twice, signed in.
    pub fn histories(&mut self, users: u64) -> Vec<Event> {
        let kinds = [Kind::Created, Kind::Updated, Kind::Updated, Kind::Authenticated];
        (0..users)
            .flat_map(|user| kinds.map(|kind| (user, kind)))
            .map(|(user, kind)| self.event(user, kind))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_json_of_about_450_bytes_with_a_unique_id() {
        let mut source = Source::now();
        let (one, two) = (source.event(7, Kind::Updated), source.event(7, Kind::Updated));
        assert_ne!(one.id(), two.id());
        assert_eq!(one.id().len(), "event_".len() + 32);
        assert_eq!(one.user_id().len(), "kp_".len() + 32);
        let payload = one.payload();
        assert!((430..480).contains(&payload.len()), "{} bytes: {payload}", payload.len());
        let json: serde_json::Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(json["data"]["user"]["last_name"], "Rivers0000000");
        assert!(json["timestamp"].as_str().unwrap().ends_with("+10:00"), "{payload}");
    }
}
