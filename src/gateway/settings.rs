//! Every setting of the gateway: one TOML file, each key of it also a flag. Flags win over the
//! environment, which wins over the file.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::{Deserialize, Deserializer};

use super::{
    hosts::{Named, NamedParser, Target, Ways},
    http::place::Listen,
};

use crate::{
    recorder::record,
    sandbox::{Reach, Role, folder_of},
    untrusted,
};

mod recording;
mod values;
pub use recording::Recording;
pub use values::{Mode, Transport};

/// The file that is read when none is named and this one exists.
pub const FILE: &str = "/etc/netmon/netmon.toml";

/// The top level of the file.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The socket of netmond [default: /run/netmon/netmond.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The default interface of network-monitor.
    #[arg(long, global = true, value_name = "NAME", env = "NET_IFACE")]
    pub interface: Option<String>,
    /// The MCP transport without a command: stdio, or http (sse means http).
    #[arg(long, global = true, value_name = "TRANSPORT", env = "MCP_TRANSPORT")]
    pub transport: Option<Transport>,
    /// Another host, which every tool accepts as `host`: NAME=ssh:USER@HOST, NAME=https://HOST/mcp or
    /// NAME=unix:/PATH; may be repeated.
    #[arg(long = "host", global = true, value_name = "NAME=TARGET", value_parser = NamedParser)]
    #[serde(deserialize_with = "table")]
    pub hosts: Vec<Named>,
    /// The token file for a host: NAME=FILE; may be repeated.
    #[arg(long = "host-token", global = true, value_name = "NAME=FILE", value_parser = name_and_file, hide_short_help = true)]
    #[serde(deserialize_with = "table")]
    pub host_tokens: Vec<(String, PathBuf)>,
    /// The configuration file for ssh (ssh -F) [default: ssh's own].
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub ssh_config: Option<PathBuf>,
    #[command(flatten)]
    pub http: Http,
    #[command(flatten)]
    pub recording: Recording,
}

/// The value of a key and its string in a table.
trait Entry: Sized {
    fn entry(key: String, value: String) -> Result<Self, String>;
}

impl Entry for Named {
    fn entry(key: String, value: String) -> Result<Self, String> {
        Named::new(&key, &value)
    }
}

impl Entry for (String, PathBuf) {
    fn entry(key: String, value: String) -> Result<Self, String> {
        Ok((key, value.into()))
    }
}

/// A list that is a table in the file, by name.
fn table<'de, T: Entry, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let entries = BTreeMap::<String, String>::deserialize(deserializer)?;
    entries.into_iter().map(|(key, value)| T::entry(key, value).map_err(serde::de::Error::custom)).collect()
}

fn name_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    Ok((name.into(), file.into()))
}

/// The table `[http]`.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "HTTP")]
pub struct Http {
    /// The address to listen on: ADDRESS:PORT or unix:/PATH; may be repeated [default: 127.0.0.1:8080 with tokens or an
    /// authorization server, else unix:/run/netmon-mcp/mcp.sock].
    #[arg(long, global = true, value_name = "WHERE")]
    pub listen: Vec<Listen>,
    /// The port of the default address, without --listen.
    #[arg(long, global = true, value_name = "PORT", env = "MCP_PORT")]
    pub port: Option<u16>,
    /// The group that can use the Unix sockets [default: netmon].
    #[arg(long, global = true, value_name = "GROUP", hide_short_help = true)]
    pub unix_group: Option<String>,
    /// The mode of Unix sockets [default: 0660].
    #[arg(long, global = true, value_name = "OCTAL", hide_short_help = true)]
    pub unix_mode: Option<Mode>,
    /// Do not require tokens on Unix sockets: their mode and group control access.
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide_short_help = true)]
    pub trust_unix: Option<bool>,
    /// Serve TCP without credentials: everyone who reaches the port can use every tool.
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide_short_help = true)]
    pub insecure_no_auth: Option<bool>,
    /// The token file, one line per client: NAME TOKEN [tools=A,B] [hosts=A,B]. Changes take effect at once
    /// [default: the systemd credential `tokens`; changes take effect after a restart].
    #[arg(long, global = true, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// The certificate chain for TLS, in PEM.
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// The private key for TLS, in PEM.
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The OAuth authorization server. Its tokens are JWTs with the scope netmon:read.
    #[arg(long, global = true, value_name = "URL", hide_short_help = true)]
    pub oauth_issuer: Option<String>,
    /// The URL of this server as clients know it: the required audience of tokens.
    #[arg(long, global = true, value_name = "URL", hide_short_help = true)]
    pub oauth_audience: Option<String>,
    /// The URL of the authorization server's keys [default: from its metadata].
    #[arg(long, global = true, value_name = "URL", hide_short_help = true)]
    pub oauth_jwks: Option<String>,
    /// A host name of this server for clients, besides localhost; may be repeated.
    #[arg(long = "allowed-host", global = true, value_name = "HOST", hide_short_help = true)]
    pub allowed_hosts: Vec<String>,
    /// An origin of web pages that may use this server; may be repeated [default: none].
    #[arg(long = "allowed-origin", global = true, value_name = "ORIGIN", hide_short_help = true)]
    pub allowed_origins: Vec<String>,
    /// Maximum of open sessions (MCP 2025-11-25 and older); 0: serve without sessions [default: 512].
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub max_sessions: Option<usize>,
    /// Maximum of open connections [default: 2048].
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub max_connections: Option<usize>,
    /// Maximum of simultaneous tool calls per client [default: 32].
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub max_calls: Option<usize>,
    /// Maximum of requests per second and client; 0: no limit [default: 200].
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    pub rate: Option<u32>,
    /// Serve /metrics without a token.
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide_short_help = true)]
    pub open_metrics: Option<bool>,
}

impl Http {
    /// The file of tokens that was named, else the credential of that name that systemd passed.
    pub fn tokens_file(&self) -> Option<PathBuf> {
        let credential = || Some(PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join("tokens"));
        self.tokens.clone().or_else(|| credential().filter(|path| path.exists()))
    }

    /// Whether TCP may be served without credentials.
    pub fn is_open(&self) -> bool {
        self.insecure_no_auth.unwrap_or(false)
    }

    /// The folders of the files that are read again when they change; a rename brings another inode, so the
    /// files themselves would not do.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = [self.tokens_file(), self.tls_certificate.clone(), self.tls_key.clone()];
        files.iter().flatten().map(|path| folder_of(path).to_path_buf()).collect()
    }
}

/// `file` where `flags` say nothing.
macro_rules! merge {
    ($flags:ident, $file:ident; $($option:ident)*; $($list:ident)*) => {
        $(if $flags.$option.is_none() { $flags.$option = $file.$option; })*
        $(if $flags.$list.is_empty() { $flags.$list = $file.$list; })*
    };
}

impl Settings {
    /// The flags and the environment, completed from the file.
    pub fn over(mut self, file: Settings) -> Settings {
        let (flags, rest) = (&mut self.http, file.http);
        merge!(flags, rest;
            port tls_certificate tls_key oauth_issuer oauth_audience oauth_jwks unix_group unix_mode trust_unix insecure_no_auth tokens max_sessions max_connections max_calls rate open_metrics;
            listen allowed_hosts allowed_origins);
        let (flags, rest) = (&mut self.recording, file.recording);
        merge!(flags, rest; path interval_s max_bytes max_age_days; on_incident);
        merge!(self, file; socket interface transport ssh_config; hosts host_tokens);
        self
    }

    /// The privileges that the gateway needs, besides calling its daemon.
    pub fn role(&self) -> Role {
        let mut targets = self.hosts.iter().map(|named| &named.target);
        if targets.clone().any(|target| matches!(target, Target::Ssh(_))) {
            Role::SshGateway
        } else if self.http.oauth_issuer.is_some() || targets.any(|target| matches!(target, Target::Http(_))) {
            Role::ClientGateway
        } else {
            Role::Gateway
        }
    }

    /// The files and ports that the gateway uses while it serves; ssh's are added.
    pub fn reach(&self) -> Reach {
        let tokens = self.host_tokens.iter().map(|(_, path)| folder_of(path).to_path_buf());
        // Its journal is beside it. A directory that does not exist yet is unreachable once this process is confined.
        let recording = record::folder(&self.recording.path()).ok();
        let read = self.http.files().into_iter().chain(tokens).chain(recording).collect();
        Reach { read, ports: self.ports(), ..Reach::default() }
    }

    /// The TCP ports of outgoing connections: of the hosts, and of the authorization server. Its keys may be on another
    /// machine, but only on its own port or that of HTTPS.
    fn ports(&self) -> Vec<u16> {
        let http = &self.http;
        let server = [&http.oauth_issuer, &http.oauth_jwks].into_iter().flatten().map(String::as_str);
        let hosts = self.hosts.iter().filter_map(|named| match &named.target {
            Target::Http(url) => Some(url.as_str()),
            _ => None,
        });
        let of = |url: &str| reqwest::Url::parse(url).ok()?.port_or_known_default();
        let mut ports: Vec<u16> = server.chain(hosts).filter_map(of).collect();
        ports.extend(http.oauth_issuer.is_some().then_some(443));
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// How the hosts are reached.
    pub fn ways(&self) -> Ways {
        Ways { ssh_config: self.ssh_config.clone(), tokens: self.host_tokens.clone() }
    }

    /// Reads a file of settings.
    pub fn read(path: &Path) -> Result<Settings, Fault> {
        let text = fs::read_to_string(path).map_err(|e| Fault::of(path, None, &e))?;
        parse(&text).map_err(|(place, reason)| Fault { path: path.into(), place: Some(place), reason })
    }

    /// The file that was named, else the usual one if it is there and this user may read it.
    pub fn find(named: Option<&Path>) -> Result<Settings, Fault> {
        let Some(path) = named else {
            return match fs::read_to_string(FILE) {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                    Ok(Settings::default())
                }
                _ => Settings::read(Path::new(FILE)),
            };
        };
        Settings::read(path)
    }
}

/// A fault in a settings file, with its place.
#[derive(Debug)]
pub struct Fault {
    path: PathBuf,
    place: Option<Place>,
    reason: String,
}

/// A place in a settings file.
#[derive(Debug, PartialEq)]
pub struct Place {
    line: usize,
    key: String,
}

impl Fault {
    fn of(path: &Path, place: Option<Place>, reason: &dyn fmt::Display) -> Self {
        Fault { path: path.into(), place, reason: reason.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.display();
        match &self.place {
            None => write!(f, "{path}: {}", self.reason),
            Some(Place { line, key }) if key.is_empty() => write!(f, "{path}:{line}: {}", self.reason),
            Some(Place { line, key }) => write!(f, "{path}:{line}: {key}: {}", self.reason),
        }
    }
}

impl std::error::Error for Fault {}

/// The settings of a file, or the place and the reason of a fault.
pub fn parse(text: &str) -> Result<Settings, (Place, String)> {
    let line = |e: &toml::de::Error| {
        let start = e.span().map_or(0, |span| span.start);
        text.get(..start).map_or(1, |before| before.matches('\n').count() + 1)
    };
    let reason = |e: &toml::de::Error| untrusted::clean(e.message());
    let deserializer =
        toml::Deserializer::parse(text).map_err(|e| (Place { line: line(&e), key: String::new() }, reason(&e)))?;
    serde_path_to_error::deserialize(deserializer).map_err(|e| {
        let path = e.path().to_string();
        let key = if path == "." { String::new() } else { path };
        (Place { line: line(e.inner()), key }, reason(e.inner()))
    })
}

/// Lets the file say in a string what a flag says.
macro_rules! from_string {
    ($($type:ty)*) => {
        $(impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        })*
    };
}

from_string!(Transport Mode Listen);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_error_names_line_and_key() {
        for (text, line, key, reason) in [
            (
                "socket = \"/s\"\n\n[http]\nlisten = [\"127.0.0.1:8080\", \"nowhere\"]\n",
                4,
                "http.listen[1]",
                "ADDRESS:PORT",
            ),
            ("[http]\nport = 70000\n", 2, "http.port", "u16"),
            ("transport = \"carrier pigeon\"\n", 1, "transport", "stdio or http"),
            ("[http]\nunix_mode = \"rwx\"\n", 2, "http.unix_mode", "0660"),
            ("\n[http]\nlisten_on = []\n", 3, "http.listen_on", "unknown field"),
            ("[hosts]\na = \"ssh:x\"\n\"b c\" = \"ssh:x\"\n", 1, "hosts", "b c"),
            ("[http\n", 1, "", ""),
        ] {
            let (place, said) = parse(text).unwrap_err();
            assert_eq!(place, Place { line, key: key.into() }, "{text}: {said}");
            assert!(said.contains(reason), "{text}: {said}");
        }
    }

    #[test]
    fn settings_decide_sandbox_role_and_ports() {
        let with = |text: &str| {
            let settings = parse(text).unwrap();
            (settings.role(), settings.ports())
        };
        assert_eq!(with(""), (Role::Gateway, vec![]));
        assert_eq!(with("[hosts]\na = \"unix:/x\"\n"), (Role::Gateway, vec![]));
        assert_eq!(with("[hosts]\na = \"https://x:8443/mcp\"\n"), (Role::ClientGateway, vec![8443]));
        let oauth = "[http]\noauth_issuer = \"http://localhost:9\"\noauth_audience = \"https://n/mcp\"\n";
        assert_eq!(with(oauth), (Role::ClientGateway, vec![9, 443]));
        assert_eq!(with(&format!("{oauth}[hosts]\na = \"ssh:x\"\n")).0, Role::SshGateway);
    }

    #[test]
    fn flags_override_the_file() {
        let file = parse("socket = \"/file\"\ninterface = \"lo\"\n[http]\nport = 1\nlisten = [\"[::1]:1\"]\n").unwrap();
        let flags = Settings { socket: Some("/flag".into()), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!(both.socket, Some("/flag".into()));
        assert_eq!(both.interface.as_deref(), Some("lo"));
        assert_eq!(both.http.listen, ["[::1]:1".parse().unwrap()]);
    }
}
