//! `kinsync events list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    exit::Exit,
    list::{Column, List, Page, Show},
    output::cell,
};
use crate::api::events::{Event, EventPage, EventSummary, EventsQuery};

const LIST_HELP: &str = "\
Examples:
  kinsync events list --user kp_0190932d7592c68bda50d62b2ffa8cbb
  kinsync events list --type user.deleted --json";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List events, newest received first
    #[command(after_help = LIST_HELP)]
    List(List<EventsQuery>),
    /// Show one event with its payload
    Show(Show),
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<EventPage>(),
        Command::Show(show) => show.run::<Event>(EventPage::PATH),
    }
}

impl Page for EventPage {
    type Query = EventsQuery;
    type Item = EventSummary;

    const PATH: &'static str = "events";
    const COLUMNS: &'static [Column<EventSummary>] = &[
        ("EVENT", |event| event.event_id.clone()),
        ("TYPE", |event| event.event_type.clone()),
        ("SOURCE", |event| event.source.as_str().to_owned()),
        ("USER", |event| cell(event.user.as_ref())),
        ("KINDE'S TIME", |event| cell(event.at.as_ref())),
        ("RECEIVED", |event| event.received_at.to_string()),
        ("SCHEME", |event| event.scheme.clone()),
    ];

    fn items(&self) -> &[EventSummary] {
        &self.events
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn undecodable(&self) -> &[String] {
        &self.undecodable
    }
}
