//! What the lists of a running server have in common: filters, pages, JSON and tables.

use std::process::ExitCode;

use serde::{Serialize, de::DeserializeOwned};

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};

/// Options of a `list` command. The fields of `Query`, the query of the route, are its filters.
#[derive(Debug, clap::Args)]
pub(super) struct List<Query: clap::Args> {
    #[command(flatten)]
    query: Query,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

/// Options of a `show` command.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The id in the list
    pub(super) id: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) flags: ClientFlags,
}

/// The query of a list that has no filters.
#[derive(Debug, clap::Args, Serialize)]
pub(super) struct NoFilters {}

/// The title of a column, and its cell for an item.
pub(super) type Column<Item> = (&'static str, fn(&Item) -> String);

/// A page of a list.
pub(super) trait Page: Serialize + DeserializeOwned {
    type Query: clap::Args + Serialize;
    type Item: 'static;

    /// The path of the route below `/api/admin`.
    const PATH: &'static str;
    const COLUMNS: &'static [Column<Self::Item>];

    fn items(&self) -> &[Self::Item];

    /// Where the next page starts.
    fn next(&self) -> Option<&str> {
        None
    }

    /// The ids of documents on this page that cannot be decoded.
    fn undecodable(&self) -> &[String] {
        &[]
    }
}

impl<Query: clap::Args + Serialize> List<Query> {
    /// Requests a page and prints it.
    pub(super) fn run<P: Page<Query = Query>>(self) -> Result<ExitCode, Exit> {
        let page: P = block_on(async { Client::new(self.flags)?.list(&[P::PATH], &self.query).await })?;
        if self.json {
            output::json(&page);
        } else {
            print(&page);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    /// Requests one document and prints it.
    pub(super) fn run<T: Serialize + DeserializeOwned>(self, list: &str) -> Result<ExitCode, Exit> {
        let document: T = block_on(async { Client::new(self.flags)?.get(&[list, &self.id]).await })?;
        output::one(&document, self.json);
        Ok(ExitCode::SUCCESS)
    }
}

fn print<P: Page>(page: &P) {
    let titles = P::COLUMNS.iter().map(|(title, _)| *title);
    let rows = page.items().iter().map(|item| P::COLUMNS.iter().map(move |(_, cell)| cell(item)));
    output::table(titles, rows);
    if let Some(next) = page.next() {
        output::say(&format!("\nmore: --after {}", output::plain(next)));
    }
    if !page.undecodable().is_empty() {
        output::say(&format!("\ncannot be decoded: {}", output::plain(&page.undecodable().join(", "))));
    }
}
