//! Reads the body of a delivery, within its bounds. A claimed length is believed only where it refuses early.

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{Config, Stop};
use crate::{metrics::Unverified, problem::Problem};

/// The whole body, without a copy when it came in one piece.
pub(super) async fn read<B>(headers: &HeaderMap, body: B, config: &Config) -> Result<Bytes, Stop>
where
    B: http_body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let limit = config.body_limit;
    if claimed_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    match timeout(config.body_deadline, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(_)) => Err(Stop::Request(Unverified::Malformed, Problem::BodyBroken)),
        Err(_) => {
            Err(Stop::Request(Unverified::TooSlow, Problem::BodyTooSlow { deadline: config.body_deadline }))
        }
    }
}

fn claimed_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> Stop {
    Stop::Request(Unverified::TooLarge, Problem::BodyTooLarge { limit })
}
