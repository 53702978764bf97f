//! Why a scan did not compare all organizations and roles.

use kinde::management;

/// Reasons of a run that are kept.
const MAX_REASONS: usize = 5;
const MORE: &str = "; the log has more";

/// Adds a reason why something was not compared. Keeps the first ones: the later ones are in the log.
pub(in crate::reconcile) fn also(reasons: &mut Option<String>, reason: &str) {
    tracing::warn!(reason, "organizations or roles are not all compared");
    let Some(known) = reasons else {
        *reasons = Some(reason.to_owned());
        return;
    };
    if known.split("; ").count() < MAX_REASONS && !known.contains(reason) {
        known.push_str("; ");
        known.push_str(reason);
    } else if !known.contains(reason) && !known.ends_with(MORE) {
        known.push_str(MORE);
    }
}

/// Returns why roles are not all compared.
pub(in crate::reconcile) fn not_compared(error: &management::Error) -> String {
    format!("roles are not compared: {}", crate::breaker::error_chain(error))
}

#[cfg(test)]
mod tests {
    use super::{MAX_REASONS, also};

    #[test]
    fn a_later_reason_does_not_replace_an_earlier_one() {
        let mut reasons = None;
        also(&mut reasons, "no scope");
        also(&mut reasons, "no answer");
        also(&mut reasons, "no scope");
        assert_eq!(reasons.as_deref(), Some("no scope; no answer"));
        (0..20).for_each(|n| also(&mut reasons, &format!("org_{n}")));
        let reasons = reasons.expect("kept");
        assert_eq!(reasons.split("; ").count(), MAX_REASONS + 1);
        assert!(reasons.ends_with("; the log has more"), "{reasons}");
    }
}
