//! What the claims of a token say of a user who is not stored yet. An extension point: Kinde's tokens carry what the
//! application asked for.

use std::fmt;

use kinde::bearer::AccessToken;
use kinsync_core::{Field, Profile};

/// Reads fields out of a verified token. Everything else that Kinde says outranks them: they fill a new document until
/// an event, a profile or a scan tells better.
///
/// Called on the path of a request, for users that are not in the cache: no I/O, no waiting.
pub trait Claims: fmt::Debug + Send + Sync {
    /// What the token says; a field that it does not tell is left alone.
    fn profile(&self, token: &AccessToken) -> Profile;
}

/// The address, when the application's tokens are customized to carry it
/// (<https://docs.kinde.com/build/tokens/token-customization/>).
#[derive(Clone, Copy, Debug, Default)]
pub struct Email;

impl Claims for Email {
    fn profile(&self, token: &AccessToken) -> Profile {
        match &token.email {
            Some(email) => Profile::new().with(Field::Email, email.as_str()),
            None => Profile::new(),
        }
    }
}
