//! The terminal: taken, and always given back.

use std::{
    io::{self, Stdout, Write},
    panic,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor, execute,
        style::Print,
        terminal::{self, EnterAlternateScreen, LeaveAlternateScreen},
    },
    layout::{Position, Rect},
};

/// Clicks and the wheel, in the form without a limit on columns. Every motion, as crossterm asks for it, would wake this process.
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";

/// The terminal is taken.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is ours. It is given back when this is dropped, and by a panic.
pub struct Stage {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Stage {
    /// Takes the terminal: its other screen, keys as they come, the mouse.
    pub fn open() -> io::Result<Stage> {
        give_back_on_panic();
        let stage = Stage { terminal: Terminal::new(CrosstermBackend::new(io::stdout()))? };
        take(&mut io::stdout())?;
        Ok(stage)
    }

    /// Draws a frame. Terminals that know synchronized updates show all of it at once.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> io::Result<()> {
        execute!(io::stdout(), terminal::BeginSynchronizedUpdate)?;
        let drawn = self.terminal.draw(draw).map(|_| ());
        execute!(io::stdout(), terminal::EndSynchronizedUpdate)?;
        drawn
    }

    /// Draws every character in the next frame.
    pub fn clear(&mut self) -> io::Result<()> {
        // Not `Terminal::clear`: it asks the terminal for the cursor, and another thread reads the reply.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }

    /// Stops this process like any other job of the shell, until the shell continues it.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back(&mut io::stdout());
        signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGTSTP)?;
        take(&mut io::stdout())?;
        self.clear()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        give_back(&mut io::stdout());
    }
}

fn take(out: &mut impl Write) -> io::Result<()> {
    terminal::enable_raw_mode()?;
    IS_TAKEN.store(true, Ordering::SeqCst);
    execute!(out, EnterAlternateScreen, cursor::Hide, Print(MOUSE_ON))
}

/// Errors do not matter: nobody may look any more.
fn give_back(out: &mut impl Write) {
    if IS_TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(out, Print(MOUSE_OFF), cursor::Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// A panic's message belongs on the usual screen. Work on other threads fails alone, and the view goes on.
fn give_back_on_panic() {
    let (drawing, usual) = (thread::current().id(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == drawing {
            give_back(&mut io::stdout());
        }
        usual(info);
    }));
}
