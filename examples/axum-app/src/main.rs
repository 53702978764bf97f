//! A notebook: each user has notes. kinsync runs inside this process.

mod demo;
mod kinsync;

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use clap::Parser as _;
use kinde::management;
use kinsync_engine::config;
use kinsync_tower::CurrentUser;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;
use url::Url;

use crate::{demo::Demo, kinsync::Kinsync};

/// A notebook with kinsync inside.
#[derive(Debug, clap::Parser)]
struct Settings {
    /// Your tenant, such as <https://acme.kinde.com>; without one, a local Kinde with one user is started
    #[arg(long, env, value_parser = kinde::parse_domain)]
    kinde_domain: Option<Url>,
    /// A machine-to-machine application with the scope `read:users`; without one, nothing repairs what webhooks miss
    #[arg(long, env, requires = "kinde_m2m_client_secret")]
    kinde_m2m_client_id: Option<String>,
    /// Its secret
    #[arg(long, env, hide_env_values = true, requires = "kinde_m2m_client_id")]
    kinde_m2m_client_secret: Option<String>,
    /// Keep users in this MongoDB; in the database `kinsync_example` if the Kinde is a local one
    #[arg(long, env, hide_env_values = true)]
    mongodb_uri: Option<String>,
    /// Store the queue, and without a MongoDB the users, in this folder; with a local Kinde, a temporary one
    #[arg(long, env = "KINSYNC_DATA_DIR", default_value = "kinsync-data")]
    data_dir: PathBuf,
    /// Listen on this port of 127.0.0.1; 0 is any free port
    #[arg(long, env, default_value_t = 3000)]
    port: u16,
}

/// Notes by Kinde id. A real application stores them in its database under the same id.
type Notes = Arc<Mutex<HashMap<String, Vec<String>>>>;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let settings = Settings::parse();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port)).await;
    let about = || format!("cannot listen on port {}: choose another with --port", settings.port);
    let listener = listener.with_context(about)?;
    let address = format!("http://{}", listener.local_addr()?);
    let mongo = settings.mongodb_uri.map(config::Mongo::new);
    let machine = settings.kinde_m2m_client_id.zip(settings.kinde_m2m_client_secret);
    let (kinsync, steps, _demo) = if let Some(tenant) = settings.kinde_domain {
        let management =
            machine.map(|(id, secret)| management::Config::new(tenant.clone(), id, secret.into()));
        (Kinsync::start(tenant, &settings.data_dir, mongo, management).await?, String::new(), None)
    } else {
        let demo = Demo::start(&address).await?;
        let own = mongo.map(|mongo| config::Mongo { database: Some("kinsync_example".into()), ..mongo });
        let kinsync = Kinsync::start(demo.kinde.issuer().parse()?, demo.folder.path(), own, None).await?;
        (kinsync, demo.steps(&address), Some(demo))
    };
    say(&format!("listening on {address}\n{steps}"));
    axum::serve(listener, routes(&kinsync)).with_graceful_shutdown(ctrl_c()).await?;
    kinsync.stop().await;
    Ok(())
}

fn routes(kinsync: &Kinsync) -> Router {
    let for_users = Router::new()
        .route("/me", get(me))
        .route("/notes", get(notes).post(take_note))
        .route_layer(kinsync.layer.clone());
    Router::new()
        .route("/", get("a notebook: try /me and /notes\n"))
        .merge(for_users)
        .with_state(Notes::default())
        .route_service("/api/webhook", kinsync.webhook.clone())
}

/// Runs for authenticated users only, because of the extractor `CurrentUser`.
async fn me(user: CurrentUser) -> Json<Value> {
    // `None` only while the store is unavailable.
    let document = user.document();
    let first_name = document.and_then(|user| user.first_name.as_deref());
    let last_name = document.and_then(|user| user.last_name.as_deref());
    Json(
        json!({ "kindeId": user.id(), "email": user.email(), "firstName": first_name, "lastName": last_name }),
    )
}

async fn notes(user: CurrentUser, State(notes): State<Notes>) -> Json<Vec<String>> {
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    Json(notes.get(user.id()).cloned().unwrap_or_default())
}

async fn take_note(user: CurrentUser, State(notes): State<Notes>, note: String) -> StatusCode {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    notes.entry(user.id().to_owned()).or_default().push(note);
    StatusCode::CREATED
}

async fn ctrl_c() {
    _ = tokio::signal::ctrl_c().await;
}

#[expect(clippy::print_stdout, reason = "it prints commands to try")]
fn say(text: &str) {
    println!("{text}");
}
