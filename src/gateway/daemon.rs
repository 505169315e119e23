//! Asking the daemon: a service that runs already, or one that this gateway starts for itself.

use std::{
    io::{self, BufRead},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Mutex,
    thread::{self, ThreadId},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, recv, sendmsg, socket_with,
    },
};
use serde_json::value::RawValue;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

pub use super::exchange::Opened;
pub use crate::starter::{SOCKET, netmond};

use super::{
    Failure,
    exchange::{Connection, exchange, read},
    memory::Reserved,
};
use crate::{
    limits,
    sandbox::{self, Reach, Role},
    starter::{self, Starter},
    sync::lock,
    wire::{self, Request},
};

/// The way to a daemon.
pub struct Daemon {
    socket: PathBuf,
    /// What this process will be once it has its daemon.
    role: Role,
    /// What it reads and connects to then.
    reach: Reach,
    /// Whether there will be one request and no more: a daemon of our own then loads what that one needs.
    is_single: bool,
    state: Mutex<State>,
    /// Connections whose request was answered: the daemon takes the next one for a while. Each is registered with the
    /// runtime of a thread.
    idle: Mutex<Vec<(ThreadId, Connection)>>,
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
    pub fn new(socket: PathBuf, role: Role, reach: Reach) -> Self {
        let state = Mutex::new(State::Undecided);
        Daemon { socket, role, reach, is_single: false, state, idle: Mutex::default() }
    }

    /// The way for one request.
    pub fn single(self) -> Self {
        Daemon { is_single: true, ..self }
    }

    /// Gives up what serving does not need, for good; `more` is needed beside what was said in the beginning.
    pub fn confine(&self, more: Reach) {
        sandbox::confine(self.role, &self.reach.clone().and(more));
    }

    /// Sends a request and waits for its sample. Dropping the future closes the connection, which ends the measurement;
    /// `enough` ends it early, with a partial answer. `opened` is set when the window opens. `reserved` is what its
    /// client may hold: the answer is refused where it takes more.
    pub async fn ask(
        &self,
        request: &Request,
        window: Duration,
        enough: &Notify,
        opened: &Opened,
        reserved: &Reserved,
    ) -> Result<Box<RawValue>, Failure> {
        let limit = window + limits::ANSWER_GRACE;
        let exchange = async {
            while let Some(connection) = self.idle_connection() {
                match exchange(connection, request, enough, opened, reserved).await {
                    // It was idle for too long, or that daemon is gone: no measurement was lost.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                    result => return Ok(result),
                }
            }
            Ok::<_, Failure>(exchange(self.connect()?, request, enough, opened, reserved).await)
        };
        let result = match tokio::time::timeout(limit, exchange).await {
            Ok(exchanged) => Ok(exchanged?),
            Err(elapsed) => Err(elapsed),
        };
        match result {
            Err(_) => Err(Failure::Absent(format!(
                "netmond did not answer within {} s; run `netmon-mcp doctor` to find the cause",
                limit.as_secs()
            ))),
            Ok(Err(e)) if e.kind() == io::ErrorKind::OutOfMemory => Err(Failure::Busy(e.to_string())),
            Ok(Err(e)) => Err(Failure::Absent(format!(
                "netmond disconnected during the measurement ({e}); call again, and check `systemctl status netmond` \
                    if it fails again"
            ))),
            Ok(Ok((line, connection))) => {
                self.keep(connection);
                if line.len() <= limits::SAMPLE_KEPT {
                    return read(&line);
                }
                // A long one takes a while to read; others are answered meanwhile.
                let reserved = reserved.clone(); // until it is read, though nobody may wait for it any more
                let result = tokio::task::spawn_blocking(move || (read(&line), reserved).0).await;
                result.unwrap_or_else(|_| Err(wire::Error::Panicked(request.tool.clone()).into()))
            }
        }
    }

    /// A connection that waits for a request. The daemon has hung up where there is something to read. If there is none,
    /// a new one takes the place of one that another thread keeps: the daemon counts both.
    fn idle_connection(&self) -> Option<Connection> {
        let (mut idle, here) = (lock(&self.idle), thread::current().id());
        let next = || {
            let at = idle.iter().rposition(|(thread, _)| *thread == here)?;
            Some(idle.swap_remove(at).1)
        };
        let found = std::iter::from_fn(next).find(|connection| {
            let mut byte = [0; 1];
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            recv(connection.get_ref(), &mut byte, flags).is_err_and(|e| e == Errno::AGAIN)
        });
        if found.is_none() {
            idle.pop();
        }
        found
    }

    /// Keeps a connection for the next request.
    fn keep(&self, connection: Option<Connection>) {
        let (mut idle, here) = (lock(&self.idle), thread::current().id());
        let kept = idle.iter().filter(|(thread, _)| *thread == here).count();
        if !self.is_single && kept < limits::IDLE_CONNECTIONS {
            idle.extend(connection.map(|connection| (here, connection)));
        }
    }

    fn connect(&self) -> Result<Connection, Failure> {
        let stream = self.dial()?;
        // SAFETY: a `UnixStream` has one descriptor, which it keeps open until it is dropped.
        let connection = unsafe { AsyncFd::register_with_interest(stream, Interest::READABLE) };
        connection.map_err(|e| Failure::Busy(format!("netmon-mcp cannot wait for more answers: {e}; try again")))
    }

    /// A new connection, which does not block.
    pub fn dial(&self) -> Result<UnixStream, Failure> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Undecided) {
            *state = self.decide()?;
        }
        match &*state {
            State::Child(channel) => {
                hand_over(channel, if self.is_single { wire::LAST } else { wire::MORE }).map_err(|_| {
                    Failure::Absent(
                        "the netmond that this server started has exited, and this server is no longer root; restart \
                        netmon-mcp"
                            .into(),
                    )
                })
            }
            _ => open(&self.socket).map_err(|e| absent(&self.socket, &e)),
        }
    }

    /// A service if there is one, else a daemon of our own, if root has left us a starter.
    fn decide(&self) -> Result<State, Failure> {
        match open(&self.socket) {
            Ok(_) => Ok(State::Service),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(absent(&self.socket, &e)),
            Err(e) => match starter::take() {
                Some(Starter { channel, complaints }) => {
                    if self.socket != Path::new(SOCKET) || e.kind() == io::ErrorKind::WouldBlock {
                        let socket = self.socket.display();
                        tracing::warn!("no netmond at {socket} ({e}): starting one for this server");
                    }
                    relay(complaints);
                    Ok(State::Child(channel))
                }
                None => Err(absent(&self.socket, &e)),
            },
        }
    }
}

/// Passes on what a netmond of our own has to say, to where our log goes.
fn relay(complaints: OwnedFd) {
    let lines = io::BufReader::new(std::fs::File::from(complaints)).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
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
            "no permission to use netmond: only root and members of the group netmon can open {socket}. Join the \
                group (`sudo usermod -aG netmon $USER`, then log in again). With sudo, netmon-mcp drops root first \
                and connects as user nobody, group netmon"
        ),
        io::ErrorKind::WouldBlock => format!(
            "netmond does not accept connections at {socket}: it hangs or is stopped. Check `systemctl status \
                netmond`; `sudo systemctl restart netmond` may help"
        ),
        _ => format!(
            "netmond is not running: nothing answers at {socket}. Start the service (`sudo systemctl start netmond`), \
                or run netmon-mcp with sudo, which starts its own netmond"
        ),
    })
}

/// A new connection, one end of which goes to the child, with word whether it is the last.
fn hand_over(channel: &OwnedFd, word: u8) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(channel, &[io::IoSlice::new(&[word])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn full_backlog_of_the_daemon_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netmond.sock");
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let daemon = Daemon::new(path, Role::Gateway, Reach::default());
        *lock(&daemon.state) = State::Service;
        let waiting = daemon.dial().unwrap();
        let text = daemon.dial().unwrap_err().to_string();
        assert!(text.contains("does not accept connections") && text.contains("restart"), "{text}");
        drop(waiting);
    }

    /// Accepts one connection per entry, and answers this number of requests on it with the connection's number.
    fn fake(listener: UnixListener, requests: &'static [usize]) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            for (number, requests) in requests.iter().enumerate() {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = io::BufReader::new(stream.try_clone().unwrap()).lines();
                for _ in 0..*requests {
                    lines.next().unwrap().unwrap();
                    writeln!(stream, "{{\"version\":2,\"sample\":{number}}}").unwrap();
                }
            }
        })
    }

    #[test]
    fn daemon_connection_is_reused_until_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netmond.sock");
        let thread = fake(UnixListener::bind(&path).unwrap(), &[2, 1, 0, 1]);
        let daemon = Daemon::new(path, Role::Gateway, Reach::default());
        *lock(&daemon.state) = State::Service;
        let ask = async || {
            let request = Request {
                version: wire::VERSION,
                tool: "status".into(),
                input: serde_json::Value::Null,
                tell_opened: false,
                every_ms: None,
            };
            let (enough, opened) = (Notify::new(), Opened::new());
            daemon.ask(&request, Duration::from_secs(5), &enough, &opened, &Reserved::default()).await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(ask().await.unwrap().get(), "0");
            assert_eq!(ask().await.unwrap().get(), "0");
            // It was closed meanwhile: the next one is used.
            assert_eq!(ask().await.unwrap().get(), "1");
            // A new connection that closes at once is not used again.
            let text = ask().await.unwrap_err().to_string();
            assert!(text.contains("disconnected"), "{text}");
            assert_eq!(ask().await.unwrap().get(), "3");
        });
        thread.join().unwrap();
    }
}
