//! The token of a request: one `Authorization: Bearer …`, and nothing else. A token in the address would be logged, and
//! one in a cookie would be sent by other sites.

use http::{HeaderMap, header};

use super::count_refusal;
use crate::problem::{NO_TOKEN, Problem};

/// The token as sent, not verified.
pub(super) fn of(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else {
        return Err(refuse(NO_TOKEN, "send `Authorization: Bearer <access token>`"));
    };
    if all.next().is_some() {
        return Err(refuse("several_tokens", "there is more than one `Authorization` header"));
    }
    bearer(value.as_bytes()).ok_or_else(|| {
        refuse("not_a_bearer_token", "the header must be `Authorization: Bearer <access token>`")
    })
}

/// The scheme is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = std::str::from_utf8(token).ok()?.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

fn refuse(reason: &'static str, detail: &str) -> Problem {
    count_refusal(reason);
    Problem::Unauthenticated { reason, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_bearer_token_is_taken() {
        let check = |values: &[&'static str], expect: Result<&str, &str>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, http::HeaderValue::from_static(value));
            }
            let reason =
                |problem: Problem| problem.document().reason.expect("each refusal has one").into_owned();
            assert_eq!(of(&headers).map_err(reason), expect.map_err(str::to_owned), "{values:?}");
        };
        check(&["Bearer abc"], Ok("abc"));
        check(&["bEARER  abc "], Ok("abc"));
        check(&[], Err("no_token"));
        check(&["Bearer "], Err("not_a_bearer_token"));
        check(&["Bearer"], Err("not_a_bearer_token"));
        check(&["Basic abc"], Err("not_a_bearer_token"));
        check(&["Bearer a", "Bearer b"], Err("several_tokens"));
    }
}
