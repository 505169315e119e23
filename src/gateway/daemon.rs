//! Asking the daemon: a service that runs already, or one that this gateway starts for itself.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream as StdStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command},
    sync::Mutex,
    time::Duration,
};

use caps::CapsHashSet;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
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
        let stream = match &*state {
            State::Child(channel) => hand_over(channel).map_err(|_| {
                Failure::Absent(
                    "the netmond that this server started has ended, and root was given up since; restart netmon-mcp"
                        .into(),
                )
            }),
            _ => StdStream::connect(&self.socket).map_err(|e| absent(&self.socket, &e)),
        }?;
        let convert = |stream: StdStream| stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        convert(stream).map_err(|e| Failure::Absent(format!("the connection to netmond failed: {e}")))
    }

    /// A service if there is one, else a daemon of our own if we are root. Then root is given up.
    fn decide(&self) -> Result<(State, Option<Child>), Failure> {
        let kept = |e| Failure::Absent(format!("root was not given up, so nothing is done: {e}"));
        match StdStream::connect(&self.socket) {
            Ok(_) if !sandbox::is_root() => Ok((State::Service, None)),
            Ok(_) => {
                become_client(&self.socket).map_err(kept)?;
                Ok((State::Service, None))
            }
            Err(_) if sandbox::is_root() => {
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

fn absent(socket: &Path, e: &io::Error) -> Failure {
    let socket = socket.display();
    Failure::Absent(match e.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "you may not ask netmond: {socket} is for root and the members of its group. Join it (`sudo usermod -aG netmon $USER`, then log in again), or run netmon-mcp with sudo"
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
fn hand_over(channel: &OwnedFd) -> io::Result<StdStream> {
    let (ours, theirs) = StdStream::pair()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(channel, &[io::IoSlice::new(b"c")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(ours)
}

async fn exchange(mut stream: UnixStream, request: &Request, enough: &Notify) -> io::Result<String> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // A daemon that refuses does so before it reads: its sentence is there all the same.
    let written = stream.write_all(&line).await;
    let (from, mut to) = stream.split();
    let (mut reader, mut answer) = (BufReader::new(from.take(limits::ANSWER_BYTES)), String::new());
    {
        let mut read = pin!(reader.read_line(&mut answer));
        tokio::select! {
            result = &mut read => result.map(|_| ()),
            () = enough.notified() => {
                to.shutdown().await?; // half a close: the answer can still come
                read.await.map(|_| ())
            }
        }?;
    }
    written.or_else(|e| if answer.is_empty() { Err(e) } else { Ok(()) })?;
    if answer.ends_with('\n') { Ok(answer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The sample in a line of the daemon, or why there is none.
pub fn read(line: &str) -> Result<Box<RawValue>, Failure> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let foreign = |e: serde_json::Error| Failure::Absent(format!("what answers is not netmond: {e}"));
    let Versioned { version } = serde_json::from_str(line).map_err(foreign)?;
    match serde_json::from_str(line) {
        Ok(Response { sample: Some(sample), version: wire::VERSION, .. }) => Ok(sample),
        Ok(Response { error: Some(e), .. }) => Err(e.into()),
        _ => Err(wire::Error::Version { daemon: version, gateway: wire::VERSION }.into()),
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
    fn the_daemon_s_own_words_reach_the_caller() {
        let text = read("{\"version\":1,\"error\":{\"busy\":\"later\"}}\n").unwrap_err().to_string();
        assert_eq!(text, "later");
    }
}
