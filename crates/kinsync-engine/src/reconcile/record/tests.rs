//! Runs as they are stored.

use super::*;

fn run(began: i64, outcome: Outcome, missed: u64) -> Run {
    let mut run = Run::new(RunMode::Reconcile, Micros(began));
    run.ended(outcome, Micros(began + 1));
    run.tally.drift = [(DriftKind::Changed, missed)].into();
    run
}

#[test]
fn a_run_with_the_former_name_of_refused_users_is_shown() {
    let Value::Object(mut stored) = Stored::Run(Box::new(run(0, Outcome::Complete, 1))).encode() else {
        panic!("a run is an object")
    };
    stored["drift"] = serde_json::json!({ "changed": 1, "rejected": 2 });
    let decoded = Stored::decode(stored.into());
    let run = decoded.run().expect("this version can decode it");
    assert_eq!((run.tally.of(DriftKind::Changed), run.tally.of(DriftKind::Refused)), (1, 2));
}

#[test]
fn failed_runs_replace_no_complete_runs_and_the_last_missed_change_stays() {
    let failed = |began| run(began, Outcome::Failed { reason: String::new() }, 0);
    let mut runs = Vec::new();
    let mut add = |run: Run| {
        runs.insert(0, Stored::Run(Box::new(run)));
        remove_oldest(&mut runs);
    };
    add(run(0, Outcome::Complete, 0));
    add(run(1, Outcome::Complete, 3));
    (2..200).for_each(|began| add(run(began, Outcome::Complete, 0)));
    (200..400).for_each(|began| add(failed(began)));
    let began: Vec<i64> = runs.iter().filter_map(Stored::run).map(|run| run.started_at.0).collect();
    let expected: Vec<i64> = (390..400).rev().chain((150..200).rev()).chain([1, 0]).collect();
    assert_eq!(began, expected);
}
