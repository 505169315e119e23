//! MCP over HTTP: `/mcp` for clients, `/metrics` for Prometheus, `/healthz` for who starts us.

use std::{io, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Gateway, metrics::Metrics, server::Server, settings};
use crate::{limits, memory, supervisor::Supervisor};

pub mod callers;
pub mod connection;
pub mod guard;
pub mod listen;
pub mod oauth;
pub mod sessions;
pub mod tls;
pub mod tokens;

use callers::{Callers, Sender};
use connection::Connections;
use guard::Refusal;
use listen::{Listen, Listener, Peer};
use oauth::{Denied, OAuth};
use sessions::Sessions;
use tls::Tls;
use tokens::Tokens;

/// What this host is called on itself.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const METRICS: &str = "/metrics";
const HEALTH: &str = "/healthz";

/// What the requests share.
pub struct Http {
    credentials: Credentials,
    tls: Option<Arc<Tls>>,
    trust_unix: bool,
    open_metrics: bool,
    /// Names of ours, for `Host`.
    hosts: Vec<String>,
    /// For `Origin`.
    origins: Vec<String>,
    rate: u32,
    callers: Callers,
    sessions: Sessions,
    connections: Arc<Connections>,
    gateway: Arc<Gateway>,
    metrics: Arc<Metrics>,
}

impl Http {
    /// Checks the settings and opens the sockets: what can fail, fails here.
    pub fn open(settings: &settings::Http, gateway: Arc<Gateway>) -> anyhow::Result<(Http, Vec<(Listen, Listener)>)> {
        let (credentials, tls) = check(settings)?;
        let listeners = Listener::open(settings)?;
        protected(&credentials, listeners.iter().map(|(place, _)| place))?; // systemd's sockets are not in the settings
        let mut hosts = settings.allowed_hosts.clone();
        hosts.extend(LOCAL_HOSTS.map(String::from));
        hosts.extend(listen::addresses(&listeners));
        let http = Http {
            credentials,
            tls,
            trust_unix: settings.trust_unix.unwrap_or(false),
            open_metrics: settings.open_metrics.unwrap_or(false),
            hosts,
            origins: settings.allowed_origins.clone(),
            rate: settings.rate.unwrap_or(limits::RATE),
            callers: Callers::new(settings.max_calls.unwrap_or(limits::CALLS_PER_CALLER)),
            sessions: Sessions::new(settings.max_sessions.unwrap_or(limits::SESSIONS)),
            connections: Arc::new(Connections::new(settings.max_connections.unwrap_or(limits::CONNECTIONS))),
            metrics: Arc::clone(&gateway.metrics),
            gateway,
        };
        Ok((http, listeners))
    }

    /// Whether a path is for everyone. What it shows says nothing about this host or its network.
    fn is_open(&self, path: &str) -> bool {
        path == HEALTH || path.starts_with(oauth::METADATA) || (path == METRICS && self.open_metrics)
    }

    /// The name of the client that sends a request.
    async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<String, Refusal> {
        let trusted = match peer {
            Peer::Unix { .. } => self.trust_unix || !self.credentials.are_wanted(),
            Peer::Tcp(_) => !self.credentials.are_wanted(), // loopback: `open` saw to that
        };
        match peer {
            Peer::Unix { uid } if trusted => Ok(format!("uid {uid}")),
            Peer::Tcp(address) if trusted => Ok(address.ip().to_string()),
            _ => self.credentials.name(headers).await,
        }
    }

    fn forget(&self) {
        if let Some(tokens) = &self.credentials.tokens {
            tokens.forget();
        }
        if let Some(tls) = &self.tls {
            tls.forget();
        }
    }
}

/// What clients show to be let in: a token of the file, or one of the authorization server.
pub struct Credentials {
    tokens: Option<Tokens>,
    oauth: Option<OAuth>,
}

impl Credentials {
    fn are_wanted(&self) -> bool {
        self.tokens.is_some() || self.oauth.is_some()
    }

    async fn name(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        let challenge = self.oauth.as_ref().map(OAuth::challenge).unwrap_or_default();
        let token = bearer(headers).ok_or_else(|| Refusal::unauthorized("a bearer token is needed", &challenge))?;
        if let Some(name) = self.tokens.as_ref().and_then(|tokens| tokens.name(token)) {
            return Ok(name);
        }
        let denied = match &self.oauth {
            Some(oauth) => match oauth.name(token).await {
                Ok(name) => return Ok(name),
                Err(denied) => denied,
            },
            None => Denied::Invalid("it is not known here".into()),
        };
        Err(match denied {
            Denied::Invalid(reason) => {
                let parameters = format!(", error=\"invalid_token\"{challenge}");
                Refusal::unauthorized(&format!("the token is not good: {reason}"), &parameters)
            }
            Denied::Scope => Refusal::forbidden(
                &format!("the token does not allow {}", oauth::SCOPE),
                &format!(", error=\"insufficient_scope\"{challenge}"),
            ),
        })
    }
}

/// What can be said of the settings without opening a socket: the files that they name, or what is wrong.
pub fn check(settings: &settings::Http) -> anyhow::Result<(Credentials, Option<Arc<Tls>>)> {
    let tokens = settings.tokens_file().map(|path| Tokens::load(&path)).transpose()?;
    let oauth = match (&settings.oauth_issuer, &settings.oauth_audience) {
        (None, None) => None,
        (Some(issuer), Some(audience)) => Some(OAuth::new(issuer, audience, settings.oauth_jwks.as_deref())),
        _ => {
            anyhow::bail!("http.oauth_issuer and http.oauth_audience go together: who makes tokens, and for which URL")
        }
    };
    let oauth = oauth.transpose().map_err(anyhow::Error::msg)?;
    let tls = match (&settings.tls_certificate, &settings.tls_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Arc::new(Tls::load(certificate, key)?)),
        _ => anyhow::bail!("http.tls_certificate and http.tls_key go together"),
    };
    let credentials = Credentials { tokens, oauth };
    protected(&credentials, &settings.listen)?;
    Ok((credentials, tls))
}

/// Refuses to let other hosts in without a question.
fn protected<'a>(credentials: &Credentials, places: impl IntoIterator<Item = &'a Listen>) -> anyhow::Result<()> {
    let Some(place) = listen::exposed(places).filter(|_| !credentials.are_wanted()) else { return Ok(()) };
    anyhow::bail!(
        "other hosts could reach {place}, and none would have to say who it is; name a file of tokens (tokens, --tokens), \
         or listen on 127.0.0.1 or a Unix socket and come in through `ssh -L`"
    )
}

/// The token of `Authorization: Bearer …`. Two such headers are none.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = one.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Serves until SIGTERM or SIGINT. Windows that are open then end, and their clients get an answer.
pub async fn serve(settings: &settings::Http, gateway: Gateway) -> anyhow::Result<()> {
    raise_file_limit();
    let supervisor = Supervisor::from_environment(); // a connection, so before the sandbox closes
    let (gateway, ended) = (Arc::new(gateway), CancellationToken::new());
    let (http, listeners) = Http::open(settings, Arc::clone(&gateway))?;
    gateway.settle().map_err(|e| anyhow::anyhow!("{e}"))?;
    let windows = ended.clone();
    let serving = Serving::start(http, listeners, move || Server::new(Arc::clone(&gateway), windows.clone()));
    supervisor.ready();
    until_told_to_stop(&serving.http, &supervisor).await?;
    supervisor.stopping();
    serving.end(&ended).await;
    Ok(())
}

/// Clients that are being served.
pub struct Serving {
    http: Arc<Http>,
    /// Cancelled to let nobody new in.
    ending: CancellationToken,
    /// Cancelled to end the streams that only listen.
    streams: CancellationToken,
    _accepting: tokio::task::JoinSet<()>,
}

impl Serving {
    /// Serves what `server` makes for each client.
    pub fn start<S: ServerHandler>(
        http: Http,
        listeners: Vec<(Listen, Listener)>,
        server: impl Fn() -> S + Send + Sync + 'static,
    ) -> Serving {
        let (http, ending, streams) = (Arc::new(http), CancellationToken::new(), CancellationToken::new());
        let router = router(&http, server, &streams);
        let mut accepting = tokio::task::JoinSet::new();
        for (place, listener) in listeners {
            let tls = http.tls.clone().filter(|_| matches!(listener, Listener::Tcp(_)));
            let scheme = if tls.is_some() { "https" } else { "http" };
            tracing::info!("serving {}", place.to_string().replacen("http", scheme, 1));
            if tls.is_none() && listen::exposed([&place]).is_some() {
                tracing::warn!(
                    "tokens for {place} travel in the clear: set tls_certificate and tls_key, or put a proxy before it"
                );
            }
            accepting.spawn(Arc::clone(&http.connections).serve(listener, tls, router.clone(), ending.clone()));
        }
        Serving { http, ending, streams, _accepting: accepting }
    }

    /// Ends, in this order: nobody new comes in, windows (which wait for `ended`) end and are answered, then the
    /// streams that only listen.
    pub async fn end(self, ended: &CancellationToken) {
        self.ending.cancel();
        ended.cancel();
        let (connections, deadline) = (&self.http.connections, Instant::now() + limits::FAREWELL);
        while connections.owed() > 0 && Instant::now() < deadline {
            tokio::time::sleep(limits::FAREWELL_LOOK).await;
        }
        self.streams.cancel();
        while connections.count() > 0 && Instant::now() < deadline {
            tokio::time::sleep(limits::FAREWELL_LOOK).await;
        }
    }
}

async fn until_told_to_stop(http: &Http, supervisor: &Supervisor) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let every = supervisor.interval().unwrap_or(limits::MEMORY_EVERY).min(limits::MEMORY_EVERY);
    let mut tick = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                supervisor.alive();
                memory::give_back(); // what many clients took, the next few do not need
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => http.forget(),
        }
    }
}

fn router<S: ServerHandler>(
    http: &Arc<Http>,
    server: impl Fn() -> S + Send + Sync + 'static,
    streams: &CancellationToken,
) -> Router {
    // Host and Origin are the guard's, for every path alike.
    let config = StreamableHttpServerConfig::default()
        .disable_allowed_hosts()
        .with_json_response(true)
        .with_legacy_session_mode(http.sessions.enabled())
        .with_max_request_body_bytes(limits::BODY_BYTES)
        .with_cancellation_token(streams.clone());
    let mcp = StreamableHttpService::new(move || Ok(server()), Arc::clone(&http.sessions.manager), config);
    let mcp =
        Router::new().route_service("/mcp", mcp).layer(middleware::from_fn_with_state(Arc::clone(http), own_sessions));
    Router::new()
        .merge(mcp)
        .route(HEALTH, get(async || "ok\n"))
        .route(METRICS, get(metrics))
        .route(oauth::METADATA, get(metadata))
        .route(&format!("{}/mcp", oauth::METADATA), get(metadata))
        .layer(middleware::from_fn_with_state(Arc::clone(http), guard::guard))
        .with_state(Arc::clone(http))
}

/// Notes whose a session is that MCP has just begun.
async fn own_sessions(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let sender = request.extensions().get::<Sender>().cloned();
    let response = next.run(request).await;
    if let (Some(sender), Some(id)) = (sender, sessions::id(response.headers())) {
        http.sessions.note(&sender.caller.name, id).await;
    }
    response
}

/// Where to get a token, if anywhere.
async fn metadata(State(http): State<Arc<Http>>) -> Response {
    match &http.credentials.oauth {
        Some(oauth) => ([(header::CONTENT_TYPE, "application/json")], oauth.metadata().to_string()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(http): State<Arc<Http>>) -> Response {
    let (connections, sessions) = (http.connections.count(), http.sessions.count().await);
    let text = http.metrics.render(&http.gateway, connections, sessions).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// A connection is a descriptor, and the usual soft limit of 1,024 is for who uses select(2).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_in_one_bearer_header_or_nowhere() {
        let headers = |values: &[&str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            map
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["bearer  abc"])), Some("abc"));
        for values in [&[][..], &["abc"], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(values)), None, "{values:?}");
        }
    }
}
