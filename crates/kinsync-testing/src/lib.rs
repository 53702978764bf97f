//! Proves it: real servers, a test application, seeded histories.

pub mod app;
pub mod mongo;
pub mod tokens;
