//! Who is in the store and not at Kinde any more.
//!
//! That a user is in no page proves nothing: pages shift while users are added and removed. So only
//! a scan that read every page names candidates, and each of them is asked about twice, with a
//! pause. Kinde's word that there is no such user counts only while it still knows users whom it
//! has just listed. Many at once are held, because a broken answer looks just like that. Of whom it gives no answer
//! that can be read, nothing is concluded: one odd user keeps nobody else from being looked at.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{StreamExt, TryStreamExt, stream};
use kinde::{answer::Answer, management};
use kinsync_core::{Micros, Observation, Source, UserId, Version, What};
use serde::{Deserialize, Serialize};

use super::{
    Error, Parts,
    compare::{Found, Seen, drift},
    record::{Kind, Run, Tally, Wish},
    scan::Scanned,
};
use crate::{
    kept, snapshot,
    store::{self, Row, Store},
};

/// Where it is kept whose deletion the newest run held.
const HELD: &str = "reconcile.held";
/// Users whose deletion one approval can be for; the others are held again.
const MOST_HELD: usize = 100_000;
/// Users about whom a run may leave open what Kinde has, and prove the others all the same.
const MOST_OPEN: usize = 1000;
/// Ids that are read at once.
const IDS: usize = 10_000;
/// Users that are asked about between two looks at whether Kinde still knows anybody.
const CHUNK: usize = 50;
/// Questions in flight.
const IN_FLIGHT: usize = 4;

/// Whose deletion a run held.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Held {
    run: String,
    users: HashSet<u64>,
}

/// Deletions that are carried out without asking an operator.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// So many in one run, whatever the share.
    pub count: usize,
    /// This share of the live users, whatever the number; 0 to 1.
    pub share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { count: 20, share: 0.05 }
    }
}

impl Thresholds {
    #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
    fn exceeded(self, gone: usize, live: usize) -> bool {
        gone > self.count && gone as f64 > self.share * live as f64
    }
}

/// What two reads said of a user.
enum Word {
    /// There is no such user; the first read was asked for then.
    Gone(Micros),
    There(Seen),
    /// Nothing that can be read, about this one user.
    Unclear,
}

impl Word {
    fn of(answer: Answer<Option<management::User>>) -> Self {
        let sent = answer.sent;
        let seen = answer.value.and_then(|user| Seen::new(user, &sent));
        seen.map_or(Self::Gone(snapshot::sent_at(&sent)), Self::There)
    }

    fn is_unclear(&self) -> bool {
        matches!(self, Self::Unclear)
    }
}

/// Whether the failure may be about the one user who was asked for, and not about us or about Kinde.
fn is_about_one(error: &management::Error) -> bool {
    use management::Error::{Identifier, NotJson, Shape, Status, TooLong, WrongUser};
    matches!(error, Status { .. } | Shape(_) | NotJson { .. } | WrongUser | TooLong { .. } | Identifier)
}

/// Stable, so that it can be kept: the first bytes of the SHA-256 of the id.
pub(super) fn hash(user: &UserId) -> u64 {
    let digest = digest(&SHA256, user.as_str().as_bytes());
    digest.as_ref()[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl Parts {
    /// Deletes, or holds, who was not listed. `Some`: everybody who was stored when the run began is as Kinde has it,
    /// but these.
    pub(super) async fn sweep_gone(
        &self,
        run: &Run,
        scanned: &mut Scanned,
        approved: Option<HashSet<u64>>,
    ) -> Result<Option<BTreeSet<UserId>>, Error> {
        scanned.listed.sort_unstable();
        let (candidates, live) = self.candidates(run, scanned).await?;
        let approved = approved.unwrap_or_default();
        let (mut doomed, others): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|row| approved.contains(&hash(&row.id)));
        let is_held = self.config.deletes.exceeded(others.len(), live);
        if is_held {
            self.hold(run, &others, &mut scanned.tally).await?;
        } else {
            doomed.extend(others);
        }
        let is_dry = run.wish == Wish::Dry;
        let mut open = BTreeSet::new();
        for rows in doomed.chunks(CHUNK) {
            let words =
                self.ask_twice(rows.iter().map(|row| row.id.clone()).collect(), &scanned.controls).await?;
            open.extend(words.iter().filter(|(_, word)| word.is_unclear()).map(|(id, _)| id.clone()));
            self.conclude(rows, words, is_dry, &mut scanned.tally).await?;
        }
        Ok((!is_held && open.len() <= MOST_OPEN).then_some(open))
    }

    /// Live users that were stored when the run began, of whom nothing newer is known, and who were not listed. And
    /// how many users are live.
    async fn candidates(&self, run: &Run, scanned: &Scanned) -> Result<(Vec<Row>, usize), Error> {
        let Some(first_sent) = scanned.first_sent else { return Ok((Vec::new(), 0)) };
        let next = async |after: Option<&UserId>| self.patiently(|| self.store.ids(after, IDS)).await;
        let (mut candidates, mut live) = (Vec::new(), 0);
        let mut ids = next(None).await?;
        while let Some(last) = ids.last() {
            let unlisted = self.unlisted(&ids, &scanned.listed);
            let (following, (listed, rows)) = tokio::try_join!(next(Some(last)), unlisted)?;
            live += listed + rows.len();
            candidates.extend(rows.into_iter().filter(|row| {
                let newest = row.state.fields.values().map(|register| register.version.at).max();
                row.standing.inserted_at < run.started_at && newest < Some(first_sent)
            }));
            ids = following;
        }
        Ok((candidates, live))
    }

    /// How many of these were listed, and the others that are live.
    async fn unlisted(&self, ids: &[UserId], listed: &[u64]) -> Result<(usize, Vec<Row>), store::Error> {
        let is_missing = |id: &&UserId| listed.binary_search(&hash(id)).is_err();
        let missing: Vec<UserId> = ids.iter().filter(is_missing).cloned().collect();
        let mut live = Vec::new();
        for ids in missing.chunks(1000) {
            let rows = self.patiently(|| self.store.load(ids)).await?;
            live.extend(rows.into_iter().flatten().filter(|row| row.state.is_live()));
        }
        Ok((ids.len() - missing.len(), live))
    }

    async fn hold(&self, run: &Run, rows: &[Row], tally: &mut Tally) -> Result<(), Error> {
        for row in rows {
            tally.add(drift(row.id.clone(), Kind::Held, Vec::new(), Some(row)));
        }
        if run.wish == Wish::Dry {
            return Ok(());
        }
        tracing::error!(
            run = run.id,
            users = rows.len(),
            "so many users are not at Kinde any more that their deletion is held: look at the run, then \
             `kinsync reconcile --approve {}`",
            run.id
        );
        let users = rows.iter().take(MOST_HELD).map(|row| hash(&row.id)).collect();
        let held = Held { run: run.id.clone(), users };
        let keep = || kept::change(&*self.store, HELD, |kept: &mut Held| kept.clone_from(&held));
        Ok(self.patiently(keep).await?)
    }

    /// Asks about each of these users; about those who seem gone twice.
    async fn ask_twice(&self, users: Vec<UserId>, controls: &[String]) -> Result<Vec<(UserId, Word)>, Error> {
        let first = self.ask(users, controls).await?;
        let (gone, mut words): (Vec<_>, Vec<_>) =
            first.into_iter().partition(|(_, word)| matches!(word, Word::Gone(_)));
        if gone.is_empty() {
            return Ok(words);
        }
        tokio::time::sleep(self.config.between_reads).await;
        let again = self.ask(gone.iter().map(|(id, _)| id.clone()).collect(), controls).await?;
        // Of two reads that say the same, the first one dates it.
        words.extend(gone.into_iter().zip(again).map(|(first, again)| match again.1 {
            Word::Gone(_) => first,
            Word::There(_) | Word::Unclear => again,
        }));
        Ok(words)
    }

    /// Asks about each of these users once, in order, and before and after it about users who must be there.
    async fn ask(&self, users: Vec<UserId>, controls: &[String]) -> Result<Vec<(UserId, Word)>, Error> {
        self.trust(controls).await?;
        let ask = |id: UserId| async move {
            let word = match self.kinde.user(id.as_str()).await {
                Ok(answer) => Word::of(answer),
                Err(error) if is_about_one(&error) => {
                    // When Kinde is away, everybody else would have to be waited for too.
                    if error.is_transient() {
                        self.trust(controls).await?;
                    }
                    let error = crate::breaker::chain(&error);
                    tracing::warn!(user = id.as_str(), error, "Kinde's answer about a user cannot be read");
                    Word::Unclear
                }
                Err(error) => return Err(Error::Kinde(error)),
            };
            Ok::<_, Error>((id, word))
        };
        let words = stream::iter(users).map(ask).buffered(IN_FLIGHT).try_collect().await?;
        self.trust(controls).await?;
        Ok(words)
    }

    /// Whether Kinde still knows somebody whom it listed.
    async fn trust(&self, controls: &[String]) -> Result<(), Error> {
        let mut odd = None;
        for control in controls {
            match self.kinde.user(control).await {
                Ok(answer) if answer.value.is_some() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_about_one(&error) && !error.is_transient() => odd = Some(error),
                Err(error) => return Err(Error::Kinde(error)),
            }
        }
        Err(odd.map_or(Error::Distrusted, Error::Kinde))
    }

    /// Writes what two reads said.
    async fn conclude(
        &self,
        rows: &[Row],
        words: Vec<(UserId, Word)>,
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let mut observations = Vec::new();
        for (id, word) in words {
            let row = rows.iter().find(|row| row.id == id);
            match word {
                Word::Gone(at) => {
                    tally.add(drift(id.clone(), Kind::Gone, Vec::new(), row));
                    observations.push(gone(id, at));
                }
                Word::There(seen) => match seen.compare(row) {
                    Found::Differs(drift, told) => {
                        tally.add(drift);
                        observations.extend(told);
                    }
                    _ => tally.unchanged += 1,
                },
                Word::Unclear => tally.add(drift(id, Kind::Unknown, Vec::new(), row)),
            }
        }
        if is_dry || observations.is_empty() {
            return Ok(());
        }
        self.repair(&observations, tally).await
    }

    /// Asks about users because somebody wants to know; and restores one who is deleted in the store and there after
    /// all, as two reads say.
    pub(super) async fn check(&self, users: &[UserId], is_dry: bool, tally: &mut Tally) -> Result<(), Error> {
        let controls = self.controls().await?;
        for ids in users.chunks(CHUNK) {
            let rows = self.patiently(|| self.store.load(ids)).await?;
            let words = self.ask_twice(ids.to_vec(), &controls).await?;
            let (live, dead): (Vec<_>, Vec<_>) = words.into_iter().partition(|(id, word)| {
                word.is_unclear()
                    || rows.iter().flatten().find(|row| row.id == *id).is_none_or(|row| row.state.is_live())
            });
            let rows: Vec<Row> = rows.into_iter().flatten().collect();
            // Who is neither stored nor at Kinde is as it should be.
            let known = live
                .into_iter()
                .filter(|(id, word)| !matches!(word, Word::Gone(_)) || rows.iter().any(|row| row.id == *id));
            self.conclude(&rows, known.collect(), is_dry, tally).await?;
            self.restore(&rows, dead, &controls, is_dry, tally).await?;
        }
        Ok(())
    }

    async fn restore(
        &self,
        rows: &[Row],
        dead: Vec<(UserId, Word)>,
        controls: &[String],
        is_dry: bool,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let of = |id: &UserId| rows.iter().find(|row| row.id == *id);
        let mut there = Vec::new();
        for (id, word) in dead {
            let Word::There(seen) = word else { continue };
            match seen.compare(of(&id)) {
                Found::Doubtful => there.push(id),
                // Kinde's own deletion, and nothing newer: Kinde may know a user whose profile was kept.
                Found::Listed(drift) => tally.add(drift),
                Found::Differs(..) | Found::Same => {}
            }
        }
        if there.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.config.between_reads).await;
        let mut observations = Vec::new();
        for (id, word) in self.ask(there, controls).await? {
            if let (Word::There(seen), Some(row)) = (word, of(&id)) {
                tally.add(drift(id, Kind::Restored, Vec::new(), Some(row)));
                observations.extend(seen.exists());
            }
        }
        if is_dry || observations.is_empty() {
            return Ok(());
        }
        self.repair(&observations, tally).await
    }

    /// Some users whom Kinde lists right now.
    async fn controls(&self) -> Result<Vec<String>, Error> {
        let page = self.kinde.users().next().await.map_err(Error::Kinde)?;
        let listed: Vec<String> =
            page.into_iter().flat_map(|page| page.users).take(8).map(|user| user.id).collect();
        if listed.is_empty() { Err(Error::Nobody) } else { Ok(listed) }
    }
}

fn gone(user: UserId, at: Micros) -> Observation {
    let version = Version::snapshot(at, "gone");
    Observation { user, version, source: Source::Reconcile, what: What::Deleted }
}

/// Whose deletion this run held.
pub(super) async fn approved(store: &dyn Store, run: &str) -> Result<Option<HashSet<u64>>, store::Error> {
    let held: Held = kept::load(store, HELD).await?;
    Ok((held.run == run).then_some(held.users))
}

/// The longest a check of one user takes beyond the answers of Kinde.
pub(super) const BETWEEN_READS: Duration = Duration::from_secs(2);
