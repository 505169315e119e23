//! MCP over HTTP: `/mcp` for clients, `/` for people, `/metrics` for Prometheus, `/healthz` for who starts us.

use std::{io, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
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

use super::{
    Gateway,
    daemon::Daemon,
    live::Live,
    metrics::{Metrics, Open},
    server::Server,
    settings,
};
use crate::{
    limits, memory,
    sandbox::{Reach, Role},
    supervisor::Supervisor,
};

pub mod callers;
pub mod connection;
pub mod credentials;
mod gather;
pub mod guard;
pub mod identity;
pub mod listen;
pub mod oauth;
pub mod page;
pub mod place;
pub mod refusal;
pub mod sessions;
pub mod tls;
pub mod tokens;
pub mod viewers;
pub mod watched;
pub mod workers;

use callers::{Callers, Sender};
use connection::{Connection, Connections};
use credentials::{Credentials, protected};
pub use credentials::{check, check_syntax};
use identity::{Grant, Identity};
use listen::{Listener, Peer};
use place::Listen;
use refusal::Refusal;
use sessions::Sessions;
use tls::Tls;
use tokens::Tokens;
use viewers::Viewers;
use workers::Workers;

/// What this host is called on itself.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const METRICS: &str = "/metrics";
const HEALTH: &str = "/healthz";

/// The state that requests share.
pub struct Http {
    credentials: Arc<Credentials>,
    tls: Option<Arc<Tls>>,
    trust_unix: bool,
    open_metrics: bool,
    /// Names of ours, for `Host`.
    hosts: Vec<String>,
    /// For `Origin`.
    origins: Vec<String>,
    callers: Callers,
    sessions: Sessions,
    connections: Arc<Connections>,
    viewers: Arc<Viewers>,
    gateway: Arc<Gateway>,
    metrics: Arc<Metrics>,
}

impl Http {
    /// Checks the settings and opens the sockets: what can fail, fails here.
    pub fn open(settings: &settings::Http, gateway: Arc<Gateway>) -> anyhow::Result<(Http, Vec<(Listen, Listener)>)> {
        let (credentials, tls) = check(settings)?;
        if settings.tokens.is_none() && credentials.tokens.is_some() {
            tracing::info!(
                "tokens come from systemd (LoadCredential=): restart the service after you change their file"
            );
        }
        let places = listen::places(settings, credentials.are_wanted());
        let listeners = Listener::open(&places, settings)?;
        let open = || listeners.iter().map(|(place, _)| place);
        protected(&credentials, settings, open())?; // systemd's sockets are not in the settings
        if let Some(place) = place::tcp(open()).filter(|_| !credentials.are_wanted()) {
            tracing::warn!(
                "--insecure-no-auth: everyone who reaches {place} can use every tool, including every user and \
                    program of this host"
            );
        }
        Ok((Http::new(settings, credentials, tls, listen::addresses(&listeners), gateway), listeners))
    }

    fn new(
        settings: &settings::Http,
        credentials: Credentials,
        tls: Option<Arc<Tls>>,
        addresses: Vec<String>,
        gateway: Arc<Gateway>,
    ) -> Http {
        let mut hosts = settings.allowed_hosts.clone();
        hosts.extend(LOCAL_HOSTS.map(String::from));
        hosts.extend(addresses);
        let connections = Connections::new(settings.max_connections.unwrap_or(limits::CONNECTIONS));
        Http {
            credentials: Arc::new(credentials),
            tls,
            trust_unix: settings.trust_unix.unwrap_or(false),
            open_metrics: settings.open_metrics.unwrap_or(false),
            hosts,
            origins: settings.allowed_origins.clone(),
            callers: Callers::new(
                settings.max_calls.unwrap_or(limits::CALLS_PER_CALLER),
                connections.share(),
                settings.rate.unwrap_or(limits::RATE),
            ),
            sessions: Sessions::new(settings.max_sessions.unwrap_or(limits::SESSIONS)),
            connections: Arc::new(connections),
            viewers: Arc::new(Viewers::new(Live::new(Arc::clone(&gateway), limits::LIVE_EVERY))),
            metrics: Arc::clone(&gateway.metrics),
            gateway,
        }
    }

    /// Whether a path is for everyone. What it shows says nothing about this host or its network.
    fn is_open(&self, path: &str) -> bool {
        path == HEALTH
            || page::is_shell(path)
            || path.starts_with(oauth::METADATA)
            || (path == METRICS && self.open_metrics)
    }

    /// Who sends a request, and what it may use. Nothing here waits.
    fn authenticate(&self, connection: &Connection, headers: &HeaderMap) -> Result<Grant, Refusal> {
        let wanted = self.credentials.are_wanted();
        match connection.peer {
            Peer::Unix { uid } if self.trust_unix || !wanted => Ok(Grant::full(Identity::Uid(uid))),
            // `open` saw to it that somebody wants it so.
            Peer::Tcp(_) if !wanted => Ok(Grant::full(Identity::Anonymous(connection.source()))),
            _ => {
                let stranger = self.callers.stranger(connection.source());
                self.credentials.grant(headers, &stranger).inspect_err(|_| stranger.failed())
            }
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

    /// Looks at the token file again and again, so that what a withdrawn token has begun ends soon. Never ends.
    async fn watch_tokens(&self) {
        let Some(tokens) = &self.credentials.tokens else { return };
        let mut tick = tokio::time::interval(limits::TOKENS_EVERY);
        loop {
            tick.tick().await;
            tokens.refresh();
            let may_stay = |identity: &Identity| match identity {
                Identity::Token(name) => tokens.lists(name),
                _ => true,
            };
            self.sessions.close_unless(may_stay).await;
        }
    }
}

/// Serves until SIGTERM or SIGINT. Windows that are open then end, and their clients get an answer.
pub async fn serve(settings: &settings::Http, gateway: Gateway) -> anyhow::Result<()> {
    raise_file_limit();
    memory::share_arenas(limits::WORKERS);
    let supervisor = Supervisor::from_environment(); // a connection, so before the sandbox closes
    let (gateway, ended) = (Arc::new(gateway), CancellationToken::new());
    let (http, listeners) = Http::open(settings, Arc::clone(&gateway))?;
    gateway.confine();
    if let Some(oauth) = &http.credentials.oauth {
        oauth.fetch_keys().await; // nothing is served yet, so nothing waits
    }
    let windows = ended.clone();
    // Landlock is a thread's own until Linux 7.0: the workers inherit it.
    let serving = Serving::start(http, listeners, move || Server::new(Arc::clone(&gateway), windows.clone()))?;
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
    _watching: tokio::task::JoinSet<()>,
    _workers: Workers,
}

impl Serving {
    /// Serves what `server` makes for each client, on threads of its own.
    pub fn start<S: ServerHandler>(
        http: Http,
        listeners: Vec<(Listen, Listener)>,
        server: impl Fn() -> S + Send + Sync + 'static,
    ) -> io::Result<Serving> {
        let (http, ending, streams) = (Arc::new(http), CancellationToken::new(), CancellationToken::new());
        let (router, workers) = (router(&http, server, &streams), Workers::start()?);
        for (place, listener) in listeners {
            let tls = http.tls.clone().filter(|_| matches!(listener, Listener::Tcp(_)));
            let scheme = if tls.is_some() { "https" } else { "http" };
            tracing::info!("serving {}", place.to_string().replacen("http", scheme, 1));
            if tls.is_none() && place::exposed([&place]).is_some() {
                tracing::warn!(
                    "tokens for {place} are sent unencrypted: set tls_certificate and tls_key, or put a proxy in front"
                );
            }
            for worker in workers.handles() {
                let _within = worker.enter();
                let accepting = listener.accepting()?;
                let connections = Arc::clone(&http.connections);
                worker.spawn(connections.serve(accepting, tls.clone(), router.clone(), ending.clone()));
            }
        }
        let mut watching = tokio::task::JoinSet::new();
        let (tokens, keys) = (Arc::clone(&http), Arc::clone(&http.credentials));
        watching.spawn(async move { tokens.watch_tokens().await });
        watching.spawn(async move {
            if let Some(oauth) = &keys.oauth {
                oauth.keep_keys().await;
            }
        });
        Ok(Serving { http, ending, streams, _watching: watching, _workers: workers })
    }

    /// The order of the shutdown: stop accepting, end windows (which wait for `ended`) and answer them, then close the
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
        Router::new().route_service("/mcp", mcp).layer(middleware::from_fn_with_state(Arc::clone(http), in_sessions));
    Router::new()
        .merge(mcp)
        .merge(page::routes(http, streams))
        .route(HEALTH, get(async || "ok\n"))
        .route(METRICS, get(metrics))
        .route(oauth::METADATA, get(metadata))
        .route(&format!("{}/mcp", oauth::METADATA), get(metadata))
        .layer(middleware::from_fn_with_state(Arc::clone(http), guard::guard))
        .with_state(Arc::clone(http))
}

/// Notes the owner of a new session, and sends a short answer in one piece.
async fn in_sessions(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let sender = request.extensions().get::<Sender>().cloned();
    let is_call = request.method() == Method::POST;
    let response = next.run(request).await;
    if let (Some(sender), Some(id)) = (sender, sessions::id(response.headers())) {
        http.sessions.note(&sender.caller.identity, id);
    }
    if is_call { gather::gathered(response).await } else { response }
}

/// The address of the metadata, if there is one.
async fn metadata(State(http): State<Arc<Http>>) -> Response {
    match &http.credentials.oauth {
        Some(oauth) => ([(header::CONTENT_TYPE, "application/json")], oauth.metadata().to_string()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(http): State<Arc<Http>>, request: Request) -> Response {
    let allowed = |sender: &Sender| sender.scope.allows_tool("status") && sender.scope.allows_host(None);
    if request.extensions().get::<Sender>().is_some_and(|sender| !allowed(sender)) {
        return (StatusCode::FORBIDDEN, "the token does not allow the tool status\n").into_response();
    }
    let (connections, sessions, viewers) =
        (http.connections.count(), http.sessions.count().await, http.viewers.count());
    let text = http.metrics.render(&http.gateway, Open { connections, sessions, viewers }).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// Everything that a client without a token is answered that sends these bytes and ends its side: what the fuzzer looks at.
pub fn answer_to(bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    runtime.block_on(async {
        let daemon = Daemon::new("/nonexistent/netmond.sock".into(), Role::Gateway, Reach::default());
        let gateway = Arc::new(Gateway::new(daemon, None, Vec::new()));
        let credentials = Credentials { tokens: Some(Tokens::nobody()), oauth: None };
        let http = Arc::new(Http::new(&settings::Http::default(), credentials, None, Vec::new(), Arc::clone(&gateway)));
        let ending = CancellationToken::new();
        let router = router(&http, move || Server::new(Arc::clone(&gateway), CancellationToken::new()), &ending);
        let (ours, theirs) = tokio::io::duplex(limits::BODY_BYTES);
        let (mut reading, mut writing) = tokio::io::split(theirs);
        let serving = http.connections.converse(ours, Peer::Unix { uid: u32::MAX }, router, ending);
        let talking = async {
            let mut answer = Vec::new();
            let sent = async {
                let _ = writing.write_all(bytes).await; // a server that refuses may read no more
                let _ = writing.shutdown().await;
            };
            let _ = tokio::join!(sent, reading.read_to_end(&mut answer));
            answer
        };
        tokio::join!(serving, talking).1
    })
}

/// A connection is a descriptor, and the usual soft limit of 1,024 is for programs with select(2).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
