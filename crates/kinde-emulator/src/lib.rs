//! A local Kinde for development and tests: keys, tokens, users, organizations, roles, signed webhooks with Kinde's retry
//! schedule, and injected faults.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use kinde_emulator::{Config, Emulator, NewUser, WebhookSpec};
//!
//! let kinde = Emulator::start(Config::default()).await?;
//! kinde.add_webhook(WebhookSpec::new("http://127.0.0.1:3000/webhook".parse()?));
//! kinde.sign_up(NewUser::named("ada@example.com", "Ada", "Lovelace"))?;
//! kinde.quiesce(std::time::Duration::from_secs(10)).await?;
//! kinde.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! The login page requires no password. Consent, billing and feature flags are not emulated.

pub mod activity;
mod clock;
pub mod config;
pub mod delivery;
mod directory;
mod emulator;
mod event;
mod faults;
mod keys;
mod limits;
mod logins;
mod routes;
mod span;
pub mod tenant;
mod tokens;
mod user;
mod users;
mod webhook;

pub use activity::Activity;
pub use config::Config;
pub use delivery::{Delivery, DeliveryState, Stats, Webhook};
pub use directory::{Organization, OrganizationEdit, Permission, Property, PropertyEdit, Role, RoleEdit};
pub use emulator::{Emulator, Held, StartError};
pub use event::{EVENT_TYPES, Event, Source};
pub use faults::{Fault, FaultKind, FaultReport};
pub use keys::{Error as KeyError, Overlap};
pub use tenant::Profile;
pub use tokens::{Alg, Claims, MintOptions, Signer, TokenSpec};
pub use user::{Grant, Membership, NewUser, User, UserEdit};
pub use webhook::{Scheme, WebhookSpec};
