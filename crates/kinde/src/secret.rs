//! The key bytes in a shared secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The bytes that Standard Webhooks signs with: base64 after `whsec_`, else the text itself. `None`: broken base64.
///
/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme>
pub(crate) fn standard_webhooks_bytes(secret: &str) -> Option<Vec<u8>> {
    match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.as_bytes().to_vec()),
    }
}
