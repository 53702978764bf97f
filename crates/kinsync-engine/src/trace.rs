//! Spans of a delivery, for a subscriber that exports them. Without such a subscriber a span costs the check of a flag.
//!
//! Each span has the field `event_id`, which is the context that the queue carries from process to process: every process
//! derives the same trace from the same id.

/// The target of the spans.
pub const TARGET: &str = "kinsync::delivery";
/// Name of the span from the arrival of a delivery to the response.
pub const RECEIVE: &str = "receive delivery";
/// Name of the span from the claim of a queue entry until it is applied, dead-lettered or released.
pub const APPLY: &str = "apply event";
