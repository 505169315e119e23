//! Where HTTP is served: addresses, Unix sockets, and sockets that systemd opened for us.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
};

use rustix::net::{AddressFamily, sockopt::socket_domain};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

use crate::{gateway::settings::Http, sandbox, supervisor, untrusted};

/// The port where neither an address nor `MCP_PORT` names one.
const PORT: u16 = 8080;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Listen {
    /// Whether only this host can come in.
    fn is_local(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.ip().is_loopback(),
            Listen::Unix(_) => true,
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match Path::new(path) {
                path if path.is_absolute() => Ok(Listen::Unix(path.into())),
                _ => Err("the path of a Unix socket begins with /, as in unix:/run/netmon/mcp.sock".into()),
            };
        }
        let address =
            text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        let wrong = |_| format!("{} is neither ADDRESS:PORT nor unix:/PATH", untrusted::clean(text));
        address.parse().map(Listen::Tcp).map_err(wrong)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "http://{address}/mcp"),
            Listen::Unix(path) => write!(f, "unix:{} (path /mcp)", path.display()),
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The user, as the kernel says.
    Unix {
        uid: u32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix { uid } => write!(f, "uid {uid}"),
        }
    }
}

/// A connection's bytes, whatever carries them.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// An open place to listen at.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Everything that the settings name, or what systemd passed, which then is all.
    pub fn open(settings: &Http) -> io::Result<Vec<(Listen, Listener)>> {
        let passed = supervisor::passed();
        if !passed.is_empty() {
            return passed.into_iter().map(adopt).collect();
        }
        let port = settings.port.unwrap_or(PORT);
        let default = [Listen::Tcp((Ipv4Addr::LOCALHOST, port).into())];
        let wanted = if settings.listen.is_empty() { &default[..] } else { &settings.listen };
        let open = |listen: &Listen| {
            let failed = |e| io::Error::other(format!("{listen} cannot be served: {e}"));
            Listener::bind(listen, settings).map_err(failed)
        };
        wanted.iter().map(open).collect()
    }

    fn bind(listen: &Listen, settings: &Http) -> io::Result<(Listen, Listener)> {
        match listen {
            Listen::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let bound = Listen::Tcp(listener.local_addr()?); // port 0 has become a port
                Ok((bound, Listener::Tcp(TcpListener::from_std(listener)?)))
            }
            Listen::Unix(path) => Ok((listen.clone(), Listener::Unix(bind_unix(path, settings)?))),
        }
    }

    /// The next connection. Small messages go out at once: with Nagle's algorithm an event stream waits
    /// 40 ms for the client's delayed acknowledgement.
    pub async fn accept(&self) -> io::Result<(Pin<Box<dyn Stream>>, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::pin(stream), Peer::Tcp(address)))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok((Box::pin(stream), Peer::Unix { uid }))
            }
        }
    }
}

/// The first of these from which another host could come in.
pub fn exposed<'a>(places: impl IntoIterator<Item = &'a Listen>) -> Option<&'a Listen> {
    places.into_iter().find(|listen| !listen.is_local())
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

/// A socket for its owner and a group. One that a dead process left behind is replaced.
fn bind_unix(path: &Path, settings: &Http) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it already"));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    if let Some(group) = &settings.unix_group {
        let gid = sandbox::group(group).ok_or_else(|| io::Error::other(format!("there is no group {group}")))?;
        chown(path, None, Some(gid))?;
    }
    let mode = settings.unix_mode.map_or(0o660, |mode| mode.0);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn adopt(fd: OwnedFd) -> io::Result<(Listen, Listener)> {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    if socket_domain(&fd)? == AddressFamily::UNIX {
        let listener = UnixListener::from_std(fd.into())?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf).unwrap_or_default();
        Ok((Listen::Unix(path), Listener::Unix(listener)))
    } else {
        let listener = TcpListener::from_std(fd.into())?;
        Ok((Listen::Tcp(listener.local_addr()?), Listener::Tcp(listener)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_hosts_expose_a_place() {
        let places = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Listen>>();
        assert_eq!(exposed(&places(&["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x"])), None);
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(exposed(&places(&[text])).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_what_would_be() {
        for text in ["8080", "host", "unix:relative", "127.0.0.1", ":8080"] {
            let reason = text.parse::<Listen>().unwrap_err();
            assert!(reason.contains("unix:/"), "{reason}");
        }
    }
}
