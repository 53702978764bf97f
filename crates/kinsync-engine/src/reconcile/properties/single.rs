//! Reads of the properties of single users: for a check, and to confirm what a list lacks.

use std::collections::BTreeMap;

use kinde::management;
use kinsync_core::{Field, Micros, UserId};

use super::{Error, Inner, Listed, lacks_scope};
use crate::{
    reconcile::{
        compare::drift,
        record::{DriftKind, Tally},
        removals::Sample,
        single_reads::is_about_one,
    },
    snapshot,
    state_records::Term,
};

/// Users of a page that are read before what the page lacks counts as lost.
const SAMPLE: usize = 5;

impl Inner {
    /// Compares the properties of these users. Without the scope nothing is compared.
    pub(in crate::reconcile) async fn check_properties(
        &self,
        users: &[UserId],
        term: Option<Term>,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        if self.config.properties.keys.is_empty() {
            return Ok(());
        }
        // The next scan compares the properties. A check that failed here would be repeated for all users.
        match self.check_each(users, term, tally).await {
            Err(Error::Kinde(error)) => {
                let error = crate::breaker::error_chain(&error);
                tracing::warn!(error, "the properties of a user cannot be read");
                Ok(())
            }
            checked => checked,
        }
    }

    async fn check_each(&self, users: &[UserId], term: Option<Term>, tally: &mut Tally) -> Result<(), Error> {
        let keys = self.keys_of_properties().await?;
        let rows = self.retry_store(|| self.store.load(users)).await?;
        for row in rows.into_iter().flatten().filter(|row| row.state.is_live()) {
            let Some((read, at)) = self.read_properties(&row.id).await? else { continue };
            // One read may lack values by mistake.
            if !read.lacks(Some(&row), &keys).is_empty() {
                let second = self.read_properties(&row.id).await?;
                if second.is_none_or(|(second, _)| second.values != read.values) {
                    tally.add(drift(row.id.clone(), DriftKind::Undetermined, Vec::new(), Some(&row)));
                    continue;
                }
            }
            let Some(repair) = read.compare(Some(&row), &keys, at) else { continue };
            let found = drift(row.id.clone(), DriftKind::FilledIn, vec![Field::Properties], Some(&row));
            self.repair(vec![repair], vec![found], term.is_none(), tally).await?;
        }
        Ok(())
    }

    /// Reads some of these users, for values under the keys that a list lacks. Without the scope the list is used as it is.
    pub(super) async fn sample_values(
        &self,
        lacking: &BTreeMap<UserId, Vec<String>>,
    ) -> Result<Sample, Error> {
        let every = lacking.len().div_ceil(SAMPLE).max(1);
        let mut sample = Sample::Unusable;
        for (user, keys) in lacking.iter().step_by(every) {
            let read = match self.read_properties(user).await {
                Err(Error::Kinde(management::Error::MissingScope { .. })) => return Ok(Sample::Lost),
                Err(Error::Kinde(error)) if lacks_scope(&error) => continue,
                read => read?,
            };
            let Some((read, _)) = read else { continue };
            if keys.iter().any(|key| read.values.contains_key(key)) {
                return Ok(Sample::Contradicts);
            }
            sample = Sample::Lost;
        }
        Ok(sample)
    }

    /// Reads the properties of a user; `None` if Kinde's response about this user is unusable, for example because the user was deleted.
    async fn read_properties(&self, user: &UserId) -> Result<Option<(Listed, Micros)>, Error> {
        let read = match self.kinde.user_properties(user.as_str())?.all().await {
            Err(error) if is_about_one(&error) && !error.is_transient() => return Ok(None),
            read => read?,
        };
        let one = |property: management::Property| Some((property.key, property.value.into_value()?));
        let values: BTreeMap<String, String> = read.value.into_iter().filter_map(one).collect();
        Ok(Some((Listed { user: user.clone(), values }, snapshot::sent_at(&read.timing))))
    }
}
