//! Entries of the event log: one for each observation that changed a user, whatever its source.
//!
//! The state of a user is the join of the entries of that user, apart from the time of the last request and from the copy of
//! the organizations and roles, which have records of their own. An entry is stored before the state that it explains.
//! `kinsync rebuild` depends on both.
//!
//! The id of an entry is derived from its content, so that a repetition after an interruption adds nothing.

use aws_lc_rs::digest::{Context, SHA256, digest};
use kinsync_core::{Micros, Observation, Source, UserId, UserState, Version, What};
use serde::{Deserialize, Serialize};

/// Version of the form of an entry. An entry without one comes from before kinsync wrote checksums.
pub const SCHEMA: i32 = 1;

/// Scheme of an entry with an observation. The payload is its [`What`] as JSON.
pub const OBSERVATION: &str = "kinsync.observation";

/// Scheme of an entry with a state to join. The payload is a [`UserState`] as JSON.
pub const STATE: &str = "kinsync.state";

/// Scheme of an entry that changes no state of a user. The payload is a JSON object.
pub const ACTION: &str = "kinsync.action";

/// Scheme of an entry that was erased. The payload is a JSON object with the hash of the former one and the cause of the change.
pub const ERASED: &str = "kinsync.erased";

/// Causes of a change of a user, see [`LogEntry::cause`].
const CAUSES: [&str; 4] = [DELETED, "restored", "membership", "fields"];

/// The cause of a deletion that kinsync observed.
pub(crate) const DELETED: &str = "deleted";

/// Types of kinsync's own entries. Kinde's types begin with the name of an object, never with `kinsync.`.
pub mod kind {
    /// A token on an authenticated request created the user or set a field.
    pub const LOGIN: &str = "kinsync.login";
    /// A response of Kinde's profile endpoint.
    pub const PROFILE_READ: &str = "kinsync.profile.read";
    /// A user in the list that a scan read.
    pub const SCAN_READ: &str = "kinsync.scan.read";
    /// A single read of a user or of a membership, or its confirmed absence.
    pub const CHECK_READ: &str = "kinsync.check.read";
    /// What a complete scan proves about a user, written before a late event.
    pub const SCAN_PROOF: &str = "kinsync.scan.proof";
    /// The end of memberships, because the organization was deleted.
    pub const ORGANIZATION_DELETED: &str = "kinsync.organization.deleted";
    /// An organization, a role or a permission in a list that a scan read.
    pub const DIRECTORY_READ: &str = "kinsync.directory.read";
    /// An observation of an event that was not received by the queue.
    pub const EVENT: &str = "kinsync.event";
    /// An existing document became the document of a user.
    pub const LINK: &str = "kinsync.link";
    /// The whole state of a user that was stored before the log was complete.
    pub const SNAPSHOT: &str = "kinsync.snapshot";
    /// The erasure of a deleted user.
    pub const ERASURE: &str = "kinsync.erasure";
    /// The observations of the entries that retention removed.
    pub const RETENTION: &str = "kinsync.retention";
    /// A request of an operator that changed something.
    pub const OPERATOR: &str = "kinsync.operator";
}

/// The source of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// A webhook delivery.
    Webhook,
    /// A token on an authenticated request.
    Login,
    /// Kinde's profile endpoint.
    Profile,
    /// The Management API.
    Reconcile,
    /// An operator.
    Operator,
    /// kinsync itself.
    Kinsync,
}

impl LogSource {
    /// All sources.
    pub const ALL: [Self; 6] =
        [Self::Webhook, Self::Login, Self::Profile, Self::Reconcile, Self::Operator, Self::Kinsync];

    /// Returns the name in a stored entry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Login => "login",
            Self::Profile => "profile",
            Self::Reconcile => "reconcile",
            Self::Operator => "operator",
            Self::Kinsync => "kinsync",
        }
    }

    /// Returns the source with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == name)
    }

    /// Returns the source of an observation from this source; `None` for an operator and for kinsync itself.
    pub const fn of_user(self) -> Option<Source> {
        match self {
            Self::Webhook => Some(Source::Webhook),
            Self::Login => Some(Source::Login),
            Self::Profile => Some(Source::Profile),
            Self::Reconcile => Some(Source::Reconcile),
            Self::Operator | Self::Kinsync => None,
        }
    }
}

impl From<Source> for LogSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Webhook => Self::Webhook,
            Source::Login => Self::Login,
            Source::Profile => Self::Profile,
            Source::Reconcile => Self::Reconcile,
        }
    }
}

/// An entry of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Unique in the log: the signed id of an event, or an id derived from the content.
    pub id: String,
    /// Event type such as `user.updated`, or one of [`kind`]; empty if an event could not be decoded.
    pub kind: String,
    /// Id of the user, if the entry is about one.
    pub user: Option<String>,
    /// Source.
    pub source: LogSource,
    /// Version of the observation, if it has one.
    pub version: Option<Version>,
    /// Provider time.
    pub at: Option<Micros>,
    /// Time of receipt by kinsync's clock.
    pub received_at: Micros,
    /// Scheme of the verification, or [`OBSERVATION`], [`STATE`] or [`ACTION`].
    pub scheme: String,
    /// The event as JSON text, as received, or canonical JSON. Never evaluated.
    pub payload: String,
}

impl LogEntry {
    /// Returns the entry of an observation.
    pub(crate) fn of(observation: &Observation, kind: &str, now: Micros) -> Self {
        let (source, version) = (observation.source.into(), Some(observation.version.clone()));
        Self::new(kind, Some(&observation.user), source, version, (OBSERVATION, json(&observation.what)), now)
    }

    /// Returns the entry of a state to join, with the newest version in it.
    pub(crate) fn of_state(
        user: &UserId,
        kind: &str,
        source: LogSource,
        state: &UserState,
        now: Micros,
    ) -> Self {
        let version = state.versions().max().cloned();
        Self::new(kind, Some(user), source, version, (STATE, json(state)), now)
    }

    /// Returns the entry of something that changes no state. `content` is a JSON object.
    pub fn action(
        kind: &str,
        user: Option<&UserId>,
        source: LogSource,
        content: &serde_json::Value,
        now: Micros,
    ) -> Self {
        Self::new(kind, user, source, None, (ACTION, json(content)), now)
    }

    /// Returns the marker that replaces this entry when its user is erased: without a version, which may contain a hash of
    /// the observed values. The daily figures need the cause.
    #[must_use]
    pub(crate) fn marker(&self) -> Self {
        let payload = serde_json::json!({ "sha256": hash(self.payload.as_bytes()), "cause": self.cause() });
        Self { version: None, scheme: ERASED.to_owned(), payload: json(&payload), ..self.clone() }
    }

    /// Returns whether the entry contains nothing of its user but the erasure.
    pub(crate) fn is_erased(&self) -> bool {
        self.scheme == ERASED || (self.scheme == STATE && self.kind == kind::ERASURE)
    }

    /// Returns what an entry of kinsync changes, also of a marker of it: `deleted`, `restored`, `membership` or `fields`. `None` for a
    /// delivery, which its type describes, for an entry that changes no user, and for one that cannot be read.
    pub(crate) fn cause(&self) -> Option<&'static str> {
        match self.scheme.as_str() {
            STATE => Some("fields"),
            OBSERVATION => Some(match observed(&self.payload).ok()? {
                What::Deleted => DELETED,
                What::Exists(_) => "restored",
                What::Membership { .. } => "membership",
                What::Fields(_) | What::Seen(_) | What::SignedIn(_) => "fields",
            }),
            ERASED => {
                let marker: serde_json::Value = serde_json::from_str(&self.payload).ok()?;
                CAUSES.into_iter().find(|cause| marker["cause"] == **cause)
            }
            _ => None,
        }
    }

    fn new(
        kind: &str,
        user: Option<&UserId>,
        source: LogSource,
        version: Option<Version>,
        (scheme, payload): (&str, String),
        now: Micros,
    ) -> Self {
        let mut entry = Self {
            id: String::new(),
            kind: kind.to_owned(),
            user: user.map(|user| user.as_str().to_owned()),
            source,
            at: version.as_ref().filter(|version| !version.is_provisional()).map(|version| version.at),
            version,
            received_at: Micros(0),
            scheme: scheme.to_owned(),
            payload,
        };
        // Without the time of receipt, so that a repetition has the same id.
        entry.id = format!("{kind}:{}", entry.checksum());
        entry.received_at = now;
        entry
    }

    /// Returns the first half of the SHA-256 of the entry as hex.
    pub fn checksum(&self) -> String {
        let Self { id, kind, user, source, version, at, received_at, scheme, payload } = self;
        let mut sum = Context::new(&SHA256);
        let mut text = |text: &str| {
            sum.update(&(text.len() as u64).to_le_bytes());
            sum.update(text.as_bytes());
        };
        [id, kind, source.as_str(), scheme, payload].into_iter().for_each(&mut text);
        text(user.as_deref().unwrap_or("\0"));
        text(version.as_ref().map_or("", |version| &version.tie));
        let rank = version.as_ref().map_or(0, |version| version.rank as i64 + 1);
        let numbers: [i64; 6] = [
            SCHEMA.into(),
            rank,
            version.as_ref().map_or(0, |version| version.at.0),
            i64::from(at.is_some()),
            at.map_or(0, |at| at.0),
            received_at.0,
        ];
        for number in numbers {
            sum.update(&number.to_le_bytes());
        }
        hex(sum.finish().as_ref())
    }

    /// Returns whether the entry is as it was written. An entry from before kinsync wrote checksums has neither a schema nor a
    /// checksum, and counts as unchanged.
    pub(crate) fn is_intact(&self, schema: Option<i64>, checksum: Option<&str>) -> bool {
        match (schema, checksum) {
            (None, None) => true,
            (Some(schema), Some(checksum)) => schema == i64::from(SCHEMA) && checksum == self.checksum(),
            _ => false,
        }
    }
}

/// Returns the type of the entry of an observation.
pub(crate) const fn kind_of(source: Source, is_compared: bool) -> &'static str {
    match source {
        Source::Webhook => kind::EVENT,
        Source::Login => kind::LOGIN,
        Source::Profile => kind::PROFILE_READ,
        Source::Reconcile if is_compared => kind::SCAN_READ,
        Source::Reconcile => kind::CHECK_READ,
    }
}

/// Returns the first half of the SHA-256 of a text as hex.
pub(crate) fn hash(content: &[u8]) -> String {
    hex(digest(&SHA256, content).as_ref())
}

fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |digit: u8| char::from(DIGITS[usize::from(digit)]);
    digest[..16].iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn json(content: &impl Serialize) -> String {
    serde_json::to_string(content).expect("texts, numbers and maps with text keys are JSON")
}

/// Decodes the payload of an [`OBSERVATION`].
pub(crate) fn observed(payload: &str) -> Result<What, serde_json::Error> {
    serde_json::from_str(payload)
}

/// Decodes the payload of a [`STATE`].
pub(crate) fn state(payload: &str) -> Result<UserState, serde_json::Error> {
    serde_json::from_str(payload)
}
