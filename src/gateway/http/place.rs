//! Places to listen at, as settings and messages name them.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::untrusted;

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
                _ => {
                    Err("invalid Unix socket path: expected an absolute path, such as unix:/run/netmon/mcp.sock".into())
                }
            };
        }
        let address =
            text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        let wrong = |_| format!("invalid address {}: expected ADDRESS:PORT or unix:/PATH", untrusted::clean(text));
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

/// The first of these that is a TCP address.
pub fn tcp<'a>(places: impl IntoIterator<Item = &'a Listen>) -> Option<&'a Listen> {
    places.into_iter().find(|listen| matches!(listen, Listen::Tcp(_)))
}

/// The first of these from which another host could come in.
pub fn exposed<'a>(places: impl IntoIterator<Item = &'a Listen>) -> Option<&'a Listen> {
    places.into_iter().find(|listen| !listen.is_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_loopback_listeners_are_exposed() {
        let places = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Listen>>();
        assert_eq!(exposed(&places(&["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x"])), None);
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(exposed(&places(&[text])).is_some(), "{text}");
        }
    }

    #[test]
    fn invalid_listener_error_shows_an_example() {
        for text in ["8080", "host", "unix:relative", "127.0.0.1", ":8080"] {
            let reason = text.parse::<Listen>().unwrap_err();
            assert!(reason.contains("unix:/"), "{reason}");
        }
    }
}
