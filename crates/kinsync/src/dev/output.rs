//! Who looks on: a person at a terminal, a person with a pipe, a program.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    hints::{self, Addresses, Step},
    screen::{Input, Screen},
    snapshot::Snapshot,
    view::{self, Canvas, Title},
};

/// How often a line is printed where lines are.
const EVERY: Duration = Duration::from_secs(1);

/// How to show what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A page that changes.
    Live,
    /// One line a second.
    Plain,
    /// One JSON object a line.
    Json,
}

impl Style {
    /// What suits this process's stdout.
    pub fn of_stdout() -> Self {
        let dumb = !console::Term::stdout().features().is_attended() || !io::stdout().is_terminal();
        if dumb { Self::Plain } else { Self::Live }
    }
}

/// Where a run is shown.
pub(super) struct Output {
    screen: Option<Screen>,
    style: Style,
    title: Title,
    addresses: Addresses,
    steps: Vec<Step>,
    /// The page of lines to try that is open, if one is.
    page: Option<usize>,
    printed: Option<Instant>,
}

/// A line for programs.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Snapshot(&'a Snapshot),
    Summary(&'a Snapshot),
}

impl Output {
    /// Begins to show a run.
    pub(super) fn begin(style: Style, title: Title, addresses: Addresses) -> io::Result<Self> {
        let steps = hints::steps(&addresses);
        let screen = if style == Style::Live { Some(Screen::take()?) } else { None };
        match style {
            Style::Live => {}
            Style::Plain => {
                let note = title.note.iter().cloned();
                let about = std::iter::once(format!("kinsync dev   {}", title.text)).chain(note);
                let lines = about.chain([String::new()]).chain(view::preamble(&addresses, &steps, canvas()));
                lines.for_each(|line| say(&line));
            }
            Style::Json => say(&json!({
                "type": "started", "about": title.text, "note": title.note, "addresses": addresses, "try": steps,
            })
            .to_string()),
        }
        Ok(Self { screen, style, title, addresses, steps, page: None, printed: None })
    }

    /// Shows a moment.
    pub(super) fn show(&mut self, now: &Snapshot) -> io::Result<()> {
        if let Some(screen) = &mut self.screen {
            let canvas = screen.canvas();
            let lines = match self.page {
                Some(page) => view::hints(&self.addresses, &self.steps, page, canvas),
                None => view::live(now, &self.title, &self.addresses, canvas),
            };
            return screen.draw(lines);
        }
        if self.printed.is_none_or(|at| at.elapsed() >= EVERY) {
            self.printed = Some(Instant::now());
            match self.style {
                Style::Json => say(&line(&Line::Snapshot(now))),
                _ => say(&view::line(now)),
            }
        }
        Ok(())
    }

    /// Does what the person wants of the view; `true`: they want to quit.
    pub(super) fn react(&mut self, input: Input) -> io::Result<bool> {
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

    /// Says what is waited for while it ends.
    pub(super) fn ending(&mut self) {
        self.page = None;
        let note = "ending: the town is quiet; waiting for what is on its way (again: at once)";
        self.title.note = Some(note.to_owned());
        if self.style == Style::Plain {
            say(note);
        }
    }

    /// Gives the terminal back and says how it came out.
    pub(super) fn end(self, last: &Snapshot) {
        let Self { screen, style, .. } = self;
        drop(screen);
        match style {
            Style::Json => say(&line(&Line::Summary(last))),
            _ => view::summary(last, canvas()).iter().for_each(|line| say(line)),
        }
    }
}

fn line(line: &Line<'_>) -> String {
    serde_json::to_string(line).expect("a snapshot has only text keys and finite numbers")
}

/// For what is printed: as wide as it likes.
fn canvas() -> Canvas {
    Canvas { columns: usize::MAX, rows: usize::MAX, colors: console::colors_enabled() }
}

/// A line on stdout. A reader who goes away is no failure.
fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}
