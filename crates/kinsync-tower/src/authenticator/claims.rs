//! Profile fields from the claims of a token, for a user that is not stored yet. An extension point: Kinde's tokens can
//! be customized per application.

use std::fmt;

use kinde::bearer::AccessToken;
use kinsync_core::{Field, Profile};

/// Reads profile fields from a verified token. The values have the lowest version: they fill a new document until an
/// event, a profile or a scan supplies newer ones.
///
/// Called while a request waits, for users that are not in the cache: implementations must not block or do I/O.
pub trait Claims: fmt::Debug + Send + Sync {
    /// Returns the fields that the token carries. A field that is left out stays unknown.
    fn profile(&self, token: &AccessToken) -> Profile;
}

/// Reads the email address, if the application's tokens are customized to carry it
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
