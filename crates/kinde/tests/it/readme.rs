//! The README and the lists of labels, compared with the code.

use std::collections::BTreeSet;

use kinde::jwks::FetchError;
use kinde::{Endpoint, account, bearer, jwks, jws, management, webhook};

const README: &str = include_str!("../../README.md");

/// The values in backticks of a label in the table of metrics.
fn values(metric: &str, label: &str) -> Vec<&'static str> {
    let row = README.lines().find(|line| line.contains(&format!("`{metric}`"))).unwrap();
    let (_, values) = row.split_once(&format!("`{label}`: ")).unwrap();
    values.split([';', '|']).next().unwrap().split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_readme_lists_every_endpoint_and_every_outcome_of_a_fetch() {
    assert_eq!(values("kinde_api_requests_total", "endpoint"), Endpoint::NAMES);
    let outcomes: Vec<&str> = ["ok"].into_iter().chain(FetchError::OUTCOMES.iter().copied()).collect();
    assert_eq!(values("kinde_jwks_fetches_total", "outcome"), outcomes);
}

#[test]
fn a_list_of_labels_contains_those_of_inner_errors_and_each_label_once() {
    for inner in [jws::Error::REASONS, jwks::Error::REASONS] {
        for reason in inner {
            assert!(bearer::VerificationError::REASONS.contains(reason), "{reason}");
            assert!(webhook::VerificationError::REASONS.contains(reason), "{reason}");
        }
    }
    for labels in [
        bearer::VerificationError::REASONS,
        webhook::VerificationError::REASONS,
        management::Error::OUTCOMES,
        account::Error::OUTCOMES,
    ] {
        assert_eq!(BTreeSet::from_iter(labels).len(), labels.len(), "{labels:?}");
    }
}
