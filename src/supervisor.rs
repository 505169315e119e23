//! The protocol with systemd: the socket that it opened for us (sd_listen_fds(3)), and our states ready, alive and
//! stopping (sd_notify(3)).
//!
//! The channel is opened once: a sandboxed process could not open it for every message.

use std::{
    collections::BTreeMap,
    env, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::FileTypeExt,
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
    str::FromStr,
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketType, sockopt},
};

use crate::{limits, sync::lock};

/// The first descriptor that systemd passes, by its convention.
const FIRST: i32 = 3;

/// The service manager that started this process; none if it is not a service.
#[derive(Default)]
pub struct Supervisor {
    channel: Option<UnixDatagram>,
    /// The interval at which systemd expects a sign of life.
    watchdog: Option<Duration>,
}

impl Supervisor {
    pub fn from_environment() -> Self {
        let channel = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            connect(name.as_bytes())
                .inspect_err(|e| tracing::warn!("cannot notify systemd through {}: {e}", name.display()))
                .ok()
        });
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
        Supervisor { channel, watchdog }
    }

    /// The interval between signs of life: half of systemd's limit.
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 2)
    }

    /// From now on requests are answered.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, message: &str) {
        if let Some(channel) = &self.channel
            && let Err(e) = channel.send(message.as_bytes())
        {
            tracing::warn!("notifying systemd of {message} failed: {e}");
        }
    }
}

/// Feeds the watchdog for as long as measurements end when they should: the thread that takes requests
/// would live on if every window hung on a lock.
pub struct Watchdog<'a> {
    supervisor: &'a Supervisor,
    progress: &'a Progress,
    fed: Instant,
    complained: bool,
}

impl<'a> Watchdog<'a> {
    pub fn new(supervisor: &'a Supervisor, progress: &'a Progress) -> Self {
        Watchdog { supervisor, progress, fed: Instant::now(), complained: false }
    }

    /// For how long nothing need be said; `None` is forever.
    pub fn quiet(&self) -> Option<Duration> {
        self.supervisor.interval().map(|interval| interval.saturating_sub(self.fed.elapsed()))
    }

    /// Says that we are alive, if it is time to and true.
    pub fn feed(&mut self) {
        if self.quiet() != Some(Duration::ZERO) {
            return;
        }
        self.fed = Instant::now();
        let stalled = self.progress.stalled(limits::WINDOW_MAX + limits::ANSWER_GRACE);
        if !stalled {
            self.supervisor.alive();
        } else if !self.complained {
            tracing::error!("a measurement is overdue; if none ends soon, systemd restarts netmond");
        }
        self.complained = stalled;
    }
}

/// The measurements under way, each with when it began.
#[derive(Default)]
pub struct Progress {
    begun: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

/// A measurement under way, until it is dropped.
pub struct Begun<'a>(&'a Progress, u64);

impl Progress {
    pub fn begin(&self) -> Begun<'_> {
        let mut begun = lock(&self.begun);
        begun.0 += 1;
        let number = begun.0;
        begun.1.insert(number, Instant::now());
        Begun(self, number)
    }

    /// Whether the oldest measurement is overdue. The time that a slow client needs to read does not count.
    fn stalled(&self, longest: Duration) -> bool {
        lock(&self.begun).1.first_key_value().is_some_and(|(_, at)| at.elapsed() > longest)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(&self.0.begun).1.remove(&self.1);
    }
}

/// `name` is a path, or an abstract address after an @.
fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(name)))?,
    };
    let channel = UnixDatagram::unbound()?;
    channel.connect_addr(&address)?;
    // A message that does not fit is less of a loss than a daemon that waits for its supervisor.
    channel.set_nonblocking(true)?;
    Ok(channel)
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// The meaning of the variables for the process `pid`: they may be inherited, and belong to another process.
fn watchdog(microseconds: Option<u64>, of: Option<u32>, pid: u32) -> Option<Duration> {
    let period = Duration::from_micros(microseconds.filter(|microseconds| *microseconds > 0)?);
    of.is_none_or(|of| of == pid).then_some(period)
}

/// The listening socket that systemd opened, if it started us with one.
pub fn activated() -> io::Result<Option<UnixListener>> {
    let mut passed = passed();
    match (passed.pop(), passed.len()) {
        (None, _) => Ok(None),
        (Some(fd), 0) => adopt(fd).map(Some),
        (_, more) => Err(io::Error::other(format!("systemd passed {} sockets: expected 1", more + 1))),
    }
}

/// Every descriptor that systemd passed to this process. Call it once: they are the caller's then.
pub fn passed() -> Vec<OwnedFd> {
    if variable("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = variable("LISTEN_FDS").unwrap_or(0);
    // SAFETY: systemd passed these descriptors to this process, and nothing else here has them.
    (FIRST..FIRST + count).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// Prepares `path` for a socket: removes the socket of a dead process. A socket in use, or another file, stays, and is
/// an error.
pub fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket; it was not replaced",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(e) => Err(e),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process already listens there")),
    }
}

fn adopt(fd: OwnedFd) -> io::Result<UnixListener> {
    let listens = sockopt::socket_domain(&fd)? == AddressFamily::UNIX
        && sockopt::socket_type(&fd)? == SocketType::STREAM
        && sockopt::socket_acceptconn(&fd)?;
    if !listens {
        return Err(io::Error::other(
            "systemd passed something else than a listening Unix stream socket (ListenStream=)",
        ));
    }
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(UnixListener::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_works_with_path_and_abstract_sockets() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let name = format!("netmon-test-{}", std::process::id());
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(), format!("@{name}")),
        ];
        for (listener, name) in listeners {
            let supervisor = Supervisor { channel: Some(connect(name.as_bytes()).unwrap()), watchdog: None };
            supervisor.ready();
            supervisor.alive();
            supervisor.stopping();
            for expected in ["READY=1", "WATCHDOG=1", "STOPPING=1"] {
                let mut text = [0; 64];
                let length = listener.recv(&mut text).unwrap();
                assert_eq!(&text[..length], expected.as_bytes());
            }
        }
    }

    #[test]
    fn watchdog_interval_is_half_and_checks_pid() {
        let supervisor = Supervisor { channel: None, watchdog: watchdog(Some(30_000_000), Some(7), 7) };
        assert_eq!(supervisor.interval(), Some(Duration::from_secs(15)));
        assert_eq!(watchdog(Some(30_000_000), Some(8), 7), None);
        assert_eq!(watchdog(Some(30_000_000), None, 7), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(Some(0), None, 7), None);
        assert_eq!(watchdog(None, Some(7), 7), None);
    }

    #[test]
    fn watchdog_stops_while_a_measurement_hangs() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let channel = connect(path.as_os_str().as_bytes()).unwrap();
        // Always due, so the test does not wait.
        let supervisor = Supervisor { channel: Some(channel), watchdog: Some(Duration::from_nanos(2)) };
        let progress = Progress::default();
        let mut watch = Watchdog::new(&supervisor, &progress);
        let mut fed = || {
            watch.feed();
            listener.recv(&mut [0; 64]).is_ok()
        };
        assert!(fed());
        let hanging = progress.begin();
        assert!(fed(), "it has only begun");
        let long_ago = Instant::now().checked_sub(limits::WINDOW_MAX + limits::ANSWER_GRACE).unwrap();
        lock(&progress.begun).1.insert(hanging.1, long_ago);
        let later = progress.begin();
        assert!(!fed());
        drop(later);
        assert!(!fed(), "that another ended changes nothing");
        drop(hanging);
        assert!(fed());
    }

    #[test]
    fn only_a_stale_socket_file_is_removed() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("socket");
        assert!(remove_dead_socket(&path).is_ok(), "there is nothing");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(remove_dead_socket(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(remove_dead_socket(&path).is_ok() && !path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(remove_dead_socket(&path).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(remove_dead_socket(&link).is_err() && link.is_symlink());
    }

    #[test]
    fn only_a_listening_unix_stream_socket_is_adopted() {
        let folder = tempfile::TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(adopt(listener.into()).is_ok());
        for fd in [
            OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap()),
            OwnedFd::from(UnixDatagram::unbound().unwrap()),
            OwnedFd::from(UnixDatagram::pair().unwrap().0),
            OwnedFd::from(std::fs::File::open("/dev/null").unwrap()),
        ] {
            assert!(adopt(fd).is_err());
        }
    }
}
