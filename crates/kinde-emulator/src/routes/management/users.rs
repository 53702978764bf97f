//! `/api/v1/users` and `/api/v1/user`.

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cursor::{Cursor, PageRequest};
use crate::config::{Pagination, Unknowns};
use crate::event::Source;
use crate::faults::FaultKind;
use crate::routes::response::{Body, ErrorResponse, Params, success};
use crate::tenant::{self, Profile, Tenant};
use crate::user::api::{Expand, Page, Shape, Shown, Updated};
use crate::user::{NewUser, User, UserEdit};
use crate::users::View;
use crate::{clock, emulator::Emulator};

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
) -> Result<Response, ErrorResponse> {
    let unknowns = &emulator.config().unknowns;
    let page = PageRequest::new(&emulator, "users", query.page_size.as_deref(), query.next_token.as_deref())?;
    let filter = Filter::new(&query)?;
    let (users, next_token) = {
        let tenant = emulator.tenant();
        let view = view(&tenant, &page.faults);
        page.turn(filter.users(&view, page.from).map(|(position, user)| (position, user.into_owned())))
    };
    let expand = Expand::parse(query.expand.as_deref());
    let next_token = next_token.map(Cursor::token);
    Ok(json(&Page { users: &users, next_token, expand, missing: unknowns.missing_in_api }))
}

/// The current users, or those of an earlier time with the fault `stale_replica`.
pub(super) fn view<'a>(tenant: &'a Tenant, faults: &[FaultKind]) -> View<'a> {
    let lag = faults.iter().find_map(|fault| match fault {
        FaultKind::StaleReplica { lag } => Some(*lag),
        _ => None,
    });
    match lag {
        Some(lag) => tenant.users.at_time(clock::now().checked_sub(lag).unwrap_or(Timestamp::UNIX_EPOCH)),
        None => tenant.users.now(),
    }
}

/// Serializes without an intermediate value.
pub(super) fn json(shown: &impl Serialize) -> Response {
    let text = serde_json::to_vec(shown).expect("the value has only text keys");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The filters of the list. Each is a comma-separated list of alternatives; emails match in any case.
struct Filter {
    ids: Option<Vec<String>>,
    emails: Option<Vec<String>>,
    usernames: Option<Vec<String>>,
    phones: Option<Vec<String>>,
    has_organization: Option<bool>,
    active_since: Option<Timestamp>,
}

impl Filter {
    fn new(query: &ListQuery) -> Result<Self, ErrorResponse> {
        let since = query.active_since.as_deref().filter(|text| !text.is_empty()).map(str::parse);
        let invalid = |_| ErrorResponse::bad_request("ACTIVE_SINCE_INVALID", "active_since must be ISO 8601");
        Ok(Self {
            ids: alternatives(query.user_id.as_deref()),
            emails: alternatives(query.email.as_deref())
                .map(|list| list.iter().map(|email| email.to_lowercase()).collect()),
            usernames: alternatives(query.username.as_deref()),
            phones: alternatives(query.phone.as_deref()),
            has_organization: query.has_organization,
            active_since: since.transpose().map_err(invalid)?,
        })
    }

    /// Returns the matching users from a cursor on. Ids and emails use the indexes.
    fn users<'a>(
        &'a self,
        view: &'a View<'a>,
        from: Cursor,
    ) -> Box<dyn Iterator<Item = (u64, Cow<'a, User>)> + 'a> {
        let candidates = match (&self.ids, &self.emails) {
            (Some(ids), _) => Some(view.positions(ids)),
            (None, Some(emails)) => Some(view.candidates(emails)),
            (None, None) => None,
        };
        let filtered = candidates.is_some() || self.has_other_filters();
        let (start, skip) = match from.pagination {
            Pagination::Cursor => (from.at, 0),
            Pagination::Offset if filtered => (0, usize::try_from(from.at).unwrap_or(usize::MAX)),
            Pagination::Offset => (view.nth(from.at), 0),
        };
        let all: Box<dyn Iterator<Item = (u64, Cow<'a, User>)> + 'a> = match candidates {
            Some(positions) => {
                let positions = positions.into_iter().filter(move |position| *position >= start);
                Box::new(positions.filter_map(|position| Some((position, view.at(position)?))))
            }
            None => Box::new(view.from(start)),
        };
        Box::new(all.filter(|(_, user)| self.matches(user)).skip(skip))
    }

    fn has_other_filters(&self) -> bool {
        self.usernames.is_some()
            || self.phones.is_some()
            || self.has_organization.is_some()
            || self.active_since.is_some()
    }

    fn matches(&self, user: &User) -> bool {
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

fn alternatives(text: Option<&str>) -> Option<Vec<String>> {
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
    fn id(&self) -> Result<&str, ErrorResponse> {
        let id = self.id.as_deref().filter(|id| !id.is_empty());
        id.ok_or_else(|| ErrorResponse::bad_request("USER_ID_REQUIRED", "The user's id is required"))
    }
}

pub(super) async fn read(
    State(emulator): State<Emulator>,
    Params(query): Params<UserQuery>,
) -> Result<Response, ErrorResponse> {
    let id = query.id()?;
    let faults = emulator.faults_table().on_read(id);
    for fault in &faults {
        if let FaultKind::UserNotFound { status, .. } = fault {
            return Err(unknown(*status, "USER_NOT_FOUND"));
        }
    }
    let unknowns = &emulator.config().unknowns;
    let user = view(&emulator.tenant(), &faults).by_id(id).map(Cow::into_owned);
    let user = user.ok_or_else(|| no_user(unknowns))?;
    let expand = Expand::parse(query.expand.as_deref());
    Ok(json(&Shown { user: &user, shape: Shape::Single, expand, missing: unknowns.missing_in_api }))
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
) -> Result<Response, ErrorResponse> {
    let mut new = NewUser {
        first_name: body.profile.given_name,
        last_name: body.profile.family_name,
        picture: body.profile.picture,
        provided_id: body.provided_id,
        organization: body.organization_code,
        ..NewUser::default()
    };
    let mut identities = Vec::new();
    for identity in body.identities {
        match identity.kind.as_str() {
            "email" => (new.email, new.email_verified) = (identity.details.email, identity.is_verified),
            "phone" => new.phone = identity.details.phone,
            "username" => new.username = identity.details.username,
            _ => return Err(ErrorResponse::bad_request("IDENTITY_TYPE_INVALID", "Unknown identity type")),
        }
        identities.push(json!({"type": identity.kind, "result": {"created": true}}));
    }
    let user = emulator.create_user_as(new, Source::Api).map_err(|error| error_of(&emulator, &error))?;
    Ok(Json(json!({"id": user.id, "created": true, "identities": identities})).into_response())
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
) -> Result<Response, ErrorResponse> {
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
    let user = user.map_err(|error| error_of(&emulator, &error))?;
    Ok(json(&Updated { user: &user, missing: emulator.config().unknowns.missing_in_api }))
}

pub(super) async fn delete(
    State(emulator): State<Emulator>,
    Params(query): Params<UserQuery>,
) -> Result<Response, ErrorResponse> {
    let remove = query.is_delete_profile.unwrap_or(false);
    let profile = if remove { Profile::Remove } else { Profile::Keep };
    let deleted = emulator.delete_user_as(query.id()?, profile, Source::Api);
    deleted.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("USER_DELETED", "User successfully deleted", json!({})))
}

pub(super) fn no_user(unknowns: &Unknowns) -> ErrorResponse {
    unknown(unknowns.unknown_user_status, &unknowns.unknown_user_code)
}

fn unknown(status: u16, code: &str) -> ErrorResponse {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    ErrorResponse::new(status, code.to_owned(), "The user does not exist")
}

pub(super) fn error_of(emulator: &Emulator, error: &tenant::Error) -> ErrorResponse {
    match error {
        tenant::Error::UnknownUser(_) => no_user(&emulator.config().unknowns),
        tenant::Error::Taken(_) => ErrorResponse::bad_request("USER_ALREADY_EXISTS", error.to_string()),
        tenant::Error::NotAMember(_) => ErrorResponse::bad_request("USER_NOT_A_MEMBER", error.to_string()),
        tenant::Error::Suspended(_) => ErrorResponse::bad_request("USER_SUSPENDED", error.to_string()),
        tenant::Error::UnknownOrganization(_) => {
            ErrorResponse::bad_request("ORGANIZATION_INVALID", error.to_string())
        }
        tenant::Error::DefaultOrganization(_) => {
            ErrorResponse::bad_request("DEFAULT_ORGANIZATION", error.to_string())
        }
        tenant::Error::UnknownRole(_) => ErrorResponse::bad_request("ROLE_INVALID", error.to_string()),
        tenant::Error::UnknownPermission(_) => {
            ErrorResponse::bad_request("PERMISSION_INVALID", error.to_string())
        }
        tenant::Error::Used(_) => ErrorResponse::bad_request("KEY_ALREADY_EXISTS", error.to_string()),
    }
}
