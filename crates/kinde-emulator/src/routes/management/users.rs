//! `/api/v1/users` and `/api/v1/user`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::emulator::Emulator;
use crate::event::Source;
use crate::faults::FaultKind;
use crate::routes::answer::{Body, Params, Refusal, success};
use crate::tenant::{self, Profile};
use crate::user::{Expand, NewUser, User, UserEdit};

const DEFAULT_PAGE: usize = 10;

#[derive(Deserialize)]
pub(super) struct ListQuery {
    page_size: Option<String>,
    next_token: Option<String>,
    user_id: Option<String>,
    email: Option<String>,
    username: Option<String>,
    phone: Option<String>,
    expand: Option<String>,
    has_organization: Option<bool>,
    active_since: Option<String>,
}

pub(super) async fn list(
    State(emulator): State<Emulator>,
    Params(query): Params<ListQuery>,
) -> Result<Response, Refusal> {
    let cap = emulator.config().unknowns.page_size_cap;
    let size = page_size(query.page_size.as_deref(), cap)?;
    let from = query.next_token.as_deref().filter(|token| !token.is_empty()).map_or(Ok(0), cursor)?;
    let filter = Filter::new(&query)?;
    let faults = emulator.faults_table().on_page();
    if faults.contains(&FaultKind::EmptyList) {
        return Ok(page(&[], None));
    }
    let expand = Expand::parse(query.expand.as_deref());
    let tenant = emulator.tenant();
    let mut found = tenant.users_from(from).filter(|(_, user)| filter.takes(user));
    let mut last = from;
    let mut users = Vec::new();
    for (seq, user) in found.by_ref().take(size) {
        users.push(user.list_item(expand));
        last = seq;
    }
    let next = found.next().map(|_| drifted(&faults, from, last + 1));
    Ok(page(&users, next))
}

/// Where the next page starts, after the faults that strike it.
fn drifted(faults: &[FaultKind], from: u64, next: u64) -> u64 {
    faults.iter().fold(next, |next, fault| match fault {
        FaultKind::RepeatedNextToken => from,
        FaultKind::PaginationDrift { by } => next.saturating_add_signed(*by),
        _ => next,
    })
}

/// At the end of the list `next_token` is `null`.
fn page(users: &[Value], next: Option<u64>) -> Response {
    let token = next.map(|seq| URL_SAFE_NO_PAD.encode(format!("user:{seq}")));
    success("OK", "Success", json!({"users": users, "next_token": token}))
}

fn page_size(text: Option<&str>, cap: usize) -> Result<usize, Refusal> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(DEFAULT_PAGE) };
    match text.parse() {
        Ok(size) if size > cap => Err(Refusal::bad_request(
            "PAGE_SIZE_LIMIT_EXCEEDED",
            format!("page_size cannot be greater than {cap}"),
        )),
        Ok(size) if size > 0 => Ok(size),
        _ => Err(Refusal::bad_request("PAGE_SIZE_INVALID", "page_size must be a whole number above zero")),
    }
}

fn cursor(token: &str) -> Result<u64, Refusal> {
    let parse = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        text.strip_prefix("user:")?.parse().ok()
    };
    parse().ok_or_else(|| Refusal::bad_request("NEXT_TOKEN_INVALID", "next_token is invalid"))
}

/// The filters of the list; each is a comma list of which one must match, email in any case.
struct Filter {
    ids: Option<Vec<String>>,
    emails: Option<Vec<String>>,
    usernames: Option<Vec<String>>,
    phones: Option<Vec<String>>,
    has_organization: Option<bool>,
    active_since: Option<Timestamp>,
}

impl Filter {
    fn new(query: &ListQuery) -> Result<Self, Refusal> {
        let since = query.active_since.as_deref().filter(|text| !text.is_empty()).map(str::parse);
        let invalid = |_| Refusal::bad_request("ACTIVE_SINCE_INVALID", "active_since must be ISO 8601");
        Ok(Self {
            ids: words(query.user_id.as_deref()),
            emails: words(query.email.as_deref())
                .map(|list| list.iter().map(|email| email.to_lowercase()).collect()),
            usernames: words(query.username.as_deref()),
            phones: words(query.phone.as_deref()),
            has_organization: query.has_organization,
            active_since: since.transpose().map_err(invalid)?,
        })
    }

    fn takes(&self, user: &User) -> bool {
        let among = |list: &Option<Vec<String>>, value: Option<&str>| match list {
            Some(list) => value.is_some_and(|value| list.iter().any(|item| item == value)),
            None => true,
        };
        let email = user.email.as_deref().map(str::to_lowercase);
        among(&self.ids, Some(&user.id))
            && among(&self.emails, email.as_deref())
            && among(&self.usernames, user.username.as_deref())
            && among(&self.phones, user.phone.as_deref())
            && self.has_organization.is_none_or(|has| has != user.organizations.is_empty())
            && self.active_since.is_none_or(|since| user.last_signed_in >= Some(since))
    }
}

fn words(text: Option<&str>) -> Option<Vec<String>> {
    let text = text.filter(|text| !text.is_empty())?;
    Some(text.split(',').map(|word| word.trim().to_owned()).collect())
}

#[derive(Deserialize)]
pub(super) struct UserQuery {
    id: Option<String>,
    expand: Option<String>,
    is_delete_profile: Option<bool>,
}

impl UserQuery {
    fn id(&self) -> Result<&str, Refusal> {
        let id = self.id.as_deref().filter(|id| !id.is_empty());
        id.ok_or_else(|| Refusal::bad_request("USER_ID_REQUIRED", "The user's id is required"))
    }
}

pub(super) async fn read(
    State(emulator): State<Emulator>,
    Params(query): Params<UserQuery>,
) -> Result<Response, Refusal> {
    let id = query.id()?;
    let user = emulator.user(id).ok_or_else(|| unknown(&emulator))?;
    Ok(Json(user.single(Expand::parse(query.expand.as_deref()))).into_response())
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct CreateBody {
    profile: ProfileBody,
    organization_code: Option<String>,
    provided_id: Option<String>,
    identities: Vec<IdentityBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ProfileBody {
    given_name: Option<String>,
    family_name: Option<String>,
    picture: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IdentityBody {
    #[serde(rename = "type")]
    kind: String,
    is_verified: bool,
    details: IdentityDetails,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IdentityDetails {
    email: Option<String>,
    phone: Option<String>,
    username: Option<String>,
}

pub(super) async fn create(
    State(emulator): State<Emulator>,
    Body(body): Body<CreateBody>,
) -> Result<Response, Refusal> {
    let mut new = NewUser {
        first_name: body.profile.given_name,
        last_name: body.profile.family_name,
        picture: body.profile.picture,
        provided_id: body.provided_id,
        organization: body.organization_code,
        ..NewUser::default()
    };
    let mut made = Vec::new();
    for identity in body.identities {
        match identity.kind.as_str() {
            "email" => (new.email, new.email_verified) = (identity.details.email, identity.is_verified),
            "phone" => new.phone = identity.details.phone,
            "username" => new.username = identity.details.username,
            _ => return Err(Refusal::bad_request("IDENTITY_TYPE_INVALID", "Unknown type of identity")),
        }
        made.push(json!({"type": identity.kind, "result": {"created": true}}));
    }
    let user = emulator.create_user_as(new, Source::Api).map_err(|error| refused(&emulator, &error))?;
    Ok(Json(json!({"id": user.id, "created": true, "identities": made})).into_response())
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateBody {
    given_name: Option<String>,
    family_name: Option<String>,
    picture: Option<String>,
    is_suspended: Option<bool>,
    is_password_reset_requested: Option<bool>,
    provided_id: Option<String>,
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Params(query): Params<UserQuery>,
    Body(body): Body<UpdateBody>,
) -> Result<Response, Refusal> {
    let edit = UserEdit {
        first_name: body.given_name,
        last_name: body.family_name,
        picture: body.picture,
        is_suspended: body.is_suspended,
        is_password_reset_requested: body.is_password_reset_requested,
        provided_id: body.provided_id,
        ..UserEdit::default()
    };
    let user = emulator.update_user_as(query.id()?, edit, Source::Api);
    let user = user.map_err(|error| refused(&emulator, &error))?;
    Ok(Json(json!({
        "id": user.id,
        "given_name": user.first_name,
        "family_name": user.last_name,
        "email": user.email,
        "is_suspended": user.is_suspended,
        "is_password_reset_requested": user.is_password_reset_requested,
        "picture": user.picture,
    }))
    .into_response())
}

pub(super) async fn delete(
    State(emulator): State<Emulator>,
    Params(query): Params<UserQuery>,
) -> Result<Response, Refusal> {
    let remove = query.is_delete_profile.unwrap_or(false);
    let profile = if remove { Profile::Remove } else { Profile::Keep };
    let deleted = emulator.delete_user_as(query.id()?, profile, Source::Api);
    deleted.map_err(|error| refused(&emulator, &error))?;
    Ok(success("USER_DELETED", "User successfully deleted", json!({})))
}

fn unknown(emulator: &Emulator) -> Refusal {
    let status = StatusCode::from_u16(emulator.config().unknowns.unknown_user_status);
    let status = status.unwrap_or(StatusCode::BAD_REQUEST);
    let code = if status == StatusCode::NOT_FOUND { "USER_NOT_FOUND" } else { "USER_INVALID" };
    Refusal::new(status, code, "The user does not exist")
}

fn refused(emulator: &Emulator, error: &tenant::Error) -> Refusal {
    match error {
        tenant::Error::UnknownUser(_) => unknown(emulator),
        tenant::Error::Taken(_) => Refusal::bad_request("USER_ALREADY_EXISTS", error.to_string()),
        tenant::Error::Suspended(_) => Refusal::bad_request("USER_SUSPENDED", error.to_string()),
    }
}
