//! The description of the webhook. [`kinsync_tower::WebhookService`] answers it.

use http::StatusCode;
use kinsync_tower::webhook::AcceptedDelivery;
use utoipa::openapi::path::OperationBuilder;

use super::openapi::{Schemas, answers};

/// Describes `POST /api/webhook`.
pub fn describe(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder {
    answers::<AcceptedDelivery<'_>>(operation, StatusCode::OK, schemas)
}
