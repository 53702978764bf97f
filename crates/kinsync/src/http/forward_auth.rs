//! `/auth/verify`: authenticates a request for a reverse proxy and returns the identity of the user in headers.
//!
//! The proxy may require roles and permissions with the parameters of exactly this path. Behind a further `/` the query is
//! that of the client, which Envoy appends, and is not read.

use std::{borrow::Cow, fmt::Write as _, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri, header, request::Parts};
use kinsync_tower::{CurrentUser, Problem, Requirement, layer::DEGRADED, problem::Body};
use serde::Deserialize;
use url::form_urlencoded;
use utoipa::{IntoParams, openapi::path::OperationBuilder};

use super::{
    answer::Result,
    openapi::{self, Schemas},
};
use crate::app::AppState;

/// The path with parameters.
pub const PATH: &str = "/auth/verify";

const USER_ID: HeaderName = HeaderName::from_static("x-kinsync-user-id");
const EMAIL: HeaderName = HeaderName::from_static("x-kinsync-email");
const ORG: HeaderName = HeaderName::from_static("x-kinsync-org");
const ROLES: HeaderName = HeaderName::from_static("x-kinsync-roles");
const PERMISSIONS: HeaderName = HeaderName::from_static("x-kinsync-permissions");
/// Names of the headers that are sent empty although their value is not: it is unknown, or no header can carry it.
const OMITTED: HeaderName = HeaderName::from_static("x-kinsync-omitted");

/// Longest value in a header. nginx accepts a response head of 4 KiB in total by default, and all values together fit into it.
const MAX_VALUE_BYTES: usize = 512;
/// The same for permissions, of which a user has more than of anything else.
const MAX_PERMISSIONS_BYTES: usize = 1024;

/// What the user needs in the organization of the token. A list of keys needs one of them; a parameter may be repeated, and
/// each one has to be met. At `/auth/verify` only: behind a further `/` the query is that of the client.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters, which may be repeated")]
struct Parameters {
    /// Keys of roles, comma separated: the user needs one of them.
    #[param(required = false, example = "admin,owner")]
    role: Vec<String>,
    /// Keys of permissions, comma separated: the user needs one of them.
    #[param(required = false, example = "delete:things")]
    permission: Vec<String>,
}

/// Describes the route.
pub fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
    let headers = [
        (USER_ID, "The Kinde id of the user."),
        (EMAIL, "The email address of the user; empty when there is none."),
        (
            ORG,
            "The code of the organization in the token; empty when there is none, or when the user is known not to be an \
             active member.",
        ),
        (
            ROLES,
            "The keys of the user's roles in this organization: comma separated, each percent-encoded; empty when there are \
             none.",
        ),
        (PERMISSIONS, "The keys of the user's permissions in this organization, in the same form."),
        (
            OMITTED,
            "Names of the headers that are empty because their value is not known, too long or cannot be sent; else empty.",
        ),
        (DEGRADED, "`true` while the store is unavailable and only the token is known; else empty."),
    ];
    openapi::answers_headers(openapi::query::<Parameters>(operation), &headers)
}

/// ANY /auth/verify: 200 with the identity of the user in headers. An unknown value is an empty header, and so is
/// `x-kinsync-degraded` (until the layer writes it): a proxy that copies the headers overwrites those of the caller.
pub async fn verify(_: Arc<AppState>, user: CurrentUser, head: Parts) -> Result<Response<Body>> {
    for requirement in requirements(&head.uri)? {
        requirement.check(&user)?;
    }
    let mut response = Response::new(Body::default());
    *response.headers_mut() = identity(&user);
    Ok(response)
}

/// Reads the parameters. An unknown one is refused: a misspelt one would require nothing.
fn requirements(uri: &Uri) -> Result<Vec<Requirement>> {
    let query = uri.query().filter(|_| uri.path() == PATH).unwrap_or_default();
    let wrong = |detail: String| Err(Problem::BadParameter { detail }.into());
    let requirement = |(name, keys): (Cow<'_, str>, Cow<'_, str>)| {
        let keys: Vec<&str> = keys.split(',').map(str::trim).collect();
        if keys.iter().any(|key| key.is_empty()) {
            return wrong(format!("`{name}` needs keys, separated by commas"));
        }
        match &*name {
            "role" => Ok(Requirement::any_role(keys)),
            "permission" => Ok(Requirement::any_permission(keys)),
            other => wrong(format!(
                "`{other}` is no parameter: {PATH} has `role` and `permission`, and a proxy must not pass on the query of the \
                 client"
            )),
        }
    };
    form_urlencoded::parse(query.as_bytes()).map(requirement).collect()
}

fn identity(user: &CurrentUser) -> HeaderMap {
    let values = [
        (USER_ID, Some(Cow::Borrowed(user.id())), MAX_VALUE_BYTES),
        (EMAIL, Some(user.email().unwrap_or_default().into()), MAX_VALUE_BYTES),
        (ORG, Some(user.organization().unwrap_or_default().into()), MAX_VALUE_BYTES),
        (ROLES, user.roles().map(list), MAX_VALUE_BYTES),
        (PERMISSIONS, user.permissions().map(list), MAX_PERMISSIONS_BYTES),
        (DEGRADED, Some("".into()), MAX_VALUE_BYTES),
    ];
    let mut headers = HeaderMap::with_capacity(values.len() + 2);
    let mut omitted = Vec::new();
    for (name, value, limit) in values {
        let value = value.filter(|value| value.len() <= limit);
        let value = value.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok());
        if value.is_none() {
            omitted.push(name.as_str().to_owned());
        }
        headers.insert(name, value.unwrap_or(HeaderValue::from_static("")));
    }
    let omitted = HeaderValue::try_from(omitted.join(", ")).expect("header names are ASCII");
    headers.insert(OMITTED, omitted);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// Joins keys with commas. In a key every byte is percent-encoded but letters, digits and `-._~:/`, so that no key can look like
/// two and every header can carry it.
fn list(keys: Vec<&str>) -> Cow<'static, str> {
    let mut text = String::new();
    for (n, key) in keys.into_iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        for byte in key.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
                text.push(byte.into());
            } else {
                write!(text, "%{byte:02X}").expect("writing to a String does not fail");
            }
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, expect: std::result::Result<&[Requirement], &str>) {
        let found = requirements(&uri.parse().unwrap());
        match (&found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{uri}"),
            (Err(failure), Err(part)) => {
                let document = failure.problem.document();
                assert!(document.status == 400 && document.detail.contains(part), "{uri}: {document:?}");
            }
            _ => panic!("{uri}: {found:?}"),
        }
    }

    #[test]
    fn parameters_are_read_at_the_exact_path_and_a_wrong_one_is_refused() {
        check("/auth/verify", Ok(&[]));
        check("/auth/verify?", Ok(&[]));
        check("/auth/verify?role=admin", Ok(&[Requirement::role("admin")]));
        let both = [Requirement::any_role(["admin", "owner"]), Requirement::permission("delete:things")];
        check("/auth/verify?role=admin,owner&permission=delete:things", Ok(&both));
        check("/auth/verify?role=admin%2Cowner&permission=delete%3Athings", Ok(&both));
        check("/auth/verify?role=a&role=b", Ok(&[Requirement::role("a"), Requirement::role("b")]));
        check("/auth/verify/users?role=admin&x=1", Ok(&[]));
        check("/auth/verify/?role=admin", Ok(&[]));
        for wrong in ["role", "role=", "role=,", "role=a,,b", "permission=%20"] {
            check(&format!("/auth/verify?{wrong}"), Err("needs keys"));
        }
        check("/auth/verify?roles=admin", Err("`roles` is no parameter"));
        check("/auth/verify?role=admin&text=a", Err("`text` is no parameter"));
        check("/auth/verify?Role=admin", Err("`Role` is no parameter"));
    }

    #[test]
    fn no_key_looks_like_two_or_leaves_its_header() {
        for (keys, expect) in [
            (vec![], ""),
            (vec!["admin", "delete:things"], "admin,delete:things"),
            (vec!["a,b", "a b", "100%"], "a%2Cb,a%20b,100%25"),
            (
                vec!["a\r\nx-kinsync-user-id: kp_root", "Prüfer"],
                "a%0D%0Ax-kinsync-user-id:%20kp_root,Pr%C3%BCfer",
            ),
            (vec!["\u{0}\u{7f}\"';="], "%00%7F%22%27%3B%3D"),
        ] {
            assert_eq!(list(keys.clone()), expect, "{keys:?}");
        }
    }
}
