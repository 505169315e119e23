//! Other hosts: their gateways, which are asked in MCP, over ssh, HTTPS or a Unix socket.
//!
//! Each has its own connection, made when it is first needed and again when it broke, so that one that is
//! down delays nobody but who asks for it.

use std::{
    fs,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
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

use super::Failure;
use crate::{answer, bpf::lock, limits, tools::Answer, untrusted};

mod transport;

/// The tool that lists them. It is the gateway's own, and only there if there are any.
pub const TOOL: &str = "hosts";

/// Where another host's gateway answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A destination of ssh's: `user@host`, `//user@host:port`, or an alias of its settings.
    Ssh(String),
    /// The URL of its `/mcp`.
    Http(String),
    /// A Unix socket that leads there.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{} is none of ssh:USER@HOST, https://HOST/mcp, unix:/PATH", untrusted::clean(text));
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Target::Unix(path.into()));
        }
        if let Some(rest) = text.strip_prefix("ssh:") {
            let destination = rest.trim_start_matches("//");
            // ssh would take it for an option, or a shell for more than a word.
            let good =
                !destination.is_empty() && !destination.starts_with('-') && !destination.contains(char::is_whitespace);
            return if good { Ok(Target::Ssh(rest.into())) } else { Err(wrong()) };
        }
        let url = text.parse::<axum::http::Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        url.map(|_| Target::Http(text.into())).ok_or_else(wrong)
    }
}

/// A host as the settings name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub target: Target,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) = text.split_once('=').ok_or("a host is NAME=TARGET, as in web1=ssh:root@web1")?;
        Named::new(name, target)
    }
}

impl Named {
    pub fn new(name: &str, target: &str) -> Result<Self, String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err(format!("{} is no name for a host: letters, digits, -, _ and . are", untrusted::clean(name)));
        }
        Ok(Named { name: name.into(), target: target.parse()? })
    }
}

/// How hosts are reached, beside where.
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
    /// Held while connecting: who asks meanwhile waits for that, and not for other hosts.
    session: tokio::sync::Mutex<Session>,
    /// What is known of it without waiting.
    state: Mutex<State>,
}

#[derive(Default)]
struct Session {
    running: Option<RunningService<RoleClient, ()>>,
    /// When it last could not be reached, and why.
    failed: Option<(Instant, String)>,
}

/// A host, as `hosts` shows it.
#[derive(Serialize, JsonSchema, Clone, Debug, Default)]
pub struct State {
    /// What to give as `host`.
    pub name: String,
    pub target: String,
    pub connected: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Of its netmon-mcp.
    pub version: Option<String>,
}

/// The answer of `hosts`.
#[derive(Serialize, JsonSchema)]
pub struct States {
    pub hosts: Vec<State>,
}

impl Host {
    pub fn new(named: Named, ways: &Ways) -> Self {
        let token = ways.tokens.iter().find(|(name, _)| *name == named.name).map(|(_, path)| path.clone());
        let target = match &named.target {
            Target::Ssh(destination) => format!("ssh:{destination}"),
            Target::Http(url) => url.clone(),
            Target::Unix(path) => format!("unix:{}", path.display()),
        };
        let state = State { name: named.name.clone(), target, ..State::default() };
        let ssh_config = ways.ssh_config.clone();
        Host { named, ssh_config, token, session: Default::default(), state: Mutex::new(state) }
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
            Ok(Ok(Ok(_))) => Err(self.absent("what answers is not netmon-mcp")),
            Ok(Ok(Err(ServiceError::McpError(e)))) => Err(Failure::Elsewhere(self.quoted(&e.message))),
            Ok(Ok(Err(e))) => Err(self.absent(&e.to_string())),
        }
    }

    fn read(&self, result: CallToolResult) -> Result<Answer, Failure> {
        let text = result.content.iter().find_map(|content| content.as_text()).map(|text| text.text.clone());
        match (result.structured_content, result.is_error) {
            // What the host calls clean need not be, if the host is not what it was.
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
        Failure::Absent(format!("{} cannot be asked: {reason}. `hosts` shows the state of all", self.named.name))
    }

    /// The connection, made anew if there is none. After a failure the next attempt waits a little, and who
    /// asks meanwhile hears of the failure at once.
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
                let late = || format!("it did not answer within {} s", limits::HOST_CONNECT.as_secs());
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
        let token = self.token.as_ref().map(|path| {
            let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            // A file of NAME TOKEN lines does as well: the last word of the first line.
            Ok::<_, String>(
                text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned(),
            )
        });
        let token = token.transpose()?;
        let failed = |e: rmcp::service::ClientInitializeError| e.to_string();
        match &self.named.target {
            Target::Ssh(destination) => {
                let (transport, complaints) = transport::ssh(destination, self.ssh_config.as_deref())?;
                let result = ().serve_with_lifecycle(transport, lifecycle).await;
                match result {
                    Ok(running) => Ok(running),
                    Err(e) => Err(complaints.last().await.unwrap_or_else(|| failed(e))),
                }
            }
            Target::Http(url) => ().serve_with_lifecycle(transport::http(url, token), lifecycle).await.map_err(failed),
            Target::Unix(path) => {
                ().serve_with_lifecycle(transport::unix(path, token), lifecycle).await.map_err(failed)
            }
        }
    }

    fn set(&self, connected: bool, reason: Option<String>, version: Option<String>) {
        let mut state = lock(&self.state);
        (state.connected, state.reason, state.version) = (connected, reason, version);
    }

    /// Its state, after an attempt to reach it that does not take long.
    async fn look(&self) -> State {
        let looked = tokio::time::timeout(limits::HOST_LOOK, self.peer()).await;
        let mut state = lock(&self.state).clone();
        if looked.is_err() {
            state.reason = Some(format!("no answer within {} s", limits::HOST_LOOK.as_secs()));
        }
        state
    }
}

/// Tells the other side when nobody waits for its answer any more.
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

/// Every host's state, for `hosts`.
pub async fn states(hosts: &[Arc<Host>]) -> Answer {
    let hosts = join_all(hosts.iter().map(|host| host.look())).await;
    let rows = hosts.iter().map(|host| {
        let state = if host.connected { "connected" } else { "unreachable" };
        let more = host.reason.clone().or_else(|| host.version.clone()).unwrap_or_default();
        [host.name.clone(), host.target.clone(), state.into(), more]
    });
    let text = answer::table(["host", "target", "state", "version, or why not"], rows);
    Answer { structured: serde_json::to_value(States { hosts }).unwrap_or_default(), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_and_a_target() {
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
