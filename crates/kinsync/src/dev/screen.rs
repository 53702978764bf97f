//! The terminal while the live view is on: its own screen, no cursor, keys without Enter. Given back as it was, also
//! after a panic. What is drawn is the view's affair.

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

/// How often the keyboard's thread looks whether it should end.
const POLL: Duration = Duration::from_millis(100);

/// The terminal, taken.
#[derive(Debug)]
pub(super) struct Screen {
    out: Stdout,
    shown: Vec<String>,
    canvas: Canvas,
    panic: Arc<Mutex<Option<String>>>,
}

/// What the person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// End it.
    Quit,
    /// The next page of lines to try.
    Next,
    /// The live page.
    Back,
    /// The terminal has another size now.
    Resized,
}

impl Screen {
    /// Takes the terminal until this is dropped.
    pub(super) fn take() -> io::Result<Self> {
        let panic = remember_panics();
        enable_raw_mode()?;
        let (columns, rows) = size().unwrap_or((80, 24));
        let canvas = Canvas { columns: columns.into(), rows: rows.into(), colors: console::colors_enabled() };
        let mut screen = Self { out: io::stdout(), shown: Vec::new(), canvas, panic };
        execute!(screen.out, EnterAlternateScreen, Hide, DisableLineWrap, Clear(ClearType::All))?;
        Ok(screen)
    }

    /// How much room there is.
    pub(super) fn canvas(&self) -> Canvas {
        self.canvas
    }

    /// Looks at the size again; everything is drawn anew then.
    pub(super) fn resize(&mut self) -> io::Result<()> {
        let (columns, rows) = size()?;
        (self.canvas.columns, self.canvas.rows) = (columns.into(), rows.into());
        self.shown.clear();
        queue!(self.out, Clear(ClearType::All))
    }

    /// Shows these lines: writes those that differ from what is there, all at once.
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
        // Nothing can be done about a terminal that is gone.
        _ = execute!(self.out, EnableLineWrap, Show, LeaveAlternateScreen);
        _ = disable_raw_mode();
        if let Some(message) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            _ = writeln!(io::stderr(), "kinsync: a bug: {message}");
        }
    }
}

/// A panic's words would be lost on the screen that is taken down: they are kept, and logged.
fn remember_panics() -> Arc<Mutex<Option<String>>> {
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.to_string();
        tracing::error!(message, "a bug: a task panicked");
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }));
    kept
}

/// Reads keys on a thread of their own until told to stop.
pub(super) fn listen(tasks: &TaskTracker, stop: CancellationToken) -> mpsc::UnboundedReceiver<Input> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tasks.spawn_blocking(move || {
        while !stop.is_cancelled() && !sender.is_closed() {
            match event::poll(POLL) {
                Ok(false) => {}
                Ok(true) => _ = event::read().ok().and_then(meaning).map(|input| sender.send(input)),
                // No keyboard: signals end it.
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
