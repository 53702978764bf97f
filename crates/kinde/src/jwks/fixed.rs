//! Key sets without the feature `fetch`: the caller supplies the keys.

use super::{Error, Jwks, KeySet, Status};
use crate::jws::Key;

/// Has no value: nothing is fetched.
pub(super) enum Remote {}

impl Jwks {
    /// Returns the state of the key set, for health checks.
    pub fn status(&self) -> Status {
        let keys = self.0.keys.load();
        Status {
            issuer: self.0.issuer.clone(),
            key_count: keys.keys.len(),
            exposes_private_key: keys.exposes_private_key,
            fetch_count: 0,
            last_success_age: None,
            last_error: None,
            consecutive_failures: 0,
        }
    }

    #[expect(clippy::unused_async, reason = "waits with the feature `fetch`")]
    pub(super) async fn fetch_key(&self, _: &str) -> Result<Key, Error> {
        match &self.0.remote {
            None => Err(Error::UnknownKey),
            Some(remote) => match *remote {},
        }
    }

    /// The key that replaced `used` meanwhile.
    #[cfg(any(feature = "webhook", feature = "bearer"))]
    #[expect(clippy::unused_async, reason = "waits with the feature `fetch`")]
    pub(super) async fn replaced_key(&self, kid: &str, used: &Key) -> Option<Key> {
        self.cached(kid).filter(|key| key != used)
    }

    #[expect(clippy::unused_self, reason = "depends on the times of the fetches with the feature `fetch`")]
    pub(super) fn is_simultaneous_with(&self, _: &Self) -> bool {
        true
    }

    /// Returns whether this issuer has a key of the tenant.
    #[cfg(feature = "bearer")]
    #[expect(clippy::unused_async, reason = "waits with the feature `fetch`")]
    pub(crate) async fn is_of_tenant(&self, tenant: &Self) -> Result<bool, Error> {
        Ok(self.shares_key_with(tenant) == Some(true))
    }

    #[expect(clippy::unused_self, reason = "depends on the age with the feature `fetch`")]
    pub(super) fn is_usable(&self, _: &KeySet) -> bool {
        true
    }
}
