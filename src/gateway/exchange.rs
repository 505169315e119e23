//! A request and its answer, on one connection to the daemon.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::pin,
    sync::OnceLock,
    time::Instant,
};

use rustix::buffer::spare_capacity;
use serde_json::value::RawValue;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use super::{Failure, memory::Reserved};
use crate::{
    limits,
    wire::{self, Request, Response},
};

/// When the window opened: before that the daemon may have to load the tool.
pub type Opened = OnceLock<Instant>;

/// Registered for reading only: that there is room to write in again would wake us for nothing.
pub type Connection = AsyncFd<UnixStream>;

/// A line each way. The request goes out at once: it fits into what a socket takes without being read. The connection
/// comes back if it takes another request; it is `ConnectionAborted` if the daemon said nothing at all.
pub async fn exchange(
    stream: Connection,
    request: &Request,
    enough: &Notify,
    opened: &Opened,
    reserved: &Reserved,
) -> io::Result<(String, Option<Connection>)> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // A daemon that refuses does so before it reads: its sentence is there all the same.
    let written = stream.get_ref().write_all(&line);
    let (mut answer, mut takes_more) = (Vec::new(), true);
    let received = {
        let mut received =
            pin!(stream.async_io(Interest::READABLE, |socket| receive(socket, &mut answer, opened, reserved)));
        tokio::select! {
            result = &mut received => result,
            () = enough.notified() => {
                takes_more = false;
                stream.get_ref().shutdown(Shutdown::Write)?; // half a close: the answer can still come
                received.await
            }
        }
    };
    if let Err(e) = received {
        let said_nothing = answer.is_empty() && opened.get().is_none();
        let is_gone = matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        return Err(if said_nothing && is_gone {
            io::ErrorKind::ConnectionAborted.into()
        } else {
            written.err().unwrap_or(e)
        });
    }
    let answer = String::from_utf8(answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok((answer, takes_more.then_some(stream)))
}

/// Reads on to the end of the line with the answer; what came before there was no more is kept.
fn receive(socket: &UnixStream, answer: &mut Vec<u8>, opened: &Opened, reserved: &Reserved) -> io::Result<()> {
    loop {
        note_opened(answer, opened);
        if answer.ends_with(b"\n") {
            return Ok(());
        }
        reserved
            .holds_at_least(answer.len() * limits::SAMPLE_COST)
            .map_err(|reason| io::Error::new(io::ErrorKind::OutOfMemory, reason))?;
        answer.reserve(limits::ANSWER_PART);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(socket, spare_capacity(answer)))?;
        if read == 0 || answer.len() > limits::ANSWER_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Takes the line out that says that the window has opened.
fn note_opened(answer: &mut Vec<u8>, opened: &Opened) {
    /// Such a line is short; one with an answer need not be read to know that it is none.
    const LONGEST: usize = 64;
    if opened.get().is_some() {
        return;
    }
    let Some(end) = answer.iter().take(LONGEST).position(|byte| *byte == b'\n') else { return };
    if serde_json::from_slice::<Response>(&answer[..end]).is_ok_and(|response| response.opened) {
        answer.drain(..=end);
        let _ = opened.set(Instant::now()); // it was not set
    }
}

/// The sample in a line of the daemon, or why there is none.
pub fn read(line: &str) -> Result<Box<RawValue>, Failure> {
    match serde_json::from_str(line) {
        Ok(Response { sample: Some(sample), version: wire::VERSION, .. }) => Ok(sample),
        Ok(Response { error: Some(e), .. }) => Err(e.into()),
        _ => Err(foreign(line)),
    }
}

/// The error for a line with neither: another version may have other fields.
fn foreign(line: &str) -> Failure {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_str(line) {
        Ok(Versioned { version }) => wire::Error::Version { daemon: version, gateway: wire::VERSION }.into(),
        Err(e) => Failure::Absent(format!("invalid answer, not from netmond: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_of_another_version_is_named() {
        let text = read("{\"version\":3,\"answer\":{}}\n").unwrap_err().to_string();
        assert!(text.contains("netmond speaks version 3") && text.contains("restart"), "{text}");
    }

    #[test]
    fn daemon_error_text_reaches_the_caller() {
        let text = read("{\"version\":2,\"error\":{\"busy\":\"later\"}}\n").unwrap_err().to_string();
        assert_eq!(text, "later");
    }
}
