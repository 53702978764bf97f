//! Receives webhooks of Kinde and prints their events.
//!
//! ```sh
//! KINDE_DOMAIN=https://acme.kinde.com cargo run -p kinde --example webhook_server
//! ```
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example without configuration and clock"
)]

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use jiff::Timestamp;
use kinde::webhook::{Config, VerificationError, Verifier};
use kinde::{Jwks, jwks};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domain = kinde::parse_domain(&std::env::var("KINDE_DOMAIN")?)?;
    let keys = Jwks::new(jwks::Config::new(domain))?;
    let verifier = Verifier::new(Config { jwks: Some(keys), ..Config::default() })?;
    let app = Router::new().route("/api/webhook", post(receive)).with_state(verifier);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 5000)).await?;
    println!("listening on http://{}/api/webhook", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn receive(State(verifier): State<Verifier>, headers: HeaderMap, body: Bytes) -> Response {
    let delivery = match verifier.verify(&headers, body, Timestamp::now()).await {
        Ok(delivery) => delivery,
        Err(error) => return reject(&error),
    };
    // A real receiver stores the delivery durably before it responds, and ignores a known `event_id`.
    match delivery.decode() {
        Ok(event) => println!("{:?} {} {:?}", delivery.event_id(), event.event_type, event.body.user_id()),
        // Kinde disables a webhook that fails for 72 hours, so an unknown payload is accepted too.
        Err(error) => println!("{:?} cannot be decoded: {error}", delivery.event_id()),
    }
    StatusCode::OK.into_response()
}

fn reject(error: &VerificationError) -> Response {
    match error.retry_after() {
        Some(retry_after) => {
            let headers = [(header::RETRY_AFTER, retry_after.as_secs().to_string())];
            (StatusCode::SERVICE_UNAVAILABLE, headers).into_response()
        }
        None => (StatusCode::UNAUTHORIZED, error.to_string()).into_response(),
    }
}
