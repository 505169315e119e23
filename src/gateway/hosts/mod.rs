//! Other hosts: their gateways, over MCP with ssh, HTTPS or a Unix socket.
//!
//! Each host has its own connection, which opens on first use and reopens after a failure. A host that is down slows
//! only calls to it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rmcp::{
    RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientRequest, JsonObject,
        ProtocolVersion, RequestId, ServerResult,
    },
    service::{ClientLifecycleMode, ClientServiceExt, Peer, PeerRequestOptions, RunningService, ServiceError},
};
use schemars::JsonSchema;
use serde::Serialize;

use arrivals::Arrivals;
use client::Client;

use super::{
    Failure,
    http::{identity::Identity, watched},
    memory,
};
use crate::{budget::Budget, limits, sync::lock, tools::Answer, untrusted};

mod arrivals;
mod client;
pub mod look;
mod named;
mod ssh;
mod transport;

use named::without_password;
pub use named::{Named, NamedParser, Target, check_name};
pub use ssh::reach;

/// The next step if a host is unreachable: a client calls the tool, a person runs the command.
const SHOWS_STATES: &str = "`hosts` (in a shell: `netmon-mcp call hosts`) shows the state of all hosts";

/// The connection settings of hosts.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// ssh's settings (`ssh -F`).
    pub ssh_config: Option<PathBuf>,
    /// The files of the tokens that other gateways want, by the host's name.
    pub tokens: Vec<(String, PathBuf)>,
}

/// Another host.
pub struct Host {
    pub named: Named,
    ssh_config: Option<PathBuf>,
    token: Option<PathBuf>,
    arrivals: Arrivals,
    /// Made at the start: to make one reads the host's certificates, which the sandbox closes off.
    http: Option<reqwest::Client>,
    /// Held while connecting: other calls to this host wait, calls to other hosts do not.
    session: tokio::sync::Mutex<Session>,
    /// Its state, readable without waiting.
    state: Mutex<State>,
}

#[derive(Default)]
struct Session {
    running: Option<RunningService<RoleClient, ()>>,
    /// When it last could not be reached, and why.
    failed: Option<(Instant, String)>,
}

/// A host, as [`look`] shows it.
#[derive(Serialize, JsonSchema, Clone, Debug, Default)]
pub struct State {
    /// The value of `host`.
    pub name: String,
    pub target: String,
    pub connected: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Of its netmon-mcp.
    pub version: Option<String>,
}

impl Host {
    pub fn new(named: Named, ways: &Ways) -> Self {
        let token = ways.tokens.iter().find(|(name, _)| *name == named.name).map(|(_, path)| path.clone());
        let target = match &named.target {
            Target::Ssh(destination) => format!("ssh:{destination}"),
            Target::Http(url) => without_password(url),
            Target::Unix(path) => format!("unix:{}", path.display()),
        };
        let state = State { name: named.name.clone(), target, ..State::default() };
        let ssh_config = ways.ssh_config.clone();
        let http = transport::client(&named.target);
        let arrivals = Arrivals::of(&named.name, memory::budget());
        Host { named, ssh_config, token, arrivals, http, session: Default::default(), state: Mutex::new(state) }
    }

    /// Counts what comes from it against this budget.
    pub fn counted(self, budget: &Arc<Budget<Identity>>) -> Self {
        Host { arrivals: Arrivals::of(&self.named.name, Arc::clone(budget)), ..self }
    }

    /// Has a tool called there. Dropping the future cancels the call.
    pub async fn call(&self, tool: &'static str, arguments: JsonObject, duration: Duration) -> Result<Answer, Failure> {
        let peer = self.peer().await.map_err(|reason| self.absent(&reason))?;
        let params = CallToolRequestParams::new(tool).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let limit = duration + limits::ANSWER_GRACE * 2; // the other gateway has a grace of its own
        let mut handle = peer
            .send_cancellable_request(request, PeerRequestOptions::no_options())
            .await
            .map_err(|e| self.absent(&e.to_string()))?;
        let mut guard = CancelOnDrop { call: Some((peer, handle.id.clone())) };
        let result = tokio::time::timeout(limit, &mut handle.rx).await;
        guard.call = None;
        match result {
            Err(_) => Err(self.absent(&format!("no answer within {} s", limit.as_secs()))),
            Ok(Err(_)) => Err(self.absent("the connection broke")),
            Ok(Ok(Ok(ServerResult::CallToolResult(result)))) => self.read(result),
            Ok(Ok(Ok(_))) => Err(self.absent("the answer is not from netmon-mcp")),
            Ok(Ok(Err(ServiceError::McpError(e)))) => Err(Failure::Elsewhere(self.quoted(&e.message))),
            Ok(Ok(Err(e))) => Err(self.absent(&e.to_string())),
        }
    }

    fn read(&self, result: CallToolResult) -> Result<Answer, Failure> {
        let text = result.content.iter().find_map(|content| content.as_text()).map(|text| text.text.clone());
        match (result.structured_content, result.is_error) {
            // The texts of a host are cleaned again: it may be compromised.
            (Some(structured), None | Some(false)) => Ok(Answer {
                structured: untrusted::value(structured),
                text: untrusted::lines(&text.unwrap_or_default()),
            }),
            _ => Err(Failure::Elsewhere(self.quoted(&text.unwrap_or_default()))),
        }
    }

    fn quoted(&self, text: &str) -> String {
        format!("{} says: {}", self.named.name, untrusted::clean(text))
    }

    fn absent(&self, reason: &str) -> Failure {
        let reason = untrusted::clean(reason);
        Failure::Absent(format!("host {} is unreachable: {reason}. {SHOWS_STATES}", self.named.name))
    }

    /// The connection; opens one if there is none. After a failure the next attempt waits a little, and calls in the
    /// meantime fail at once.
    async fn peer(&self) -> Result<Peer<RoleClient>, String> {
        let mut session = self.session.lock().await;
        if let Some(running) = session.running.take_if(|running| running.is_closed() || running.is_transport_closed()) {
            drop(running);
            self.set(false, Some("the connection broke".into()), None);
        }
        if let Some(running) = &session.running {
            return Ok(running.peer().clone());
        }
        if let Some((when, reason)) = &session.failed
            && when.elapsed() < limits::HOST_RETRY
        {
            return Err(reason.clone());
        }
        match tokio::time::timeout(limits::HOST_CONNECT, self.connect()).await {
            Ok(Ok(running)) => {
                let version = running.peer_info().and_then(|info| Some(info.server_info.clone()?.version));
                self.set(true, None, version.map(|version| untrusted::clean(&version)));
                let peer = running.peer().clone();
                *session = Session { running: Some(running), failed: None };
                Ok(peer)
            }
            failed => {
                let late = || format!("no answer within {} s", limits::HOST_CONNECT.as_secs());
                let reason =
                    untrusted::clean(&failed.map_or_else(|_| late(), |result| result.err().unwrap_or_default()));
                session.failed = Some((Instant::now(), reason.clone()));
                self.set(false, Some(reason.clone()), None);
                Err(reason)
            }
        }
    }

    async fn connect(&self) -> Result<RunningService<RoleClient, ()>, String> {
        let lifecycle = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        let token = self.token.as_deref().map(read_token).transpose()?;
        let failed = |e: rmcp::service::ClientInitializeError| e.to_string();
        let client = |http: reqwest::Client| Client { http, arrivals: self.arrivals.clone() };
        match &self.named.target {
            Target::Ssh(destination) => {
                let (transport, complaints) =
                    transport::over_ssh(destination, self.ssh_config.as_deref(), self.arrivals.clone())?;
                let result = ().serve_with_lifecycle(transport, lifecycle).await;
                match result {
                    Ok(running) => Ok(running),
                    Err(e) => Err(complaints.last().await.unwrap_or_else(|| failed(e))),
                }
            }
            Target::Http(_) | Target::Unix(_) => {
                let url = if let Target::Http(url) = &self.named.target { url } else { "http://localhost/mcp" };
                let missing = "the HTTP client failed to start; see the log";
                let client = client(self.http.clone().ok_or(missing)?);
                ().serve_with_lifecycle(transport::http(client, url, token), lifecycle).await.map_err(failed)
            }
        }
    }

    fn set(&self, connected: bool, reason: Option<String>, version: Option<String>) {
        let mut state = lock(&self.state);
        (state.connected, state.reason, state.version) = (connected, reason, version);
    }

    /// Its state, after an attempt to connect: takes at most [`limits::HOST_CONNECT`], if nothing else is connecting.
    async fn look(&self) -> State {
        let _ = self.peer().await; // the state has the reason
        lock(&self.state).clone()
    }

    /// Whether something waits for the connection.
    fn is_connecting(&self) -> bool {
        self.session.try_lock().is_err()
    }
}

/// The token of a file that holds it alone, or in a first line NAME TOKEN.
fn read_token(path: &Path) -> Result<String, String> {
    let (text, mode) = watched::read(path, limits::TOKEN_FILE_BYTES).map_err(|e| e.to_string())?;
    watched::keeps_a_secret(path, mode).map_err(|e| e.to_string())?;
    let words: Vec<&str> = text.lines().next().unwrap_or_default().split_whitespace().collect();
    match words[..] {
        [token] | [_, token, ..] if !token.starts_with('#') => Ok(token.into()),
        _ => Err(format!("{}: invalid first line: expected TOKEN or NAME TOKEN", path.display())),
    }
}

/// Cancels the call on the other side when its caller is gone.
struct CancelOnDrop {
    call: Option<(Peer<RoleClient>, RequestId)>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some((peer, id)) = self.call.take() else { return };
        tokio::spawn(async move {
            let cancelled = CancelledNotificationParam::new(Some(id), None);
            let _ = peer.notify_cancelled(cancelled).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_file_holds_a_token_or_a_named_line() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = |text: &str, mode| {
            std::fs::write(file.path(), text).unwrap();
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            read_token(file.path())
        };
        assert_eq!(token("secret\n", 0o600).as_deref(), Ok("secret"));
        assert_eq!(token("web1 secret tools=status\nother x\n", 0o640).as_deref(), Ok("secret"));
        assert!(token("", 0o600).is_err());
        let reason = token("secret\n", 0o644).unwrap_err();
        assert!(reason.contains("chmod o=") && !reason.contains("secret\n"), "{reason}");
    }

    #[test]
    fn host_option_is_name_and_target() {
        let target = |text: &str| text.parse::<Named>().unwrap().target;
        assert_eq!(target("a=ssh:root@web1"), Target::Ssh("root@web1".into()));
        assert_eq!(target("a=ssh://root@web1:2222"), Target::Ssh("//root@web1:2222".into()));
        assert_eq!(target("a=https://web1/mcp"), Target::Http("https://web1/mcp".into()));
        assert_eq!(target("a=unix:/run/x.sock"), Target::Unix("/run/x.sock".into()));
        for wrong in
            ["web1", "=ssh:x", "a b=ssh:x", "a=ssh:", "a=ssh:-oProxyCommand=x", "a=ssh:x y", "a=unix:x", "a=ftp://x"]
        {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }
}
