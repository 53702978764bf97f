//! `/api/v1/properties`, `/api/v1/users/{id}/properties` and `/api/v1/search/users`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cursor::PageRequest;
use super::organizations::page;
use super::users::{error_of, no_user, view};
use crate::config::Missing;
use crate::directory::{Property, PropertyEdit};
use crate::emulator::Emulator;
use crate::faults::FaultKind;
use crate::routes::response::{Body, ErrorResponse, Params, optional, success};
use crate::user::User;
use crate::user::api::{Expand, Shape, Shown};

#[derive(Deserialize)]
pub(super) struct DefinitionsQuery {
    page_size: Option<String>,
    starting_after: Option<String>,
    context: Option<String>,
}

/// Lists the properties that users can have, in the order of their keys. `ending_before` is not emulated, nor are properties of
/// organizations and applications.
pub(super) async fn definitions(
    State(emulator): State<Emulator>,
    Params(query): Params<DefinitionsQuery>,
) -> Result<Response, ErrorResponse> {
    let request = PageRequest::new(&emulator, "property_definitions", query.page_size.as_deref(), None)?;
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    let is_of_users = query.context.as_deref().is_none_or(|context| context == "usr");
    let all: Vec<&Property> = tenant.directory.properties.values().filter(|_| is_of_users).collect();
    let start = match query.starting_after.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => {
            let unknown = || ErrorResponse::bad_request("PROPERTY_INVALID", "Property does not exist");
            all.iter().position(|property| property.id == id).ok_or_else(unknown)? + 1
        }
        None => 0,
    };
    let shown = (0..).zip(all[start..].iter().map(|property| shown(property, missing)));
    let (items, next) = request.turn(shown);
    Ok(success("OK", "Success", json!({"properties": items, "has_more": next.is_some()})))
}

fn shown(property: &Property, missing: Missing) -> Value {
    let mut item = json!({
        "id": property.id,
        "key": property.key,
        "name": property.name,
        "is_private": property.is_private,
        "is_kinde_property": false,
    });
    optional(&mut item, "description", property.description.as_deref(), missing);
    item
}

/// The fields of a new property. `type`, `context` and `category_id` are required by Kinde and have no effect here.
#[derive(Deserialize)]
pub(super) struct CreateBody {
    key: String,
    name: String,
    description: Option<String>,
    is_private: bool,
    context: String,
}

/// Creates a property that users can have.
pub(super) async fn create(
    State(emulator): State<Emulator>,
    Body(body): Body<CreateBody>,
) -> Result<Response, ErrorResponse> {
    if body.context != "usr" {
        return Err(ErrorResponse::bad_request("CONTEXT_INVALID", "only properties of users are emulated"));
    }
    let edit = PropertyEdit {
        key: body.key,
        name: Some(body.name),
        description: body.description,
        is_private: Some(body.is_private),
    };
    let property = emulator.create_property(edit).map_err(|error| error_of(&emulator, &error))?;
    let created = success("PROPERTY_CREATED", "Property created", json!({"property": {"id": property.id}}));
    Ok((StatusCode::CREATED, created).into_response())
}

/// Lists the properties of a user that have a value.
pub(super) async fn list(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    let unknowns = &emulator.config().unknowns;
    let has_properties = !emulator.faults_table().on_page("properties").contains(&FaultKind::NoProperties);
    let user = emulator.user(&id).ok_or_else(|| no_user(unknowns))?;
    let tenant = emulator.tenant();
    let item = |(key, value): (&String, &String)| {
        let Property { id, name, description, .. } =
            tenant.directory.properties.get(key).expect("a value is of a known property");
        let mut item = json!({"id": id, "name": name, "key": key, "value": value});
        optional(&mut item, "description", description.as_deref(), unknowns.missing_in_api);
        item
    };
    let items: Vec<Value> = user.properties.iter().filter(|_| has_properties).map(item).collect();
    Ok(page(&emulator, "properties", &items, None))
}

#[derive(Deserialize)]
pub(super) struct UpdateBody {
    properties: BTreeMap<String, Value>,
}

/// A value as text; `null` removes the property.
fn text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Response, ErrorResponse> {
    let values = body.properties.into_iter().map(|(key, value)| (key, text(value)));
    emulator.set_properties(&id, values).map_err(|error| error_of(&emulator, &error))?;
    Ok(success("PROPERTIES_UPDATED", "Properties successfully updated", json!({})))
}

#[derive(Deserialize)]
pub(super) struct SetQuery {
    value: String,
}

pub(super) async fn set(
    State(emulator): State<Emulator>,
    Path((id, key)): Path<(String, String)>,
    Params(query): Params<SetQuery>,
) -> Result<Response, ErrorResponse> {
    let set = emulator.set_properties(&id, [(key, Some(query.value))]);
    set.map_err(|error| error_of(&emulator, &error))?;
    Ok(success("PROPERTY_UPDATED", "Property successfully updated", json!({})))
}

#[derive(Deserialize)]
pub(super) struct SearchQuery {
    query: Option<String>,
    page_size: Option<String>,
    starting_after: Option<String>,
    expand: Option<String>,
}

/// Searches for users by email and name, page by page in the order of creation. `ending_before`, `properties` and
/// `api_scopes` are not emulated.
pub(super) async fn search(
    State(emulator): State<Emulator>,
    Params(query): Params<SearchQuery>,
) -> Result<Response, ErrorResponse> {
    let request = PageRequest::new(&emulator, "search", query.page_size.as_deref(), None)?;
    let expand = Expand::parse(query.expand.as_deref());
    let properties =
        query.expand.as_deref().unwrap_or_default().split(',').any(|part| part.trim() == "properties");
    let missing = emulator.config().unknowns.missing_in_api;
    let tenant = emulator.tenant();
    let start = match query.starting_after.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => tenant.users.position(id).ok_or_else(|| no_user(&emulator.config().unknowns))? + 1,
        None => 0,
    };
    let has_properties = !request.faults.contains(&FaultKind::NoProperties);
    let view = view(&tenant, &request.faults);
    let found = view.from(start).filter(|(_, user)| matches(user, query.query.as_deref()));
    let shown = found.map(|(position, user)| {
        let shown = Shown { user: &user, shape: Shape::Searched, expand, missing };
        let mut item = serde_json::to_value(&shown).expect("the value has only text keys");
        if properties {
            item["properties"] = if has_properties { json!(user.properties) } else { json!({}) };
        }
        (position, item)
    });
    let (items, _) = request.turn(shown);
    Ok(success("OK", "Success", json!({"results": items})))
}

fn matches(user: &User, query: Option<&str>) -> bool {
    let query = query.unwrap_or("*").to_lowercase();
    let text = format!("{} {}", user.email.as_deref().unwrap_or_default(), user.full_name()).to_lowercase();
    query == "*" || text.contains(&query)
}
