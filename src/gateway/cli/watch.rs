//! Readings at a shell: a table that is redrawn at a terminal, else one reading after the other.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{INTERRUPTED, asking::Form, interrupts, put, written};
use crate::gateway::{Call, Gateway, readings::gone};

/// Prints readings until Ctrl-C or SIGTERM, then the total; a second one skips the total. If netmond disconnects, the
/// total up to then is printed, and an error.
pub async fn watch(gateway: &Gateway, tool: &str, call: Call, every: Duration, form: Form) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (interrupts()?, signal(SignalKind::terminate())?);
    let mut readings = tokio::select! {
        begun = gateway.watch(call, every) => begun?,
        _ = interrupt.recv() => return Ok(ExitCode::from(INTERRUPTED)),
        _ = terminate.recv() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let screen = (form == Form::Text && io::stdout().is_terminal()).then(Screen::open);
    let mut is_enough = false;
    let lost = loop {
        let told = async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        };
        tokio::select! {
            reading = readings.next() => match reading {
                // As text, what came since the last whole reading is told with all of it.
                Ok(Some(_)) if is_enough && form == Form::Text => {}
                Ok(Some(answer)) => {
                    let text = written(tool, answer, form)?;
                    let shown = match (&screen, form) {
                        (Some(screen), _) => put(&screen.frame(&text)),
                        (None, Form::Text) => put(&(text + "\n")),
                        (None, _) => put(&text),
                    };
                    if !shown? {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Ok(None) if is_enough => break None,
                Ok(None) => break Some(gone("it closed the connection")),
                Err(e) => break Some(e),
            },
            () = told => match std::mem::replace(&mut is_enough, true) {
                false => readings.enough(),
                true => return Ok(ExitCode::from(INTERRUPTED)),
            },
        }
    };
    drop(screen);
    if let Some(sum) = readings.sum()?.filter(|_| form == Form::Text) {
        let seconds = sum.structured["measured"]["window_ms"].as_f64().map(|ms| format!(", {:.1} s", ms / 1e3));
        put(&format!("Total{}:\n\n{}", seconds.unwrap_or_default(), written(tool, sum, form)?))?;
    }
    lost.map_or(Ok(ExitCode::SUCCESS), |e| Err(e.into()))
}

/// A terminal's other screen (xterm's 1049), so that what stood there is there again afterwards.
struct Screen;

impl Screen {
    fn open() -> Screen {
        let _ = put("\x1b[?1049h\x1b[?25l"); // the first frame tells what is wrong
        Screen
    }

    /// Draws from the top, line by line over what was there: nothing flickers.
    fn frame(&self, text: &str) -> String {
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
        let lines: Vec<_> = text.lines().take(rows.saturating_sub(1)).map(|line| format!("{line}\x1b[K\r\n")).collect();
        format!("\x1b[H{}\x1b[J", lines.concat())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = put("\x1b[?25h\x1b[?1049l"); // or nobody looks any more
    }
}
