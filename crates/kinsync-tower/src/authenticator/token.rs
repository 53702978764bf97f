//! Finds the access token of a request: one `Authorization: Bearer …` header or, where the application enables it, a
//! cookie. A token in the URL is not accepted, because URLs are logged.

use http::{HeaderMap, HeaderName, header};

use crate::problem::{NO_TOKEN, Problem};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns the token as sent, not verified. The cookie is used only without an `Authorization` header.
pub(super) fn find<'a>(headers: &'a HeaderMap, cookie: Option<&str>) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return cookie.map_or_else(|| Err(no_token()), |name| in_cookie(headers, name));
    };
    if values.next().is_some() {
        return Err(refuse("several_tokens", "there is more than one `Authorization` header"));
    }
    bearer(value.as_bytes()).ok_or_else(|| {
        refuse("not_a_bearer_token", "the header must be `Authorization: Bearer <access token>`")
    })
}

/// Parses `Bearer <token>`; the scheme is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = std::str::from_utf8(token).ok()?.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Browsers attach cookies to requests that other sites cause. Two cookies of one name are refused: another host of the same
/// site may have set one of them.
fn in_cookie<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Problem> {
    // By bytes: another cookie may contain any, and must not hide this one.
    let pairs =
        headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| value_of(pair, name));
    let Some(value) = values.next() else { return Err(no_token()) };
    if is_cross_site(headers) {
        return Err(refuse("cross_site_cookie", "another site caused the request: its cookies are not used"));
    }
    if values.next().is_some() {
        return Err(refuse("several_tokens", "there is more than one cookie with an access token"));
    }
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    std::str::from_utf8(value).ok().filter(|value| !value.is_empty()).ok_or_else(no_token)
}

/// Returns the value of a cookie if it has this name.
fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Whether the browser names another site as the cause of the request (Fetch Metadata). A link to this site, which has no
/// `Origin`, is not one: it can neither change anything by `GET` nor read the response.
fn is_cross_site(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        && headers.get(FETCH_SITE).is_some_and(|site| site.as_bytes() == b"cross-site")
}

fn no_token() -> Problem {
    refuse(NO_TOKEN, "send `Authorization: Bearer <access token>`")
}

fn refuse(reason: &'static str, detail: &str) -> Problem {
    Problem::Unauthenticated { reason, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(
        lines: &[(HeaderName, &'static str)],
        cookie: Option<&str>,
        expect: std::result::Result<&str, &str>,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        let reason = |problem: Problem| problem.reason().expect("each refusal has one");
        assert_eq!(find(&headers, cookie).map_err(reason), expect, "{lines:?}");
    }

    #[test]
    fn exactly_one_bearer_token_is_accepted() {
        let check = |values: &[&'static str], expect| {
            let lines: Vec<_> = values.iter().map(|value| (header::AUTHORIZATION, *value)).collect();
            check(&lines, None, expect);
        };
        check(&["Bearer abc"], Ok("abc"));
        check(&["bEARER  abc "], Ok("abc"));
        check(&[], Err("no_token"));
        check(&["Bearer "], Err("not_a_bearer_token"));
        check(&["Bearer"], Err("not_a_bearer_token"));
        check(&["Basic abc"], Err("not_a_bearer_token"));
        check(&["Bearer a", "Bearer b"], Err("several_tokens"));
    }

    #[test]
    fn a_cookie_is_read_only_when_it_is_named_and_no_authorization_is_sent() {
        let cookies = |values: &[&'static str], expect| {
            let lines: Vec<_> = values.iter().map(|value| (header::COOKIE, *value)).collect();
            check(&lines, Some("token"), expect);
        };
        cookies(&["token=abc"], Ok("abc"));
        cookies(&["a=b; token=abc; c=d"], Ok("abc"));
        cookies(&["a=b", "token=\"abc\""], Ok("abc"));
        cookies(&["Token=abc; xtoken=abc; token"], Err("no_token"));
        cookies(&["token="], Err("no_token"));
        cookies(&["token=a; token=b"], Err("several_tokens"));
        cookies(&["token=a", "token=b"], Err("several_tokens"));
        check(&[(header::COOKIE, "token=abc")], None, Err("no_token"));
        let both = [(header::COOKIE, "token=abc"), (header::AUTHORIZATION, "Basic x")];
        check(&both, Some("token"), Err("not_a_bearer_token"));
    }

    #[test]
    fn a_cookie_that_is_not_ascii_hides_no_other() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_bytes("name=José; token=abc".as_bytes()).unwrap());
        assert_eq!(find(&headers, Some("token")).ok(), Some("abc"));
        headers.append(header::COOKIE, HeaderValue::from_bytes(b"token=\xff").unwrap());
        assert_eq!(find(&headers, Some("token")).unwrap_err().reason(), Some("several_tokens"));
        headers.remove(header::COOKIE);
        headers.append(header::COOKIE, HeaderValue::from_bytes(b"token=\xff").unwrap());
        assert_eq!(find(&headers, Some("token")).unwrap_err().reason(), Some("no_token"));
    }

    #[test]
    fn a_cookie_is_refused_in_a_request_that_another_site_caused() {
        let cookies = |site: &'static str, origin: Option<&'static str>, expect| {
            let origin = origin.map(|origin| (header::ORIGIN, origin));
            let lines = [(header::COOKIE, "token=abc"), (FETCH_SITE, site)];
            check(&lines.into_iter().chain(origin).collect::<Vec<_>>(), Some("token"), expect);
        };
        cookies("cross-site", Some("https://evil.example"), Err("cross_site_cookie"));
        cookies("cross-site", Some("null"), Err("cross_site_cookie"));
        cookies("cross-site", None, Ok("abc"));
        cookies("same-site", Some("https://app.example.com"), Ok("abc"));
        cookies("same-origin", Some("https://app.example.com"), Ok("abc"));
        let bearer =
            [(header::AUTHORIZATION, "Bearer abc"), (FETCH_SITE, "cross-site"), (header::ORIGIN, "x")];
        check(&bearer, Some("token"), Ok("abc"));
    }
}
