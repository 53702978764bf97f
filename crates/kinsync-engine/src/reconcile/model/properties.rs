//! The properties of the model.

use kinsync_core::{Field, Value};

use super::{FIELDS, History, explore::Memos, world::World};

/// Returns a property that this state violates, and for which user.
pub(super) fn violation(
    history: &History,
    memos: &Memos,
    before: &World,
    world: &World,
) -> Option<(usize, &'static str)> {
    let is_quiet = world.is_quiet();
    (0..2).find_map(|user| {
        let is_same = before.rows[user] == world.rows[user] && before.changes == world.changes;
        let shown = || wrongly_changed(history, before, world, user);
        let proof = || {
            let arguments = (0, user, world.rows[user], world.watermarks, world.proved[user]);
            memos.problems.get(arguments, || unproved(history, world, user))
        };
        let end = || {
            let arguments = (1, user, world.rows[user], world.changes);
            memos.problems.get(arguments, || untrue(history, world, user))
        };
        let problem = (!is_same).then(shown).flatten();
        let is_same = is_same && before.watermarks == world.watermarks;
        let problem = problem.or_else(|| (!is_same).then(proof).flatten());
        let may_be_lost = world.lost[user] > 0;
        problem.or_else(|| (is_quiet && !may_be_lost).then(end).flatten()).map(|problem| (user, problem))
    })
}

/// Returns what a step must not do to a user.
fn wrongly_changed(history: &History, before: &World, world: &World, user: usize) -> Option<&'static str> {
    let is_live = |world: &World| world.rows[user].state.is_live();
    if !is_live(before) && is_live(world) {
        return Some("is live again");
    }
    if !is_live(world) && history.truth(user, world.changes).is_some() {
        return Some("is deleted and exists at Kinde");
    }
    let is_undone = is_suspended(before, user) && is_live(world) && !is_suspended(world, user);
    (is_undone && !was_ended(history, world.changes, user)).then_some("is no longer suspended")
}

fn is_suspended(world: &World, user: usize) -> bool {
    let state = &world.rows[user].state;
    state.is_live() && state.value(Field::IsSuspended) == Some(&Value::Flag(true))
}

/// Returns whether Kinde has ended a suspension.
fn was_ended(history: &History, changes: usize, user: usize) -> bool {
    let is_suspended = |changes: &usize| history.truth(user, *changes).is_some_and(|user| user.is_suspended);
    let mut until_now = 0..=changes;
    until_now.find(is_suspended).is_some() && until_now.any(|changes| !is_suspended(&changes))
}

/// Returns what the proof would claim without a comparison.
fn unproved(history: &History, world: &World, user: usize) -> Option<&'static str> {
    let (proof, row) = (world.watermarks.proof.as_ref()?, &world.rows[user]);
    if row.revision == 0 || !row.state.is_live() || !proof.covers(row) {
        return None;
    }
    let Some(changes) = world.proved[user] else { return Some("is covered by a proof and not compared") };
    let compared = history.truth(user, changes)?.profile();
    let is_wrong = |field: &Field| {
        row.state.fields.get(field).is_some_and(|register| {
            register.version.at < proof.at && Some(&register.value) != compared.value(*field)
        })
    };
    FIELDS.iter().any(is_wrong).then_some("is covered by a proof with another value")
}

/// Returns how the stored user differs from Kinde's.
fn untrue(history: &History, world: &World, user: usize) -> Option<&'static str> {
    let row = &world.rows[user];
    let Some(truth) = history.truth(user, world.changes) else {
        return (row.revision > 0 && row.state.is_live()).then_some("is live and deleted at Kinde");
    };
    let profile = truth.profile();
    let is_wrong = |field: &Field| row.state.value(*field) != profile.value(*field);
    FIELDS.iter().any(is_wrong).then_some("is stored with another value than Kinde's")
}
