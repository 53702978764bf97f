//! `/api/v1/users/{id}/properties` and `/api/v1/search/users`.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::cursor::PageRequest;
use super::organizations::page;
use super::users::{error_of, no_user, view};
use crate::emulator::Emulator;
use crate::routes::response::{Body, ErrorResponse, Params, optional, success};
use crate::user::User;
use crate::user::api::{Expand, Shape, Shown};

/// Lists the properties of a user that have a value.
pub(super) async fn list(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    let unknowns = &emulator.config().unknowns;
    let user = emulator.user(&id).ok_or_else(|| no_user(unknowns))?;
    let tenant = emulator.tenant();
    let item = |(key, value): (&String, &String)| {
        let id = tenant.directory.properties.get(key);
        let mut item = json!({"id": id, "name": key, "key": key, "value": value});
        optional(&mut item, "description", None, unknowns.missing_in_api);
        item
    };
    let items: Vec<Value> = user.properties.iter().map(item).collect();
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
    let view = view(&tenant, &request.faults);
    let found = view.from(start).filter(|(_, user)| matches(user, query.query.as_deref()));
    let shown = found.map(|(position, user)| {
        let shown = Shown { user: &user, shape: Shape::Searched, expand, missing };
        let mut item = serde_json::to_value(&shown).expect("the value has only text keys");
        if properties {
            item["properties"] = json!(user.properties);
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
