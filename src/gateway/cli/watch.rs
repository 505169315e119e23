//! Readings at a shell: a table that is redrawn at a terminal, else one reading after the other.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{INTERRUPTED, asking::Form, interrupts, put, written};
use crate::{
    answer,
    gateway::{Call, Gateway, readings::gone},
};

/// Prints readings until Ctrl-C or SIGTERM, then the total; a second one skips the total. If netmond disconnects, the
/// total up to then is printed, and an error. At a terminal, rows that are new since the last reading have a mark.
pub async fn watch(gateway: &Gateway, tool: &str, call: Call, every: Duration, form: Form) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (interrupts()?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut readings = tokio::select! {
        begun = gateway.watch(call, every) => begun?,
        _ = interrupt.recv() => return Ok(ExitCode::from(INTERRUPTED)),
        _ = terminate.recv() => return Ok(ExitCode::from(INTERRUPTED)),
        _ = hang_up.recv() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let (mut resize, mut suspend) =
        (signal(SignalKind::window_change())?, signal(SignalKind::from_raw(libc::SIGTSTP))?);
    let mut screen = (form == Form::Text && io::stdout().is_terminal()).then(Screen::open);
    answer::follow(screen.is_some());
    let mut is_enough = false;
    let lost = loop {
        let told = async {
            tokio::select! {
                _ = interrupt.recv() => Told::Enough,
                _ = terminate.recv() => Told::Enough,
                _ = hang_up.recv() => Told::Enough,
                _ = resize.recv() => Told::Resized,
                _ = suspend.recv() => Told::Suspended,
            }
        };
        tokio::select! {
            reading = readings.next() => match reading {
                // As text, what came since the last whole reading is told with all of it.
                Ok(Some(_)) if is_enough && form == Form::Text => {}
                Ok(Some(answer)) => {
                    let text = written(tool, answer, form)?;
                    let shown = match (&mut screen, form) {
                        (Some(screen), _) => screen.show(text),
                        (None, Form::Text) => put(&(text + "\n")),
                        (None, _) => put(&text),
                    };
                    if !shown? {
                        return Ok(ExitCode::SUCCESS);
                    }
                    answer::next_reading();
                }
                Ok(None) if is_enough => break None,
                Ok(None) => break Some(gone("it closed the connection")),
                Err(e) => break Some(e),
            },
            told = told => match (told, &mut screen) {
                (Told::Enough, _) if std::mem::replace(&mut is_enough, true) => {
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                (Told::Enough, _) => readings.enough(),
                (Told::Resized, None) => {}
                (Told::Resized, Some(screen)) => drop(screen.redraw()?),
                (Told::Suspended, screen) => suspended(screen.as_mut())?,
            },
        }
    };
    drop(screen);
    answer::follow(false);
    if let Some(sum) = readings.sum()?.filter(|_| form == Form::Text) {
        // What has no window is a state, of which there is no sum.
        let ms = sum.structured["measured"]["window_ms"].as_f64().filter(|ms| *ms > 0.0);
        let title = ms.map_or_else(|| "Last reading".to_owned(), |ms| format!("Total, {:.1} s", ms / 1e3));
        put(&format!("{title}:\n\n{}", written(tool, sum, form)?))?;
    }
    lost.map_or(Ok(ExitCode::SUCCESS), |e| Err(e.into()))
}

/// What a signal says.
enum Told {
    Enough,
    Resized,
    Suspended,
}

/// Stops like any other job of the shell, with the shell's screen, until the shell continues it.
fn suspended(screen: Option<&mut Screen>) -> anyhow::Result<()> {
    let stop = || signal_hook::low_level::emulate_default_handler(libc::SIGTSTP);
    let Some(screen) = screen else { return Ok(stop()?) };
    let _ = put(LEAVE);
    stop()?;
    let _ = put(ENTER);
    screen.redraw().map(drop)
}

/// A terminal's other screen (xterm's 1049), so that what stood there is there again afterwards. Lines do not wrap (DECAWM): the
/// terminal may have become narrower since they were written.
struct Screen {
    /// The last reading.
    text: String,
}

const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

impl Screen {
    fn open() -> Screen {
        let _ = put(ENTER); // the first frame tells what is wrong
        Screen { text: String::new() }
    }

    fn show(&mut self, text: String) -> anyhow::Result<bool> {
        self.text = text;
        self.redraw()
    }

    fn redraw(&self) -> anyhow::Result<bool> {
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
        put(&frame(&self.text, rows))
    }
}

/// Draws from the top, line by line over what was there, and at once where the terminal knows synchronized updates: nothing
/// flickers. The last row says how much does not fit.
fn frame(text: &str, rows: usize) -> String {
    let (count, room) = (text.lines().count(), rows.saturating_sub(1));
    let shown = if count <= room { count } else { room.saturating_sub(1) };
    let lines: String = text.lines().take(shown).map(|line| format!("{line}\x1b[K\r\n")).collect();
    let more = (count - shown) as u64;
    let last =
        if more > 0 { format!("… {}\x1b[K", answer::count(more, "more line", "more lines")) } else { String::new() };
    format!("\x1b[?2026h\x1b[H{lines}{last}\x1b[J\x1b[?2026l")
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = put(LEAVE); // or nobody looks any more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_row_says_how_much_does_not_fit() {
        let is_shown =
            |text, rows, lines| assert_eq!(frame(text, rows), format!("\x1b[?2026h\x1b[H{lines}\x1b[J\x1b[?2026l"));
        is_shown("a\nb\n", 4, "a\x1b[K\r\nb\x1b[K\r\n");
        is_shown("a\nb\nc\nd\n", 4, "a\x1b[K\r\nb\x1b[K\r\n… 2 more lines\x1b[K");
    }
}
