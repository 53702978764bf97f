//! Finds entries by their payload, to export or erase them.

use redis::{Pipeline, Value, cmd};

use super::{GROUP, Shared, rows};
use crate::queue::{Error, Found, Matched, Matcher, Search};

/// Entries per read.
const PAGE: usize = 500;

impl Shared {
    /// Reads every entry and every dead letter. A claimed entry is removed too: the ack of its consumer finds nothing.
    pub(super) async fn search(&self, matcher: &Matcher, search: Search) -> Result<Matched, Error> {
        let mut matched = Matched::default();
        let entries = &mut matched.entries;
        matched.queued = self.search_stream(&self.keys.stream, matcher, search, entries).await?;
        matched.dead_letters = self.search_stream(&self.keys.dead, matcher, search, &mut Vec::new()).await?;
        Ok(matched)
    }

    async fn search_stream(
        &self,
        stream: &str,
        matcher: &Matcher,
        search: Search,
        entries: &mut Vec<Found>,
    ) -> Result<u64, Error> {
        let (mut from, mut found) = ("-".to_owned(), 0);
        loop {
            let mut range = cmd("XRANGE");
            range.arg(stream).arg(&from).arg("+").arg("COUNT").arg(PAGE);
            let page: Vec<(String, Value)> = self.commands.run(&range).await?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            from = format!("({last}");
            let is_found = |fields: &Value| {
                let (scheme, bodies) = rows::contents(fields);
                bodies.iter().any(|body| matcher(scheme, body))
            };
            let matching: Vec<_> = page.iter().filter(|(_, fields)| is_found(fields)).collect();
            found += matching.len() as u64;
            if search == Search::List {
                entries.extend(matching.iter().map(|(_, fields)| rows::found(fields)));
            }
            let ids: Vec<&str> = matching.iter().map(|(id, _)| id.as_str()).collect();
            if search == Search::Remove && !ids.is_empty() {
                let mut remove = Pipeline::new();
                remove.atomic();
                if stream == self.keys.stream {
                    remove.cmd("XACK").arg(stream).arg(GROUP).arg(&ids);
                }
                remove.cmd("XDEL").arg(stream).arg(&ids);
                self.commands.run_all::<Value>(&remove).await?;
            }
        }
    }
}
