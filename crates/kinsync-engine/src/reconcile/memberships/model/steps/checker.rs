//! The check of one user against Kinde.

use super::{
    super::{responses::read, time},
    Steps,
};
use crate::reconcile::compare::Comparison;

impl Steps<'_> {
    pub(super) fn checker(&mut self) {
        let Some((changes, is_again)) = self.from.checker else {
            if self.from.check {
                let changes = self.from.changes;
                self.add("check reads the user", |world| {
                    world.may_change = true;
                    world.checker = Some((changes, false));
                });
            }
            return;
        };
        let row = self.from.row;
        let is_decided =
            !self.memos.stale.get((1, changes, row), || self.remote(changes).lead(&row).is_some());
        let (next, is_recheck) =
            self.join(self.from, (5, changes), || match self.remote(changes).compare(Some(&row)) {
                Comparison::Differs(_, repairs) => (repairs, None),
                _ => (Vec::new(), None),
            });
        let mut world = *self.from;
        world.row = next.unwrap_or(world.row);
        let (member, is_recheck_of_member) = self.join(&world, (6, changes), || {
            let read = read(self.history.tenant(changes), time(changes, 50));
            let found = read.and_then(|read| read.compare(Some(&world.row)));
            (found.into_iter().map(|(_, repair)| repair).collect(), None)
        });
        self.add("check decides", |world| {
            if let Some(next) = member.or(next) {
                world.write(next);
            }
            world.checker = None;
            world.check = is_again || !is_decided || is_recheck || is_recheck_of_member;
        });
    }
}
