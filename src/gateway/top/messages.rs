//! Log lines, while the terminal is ours: they are kept, and printed afterwards. On the screen they would be in the middle of
//! a table.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    stdio::{dup2_stderr, stderr},
};

use crate::{limits, sync::lock};

/// Standard error, until this is dropped.
pub struct Messages {
    usual: OwnedFd,
    kept: Arc<Mutex<VecDeque<String>>>,
    /// Ends when nobody can write any more.
    keeper: Option<JoinHandle<()>>,
}

impl Messages {
    /// Keeps what is written from now on; nothing if it does not go to a terminal.
    pub fn keep() -> io::Result<Option<Messages>> {
        if !io::stderr().is_terminal() {
            return Ok(None);
        }
        let usual = rustix::io::fcntl_dupfd_cloexec(stderr(), 3)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        dup2_stderr(&write)?;
        let kept: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let lines = BufReader::new(File::from(read)).lines().map_while(Result::ok);
        let written = Arc::clone(&kept);
        let keeper = thread::spawn(move || {
            for line in lines {
                let mut kept = lock(&written);
                if kept.len() == limits::TOP_MESSAGES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Ok(Some(Messages { usual, kept, keeper: Some(keeper) }))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if dup2_stderr(&self.usual).is_ok() {
            let _ = self.keeper.take().map(JoinHandle::join); // the last line may be the reason of a panic
        }
        lock(&self.kept).iter().for_each(|line| eprintln!("{line}"));
    }
}
