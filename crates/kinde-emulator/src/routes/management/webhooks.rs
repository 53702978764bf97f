//! `/api/v1/webhooks`, `/api/v1/event_types` and `/api/v1/events/{id}`.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::clock::{ApiTime, webhook_time};
use crate::config::Missing;
use crate::delivery::{Error, Webhook};
use crate::emulator::Emulator;
use crate::event::EVENT_TYPES;
use crate::routes::response::{Body, ErrorResponse, optional, success};
use crate::webhook::WebhookSpec;

pub(super) async fn list(State(emulator): State<Emulator>) -> Response {
    let missing = emulator.config().unknowns.missing_in_api;
    let all = emulator.event_types();
    let webhooks = emulator.webhooks();
    let webhooks: Vec<Value> = webhooks.iter().map(|webhook| shown(webhook, &all, missing)).collect();
    success("OK", "Success", json!({"webhooks": webhooks}))
}

/// A webhook as Kinde shows it, without whether it is disabled.
fn shown(webhook: &Webhook, all: &[String], missing: Missing) -> Value {
    let wanted = webhook.spec.event_types.as_slice();
    let event_types = if wanted.is_empty() { all } else { wanted };
    let mut item = json!({
        "id": webhook.id,
        "name": webhook.spec.name,
        "endpoint": webhook.spec.endpoint,
        "event_types": event_types,
        "created_on": ApiTime(webhook.created_on),
    });
    optional(&mut item, "description", webhook.spec.description.as_deref(), missing);
    item
}

#[derive(Deserialize)]
pub(super) struct CreateBody {
    endpoint: String,
    event_types: Vec<String>,
    name: String,
    description: Option<String>,
}

pub(super) async fn create(
    State(emulator): State<Emulator>,
    Body(body): Body<CreateBody>,
) -> Result<Response, ErrorResponse> {
    let invalid = |_| ErrorResponse::bad_request("ENDPOINT_INVALID", "endpoint must be a URL");
    let endpoint: Url = body.endpoint.parse().map_err(invalid)?;
    check_types(&emulator, &body.event_types)?;
    let spec = WebhookSpec {
        name: body.name,
        description: body.description,
        event_types: body.event_types,
        ..WebhookSpec::new(endpoint)
    };
    let id = emulator.add_webhook(spec);
    let webhook = json!({"id": id, "endpoint": body.endpoint});
    Ok(success("WEBHOOK_CREATED", "Webhook successfully created", json!({"webhook": webhook})))
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateBody {
    event_types: Option<Vec<String>>,
    name: Option<String>,
    description: Option<String>,
}

pub(super) async fn update(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Response, ErrorResponse> {
    check_types(&emulator, body.event_types.as_deref().unwrap_or_default())?;
    let edited = emulator.edit_webhook(&id, |spec| {
        spec.event_types = body.event_types.unwrap_or_else(|| spec.event_types.clone());
        spec.name = body.name.unwrap_or_else(|| spec.name.clone());
        spec.description = body.description.or_else(|| spec.description.clone());
    });
    edited.map_err(|error| unknown(&error))?;
    Ok(success("WEBHOOK_UPDATED", "Webhook successfully updated", json!({"webhook": {"id": id}})))
}

pub(super) async fn delete(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    emulator.remove_webhook(&id).map_err(|error| unknown(&error))?;
    Ok(success("WEBHOOK_DELETED", "Webhook successfully deleted", json!({})))
}

fn check_types(emulator: &Emulator, types: &[String]) -> Result<(), ErrorResponse> {
    let offered = emulator.event_types();
    match types.iter().find(|kind| !offered.contains(kind)) {
        Some(kind) => {
            Err(ErrorResponse::bad_request("EVENT_TYPE_INVALID", format!("There is no event type `{kind}`")))
        }
        None => Ok(()),
    }
}

fn unknown(error: &Error) -> ErrorResponse {
    ErrorResponse::bad_request("WEBHOOK_INVALID", error.to_string())
}

pub(super) async fn event_types(State(emulator): State<Emulator>) -> Response {
    let item = |(index, code): (usize, &String)| {
        let name =
            EVENT_TYPES.iter().find(|(known, _)| known == code).map_or(code.as_str(), |(_, name)| name);
        json!({
            "id": format!("et_018df239698d29177684be3f5ad1{index:04x}"),
            "code": code,
            "name": name,
            "origin": "kinde",
            "schema": {
                "$id": format!("https://kinde.com/{code}.schema.json"),
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "title": format!("{name} Webhook Event"),
                "properties": {
                    "data": {"type": "object"},
                    "type": {"constant": code},
                    "source": {"enum": ["api", "admin"]},
                    "event_id": {"type": "string", "pattern": "event_[0-9a-f]{32}"},
                    "timestamp": {"type": "string", "format": "date-time"},
                },
            },
        })
    };
    let types: Vec<Value> = emulator.event_types().iter().enumerate().map(item).collect();
    success("OK", "Success", json!({"event_types": types}))
}

pub(super) async fn event(
    State(emulator): State<Emulator>,
    Path(id): Path<String>,
) -> Result<Response, ErrorResponse> {
    let unknown = || ErrorResponse::bad_request("EVENT_INVALID", "The event does not exist");
    let event = emulator.event(&id).ok_or_else(unknown)?;
    let unknowns = &emulator.config().unknowns;
    let shown = json!({
        "type": event.kind,
        "source": event.source,
        "event_id": event.id,
        "timestamp": webhook_time(event.at, unknowns.offset, unknowns.precision),
        "data": event.data,
    });
    Ok(success("OK", "Success", json!({"event": shown})))
}
