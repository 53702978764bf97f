//! The HTTP surface: connections, routes and what is behind them.
//!
//! In reading order:
//! - [`front`]: where requests come in
//! - [`router`]: every route but two
//! - [`server`]: connections and their bounds
//! - [`stall`]: cuts off who does not read
//! - [`timer`]: cuts off who does not end the head
//! - [`admin`]: routes for who has the admin token
//! - [`user_routes`]: routes for users with an access token
//! - [`operation`]: health and metrics
//! - [`answer`]: failures as problem documents

pub mod admin;
pub mod answer;
pub mod front;
pub mod operation;
pub mod router;
pub mod server;
pub mod stall;
pub mod timer;
pub mod user_routes;
