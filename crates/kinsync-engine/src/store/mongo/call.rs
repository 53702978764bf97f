//! Calls to MongoDB: limits of time and concurrency, and classification of failures.
//!
//! The driver's futures are not cancel safe, and a call that timed out may have been executed. Each call therefore runs to
//! completion in its own task; only the wait for it has a deadline.

use std::{sync::Arc, time::Duration};

use bson::{Bson, Document, RawDocumentBuf};
use futures_util::{FutureExt as _, future::BoxFuture};
use mongodb::{
    Database,
    error::{Error as DriverError, ErrorKind, RETRYABLE_WRITE_ERROR},
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::store::Error;

/// Codes of write errors that concern the server, not the document. `OutOfDiskSpace`
/// (14031) and "not primary" are among those with large numbers.
const PASSING: [i32; 8] = [9001, 10058, 10107, 11600, 11602, 13435, 13436, 14031];

/// Codes of commands that the server understood and refuses: unknown or unsupported commands, options and stages. Amazon
/// `DocumentDB` answers 303, Azure Cosmos DB 115, a sharded cluster 67 to a unique index without the shard key.
const REFUSED: [i32; 16] = [2, 9, 14, 20, 59, 67, 72, 73, 115, 148, 166, 197, 238, 303, 323, 40415];

/// `CannotCreateIndex`.
const NO_SUCH_INDEX: i32 = 67;

/// Hint for `CannotCreateIndex` in a collection with as many indexes as MongoDB allows.
pub(super) const TOO_MANY_INDEXES: &str = "the collection has 64 indexes, the limit of MongoDB: drop those that no query uses (`$indexStats` \
                                           lists their use), and kinsync creates its own";

/// `CommandNotSupportedOnView`.
const NOT_ON_A_VIEW: i32 = 166;

/// Names in the description of a failed validator.
const MAX_WORDS: usize = 24;

/// Failures of a call without an error of the driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error("no response within {0:?}")]
    Deadline(Duration),
    #[error("every connection was busy for {0:?}")]
    Busy(Duration),
    #[error("the task of the call was aborted")]
    CutOff,
    #[error("the write is not durable yet: code {code} ({name})")]
    WriteConcern { code: i32, name: String },
    #[error("the server temporarily refused a write: code {0}")]
    Write(i32),
    #[error("the server's reply is malformed")]
    Reply,
    #[error("DNS has returned no servers so far")]
    NoServers,
    #[error("the indexes do not exist yet")]
    Unprepared,
}

/// Runs calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    tracker: TaskTracker,
    /// One permit per connection, held until the call has ended, so that tasks do not accumulate while a server hangs.
    permits: Arc<Semaphore>,
}

impl Calls {
    pub(super) fn new(connections: u32) -> Self {
        Self { tracker: TaskTracker::new(), permits: Arc::new(Semaphore::new(connections as usize)) }
    }

    /// Runs a call and waits at most this long for its result. Cancelling the future does not cancel the call.
    ///
    /// The call is boxed before it is awaited: the compiler then examines the types of the driver's futures once per call, and
    /// not again in every function around it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, DriverError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let (reply, answer) = oneshot::channel();
        // Sending fails if the caller no longer waits.
        let call = async move { _ = reply.send(call.await) };
        self.wait(doing, limit, call.boxed(), answer)
    }

    async fn wait<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        call: BoxFuture<'static, ()>,
        answer: oneshot::Receiver<Result<T, DriverError>>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        if timeout_at(deadline, self.start(call)).await.is_err() {
            return Err(unavailable(doing, Cause::Busy(limit)));
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer.map_err(|error| failure(doing, &error)),
            Ok(Err(_)) => Err(unavailable(doing, Cause::CutOff)),
            Err(_) => Err(unavailable(doing, Cause::Deadline(limit))),
        }
    }

    /// Waits for a permit and starts the task of a call.
    async fn start(&self, call: BoxFuture<'static, ()>) {
        let permit = self.permits.clone().acquire_owned().await;
        self.tracker.spawn(async move {
            call.await;
            drop(permit);
        });
    }
}

/// Runs a command on the primary, and repeats it once after a lost connection or primary. The command must therefore be safe
/// to repeat. The reply may contain `writeErrors`.
pub(super) async fn command(database: Database, command: RawDocumentBuf) -> Result<Document, DriverError> {
    match database.run_raw_command(command.clone()).await {
        Err(error) if may_be_lost(&error) => database.run_raw_command(command).await,
        answer => answer,
    }
}

fn may_be_lost(error: &DriverError) -> bool {
    let lost = matches!(*error.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. });
    lost || error.contains_label(RETRYABLE_WRITE_ERROR)
        || code(error).is_some_and(|code| PASSING.contains(&code))
}

/// Classifies a failure as transient or permanent.
pub(super) fn failure(doing: &'static str, error: &DriverError) -> Error {
    let hint = match (&*error.kind, code(error)) {
        (ErrorKind::Authentication { .. }, _) | (_, Some(18 | 8000)) => {
            "check the user, the password and the `authSource` in MONGODB_URI"
        }
        // Without a database user every call fails for this reason, regardless of roles.
        (ErrorKind::Command(failed), Some(13)) if failed.message.contains("requires authentication") => {
            "the server requires authentication: add a user and a password to MONGODB_URI"
        }
        (_, Some(13)) => "grant the database user of MONGODB_URI the role `readWrite` on this database",
        (ErrorKind::InvalidTlsConfig { .. }, _) => "check the TLS options in MONGODB_URI",
        (ErrorKind::IncompatibleServer { .. }, _) => "use MongoDB 4.4 or later",
        (ErrorKind::InvalidArgument { .. }, _) => "this is a bug of kinsync; report it with this message",
        (ErrorKind::Command(failed), Some(NO_SUCH_INDEX)) if failed.message.contains("too many indexes") => {
            TOO_MANY_INDEXES
        }
        (_, Some(NO_SUCH_INDEX)) => {
            "the server cannot create this index (code 67): in a sharded collection a unique index begins with the shard key"
        }
        (_, Some(NOT_ON_A_VIEW)) => {
            "a collection of kinsync is a view, which takes no writes: name a collection (KINSYNC_USERS_COLLECTION, \
             KINSYNC_EVENTS_COLLECTION)"
        }
        (ErrorKind::Command(failed), Some(code)) if REFUSED.contains(&code) => {
            let hint = format!(
                "the server refuses the command (code {code}, {}): kinsync needs MongoDB 4.4 or later; Amazon DocumentDB \
                 and Azure Cosmos DB lack commands that it uses",
                failed.code_name
            );
            return Error::Refused { doing, hint, source: Some(error.kind.clone()) };
        }
        // All other failures count as transient: a repetition is safe.
        _ => return unavailable(doing, error.kind.as_ref().clone()),
    };
    Error::Refused { doing, hint: hint.into(), source: Some(error.kind.clone()) }
}

/// Returns the code of a command that failed as a whole.
pub(super) fn code(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(failed) => Some(failed.code),
        _ => None,
    }
}

pub(super) fn unavailable(
    doing: &'static str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Unavailable { doing, source: cause.into() }
}

/// One entry of `writeErrors`, without the server's message, which quotes the document.
#[derive(Debug)]
pub(super) struct WriteError {
    pub(super) index: usize,
    pub(super) code: i32,
    /// For a duplicate key: the keys of the index, or its name if an old server does not report the keys.
    pub(super) duplicate: Vec<String>,
    /// For a duplicate key: the name of the index, if the server reports it.
    pub(super) index_name: Option<String>,
    /// For a duplicate key: whether the document has none of the keys. The index then allows only one such document.
    pub(super) is_absent: bool,
    /// For a validator: what it demands and which keys fail it, after a colon; empty before MongoDB 5.
    pub(super) rule: String,
    /// Keys of the document that a validator refuses for their value, or two arrays that one index covers.
    pub(super) keys: Vec<String>,
}

impl WriteError {
    /// Whether it is about the server whatever else it answers. Any other code is about the
    /// statement or about the server: only what becomes of other statements shows which.
    pub(super) fn is_about_the_server(&self) -> bool {
        is_about_the_server(self.code)
    }
}

pub(super) fn is_about_the_server(code: i32) -> bool {
    PASSING.contains(&code)
}

/// Returns the number of matched or inserted rows and the write errors. Fails if the outcome is not known to be durable.
pub(super) fn written(doing: &'static str, reply: &Document) -> Result<(usize, Vec<WriteError>), Error> {
    if let Ok(concern) = reply.get_document("writeConcernError") {
        let name = concern.get_str("codeName").unwrap_or_default().to_owned();
        let code = concern.get_i32("code").unwrap_or_default();
        return Err(unavailable(doing, Cause::WriteConcern { code, name }));
    }
    let n = reply.get_i32("n").ok().and_then(|n| usize::try_from(n).ok());
    let n = n.ok_or_else(|| unavailable(doing, Cause::Reply))?;
    let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    let errors = errors.iter().map(|error| error.as_document().and_then(write_error));
    let errors: Option<Vec<_>> = errors.collect();
    Ok((n, errors.ok_or_else(|| unavailable(doing, Cause::Reply))?))
}

fn write_error(error: &Document) -> Option<WriteError> {
    let duplicate = match error.get_document("keyPattern") {
        Ok(pattern) => pattern.keys().cloned().collect(),
        Err(_) => error.get_str("errmsg").ok().and_then(index_name).into_iter().collect(),
    };
    let index = usize::try_from(error.get_i32("index").ok()?).ok()?;
    let (mut words, mut keys) = (Vec::new(), Vec::new());
    if let Ok(details) = error.get_document("errInfo").and_then(|info| info.get_document("details")) {
        rule(details, &mut words);
        failed_keys(details, "", &mut keys);
    }
    words.truncate(MAX_WORDS);
    let rule = if words.is_empty() { String::new() } else { format!(": {}", words.join(" ")) };
    let index_name = error.get_str("errmsg").ok().and_then(index_name);
    let absent =
        error.get_document("keyValue").map(|values| values.values().all(|value| *value == Bson::Null));
    let is_absent = absent.unwrap_or_default();
    let code = error.get_i32("code").ok()?;
    Some(WriteError { index, code, duplicate, index_name, is_absent, rule, keys })
}

/// Collects the keys with a value that fails the validator, as paths with dots. A missing key is not among them.
fn failed_keys(details: &Document, prefix: &str, keys: &mut Vec<String>) {
    let listed = |key: &str| details.get_array(key).map(Vec::as_slice).unwrap_or_default();
    let documents = |key: &str| listed(key).iter().filter_map(Bson::as_document);
    for property in documents("propertiesNotSatisfied") {
        let path = format!("{prefix}{}", property.get_str("propertyName").unwrap_or_default());
        let known = keys.len();
        let nested = property.get_array("details").into_iter().flatten().filter_map(Bson::as_document);
        nested.for_each(|details| failed_keys(details, &format!("{path}."), keys));
        if keys.len() == known {
            keys.push(path);
        }
    }
    let additional = listed("additionalProperties").iter().filter_map(Bson::as_str);
    keys.extend(additional.map(|key| format!("{prefix}{key}")));
    for nested in ["schemaRulesNotSatisfied", "clausesNotSatisfied"].into_iter().flat_map(documents) {
        failed_keys(nested, prefix, keys);
        // A clause of `$and` has its rule below `details`.
        nested.get_document("details").into_iter().for_each(|details| failed_keys(details, prefix, keys));
    }
    if let Ok(demanded) = details.get_document("specifiedAs")
        && prefix.is_empty()
        && details.contains_key("consideredValue")
    {
        keys.extend(demanded.keys().filter(|key| !key.starts_with('$')).cloned());
    }
}

/// Collects the operators and keys of `errInfo.details`. Never a value: those are the user's data.
fn rule(details: &Document, words: &mut Vec<String>) {
    for (key, value) in details {
        match (key.as_str(), value) {
            ("operatorName" | "propertyName", Bson::String(name)) => words.push(name.clone()),
            ("missingProperties" | "additionalProperties", Bson::Array(names)) => {
                words.extend(names.iter().filter_map(|name| Some(format!("`{}`", name.as_str()?))));
            }
            ("specifiedAs", Bson::Document(demanded)) => {
                let names = demanded.keys().filter(|key| !key.starts_with('$') && !words.contains(key));
                let names: Vec<String> = names.map(|key| format!("`{key}`")).collect();
                words.extend(names);
            }
            ("consideredValue" | "consideredValues" | "specifiedAs", _) => {}
            (_, Bson::Document(nested)) => self::rule(nested, words),
            (_, Bson::Array(list)) => {
                list.iter().filter_map(Bson::as_document).for_each(|nested| rule(nested, words));
            }
            _ => {}
        }
    }
}

/// Returns the name in "E11000 duplicate key error collection: a.b index: NAME dup key: …".
fn index_name(message: &str) -> Option<String> {
    message.split_once(" index: ")?.1.split(' ').next().map(ToOwned::to_owned)
}
