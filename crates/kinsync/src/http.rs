//! The HTTP server: connections, routes and handlers.
//!
//! In reading order:
//! - [`routes`]: every route, once
//! - [`route`]: what a route consists of
//! - [`mount`]: what surrounds the handler of each route
//! - [`router`]: the router made from the list
//! - [`openapi`], [`description`]: the description made from the list
//! - [`server`], [`stall`]: connections and their limits
//! - [`connections`], [`network`], [`tracked`]: how many connections are open, and which one closes for another
//! - [`request_check`]: request heads that are refused
//! - [`tls`]: certificates of a listener
//! - [`admin`]: handlers for operators
//! - [`admin_access`], [`back_off`]: tokens, scopes, wrong tokens and the audit log
//! - [`user_routes`]: handlers for users with an access token
//! - [`cors`]: cross-origin requests of browsers
//! - [`deliveries`]: the description of the webhook
//! - [`operation`]: health and metrics
//! - [`answer`]: failures as problem documents

pub mod admin;
pub mod admin_access;
pub mod answer;
pub mod back_off;
pub mod connections;
pub mod cors;
pub mod deliveries;
pub mod description;
pub mod forward_auth;
pub mod mount;
pub mod network;
pub mod openapi;
pub mod operation;
pub mod request_check;
pub mod route;
pub mod router;
pub mod routes;
pub mod server;
pub mod stall;
pub mod tls;
pub mod tracked;
pub mod user_routes;
