//! Who asks. An identity names its kind, so that no client can take the name of a client of another kind.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use crate::{tools::Question, untrusted};

/// The name under which a scope lists this host itself.
pub const LOCAL_HOST: &str = "local";
/// The tool that lists the other hosts: the gateway's own.
pub const HOSTS_TOOL: &str = "hosts";

/// A client, over any number of connections and sessions. It is compared whole: nothing in it is ever cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A line of the token file, by its name.
    Token(String),
    /// The subject of a JWT, and the authorization server that signed it.
    Jwt { issuer: String, subject: String },
    /// A local user on a Unix socket, as the kernel says.
    Uid(u32),
    /// Somebody without credentials, at this address.
    Anonymous(Source),
    /// Another host, while its answers arrive.
    Host(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Identity::Token(name) => write!(f, "token:{name}"),
            Identity::Jwt { issuer, subject } => write!(f, "jwt:{issuer}#{subject}"),
            Identity::Uid(uid) => write!(f, "uid:{uid}"),
            Identity::Anonymous(source) => write!(f, "anonymous:{source}"),
            Identity::Host(name) => write!(f, "host:{name}"),
        }
    }
}

/// The source of a connection, as far as a client can choose it: all of loopback, or all addresses of an IPv6 network,
/// are one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Loopback,
    V4(Ipv4Addr),
    /// The first 64 bits of the address.
    V6([u16; 4]),
    /// A local user, on a Unix socket.
    Uid(u32),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Source::Loopback,
            IpAddr::V4(address) => Source::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Source::V6([a, b, c, d])
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Source::Loopback => f.write_str("loopback"),
            Source::V4(address) => address.fmt(f),
            Source::V6([a, b, c, d]) => write!(f, "{}/64", Ipv6Addr::new(*a, *b, *c, *d, 0, 0, 0, 0)),
            Source::Uid(uid) => write!(f, "uid:{uid}"),
        }
    }
}

/// The tools and hosts that a client may use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    /// `None` allows every tool.
    pub tools: Option<BTreeSet<String>>,
    /// `None` allows every host; [`LOCAL_HOST`] is this one.
    pub hosts: Option<BTreeSet<String>>,
}

impl Scope {
    /// Whether every tool and host is allowed.
    pub fn is_full(&self) -> bool {
        *self == Scope::default()
    }

    pub fn allows_tool(&self, tool: &str) -> bool {
        self.tools.as_ref().is_none_or(|tools| tools.contains(tool))
    }

    /// Whether a host may be asked; `None` is this one.
    pub fn allows_host(&self, host: Option<&str>) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains(host.unwrap_or(LOCAL_HOST)))
    }

    /// Adds a tool that the client may use; an error if there is none of this name.
    pub fn add_tool(&mut self, name: &str) -> Result<(), String> {
        if Question::named(name).is_none() && name != HOSTS_TOOL {
            return Err(format!("unknown tool {}; `netmon-mcp tools` lists the tools", untrusted::clean(name)));
        }
        self.tools.get_or_insert_default().insert(name.into());
        Ok(())
    }

    /// Adds a host that the client may ask.
    pub fn add_host(&mut self, name: &str) {
        self.hosts.get_or_insert_default().insert(name.into());
    }
}

/// The grant of credentials.
#[derive(Clone, Debug)]
pub struct Grant {
    pub identity: Identity,
    pub scope: Arc<Scope>,
    /// Cancelled when the credentials are withdrawn.
    pub withdrawn: CancellationToken,
    /// When they expire, if they do.
    pub expires: Option<SystemTime>,
}

impl Grant {
    /// A grant of everything, which cannot be revoked.
    pub fn full(identity: Identity) -> Self {
        Grant { identity, scope: Arc::default(), withdrawn: CancellationToken::new(), expires: None }
    }

    /// Waits until the credentials are withdrawn or expire.
    pub async fn ended(self) {
        let left = self.expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO));
        tokio::select! {
            () = self.withdrawn.cancelled() => {}
            () = async { match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            } } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_of_different_kinds_differ() {
        let jwt = |issuer: &str, subject: &str| Identity::Jwt { issuer: issuer.into(), subject: subject.into() };
        let all = [
            Identity::Token("alice".into()),
            Identity::Token("uid:0".into()),
            jwt("https://as.example", "alice"),
            jwt("https://other.example", "alice"),
            jwt("https://as.example", "uid:0"),
            Identity::Uid(0),
            Identity::Anonymous(Source::Uid(0)),
        ];
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                assert!(one != other && one.to_string() != other.to_string(), "{one} {other}");
            }
        }
        assert_eq!(all[2].to_string(), "jwt:https://as.example#alice");
    }

    #[test]
    fn loopback_and_each_ipv6_64_are_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        for text in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(source(text), Source::Loopback, "{text}");
        }
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:2"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1").to_string(), "2001:db8::/64");
    }

    #[test]
    fn scope_limits_tools_and_hosts() {
        let mut scope = Scope::default();
        assert!(
            scope.is_full()
                && scope.allows_tool("status")
                && scope.allows_host(None)
                && scope.allows_host(Some("web1"))
        );
        scope.add_tool("status").unwrap();
        assert!(scope.add_tool("no_such_tool").unwrap_err().contains("no_such_tool"));
        assert!(scope.allows_tool("status") && !scope.allows_tool("top_traffic"));
        scope.add_host("web1");
        assert!(scope.allows_host(Some("web1")) && !scope.allows_host(None) && !scope.allows_host(Some("web2")));
        scope.add_host(LOCAL_HOST);
        assert!(scope.allows_host(None));
    }
}
