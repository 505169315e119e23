//! Listeners of HTTP: addresses, Unix sockets, and sockets that systemd opened.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{PermissionsExt, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    pin::Pin,
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, sockopt::socket_domain},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{identity::Source, place::Listen};
use crate::{gateway::settings::Http, sandbox, supervisor};

/// The port where neither an address nor `MCP_PORT` names one.
const PORT: u16 = 8080;
/// The folder of the default Unix socket, and the socket in it.
const FOLDER: &str = "/run/netmon-mcp";
const SOCKET: &str = "mcp.sock";
/// The group that may ask netmond, and so may ask us.
const GROUP: &str = "netmon";

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The user, as the kernel says.
    Unix {
        uid: u32,
    },
}

impl Peer {
    /// The shared limit of clients that are not authenticated yet.
    pub fn source(&self) -> Source {
        match self {
            Peer::Tcp(address) => address.ip().into(),
            Peer::Unix { uid } => Source::Uid(*uid),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix { uid } => write!(f, "uid:{uid}"),
        }
    }
}

/// A connection's bytes, whatever carries them.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// An open place to listen at, which does not block.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The same for one thread that takes connections there. Several may: each connection comes to one that has time.
pub enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    /// Opens these places, or what systemd passed, which then is all.
    pub fn open(places: &[Listen], settings: &Http) -> io::Result<Vec<(Listen, Listener)>> {
        let passed = supervisor::passed();
        if !passed.is_empty() {
            return passed.into_iter().map(adopt).collect();
        }
        let open = |listen: &Listen| {
            let failed = |e: io::Error| {
                let hint = match e.kind() {
                    io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => {
                        "; choose an address or path that this user may open (--listen), or let systemd open it"
                    }
                    _ => "",
                };
                io::Error::other(format!("cannot listen at {listen}: {e}{hint}"))
            };
            Listener::bind(listen, settings).map_err(failed)
        };
        places.iter().map(open).collect()
    }

    fn bind(listen: &Listen, settings: &Http) -> io::Result<(Listen, Listener)> {
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let bound = Listen::Tcp(listener.local_addr()?); // port 0 has become a port
                Ok((bound, Listener::Tcp(listener)))
            }
            Listen::Unix(path) => Ok((listen.clone(), Listener::Unix(bind_unix(path, settings)?))),
        }
    }

    /// To take connections on this thread, whose runtime is entered.
    pub fn accepting(&self) -> io::Result<Accepting> {
        Ok(match self {
            Listener::Tcp(listener) => Accepting::Tcp(tokio::net::TcpListener::from_std(listener.try_clone()?)?),
            Listener::Unix(listener) => Accepting::Unix(tokio::net::UnixListener::from_std(listener.try_clone()?)?),
        })
    }
}

impl Accepting {
    /// The next connection. Small messages go out at once: with Nagle's algorithm an event stream waits
    /// 40 ms for the client's delayed acknowledgement.
    pub async fn accept(&self) -> io::Result<(Pin<Box<dyn Stream>>, Peer)> {
        match self {
            Accepting::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::pin(stream), Peer::Tcp(address)))
            }
            Accepting::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok((Box::pin(stream), Peer::Unix { uid }))
            }
        }
    }
}

/// The addresses in the settings. The default is a port on loopback with credentials (or if none are required, or a
/// port is set), else a Unix socket, which its group protects.
pub fn places(settings: &Http, credentials: bool) -> Vec<Listen> {
    if !settings.listen.is_empty() {
        return settings.listen.clone();
    }
    if credentials || settings.port.is_some() || settings.is_open() {
        return vec![Listen::Tcp((Ipv4Addr::LOCALHOST, settings.port.unwrap_or(PORT)).into())];
    }
    vec![Listen::Unix(default_folder().join(SOCKET))]
}

/// The service's own folder under systemd, a user's own folder in a session, else [`FOLDER`].
fn default_folder() -> PathBuf {
    let named = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(folder) = named("RUNTIME_DIRECTORY") {
        return folder;
    }
    let session = || named("XDG_RUNTIME_DIR").map(|folder| folder.join("netmon-mcp"));
    if Path::new(FOLDER).exists() { FOLDER.into() } else { session().unwrap_or(FOLDER.into()) }
}

/// The names under which clients reach these addresses, where they are not wildcards.
pub fn addresses(places: &[(Listen, Listener)]) -> Vec<String> {
    let ip = |listen: &Listen| match listen {
        Listen::Tcp(address) if !address.ip().is_unspecified() => Some(address.ip()),
        _ => None,
    };
    let name = |ip: IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    places.iter().filter_map(|(listen, _)| ip(listen)).map(name).collect()
}

/// A socket for its owner and a group. The socket of a dead process is replaced; another file stays.
fn bind_unix(path: &Path, settings: &Http) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        fs::create_dir(folder)?; // with the parents' leave, and none of them made up
    }
    supervisor::remove_dead_socket(path)?;
    // Nobody comes in before the group and the mode are right.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    let allowed = match &settings.unix_group {
        Some(group) => give_to(path, group).map(|()| 0o660)?,
        None => give_to(path, GROUP).map_or_else(
            |e| {
                tracing::warn!(
                    "only user {} may connect to {}: {e}",
                    rustix::process::geteuid().as_raw(),
                    path.display()
                );
                0o600
            },
            |()| 0o660,
        ),
    };
    let mode = settings.unix_mode.map_or(allowed, |mode| mode.0);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Gives a socket to a group.
fn give_to(path: &Path, group: &str) -> io::Result<()> {
    let gid = sandbox::group(group).ok_or_else(|| io::Error::other(format!("group {group} does not exist")))?;
    chown(path, None, Some(gid)).map_err(|e| io::Error::other(format!("changing its group to {group} failed: {e}")))
}

fn adopt(fd: OwnedFd) -> io::Result<(Listen, Listener)> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    if socket_domain(&fd)? == AddressFamily::UNIX {
        let listener = UnixListener::from(fd);
        let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf).unwrap_or_default();
        Ok((Listen::Unix(path), Listener::Unix(listener)))
    } else {
        let listener = TcpListener::from(fd);
        Ok((Listen::Tcp(listener.local_addr()?), Listener::Tcp(listener)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_listener_without_credentials_is_unix() {
        let port = |port: u16| vec![Listen::Tcp((Ipv4Addr::LOCALHOST, port).into())];
        let settings = Http::default();
        assert!(matches!(&places(&settings, false)[..], [Listen::Unix(path)] if path.ends_with(SOCKET)));
        assert_eq!(places(&settings, true), port(8080));
        assert_eq!(places(&Http { port: Some(9), ..Http::default() }, false), port(9));
        assert_eq!(places(&Http { insecure_no_auth: Some(true), ..Http::default() }, false), port(8080));
        let named = Http { listen: vec!["unix:/x".parse().unwrap()], port: Some(9), ..Http::default() };
        assert_eq!(places(&named, true), named.listen);
    }
}
