//! The terminal during the live view: alternate screen, hidden cursor, keys without Enter. It is restored at the end,
//! also after a panic. `view` produces the lines.

use std::{
    io::{self, Stdout, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    execute, queue,
    style::Print,
    terminal::{
        BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
        EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
    },
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::view::Canvas;

/// Interval in which the keyboard thread checks for cancellation.
const POLL: Duration = Duration::from_millis(100);

/// The terminal in the live view.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    shown: Vec<String>,
    canvas: Canvas,
    panic: Arc<Mutex<Option<String>>>,
}

/// A key press or a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// End the run.
    Quit,
    /// Show the next page of commands.
    Next,
    /// Show the live page.
    Back,
    /// The size of the terminal changed.
    Resized,
}

impl Screen {
    /// Switches the terminal to the live view until this is dropped.
    pub(super) fn open() -> io::Result<Self> {
        let panic = record_panics();
        enable_raw_mode()?;
        let (columns, rows) = size().unwrap_or((80, 24));
        let canvas = Canvas { columns: columns.into(), rows: rows.into(), colors: console::colors_enabled() };
        let mut screen = Self { out: io::stdout(), shown: Vec::new(), canvas, panic };
        execute!(screen.out, EnterAlternateScreen, Hide, DisableLineWrap, Clear(ClearType::All))?;
        Ok(screen)
    }

    /// The size of the terminal.
    pub(super) fn canvas(&self) -> Canvas {
        self.canvas
    }

    /// Reads the size again and redraws everything.
    pub(super) fn resize(&mut self) -> io::Result<()> {
        let (columns, rows) = size()?;
        (self.canvas.columns, self.canvas.rows) = (columns.into(), rows.into());
        self.shown.clear();
        queue!(self.out, Clear(ClearType::All))
    }

    /// Shows these lines. Only lines that changed are written, in one update.
    pub(super) fn draw(&mut self, lines: Vec<String>) -> io::Result<()> {
        queue!(self.out, BeginSynchronizedUpdate)?;
        let rows = lines.len().max(self.shown.len()).min(self.canvas.rows);
        for row in 0..rows {
            let (new, old) = (lines.get(row).map_or("", String::as_str), self.shown.get(row));
            if old.is_none_or(|old| old != new) {
                let row = u16::try_from(row).unwrap_or(u16::MAX);
                queue!(self.out, MoveTo(0, row), Clear(ClearType::CurrentLine), Print(new))?;
            }
        }
        queue!(self.out, EndSynchronizedUpdate)?;
        self.shown = lines;
        self.out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Errors are ignored: the terminal may be closed.
        _ = execute!(self.out, EnableLineWrap, Show, LeaveAlternateScreen);
        _ = disable_raw_mode();
        if let Some(message) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            _ = writeln!(io::stderr(), "kinsync: a bug: {message}");
        }
    }
}

/// Logs panics and records the last message: printed at once, it would vanish with the alternate screen.
fn record_panics() -> Arc<Mutex<Option<String>>> {
    let recorded = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&recorded);
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.to_string();
        tracing::error!(message, "a bug: a task panicked");
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }));
    recorded
}

/// Reads keys on a separate thread until `stop` is cancelled.
pub(super) fn listen(tasks: &TaskTracker, stop: CancellationToken) -> mpsc::UnboundedReceiver<Input> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tasks.spawn_blocking(move || {
        while !stop.is_cancelled() && !sender.is_closed() {
            match event::poll(POLL) {
                Ok(false) => {}
                Ok(true) => _ = event::read().ok().and_then(meaning).map(|input| sender.send(input)),
                // Without a keyboard a signal ends the run.
                Err(_) => return,
            }
        }
    });
    receiver
}

fn meaning(event: Event) -> Option<Input> {
    match event {
        Event::Resize(..) => Some(Input::Resized),
        Event::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => None,
        Event::Key(key) => match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Input::Quit),
            KeyCode::Char('q') => Some(Input::Quit),
            KeyCode::Char('c' | ' ') | KeyCode::Right | KeyCode::PageDown => Some(Input::Next),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => Some(Input::Back),
            _ => None,
        },
        _ => None,
    }
}
