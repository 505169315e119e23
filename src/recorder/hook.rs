//! The program that runs for incidents. A helper starts it. The recorder starts the helper before it drops the right to
//! start programs; the helper reads a line per incident, and knows nothing else.

use std::{
    io::{self, BufRead, Write},
    os::fd::AsFd,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{fs::OFlags, fs::fcntl_getfl, fs::fcntl_setfl};

use crate::limits;

/// The way to the helper.
pub struct Hook {
    lines: ChildStdin,
    _helper: Child,
    /// Incidents that the program did not get, since the last one that it got.
    missed: u64,
}

impl Hook {
    /// Starts the helper for this program and its arguments; nothing if there is no program.
    pub fn start(argv: &[String]) -> io::Result<Option<Hook>> {
        if argv.is_empty() {
            return Ok(None);
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).arg("--").args(argv).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut helper = command.spawn()?;
        let lines = helper.stdin.take().ok_or_else(|| io::Error::other("the program has no standard input"))?;
        let flags = fcntl_getfl(lines.as_fd())?;
        fcntl_setfl(lines.as_fd(), flags | OFlags::NONBLOCK)?; // recording never waits for it
        Ok(Some(Hook { lines, _helper: helper, missed: 0 }))
    }

    /// Tells the program of an incident, unless it is behind with those before.
    pub fn tell(&mut self, event: &str) {
        // A line that fits into a pipe's page is written whole or not at all.
        const WHOLE: usize = 4_096;
        let line = format!("{event}\n");
        let sent = line.len() <= WHOLE && self.lines.write_all(line.as_bytes()).is_ok();
        match (sent, std::mem::take(&mut self.missed)) {
            (true, 0) => {}
            (true, missed) => {
                tracing::warn!(missed, "on_incident did not get all incidents: it was busy, or they were too long")
            }
            (false, missed) => self.missed = missed + 1,
        }
    }
}

/// The hidden command of the helper.
pub const COMMAND: &str = "incident-hook";

/// The helper: runs the program for every line, one after the other, with the line on its standard input, until there are
/// no more.
pub fn serve(argv: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = argv.split_first().ok_or_else(|| anyhow::anyhow!("no program given"))?;
    let (mut minute, mut count) = (Instant::now(), 0);
    for line in io::stdin().lock().lines() {
        let line = line?;
        if minute.elapsed() > Duration::from_secs(60) {
            (minute, count) = (Instant::now(), 0);
        }
        count += 1;
        if count > limits::HOOKS_PER_MINUTE {
            tracing::warn!(program, "not started: more than {} incidents per minute", limits::HOOKS_PER_MINUTE);
            continue;
        }
        if let Err(e) = run(program, arguments, &line) {
            tracing::warn!(program, "on_incident failed: {e}");
        }
    }
    Ok(())
}

fn run(program: &str, arguments: &[String], line: &str) -> io::Result<()> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match writeln!(stdin, "{line}") {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e),
            _ => {} // the program may ignore its input
        }
    }
    let end = Instant::now() + limits::HOOK_TIME;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(status.to_string())),
            None if Instant::now() < end => thread::sleep(Duration::from_millis(20)),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("stopped after {} s", limits::HOOK_TIME.as_secs())));
            }
        }
    }
}
