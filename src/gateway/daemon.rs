//! Asking the daemon: a service that runs already, or one that this gateway starts for itself.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command},
    sync::Mutex,
    time::Duration,
};

use caps::CapsHashSet;
use rustix::{
    buffer::spare_capacity,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        sendmsg, socket_with, socketpair,
    },
};
use serde_json::value::RawValue;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use super::Failure;
use crate::{
    bpf::lock,
    limits,
    sandbox::{self, Account, Role},
    wire::{self, Request, Response},
};

/// Where the service listens.
pub const SOCKET: &str = "/run/netmon/netmond.sock";

/// The way to a daemon.
pub struct Daemon {
    socket: PathBuf,
    /// What this process will be once it has its daemon.
    role: Role,
    /// Folders in which this process goes on reading.
    readable: Vec<PathBuf>,
    state: Mutex<State>,
}

/// Decided by the first request, so that a client that only probes us starts nothing.
enum State {
    Undecided,
    /// A service listens on the socket.
    Service,
    /// Our own child; it ends when this channel is closed.
    Child(OwnedFd),
}

impl Daemon {
    pub fn new(socket: PathBuf, role: Role, readable: Vec<PathBuf>) -> Self {
        Daemon { socket, role, readable, state: Mutex::new(State::Undecided) }
    }

    /// Gives up what serving does not need. Root may have to start a daemon yet, and does this thereafter.
    pub fn confine(&self) {
        if !sandbox::is_root() {
            sandbox::confine(self.role, &self.readable);
        }
    }

    /// Sends a request and waits for its sample. Dropping the future closes the connection, which ends
    /// the measurement; `enough` ends it early, with what was seen so far.
    pub async fn ask(&self, request: &Request, window: Duration, enough: &Notify) -> Result<Box<RawValue>, Failure> {
        let stream = self.connect()?;
        let limit = window + limits::ANSWER_GRACE;
        match tokio::time::timeout(limit, exchange(stream, request, enough)).await {
            Err(_) => Err(Failure::Absent(format!(
                "netmond gave no answer within {} s; `netmon-mcp doctor` looks for the cause",
                limit.as_secs()
            ))),
            Ok(Err(e)) => Err(Failure::Absent(format!(
                "netmond went away in the middle of the measurement ({e}); call again, and it works if netmond is back"
            ))),
            Ok(Ok(line)) => read(&line),
        }
    }

    /// Gives all of it up now, root too, for which the daemon is found or started: for a server that strangers
    /// talk to before anybody asks anything.
    pub fn settle(&self) -> Result<(), Failure> {
        self.confine();
        if sandbox::is_root() { self.connect().map(drop) } else { Ok(()) }
    }

    fn connect(&self) -> Result<UnixStream, Failure> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Undecided) {
            let (decided, child) = self.decide()?;
            *state = decided;
            sandbox::confine(self.role, &self.readable);
            if let Some(mut child) = child {
                std::thread::spawn(move || child.wait()); // so that it leaves no zombie
            }
        }
        match &*state {
            State::Child(channel) => hand_over(channel).map_err(|_| {
                Failure::Absent(
                    "the netmond that this server started has ended, and root was given up since; restart netmon-mcp"
                        .into(),
                )
            }),
            _ => open(&self.socket).map_err(|e| absent(&self.socket, &e)),
        }
    }

    /// A service if there is one, else a daemon of our own if we are root. Then root is given up.
    fn decide(&self) -> Result<(State, Option<Child>), Failure> {
        let kept = |e| Failure::Absent(format!("root was not given up, so nothing is done: {e}"));
        match open(&self.socket) {
            Ok(_) if !sandbox::is_root() => Ok((State::Service, None)),
            Ok(_) => {
                become_client(&self.socket).map_err(kept)?;
                Ok((State::Service, None))
            }
            Err(e) if sandbox::is_root() => {
                if self.socket != Path::new(SOCKET) || e.kind() == io::ErrorKind::WouldBlock {
                    let socket = self.socket.display();
                    tracing::warn!("nothing answers at {socket} ({e}), so this server starts a netmond of its own");
                }
                let (channel, child) =
                    start_child().map_err(|e| Failure::Absent(format!("netmond could not be started: {e}")))?;
                sandbox::give_up_root(&Account::system("nobody"), None).map_err(kept)?;
                Ok((State::Child(channel), Some(child)))
            }
            Err(e) => Err(absent(&self.socket, &e)),
        }
    }
}

/// From root to someone who may still ask at this socket, and has nothing else: a member of its group,
/// else its owner, else root's uid without any capability.
fn become_client(socket: &Path) -> io::Result<()> {
    let meta = std::fs::metadata(socket)?;
    let nobody = Account::system("nobody");
    match (meta.mode() & 0o020 != 0, meta.uid()) {
        (true, _) => sandbox::give_up_root(&nobody, Some(meta.gid())),
        (false, 0) => sandbox::cut_to(&CapsHashSet::new()),
        (false, uid) => sandbox::give_up_root(&Account { uid, ..nobody }, None),
    }
}

/// A connection that does not block. A daemon that takes none while its queue is full is `WouldBlock`.
fn open(socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
}

fn absent(socket: &Path, e: &io::Error) -> Failure {
    let socket = socket.display();
    Failure::Absent(match e.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "you may not ask netmond: {socket} is for root and the members of its group. Join it (`sudo usermod -aG netmon $USER`, then log in again), or run netmon-mcp with sudo"
        ),
        io::ErrorKind::WouldBlock => format!(
            "netmond takes no connection at {socket}, and others wait already: it hangs or is stopped. Look at `systemctl status netmond`; `sudo systemctl restart netmond` may help"
        ),
        _ => format!(
            "netmond is not running: nothing answers at {socket}. Start the service (`sudo systemctl start netmond`), or run netmon-mcp with sudo, which starts one for itself"
        ),
    })
}

/// The program that lies beside this one, else the one that PATH finds.
pub fn netmond() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("netmond")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "netmond".into())
}

/// Starts a daemon that takes its connections from the returned channel, and ends with it.
fn start_child() -> io::Result<(OwnedFd, Child)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new(netmond());
    // Its log joins ours, with nothing but trouble in it; stdin and stdout belong to MCP.
    command.args(["--parent", "0"]).stdin(theirs).stdout(std::process::Stdio::null());
    command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()));
    command.process_group(0); // Ctrl-C is for us; it ends when we do
    let child = command.spawn().map_err(|e| io::Error::other(format!("{}: {e}", netmond().display())))?;
    Ok((ours, child))
}

/// A new connection, one end of which goes to the child.
fn hand_over(channel: &OwnedFd) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(channel, &[io::IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(ours)
}

/// A line each way. The request goes out at once: it fits into what a new socket takes without being read.
async fn exchange(stream: UnixStream, request: &Request, enough: &Notify) -> io::Result<String> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // A daemon that refuses does so before it reads: its sentence is there all the same.
    let written = (&stream).write_all(&line);
    // Of reading only: that there is room to write in again would wake us for nothing.
    // SAFETY: a `UnixStream` has one descriptor, which it keeps open until it is dropped.
    let stream = unsafe { AsyncFd::register_with_interest(stream, Interest::READABLE)? };
    let mut answer = Vec::new();
    let received = {
        let mut received = pin!(stream.async_io(Interest::READABLE, |socket| receive(socket, &mut answer)));
        tokio::select! {
            result = &mut received => result,
            () = enough.notified() => {
                stream.get_ref().shutdown(Shutdown::Write)?; // half a close: the answer can still come
                received.await
            }
        }
    };
    received.map_err(|e| written.err().unwrap_or(e))?;
    String::from_utf8(answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Reads on to the line's end; what came before there was no more is kept.
fn receive(socket: &UnixStream, answer: &mut Vec<u8>) -> io::Result<()> {
    while !answer.ends_with(b"\n") {
        answer.reserve(limits::ANSWER_PART);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(socket, spare_capacity(answer)))?;
        if read == 0 || answer.len() > limits::ANSWER_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The sample in a line of the daemon, or why there is none.
pub fn read(line: &str) -> Result<Box<RawValue>, Failure> {
    match serde_json::from_str(line) {
        Ok(Response { sample: Some(sample), version: wire::VERSION, .. }) => Ok(sample),
        Ok(Response { error: Some(e), .. }) => Err(e.into()),
        _ => Err(foreign(line)),
    }
}

/// What is wrong with a line that holds neither: another release may have other fields.
fn foreign(line: &str) -> Failure {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_str(line) {
        Ok(Versioned { version }) => wire::Error::Version { daemon: version, gateway: wire::VERSION }.into(),
        Err(e) => Failure::Absent(format!("what answers is not netmond: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_of_another_release_is_named_as_such() {
        let text = read("{\"version\":2,\"answer\":{}}\n").unwrap_err().to_string();
        assert!(text.contains("daemon speaks version 2") && text.contains("restart"), "{text}");
    }

    #[test]
    fn a_daemon_that_takes_no_connections_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netmond.sock");
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let daemon =
            Daemon { socket: path, role: Role::Gateway, readable: Vec::new(), state: Mutex::new(State::Service) };
        let waiting = daemon.connect().unwrap();
        let text = daemon.connect().unwrap_err().to_string();
        assert!(text.contains("takes no connection") && text.contains("restart"), "{text}");
        drop(waiting);
    }

    #[test]
    fn the_daemon_s_own_words_reach_the_caller() {
        let text = read("{\"version\":1,\"error\":{\"busy\":\"later\"}}\n").unwrap_err().to_string();
        assert_eq!(text, "later");
    }
}
