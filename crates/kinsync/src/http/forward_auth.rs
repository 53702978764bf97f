//! `/auth/verify` and `/auth/ext-authz/…`: authenticate a request for a reverse proxy and return the identity of the user in headers.
//!
//! The proxy may require roles and permissions. At `/auth/verify` they are the query. Envoy appends the path and the query of the
//! client to its prefix, so behind `/auth/ext-authz/` the first segment contains them, and nothing else is read. Each of the two
//! refuses the form of the other one: a requirement at the wrong place would require nothing.

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

/// The prefix for proxies that append the path of the client.
const APPENDED: &str = "/auth/ext-authz/";

/// The segment without a requirement.
const NO_REQUIREMENT: &str = "user";

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
/// each one has to be met.
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

/// What the user needs, in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the parameter")]
struct Segment {
    /// `user`, or what the user needs, in the form of the query of `/auth/verify`: `role=admin&permission=delete:things`.
    requirements: String,
}

/// Describes the route with a query.
pub fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
    answers_identity(openapi::query::<Parameters>(operation))
}

/// Describes the route with a segment.
pub fn describe_appended(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
    answers_identity(operation.parameters(Some(Segment::into_params(|| None))))
}

fn answers_identity(operation: OperationBuilder) -> OperationBuilder {
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
    openapi::answers_headers(operation, &headers)
}

/// ANY /auth/verify: 200 with the identity of the user in headers. An unknown value is an empty header, and so is
/// `x-kinsync-degraded` (until the layer writes it): a proxy that copies the headers overwrites those of the caller.
pub async fn verify(_: Arc<AppState>, user: CurrentUser, head: Parts) -> Result<Response<Body>> {
    answer(&user, &of_query(&head.uri)?)
}

/// ANY /auth/ext-authz/{requirements}/…: the same behind a proxy that appends the path and the query of the client.
pub async fn verify_appended(_: Arc<AppState>, user: CurrentUser, head: Parts) -> Result<Response<Body>> {
    answer(&user, &of_segment(head.uri.path())?)
}

fn answer(user: &CurrentUser, requirements: &[Requirement]) -> Result<Response<Body>> {
    for requirement in requirements {
        requirement.check(user)?;
    }
    let mut response = Response::new(Body::default());
    *response.headers_mut() = identity(user);
    Ok(response)
}

/// Reads the requirements in the query of exactly [`PATH`].
fn of_query(uri: &Uri) -> Result<Vec<Requirement>> {
    if uri.path() != PATH {
        return wrong(format!(
            "parameters are read directly behind {PATH} only; a proxy that appends the path of the client calls \
             {APPENDED}{NO_REQUIREMENT} or {APPENDED}role=KEY"
        ));
    }
    requirements(uri.query().unwrap_or_default())
}

/// Reads the requirements in the segment behind [`APPENDED`].
fn of_segment(path: &str) -> Result<Vec<Requirement>> {
    let segment = path.strip_prefix(APPENDED).and_then(|path| path.split('/').next());
    match segment.unwrap_or_default() {
        "" => wrong(format!("{APPENDED} needs a segment: `{NO_REQUIREMENT}` or `role=KEY`")),
        NO_REQUIREMENT => Ok(Vec::new()),
        segment => requirements(segment),
    }
}

/// Reads requirements. An unknown name is refused: a misspelt one would require nothing.
fn requirements(text: &str) -> Result<Vec<Requirement>> {
    let requirement = |(name, keys): (Cow<'_, str>, Cow<'_, str>)| {
        let keys: Vec<&str> = keys.split(',').map(str::trim).collect();
        match &*name {
            "role" | "permission" if keys.iter().any(|key| key.is_empty()) => {
                wrong(format!("`{name}` needs keys, separated by commas"))
            }
            "role" => Ok(Requirement::any_role(keys)),
            "permission" => Ok(Requirement::any_permission(keys)),
            other => wrong(format!(
                "`{other}` is no parameter: there are `role` and `permission`, and a proxy must not pass on the query of the client"
            )),
        }
    };
    form_urlencoded::parse(text.as_bytes()).map(requirement).collect()
}

fn wrong<T>(detail: String) -> Result<T> {
    Err(Problem::BadParameter { detail }.into())
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

    fn check(found: &Result<Vec<Requirement>>, expect: std::result::Result<&[Requirement], &str>) {
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect),
            (Err(failure), Err(part)) => {
                let document = failure.problem.document();
                assert!(document.status == 400 && document.detail.contains(part), "{document:?}");
            }
            _ => panic!("{found:?}, expected {expect:?}"),
        }
    }

    fn query(uri: &str) -> Result<Vec<Requirement>> {
        of_query(&uri.parse().unwrap())
    }

    #[test]
    fn parameters_are_read_at_the_exact_path_and_a_wrong_one_is_refused() {
        check(&query("/auth/verify"), Ok(&[]));
        check(&query("/auth/verify?"), Ok(&[]));
        check(&query("/auth/verify?role=admin"), Ok(&[Requirement::role("admin")]));
        let both = [Requirement::any_role(["admin", "owner"]), Requirement::permission("delete:things")];
        check(&query("/auth/verify?role=admin,owner&permission=delete:things"), Ok(&both));
        check(&query("/auth/verify?role=admin%2Cowner&permission=delete%3Athings"), Ok(&both));
        check(&query("/auth/verify?role=a&role=b"), Ok(&[Requirement::role("a"), Requirement::role("b")]));
        for path in
            ["/auth/verify/", "/auth/verify/?role=admin", "/auth/verify/role=admin", "/auth/verify/x?role=a"]
        {
            check(&query(path), Err("directly behind /auth/verify"));
        }
        for wrong in ["role", "role=", "role=,", "role=a,,b", "permission=%20"] {
            check(&query(&format!("/auth/verify?{wrong}")), Err("needs keys"));
        }
        check(&query("/auth/verify?roles=admin"), Err("`roles` is no parameter"));
        check(&query("/auth/verify?role=admin&text=a"), Err("`text` is no parameter"));
        check(&query("/auth/verify?Role=admin"), Err("`Role` is no parameter"));
    }

    #[test]
    fn the_first_segment_is_that_of_the_proxy_and_has_to_be_understood() {
        let admin = [Requirement::role("admin")];
        for (path, expect) in [
            ("user", Ok(&[][..])),
            ("user/", Ok(&[])),
            ("user/role=admin", Ok(&[])),
            ("role=admin", Ok(&admin)),
            ("role=admin/", Ok(&admin)),
            ("role=admin/../user", Ok(&admin)),
            ("role=admin//auth/ext-authz/user", Ok(&admin)),
            ("", Err("needs a segment")),
            ("/things", Err("needs a segment")),
            ("users/things", Err("`users` is no parameter")),
            ("user%2F", Err("`user/` is no parameter")),
            ("role/admin", Err("needs keys")),
            ("role:admin/things", Err("`role:admin` is no parameter")),
            ("user&role=admin/things", Err("`user` is no parameter")),
        ] {
            check(&of_segment(&format!("/auth/ext-authz/{path}")), expect);
        }
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
