//! Embeds kinsync in any tower or axum application.
