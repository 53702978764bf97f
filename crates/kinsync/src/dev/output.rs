//! Shows a run: as a live page, as lines of text, or as JSON lines.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::{
    hints::{self, Addresses, Step},
    screen::{Input, Screen},
    snapshot::Snapshot,
    view::{self, Canvas, Title},
};

/// Interval between printed lines.
const EVERY: Duration = Duration::from_secs(1);

/// How to show a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A live page in the terminal.
    Live,
    /// One line of text per second.
    Plain,
    /// One JSON object per second.
    Json,
}

impl Style {
    /// The live page on a terminal, else lines of text.
    pub fn of_stdout() -> Self {
        let is_attended = console::Term::stdout().features().is_attended() && io::stdout().is_terminal();
        if is_attended { Self::Live } else { Self::Plain }
    }
}

/// The output of a run.
pub(super) struct Output {
    screen: Option<Screen>,
    style: Style,
    title: Title,
    addresses: Addresses,
    steps: Vec<Step>,
    /// The page of commands that is shown, if any.
    page: Option<usize>,
    printed: Option<Instant>,
}

/// A JSON line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Started { about: &'a str, note: Option<&'a str>, addresses: &'a Addresses, steps: &'a [Step] },
    Snapshot(&'a Snapshot),
    Summary(&'a Snapshot),
}

impl Output {
    /// Prints the addresses and commands, or opens the live page.
    pub(super) fn start(style: Style, title: Title, addresses: Addresses) -> io::Result<Self> {
        let steps = hints::steps(&addresses);
        let screen = if style == Style::Live { Some(Screen::open()?) } else { None };
        match style {
            Style::Live => {}
            Style::Plain => {
                let note = title.note.iter().cloned();
                let about = std::iter::once(format!("kinsync dev   {}", title.text)).chain(note);
                let lines = about.chain([String::new()]).chain(view::preamble(&addresses, &steps, canvas()));
                lines.for_each(|line| print(&line));
            }
            Style::Json => {
                let (about, note) = (title.text.as_str(), title.note.as_deref());
                print(&line(&Line::Started { about, note, addresses: &addresses, steps: &steps }));
            }
        }
        Ok(Self { screen, style, title, addresses, steps, page: None, printed: None })
    }

    /// Shows a snapshot.
    pub(super) fn show(&mut self, now: &Snapshot) -> io::Result<()> {
        if let Some(screen) = &mut self.screen {
            let canvas = screen.canvas();
            let lines = match self.page {
                Some(page) => view::page(&self.addresses, &self.steps, page, canvas),
                None => view::live(now, &self.title, &self.addresses, canvas),
            };
            return screen.draw(lines);
        }
        if self.printed.is_none_or(|at| at.elapsed() >= EVERY) {
            self.printed = Some(Instant::now());
            match self.style {
                Style::Json => print(&line(&Line::Snapshot(now))),
                _ => print(&view::line(now)),
            }
        }
        Ok(())
    }

    /// Handles an input. Returns whether to end the run.
    pub(super) fn handle(&mut self, input: Input) -> io::Result<bool> {
        match input {
            Input::Quit => return Ok(true),
            Input::Next => self.page = Some(self.page.map_or(0, |page| page + 1)),
            Input::Back => self.page = None,
            Input::Resized => {}
        }
        if let Some(screen) = &mut self.screen {
            screen.resize()?;
        }
        Ok(false)
    }

    /// Shows that the run is ending.
    pub(super) fn ending(&mut self) {
        self.page = None;
        let note = "stopping: waiting for pending deliveries (interrupt again to stop now)";
        self.title.note = Some(note.to_owned());
        if self.style == Style::Plain {
            print(note);
        }
    }

    /// Restores the terminal and prints the summary.
    pub(super) fn finish(self, last: &Snapshot) {
        let Self { screen, style, .. } = self;
        drop(screen);
        match style {
            Style::Json => print(&line(&Line::Summary(last))),
            _ => view::summary(last, canvas()).iter().for_each(|line| print(line)),
        }
    }
}

fn line(line: &Line<'_>) -> String {
    serde_json::to_string(line).expect("a line has only text keys and finite numbers")
}

/// The canvas for printed lines: not limited.
fn canvas() -> Canvas {
    Canvas { columns: usize::MAX, rows: usize::MAX, colors: console::colors_enabled() }
}

/// Prints a line to stdout. A closed pipe is not an error.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}
