//! The daemon's loop: takes connections, answers one request on each, and ends cleanly.

use std::{
    io::{self, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::Arc,
    thread,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

use crate::{
    limits,
    logging::Throttle,
    memory,
    peers::{self, Peer, Peers},
    sandbox,
    supervisor::{Progress, Supervisor, Watch},
    tools::Host,
    untrusted,
    window::{Kept, Window},
    wire::{self, Error, Request, Response},
};

/// Logs of what clients cause, each with a bound of its own: refusals must not hide requests.
static REQUESTS: Throttle = Throttle::new(limits::LOG_LINES_PER_SECOND);
static REFUSALS: Throttle = Throttle::new(limits::LOG_LINES_PER_SECOND);

/// Where connections come from.
pub enum Listener {
    /// Anyone who may open the socket's path.
    Socket(UnixListener),
    /// The gateway that started us: it sends one end of a socket pair for each request, and closes
    /// this channel when it ends.
    Parent(OwnedFd),
}

impl Listener {
    /// A socket at `path`, for root and the members of `group`.
    pub fn bind(path: &Path, group: &str) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::other(format!("another netmond serves {} already", path.display())));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        match sandbox::group(group) {
            Some(gid) => {
                chown(path, None, Some(gid))?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            }
            None => {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                tracing::warn!(
                    "there is no group {group}, so only root may ask; `groupadd --system {group}` makes one"
                );
            }
        }
        Ok(Listener::Socket(listener))
    }

    /// The next connection; `None` when there will be no more.
    fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self {
            Listener::Socket(listener) => listener.accept().map(|(stream, _)| Some(stream)),
            Listener::Parent(channel) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut byte = [0u8; 1];
                let received =
                    recvmsg(channel, &mut [io::IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                if received.bytes == 0 {
                    return Ok(None);
                }
                let rights = ancillary.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                    _ => None,
                });
                rights
                    .map(|fd| Some(UnixStream::from(fd)))
                    .ok_or_else(|| io::Error::other("the gateway sent no connection"))
            }
        }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        match self {
            Listener::Socket(listener) => PollFd::new(listener, PollFlags::IN),
            Listener::Parent(channel) => PollFd::new(channel, PollFlags::IN),
        }
    }
}

/// Serves until SIGTERM, SIGINT or the end of the parent. Open windows then end with a sentence.
pub fn serve(listener: &Listener, host: &Host, peers: &Peers, supervisor: &Supervisor) -> io::Result<()> {
    let (signalled, on_signal) = UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
    }
    let (stop, stopping) = rustix::pipe::pipe()?;
    let progress = Progress::default();
    let mut watch = Watch::new(supervisor, &progress);
    supervisor.ready();
    thread::scope(|scope| {
        loop {
            watch.feed();
            let mut fds = [PollFd::new(&signalled, PollFlags::IN), listener.poll_fd()];
            match poll(&mut fds, watch.quiet().and_then(|time| time.try_into().ok()).as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
            if !fds[0].revents().is_empty() {
                tracing::info!("told to stop");
                break;
            }
            if fds[1].revents().is_empty() {
                continue; // it is time to feed the watchdog
            }
            let stream = match listener.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => break,
                Err(e) => {
                    // EMFILE and the like pass; a loop that spins on them would not help.
                    if let Some(skipped) = REFUSALS.admit() {
                        tracing::warn!(skipped, "a connection was not taken: {e}");
                    }
                    thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
            };
            let peer = match peers.admit(&stream) {
                Ok(peer) => peer,
                Err(e) => {
                    refuse(&stream, e);
                    continue;
                }
            };
            let (stop, progress) = (&stop, &progress);
            let stream = Arc::new(stream);
            let asked = Arc::clone(&stream);
            let work = move || {
                let _ =
                    answer(&asked, &peer, stop, host, progress).inspect_err(|e| tracing::debug!("a client left: {e}"));
                memory::give_back();
            };
            if let Err(e) =
                thread::Builder::new().name("request".into()).stack_size(limits::THREAD_STACK).spawn_scoped(scope, work)
            {
                refuse(&stream, Error::Busy(format!("netmond could start no thread for this request: {e}; try again")));
            }
        }
        supervisor.stopping();
        drop(stopping); // hangs up `stop`, at which every window looks
        Ok(())
    })
}

fn refuse(mut stream: &UnixStream, error: Error) {
    if let Some(skipped) = REFUSALS.admit() {
        tracing::warn!(skipped, "a connection was refused: {error}");
    }
    let _ = stream.set_nonblocking(true);
    let _ = stream.write_all(&encode(Err(error)));
}

/// One request, one answer. What the window held is let go after the answer is on its way.
fn answer(stream: &UnixStream, peer: &Peer, stop: &OwnedFd, host: &Host, progress: &Progress) -> io::Result<()> {
    let line = peers::read_line(stream, limits::REQUEST_BYTES, limits::REQUEST_TIME)?;
    if line.is_empty() {
        return Ok(()); // somebody only looked whether we are there
    }
    let asked = Instant::now();
    let kept = Kept::default();
    let window = Window::new(stream, stop, asked, &kept);
    let (tool, result) = match parse(&line) {
        Ok(request) => {
            let _begun = progress.begin();
            let result = host.sample(&request.tool, &request.input, &window);
            (request.tool, result)
        }
        Err(e) => (String::new(), Err(e)),
    };
    let tool = if matches!(result, Err(Error::UnknownTool(_))) { String::new() } else { tool };
    let ms = asked.elapsed().as_millis() as u64;
    let error = result.as_ref().err().map(for_the_log);
    let line = encode(result);
    if let Some(skipped) = REQUESTS.admit() {
        tracing::info!(tool, uid = peer.uid, pid = peer.pid, ms, bytes = line.len(), error, skipped, "request");
    }
    peers::write_all(stream, &line, limits::ANSWER_TIME)
}

/// What a client asked is not for the log, and the error of a wrong question repeats it.
fn for_the_log(error: &Error) -> String {
    match error {
        Error::InvalidInput(_) => "invalid input".into(),
        Error::UnknownTool(_) => "unknown tool".into(),
        other => other.to_string(),
    }
}

/// A request, or what is wrong with the line.
pub fn parse(line: &[u8]) -> Result<Request, Error> {
    if line.last() != Some(&b'\n') {
        return Err(Error::InvalidInput(format!("a request is one line of at most {} bytes", limits::REQUEST_BYTES)));
    }
    // The version first: a request of another release may have other fields.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad =
        |e: serde_json::Error| Error::InvalidInput(format!("not a request: {}", untrusted::clean(&e.to_string())));
    let Versioned { version } = serde_json::from_slice(line).map_err(bad)?;
    if version != wire::VERSION {
        return Err(Error::Version { daemon: wire::VERSION, gateway: version });
    }
    serde_json::from_slice(line).map_err(bad)
}

fn encode(result: Result<Box<serde_json::value::RawValue>, Error>) -> Vec<u8> {
    let error = result.as_ref().err().cloned();
    let response = Response { version: wire::VERSION, sample: result.ok(), error };
    let mut line = serde_json::to_vec(&response).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_version_is_told_so_whatever_its_fields() {
        assert_eq!(
            parse(b"{\"version\":99,\"tools\":[]}\n").unwrap_err(),
            Error::Version { daemon: wire::VERSION, gateway: 99 }
        );
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        for line in [
            "",
            "{}\n",
            "hello\n",
            "{\"version\":1,\"tool\":\"status\",\"input\":{}}",
            "{\"version\":1,\"tool\":\"x\",\"input\":{},\"more\":1}\n",
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(Error::InvalidInput(_))), "{line}");
        }
    }
}
