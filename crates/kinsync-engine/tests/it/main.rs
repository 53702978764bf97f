//! The engine on real files and real servers.

mod store_conformance;
mod store_mongo;
mod store_rows;
