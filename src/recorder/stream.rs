//! The stream of readings, as lines of a socket that is waited for together with signals.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{json, value::RawValue};

use crate::{
    limits,
    wire::{self, Request, Response},
};

/// The result of waiting.
pub enum Next {
    /// The daemon counts from now on.
    Opened,
    /// What happened since the last reading, as JSON.
    Sample(Box<RawValue>),
    /// The recorder must stop.
    Signal,
    /// A sign of life is due.
    Quiet,
    /// There will be no more, and why.
    Gone(String),
}

/// An open stream of a daemon.
pub struct Stream {
    socket: UnixStream,
    buffer: Vec<u8>,
    /// What of the buffer holds no end of a line.
    searched: usize,
    /// When the daemon is late.
    late: Instant,
    patience: Duration,
}

impl Stream {
    /// Asks for a reading of everything every so often.
    pub fn begin(socket: UnixStream, every: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        let every_ms = u64::try_from(every.as_millis()).ok();
        let tool = crate::tools::diagnose::parts::REST.into();
        let request = Request { version: wire::VERSION, tool, input: json!({}), tell_opened: true, every_ms };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        // netmond refuses before it reads, so its error can be read although the write failed.
        let _ = (&socket).write_all(&line);
        socket.set_nonblocking(true)?;
        // Before the first it may have to load every tool.
        let patience = every + limits::ANSWER_GRACE;
        let late = Instant::now() + patience + limits::LOADING_TIME;
        Ok(Stream { socket, buffer: Vec::new(), searched: 0, late, patience })
    }

    /// Asks for the last reading now.
    pub fn enough(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write); // or it has ended
        self.late = Instant::now() + limits::FAREWELL;
    }

    /// Waits for a line, for a signal, or for `quiet` to pass.
    pub fn next(&mut self, signals: &UnixStream, quiet: Option<Duration>) -> Next {
        let quiet = quiet.map(|quiet| Instant::now() + quiet);
        loop {
            if let Some(line) = self.line() {
                return read(&line);
            }
            let until = quiet.map_or(self.late, |quiet| quiet.min(self.late));
            match wait(Some(&self.socket), signals, until) {
                Ready::Signal => return Next::Signal,
                Ready::Time if Instant::now() >= self.late => {
                    return Next::Gone("no answer in time".into());
                }
                Ready::Time => return Next::Quiet,
                Ready::Socket => match self.fill() {
                    Ok(0) => return Next::Gone("it closed the connection".into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Next::Gone(e.to_string()),
                },
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.len() >= limits::ANSWER_BYTES {
            return Err(io::Error::other("its answer is too long"));
        }
        self.buffer.reserve(limits::ANSWER_PART.max(self.buffer.len() / 2));
        rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut self.buffer)).map_err(Into::into)
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
        self.searched = self.buffer.len();
        let rest = self.buffer.split_off(end? + 1);
        (self.searched, self.late) = (0, Instant::now() + self.patience);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

fn read(line: &[u8]) -> Next {
    match serde_json::from_slice(line) {
        Ok(Response { opened: true, .. }) => Next::Opened,
        Ok(Response { sample: Some(sample), version: wire::VERSION, .. }) => Next::Sample(sample),
        Ok(Response { error: Some(e), .. }) => Next::Gone(e.to_string()),
        Ok(Response { version, .. }) => {
            Next::Gone(wire::Error::Version { daemon: version, gateway: wire::VERSION }.to_string())
        }
        Err(e) => Next::Gone(format!("invalid answer, not from netmond: {e}")),
    }
}

/// The next event.
pub enum Ready {
    Socket,
    Signal,
    Time,
}

/// Waits for any of them.
pub fn wait(socket: Option<&UnixStream>, signals: &UnixStream, until: Instant) -> Ready {
    loop {
        let mut fds: Vec<_> =
            [Some(signals), socket].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => return Ready::Time,
            Ok(_) if !fds[0].revents().is_empty() => return Ready::Signal,
            Ok(_) => return Ready::Socket,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_before_the_request_is_read() {
        let ((ours, mut its), (signals, _signal)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        its.write_all(b"{\"version\":2,\"error\":{\"busy\":\"too many requests\"}}\n").unwrap();
        drop(its);
        let mut stream = Stream::begin(ours, Duration::from_secs(1)).unwrap();
        let Next::Gone(reason) = stream.next(&signals, None) else { panic!("it is refused") };
        assert!(reason.contains("too many requests"), "{reason}");
    }
}
