//! `/api/v1/organizations` and `/api/v1/organization`.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cursor::{Cursor, PageRequest};
use super::users::error_of;
use crate::clock::ApiTime;
use crate::config::Missing;
use crate::directory::{Organization, OrganizationEdit};
use crate::emulator::Emulator;
use crate::event::Source;
use crate::routes::response::{Body, ErrorResponse, Params, json, optional, success};
use crate::tenant;

/// The parameters of all lists with a `next_token`.
#[derive(Deserialize)]
pub(super) struct ListQuery {
    pub(super) page_size: Option<String>,
    pub(super) next_token: Option<String>,
}

/// A page of a list as a response.
pub(super) fn page(emulator: &Emulator, name: &str, items: &[Value], next: Option<Cursor>) -> Response {
    let mut body = json!({ name: items });
    optional(
        &mut body,
        "next_token",
        next.map(Cursor::token).as_deref(),
        emulator.config().unknowns.missing_in_api,
    );
    success("OK", "Success", body)
}

pub(super) async fn list(
    State(emulator): State<Emulator>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ErrorResponse> {
    let page_request = PageRequest::new(
        &emulator,
        "organizations",
        query.page_size.as_deref(),
        query.next_token.as_deref(),
    )?;
    let missing = emulator.config().unknowns.missing_in_api;
    let (items, next) = {
        let tenant = emulator.tenant();
        let all = tenant.directory.organizations.positions();
        page_request.turn(page_request.skip(all).map(|(at, one)| (at, listed(one, missing))))
    };
    Ok(page(&emulator, "organizations", &items, next))
}

fn listed(organization: &Organization, missing: Missing) -> Value {
    let mut item = json!({
        "code": organization.code,
        "name": organization.name,
        "is_default": organization.is_default,
        "is_auto_membership_enabled": false,
    });
    optional(&mut item, "handle", organization.handle.as_deref(), missing);
    optional(&mut item, "external_id", organization.external_id.as_deref(), missing);
    item
}

#[derive(Deserialize)]
pub(super) struct ReadQuery {
    code: Option<String>,
}

/// Shows the members that have a value in the emulator. The design of the sign-in pages is not emulated.
pub(super) async fn read(
    State(emulator): State<Emulator>,
    Params(query): Params<ReadQuery>,
) -> Result<Response, ErrorResponse> {
    let code = query.code.unwrap_or_else(|| emulator.config().org_code.clone());
    let missing = emulator.config().unknowns.missing_in_api;
    let found = emulator.tenant().directory.organizations.get(&code).cloned();
    let unknown = || error_of(&emulator, &tenant::Error::UnknownOrganization(code.clone()));
    let organization = found.ok_or_else(unknown)?;
    let mut body = listed(&organization, missing);
    body["created_on"] = json!(ApiTime(organization.created_on));
    body["is_allow_registrations"] = json!(organization.is_allow_registrations);
    body["is_suspended"] = json!(organization.is_suspended);
    Ok(json(&body))
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct OrganizationBody {
    name: Option<String>,
    handle: Option<String>,
    external_id: Option<String>,
    is_allow_registrations: Option<bool>,
    is_suspended: Option<bool>,
}

impl From<OrganizationBody> for OrganizationEdit {
    fn from(body: OrganizationBody) -> Self {
        Self {
            code: None,
            name: body.name,
            handle: body.handle,
            external_id: body.external_id,
            is_allow_registrations: body.is_allow_registrations,
            is_suspended: body.is_suspended,
        }
    }
}

pub(super) async fn create(
    State(emulator): State<Emulator>,
    Body(body): Body<OrganizationBody>,
) -> Result<Response, ErrorResponse> {
    if body.name.is_none() {
        return Err(ErrorResponse::bad_request("NAME_REQUIRED", "The name is required"));
    }
    let created = emulator.create_organization_as(body.into(), Source::Api);
    let created = created.map_err(|error| error_of(&emulator, &error))?;
    let organization = json!({"code": created.code});
    Ok(success("OK", "Success", json!({"organization": organization})))
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
    Body(body): Body<OrganizationBody>,
) -> Result<Response, ErrorResponse> {
    let updated = emulator.update_organization_as(&code, body.into(), Source::Api);
    updated.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("ORGANIZATION_UPDATED", "Organization successfully updated", json!({})))
}

pub(super) async fn delete(
    State(emulator): State<Emulator>,
    Path(code): Path<String>,
) -> Result<Response, ErrorResponse> {
    let deleted = emulator.delete_organization_as(&code, Source::Api);
    deleted.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("ORGANIZATION_DELETED", "Organization successfully deleted", json!({})))
}
