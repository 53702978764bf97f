//! The engine on real files and real servers.
