//! The terminal: keys in, screens out, and as it was when it ends, however it ends.

use crate::snapshot::{Asked, Source};
use crate::view::{Choice, Outcome, draw, text};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{Event, KeyEventKind, poll, read};
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use rustix::event::{PollFd, PollFlags};
use rustix::stdio::stdin;
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Between the first two snapshots: rates are there from the beginning.
const FIRST: Duration = Duration::from_millis(250);
/// How long a signal may go unheeded.
const HEED: Duration = Duration::from_millis(250);
/// What a terminal that does not say its size has: a serial console's is VT100's.
const SIZE: (u16, u16) = (80, 24);

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Neither screen nor keys.
    #[error("this is no terminal; `nxl top --batch' prints plain text")]
    NoTerminal,
    /// The terminal, or where the text goes, failed.
    #[error("terminal: {0}")]
    Terminal(#[from] io::Error),
    /// There was nothing to show.
    #[error("{0}")]
    Source(String),
}

/// Whether colours are wanted (no-color.org), and the terminal is none that has not got any.
#[must_use]
pub fn wants_colours(no_colour: Option<&str>, term: Option<&str>) -> bool {
    let without = |term: &str| term.is_empty() || term == "dumb" || term.starts_with("vt");
    no_colour.is_none_or(str::is_empty) && !term.is_none_or(without)
}

/// Prints snapshots as plain text: so many, or until it is ended.
///
/// # Errors
/// See [`TopError`].
pub fn batch(
    source: &mut dyn Source,
    choice: &Choice,
    times: Option<u64>,
    delay: Duration,
    out: &mut impl Write,
) -> Result<(), TopError> {
    source.snapshot().map_err(TopError::Source)?;
    source.ask(if choice.containers { Asked::Now } else { Asked::No });
    thread::sleep(FIRST);
    let mut left = times;
    while left != Some(0) {
        let snapshot = source.snapshot().map_err(TopError::Source)?;
        write!(out, "{}", text(&snapshot, choice))?;
        left = left.map(|left| left - 1);
        if left != Some(0) {
            writeln!(out)?;
            out.flush()?;
            thread::sleep(delay);
        }
    }
    Ok(())
}

/// A terminal that is ours, until this goes.
struct Screen;

impl Screen {
    fn new() -> io::Result<Self> {
        enable_raw_mode()?;
        let screen = Self;
        // Not by the terminal's own means: those ask it where its cursor is, and a serial line may not answer.
        execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All), cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// A terminal that is gone has nothing to be given back.
fn give_back() {
    let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

/// Shows snapshots on this process's terminal, one in each `delay`, until a key or a signal ends it.
///
/// # Errors
/// See [`TopError`].
pub fn run(source: &mut dyn Source, mut choice: Choice, delay: Duration) -> Result<(), TopError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let ended = Arc::new(AtomicBool::new(false));
    // Not SIGHUP: of a terminal that is gone there is nothing to give back.
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let wanted = |choice: &Choice| if choice.containers { Asked::Last } else { Asked::No };
    source.ask(wanted(&choice));
    source.snapshot().map_err(TopError::Source)?;
    thread::sleep(FIRST);
    let mut snapshot = source.snapshot().map_err(TopError::Source)?;

    // What a panic says is to be read on the screen that is left.
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        give_back();
        before(info);
    }));
    let _screen = Screen::new()?;
    let mut terminal = Terminal::with_options(
        CrosstermBackend::new(io::stdout()),
        TerminalOptions { viewport: viewport() },
    )?;
    let mut next = Instant::now() + delay;
    let mut more = false;
    while !ended.load(Ordering::Relaxed) {
        terminal.draw(|frame| draw(frame, &snapshot, &choice))?;
        let left = next.saturating_duration_since(Instant::now());
        // Several keys may have been read at once.
        if hung_up_within(if more { Duration::ZERO } else { left.min(HEED) })? {
            break;
        }
        more = poll(Duration::ZERO)?;
        if more
            && let Event::Key(key) = read()?
            && key.kind != KeyEventKind::Release
            && choice.key(key, &snapshot) == Outcome::Quit
        {
            break;
        }
        if Instant::now() >= next {
            source.ask(wanted(&choice));
            snapshot = source.snapshot().map_err(TopError::Source)?;
            next = Instant::now() + delay;
        }
    }
    Ok(())
}

/// Waits for something to read, so long at most. Whether the terminal has hung up: crossterm would go on reading for ever.
fn hung_up_within(time: Duration) -> io::Result<bool> {
    let stdin = stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = time.try_into().map_err(io::Error::other)?;
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

/// All of the terminal; of one that does not know its size, what every one has.
fn viewport() -> Viewport {
    match size() {
        Ok((width, height)) if width > 0 && height > 0 => Viewport::Fullscreen,
        _ => Viewport::Fixed(Rect::new(0, 0, SIZE.0, SIZE.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;

    struct Counting(u32);

    impl Source for Counting {
        fn snapshot(&mut self) -> Result<Snapshot, String> {
            self.0 += 1;
            if self.0 > 3 {
                Err("gone".to_owned())
            } else {
                Ok(Snapshot { cpus: self.0, ..Snapshot::default() })
            }
        }
    }

    #[test]
    fn a_batch_has_as_many_screens_as_were_asked_for() {
        let mut out = Vec::new();
        batch(&mut Counting(0), &Choice::default(), Some(2), Duration::ZERO, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let heads: Vec<_> = text.lines().filter(|line| line.starts_with("Xen")).collect();
        assert_eq!(heads.len(), 2, "{text}");
        // The first of all is for the rates.
        assert!(heads[0].contains(" 2 CPUs") && heads[1].contains(" 3 CPUs"), "{text}");
        let failed = batch(&mut Counting(0), &Choice::default(), None, Duration::ZERO, &mut Vec::new());
        assert!(matches!(failed, Err(TopError::Source(why)) if why == "gone"));
    }

    #[test]
    fn colours_are_not_for_everybody() {
        assert!(wants_colours(None, Some("xterm-256color")));
        assert!(wants_colours(Some(""), Some("linux")));
        assert!(!wants_colours(Some("1"), Some("xterm")));
        for term in [None, Some(""), Some("dumb"), Some("vt100"), Some("vt220")] {
            assert!(!wants_colours(None, term), "{term:?}");
        }
    }
}
