//! The daemon's loop: takes connections, answers the requests on each, and ends cleanly.

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
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Mode,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

use crate::{
    daemon::{
        host::Host,
        peers::{self, Lines, Peer, Peers},
        session::Session,
        window::Window,
    },
    limits,
    logging::Throttle,
    memory, sandbox,
    supervisor::{self, Progress, Supervisor, Watchdog},
    untrusted,
    wire::{self, Error, Request, Response},
};

/// Limits the log lines about connections that could not be accepted.
static TROUBLE: Throttle = Throttle::new(limits::LOG_LINES_PER_SECOND);

/// A connection that was taken.
struct Accepted {
    stream: UnixStream,
    /// Nobody will ask anything else: what the request does not need is not loaded.
    is_last: bool,
}

/// Where connections come from.
pub enum Listener {
    /// Every user who can open the socket's path.
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
        supervisor::remove_dead_socket(path)?;
        // No client can connect before the group and the mode are set.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        let mode = |mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        match sandbox::group(group) {
            Some(gid) => {
                chown(path, None, Some(gid))?;
                mode(0o660)?;
            }
            None => {
                tracing::warn!(
                    "group {group} does not exist, so only root can connect; create it with `groupadd --system {group}`"
                );
                // Root's gateway has given root up by the time it asks.
                let given = sandbox::group_of_root().is_some_and(|gid| chown(path, None, Some(gid)).is_ok());
                mode(if given { 0o660 } else { 0o600 })?;
            }
        }
        Ok(Listener::Socket(listener))
    }

    /// The next connection; `None` when there will be no more.
    fn accept(&self) -> io::Result<Option<Accepted>> {
        match self {
            Listener::Socket(listener) => {
                listener.accept().map(|(stream, _)| Some(Accepted { stream, is_last: false }))
            }
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
                let is_last = byte == [wire::LAST];
                rights
                    .map(|fd| Some(Accepted { stream: UnixStream::from(fd), is_last }))
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

/// Serves until SIGTERM, SIGINT or the end of the parent. Open windows then end with a sentence, and so do requests
/// that wait for their tool to be loaded.
pub fn serve(listener: &Listener, host: &Host, peers: &Peers, supervisor: &Supervisor) -> io::Result<()> {
    let (signalled, on_signal) = UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
    }
    // It has no settings to reload, and a terminal that closes must not end a service.
    signal_hook::flag::register(libc::SIGHUP, Arc::default())?;
    let (stop, stopping) = rustix::pipe::pipe()?;
    let progress = Progress::default();
    let mut watch = Watchdog::new(supervisor, &progress);
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
                tracing::info!("stopping");
                break;
            }
            if fds[1].revents().is_empty() {
                continue; // it is time to feed the watchdog
            }
            let Accepted { stream, is_last } = match listener.accept() {
                Ok(Some(accepted)) => accepted,
                Ok(None) => break,
                Err(e) => {
                    // EMFILE and the like pass; a loop that spins on them would not help.
                    if let Some(skipped) = TROUBLE.admit() {
                        tracing::warn!(skipped, "accepting a connection failed: {e}");
                    }
                    thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
            };
            let peer = match peers.admit(&stream) {
                Ok(peer) => peer,
                Err(e) => {
                    refuse(&stream, e, peers);
                    continue;
                }
            };
            let (stop, progress) = (&stop, &progress);
            let stream = Arc::new(stream);
            let asked = Arc::clone(&stream);
            let work = move || {
                let (stream, lines) = (&*asked, Lines::new(&asked));
                let conversation = Conversation { lines, stream, peer: &peer, stop, host, progress, is_last };
                let _ = conversation.hold().inspect_err(|e| tracing::debug!("a client disconnected: {e}"));
                memory::give_back();
            };
            if let Err(e) =
                thread::Builder::new().name("request".into()).stack_size(limits::THREAD_STACK).spawn_scoped(scope, work)
            {
                refuse(
                    &stream,
                    Error::Busy(format!("netmond could not start a thread for this request: {e}; try again")),
                    peers,
                );
            }
        }
        supervisor.stopping();
        host.close();
        drop(stopping); // hangs up `stop`, at which every window looks
        Ok(())
    })
}

fn refuse(mut stream: &UnixStream, error: Error, peers: &Peers) {
    let uid = peers::uid(stream);
    if let Some(skipped) = peers.log(uid).refusals.admit() {
        tracing::warn!(uid, skipped, "a connection was refused: {error}");
    }
    let _ = stream.set_nonblocking(true);
    let _ = stream.write_all(&encode(Err(error)));
}

/// The requests of a connection, one after the other.
struct Conversation<'a> {
    lines: Lines<'a>,
    stream: &'a UnixStream,
    peer: &'a Peer<'a>,
    stop: &'a OwnedFd,
    host: &'a Host,
    progress: &'a Progress,
    is_last: bool,
}

impl Conversation<'_> {
    /// Answers until the client has no more to ask.
    fn hold(mut self) -> io::Result<()> {
        loop {
            if !self.lines.wait(self.stop, limits::REQUEST_TIME)? {
                return Ok(());
            }
            let line = self.lines.next(limits::REQUEST_BYTES, limits::REQUEST_TIME)?;
            if line.is_empty() {
                return Ok(()); // a health check, or the client is done
            }
            match parse(&line) {
                Ok(request) => self.answer(&request)?,
                Err(e) => {
                    self.log("", Instant::now(), 0, Some(&e));
                    return self.write(&encode(Err(e)));
                }
            }
        }
    }

    /// One request. The session's resources are released after its last sample is sent.
    fn answer(&self, request: &Request) -> io::Result<()> {
        let (asked, mut bytes) = (Instant::now(), 0);
        let measured = self.host.prepare(&request.tool).and_then(|()| {
            if !self.is_last {
                self.host.load_rest();
            }
            self.measure(request, &mut bytes)
        });
        let tool = if matches!(measured, Err(Error::UnknownTool(_))) { "" } else { &request.tool };
        self.log(tool, asked, bytes, measured.as_ref().err());
        match measured {
            Err(Error::Cancelled) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(e) => self.write(&encode(Err(e))),
            Ok(()) => Ok(()),
        }
    }

    /// Writes the line of every sample: of one, or of readings until the client has seen enough. `bytes` is how long they
    /// are.
    fn measure(&self, request: &Request, bytes: &mut usize) -> Result<(), Error> {
        // To load it was not part of the window.
        let (window, asked) = (Window::new(self.stream, self.stop), Instant::now());
        let mut begun = self.progress.begin();
        let every = request.every_ms.map(every).transpose()?;
        let mut session = self.host.open(&request.tool, &request.input)?;
        let opened = Instant::now();
        if request.tell_opened {
            self.write(&wire::opened()).map_err(|_| Error::Cancelled)?;
        }
        // Attaching takes the kernel 5-15 ms (an RCU grace period): the answer should not come later for it, unless it
        // took a tenth of the window.
        let length = session.duration();
        let mut end = every.map_or_else(|| (asked + length).max(opened + length.mul_f64(0.9)), |every| opened + every);
        loop {
            let goes_on = session.watch(&window, end)? && every.is_some();
            // A window takes no memory; its answer does, until it is taken.
            let mut memory = self.peer.claim(self.stream, &request.tool);
            memory.reserve(&request.input)?;
            let line = encode(Ok(session.read(!goes_on)?));
            drop(begun); // to take it is the client's affair
            memory.hold(line.len())?;
            *bytes += line.len();
            // After a part of a line, an error would read as its rest.
            self.write(&line).map_err(|_| Error::Cancelled)?;
            begun = self.progress.begin();
            match every {
                Some(every) if goes_on => end = (end + every).max(Instant::now()),
                _ => return Ok(()),
            }
        }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        peers::write_all(self.stream, line, limits::ANSWER_TIME)
    }

    fn log(&self, tool: &str, asked: Instant, bytes: usize, error: Option<&Error>) {
        let Peer { uid, pid, .. } = *self.peer;
        let (ms, error) = (asked.elapsed().as_millis() as u64, error.map(for_the_log));
        if let Some(skipped) = self.peer.log().requests.admit() {
            tracing::info!(tool, uid, pid, ms, bytes, error, skipped, "request");
        }
    }
}

/// The time between two readings.
fn every(ms: u64) -> Result<Duration, Error> {
    let every = Duration::from_millis(ms);
    if (limits::WINDOW_MIN..=limits::WINDOW_MAX).contains(&every) {
        return Ok(every);
    }
    let [min, max] = [limits::WINDOW_MIN, limits::WINDOW_MAX].map(|bound| bound.as_millis());
    Err(Error::InvalidInput(format!("invalid every_ms: expected {min} to {max}")))
}

/// The log must not contain the client's question, and an error about invalid input repeats it.
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
        return Err(Error::InvalidInput(format!(
            "invalid request: expected one line of at most {} bytes",
            limits::REQUEST_BYTES
        )));
    }
    // The version first: a request of another release may have other fields.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad =
        |e: serde_json::Error| Error::InvalidInput(format!("invalid request: {}", untrusted::clean(&e.to_string())));
    let Versioned { version } = serde_json::from_slice(line).map_err(bad)?;
    if version != wire::VERSION {
        return Err(Error::Version { daemon: wire::VERSION, gateway: version });
    }
    serde_json::from_slice(line).map_err(bad)
}

fn encode(result: Result<Box<serde_json::value::RawValue>, Error>) -> Vec<u8> {
    let error = result.as_ref().err().cloned();
    Response { version: wire::VERSION, opened: false, sample: result.ok(), error }.line()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_version_is_reported_before_unknown_fields() {
        assert_eq!(
            parse(b"{\"version\":99,\"tools\":[]}\n").unwrap_err(),
            Error::Version { daemon: wire::VERSION, gateway: 99 }
        );
    }

    #[test]
    fn invalid_requests_are_rejected() {
        for line in [
            "",
            "{}\n",
            "hello\n",
            "{\"version\":2,\"tool\":\"status\",\"input\":{}}",
            "{\"version\":2,\"tool\":\"x\",\"input\":{},\"more\":1}\n",
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(Error::InvalidInput(_))), "{line}");
        }
    }
}
