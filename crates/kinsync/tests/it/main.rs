//! The binary and its server, as operators and senders meet them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod address_case;
mod admin;
mod admin_access;
mod authenticated_routes;
mod commands;
mod config;
mod connections;
mod deliveries;
mod deployment;
#[cfg(feature = "dev")]
mod dev;
mod doctor;
mod doctor_store;
mod durability;
mod erase;
mod evidence;
mod explain;
mod export;
mod first_process;
mod forward_auth;
mod fuzz_seeds;
mod header_matrix;
mod key_sets;
mod load;
mod monitoring;
mod one_command;
mod queries;
mod queue_move;
mod readme;
mod rebuild;
mod reconcile;
mod reference;
mod replay;
mod request_path;
mod restore;
mod roles;
mod rolling_restart;
mod rotation;
mod rules;
mod scheduled_scans;
mod server;
mod shared_queue;
mod shared_queue_failover;
mod shared_queue_lost;
mod shared_queue_slow;
mod shared_queue_states;
mod shared_queue_tls;
mod tenant;
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod webhook_setup;
