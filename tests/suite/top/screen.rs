//! The program on a terminal of its own, and what a person sees there.

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZeroU16,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::*;

/// The mark after a frame: a synchronized update ends.
const FRAME: &[u8] = b"\x1b[?2026l";

/// What the terminal has shown.
struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
    frames: usize,
    /// The last frame, whole.
    text: String,
}

impl Seen {
    fn add(&mut self, byte: u8) {
        self.parser.process(&[byte]);
        self.bytes.push(byte);
        if self.bytes.ends_with(FRAME) {
            self.frames += 1;
            let screen = self.parser.screen();
            let rows = screen.rows(0, screen.size().1.get()).map(|row| row.trim_end().to_owned() + "\n");
            self.text = rows.collect();
        }
    }
}

/// A terminal with the program on it.
pub struct OnTerminal {
    pub child: Child,
    keys: File,
    seen: Arc<Mutex<Seen>>,
}

fn size(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

impl OnTerminal {
    /// Runs the gateway with these arguments.
    pub fn open([columns, rows]: [u16; 2], arguments: &[&str], environment: &[(&str, &str)]) -> OnTerminal {
        let (ours, its) = terminal(columns);
        resize(&ours, [columns, rows]);
        let mut command = Command::new("setsid");
        command.args(["--ctty", GATEWAY]).args(arguments);
        command.env("TERM", "xterm-256color").env("TZ", "UTC").envs(environment.iter().copied());
        let its = || its.try_clone().unwrap();
        let child = command.stdin(its()).stdout(its()).stderr(its()).spawn().unwrap();
        drop(command); // with its copies of the terminal
        let parser = vt100::Parser::new(size(rows), size(columns), 0);
        let seen = Arc::new(Mutex::new(Seen { parser, bytes: Vec::new(), frames: 0, text: String::new() }));
        let (mut output, shown) = (File::from(ours.try_clone().unwrap()), Arc::clone(&seen));
        thread::spawn(move || {
            let mut part = [0; 4_096];
            while let Ok(read @ 1..) = output.read(&mut part) {
                let mut seen = shown.lock().unwrap();
                part[..read].iter().for_each(|byte| seen.add(*byte));
            }
        });
        OnTerminal { child, keys: ours.into(), seen }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// The characters of the last whole frame.
    pub fn text(&self) -> String {
        self.seen().text.clone()
    }

    /// Everything that was written to the terminal.
    pub fn bytes(&self) -> Vec<u8> {
        self.seen().bytes.clone()
    }

    /// The line with this text; panics if it does not appear.
    pub fn until_shown(&self, words: &str) -> String {
        let line = || self.text().lines().find(|line| line.contains(words)).map(str::to_owned);
        let end = std::time::Instant::now() + patience(std::time::Duration::from_secs(60));
        loop {
            if let Some(line) = line() {
                return line;
            }
            assert!(std::time::Instant::now() < end, "`{words}` did not appear:\n{}", self.text());
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn until_gone(&self, words: &str) {
        until(&format!("`{words}` is gone"), || (!self.text().contains(words)).then_some(()));
    }

    /// Types keys, and waits for a frame after them.
    pub fn press(&mut self, keys: &str) {
        let before = self.seen().frames;
        self.keys.write_all(keys.as_bytes()).unwrap();
        until("a frame after the key", || (self.seen().frames > before).then_some(()));
    }

    /// Types keys that end the program.
    pub fn press_last(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&mut self, [columns, rows]: [u16; 2]) {
        self.seen().parser.set_size(size(rows), size(columns));
        resize(&self.keys, [columns, rows]);
    }

    pub fn is_other_screen(&self) -> bool {
        self.seen().parser.screen().alternate_screen()
    }

    /// Whether the terminal is as it was before: its screen, cursor, mouse and keys.
    pub fn is_restored(&self) -> bool {
        let seen = self.seen();
        let screen = seen.parser.screen();
        let mode = tcgetattr(&self.keys).unwrap().local_modes;
        let wanted = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        !screen.alternate_screen()
            && !screen.hide_cursor()
            && screen.mouse_protocol_mode() == vt100::MouseProtocolMode::None
            && mode.contains(wanted)
    }
}

fn resize(terminal: impl rustix::fd::AsFd, [columns, rows]: [u16; 2]) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
