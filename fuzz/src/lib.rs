//! The functions of the fuzz targets. Each panics on an input that breaks its promise.
//!
//! The tests of `kinsync` include this file and run each function on the kept seeds and on variations of them, so that every
//! build covers them without fuzzing tools.

pub mod admin_parameters;
pub mod decode_event;
pub mod http_head;
pub mod jwks_document;
pub mod server;
pub mod verify_bearer;
pub mod verify_webhook;
