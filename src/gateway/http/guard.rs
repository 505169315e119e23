//! The checks of every HTTP request before it reaches MCP: host and origin, credentials, rate and size. Failed requests
//! are logged.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, header,
        uri::{Authority, Uri},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

use super::{
    Http, LOCAL_HOSTS,
    callers::{Caller, Holds, Sender},
    connection::{Busy, Connection},
    identity::{Grant, Identity},
    refusal::Refusal,
    sessions::{self, Claim},
};
use crate::{budget::Held, limits, logging::Throttle, untrusted};

/// Bounds the lines about all strangers together; each source of them has a bound of its own as well.
static STRANGERS: Throttle = Throttle::new(limits::REFUSALS_OF_STRANGERS_PER_SECOND);

/// A request that may go on.
struct Admitted {
    request: Request,
    /// Holds nothing: the path is open to everyone.
    claim: Option<Claimed>,
}

/// The resources of a known client's request until its answer is sent.
struct Claimed {
    grant: Grant,
    held: Kept,
}

/// Its places among the requests and in its session's table, its body's memory, its answer's memory.
type Kept = (Busy, Option<Claim>, Held<Identity>, Holds);

/// The middleware.
pub async fn guard(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let [host, origin] = [header::HOST, header::ORIGIN].map(|name| request.headers().get(name).cloned());
    let refused = |who: Option<Arc<Caller>>, refusal: Refusal| {
        http.metrics.refused(refusal.status);
        let skipped = match &who {
            Some(caller) => caller.refused.admit(),
            None => http.callers.stranger(connection.source()).refused.admit().and_then(|own| {
                STRANGERS.admit().map(|all| own + all) // so many sources do not fill the log either
            }),
        };
        if let Some(skipped) = skipped {
            let who = who.map(|caller| caller.identity.to_string());
            let [path, host, origin] = [Some(uri.path().as_bytes()), bytes(&host), bytes(&origin)].map(shown);
            let method = untrusted::short(method.as_str(), limits::METHOD_CHARS);
            let (status, reason) = (refusal.status.as_u16(), untrusted::clean(&refusal.reason));
            tracing::warn!(target: "netmon_mcp::audit", peer = %connection.peer, who, method, path, host, origin, status, reason, skipped, "refused");
        }
        refusal.into_response()
    };
    let Admitted { request, claim } = match admit(&http, &connection, request).await {
        Ok(admitted) => admitted,
        Err((who, refusal)) => return refused(who, refusal),
    };
    let Some(Claimed { grant, held }) = claim else { return next.run(request).await };
    let mut ended: Ended = Box::pin(grant.ended());
    tokio::select! {
        biased;
        () = &mut ended => refused(None, Refusal::unauthorized("the token was revoked or has expired", "")),
        response = next.run(request) => response.map(|body| Body::new(Answer { body, ended, _held: held })),
    }
}

fn bytes(value: &Option<HeaderValue>) -> Option<&[u8]> {
    value.as_ref().map(HeaderValue::as_bytes)
}

/// Untrusted text, for the log.
fn shown(value: Option<&[u8]>) -> Option<String> {
    value.map(|value| untrusted::short(&String::from_utf8_lossy(value), limits::LOGGED_CHARS))
}

type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer. The request is over when it is out, and it may be a stream; it breaks off when the
/// credentials of its client are withdrawn.
struct Answer<T> {
    body: Body,
    ended: Ended,
    _held: T,
}

impl<T: Unpin> HttpBody for Answer<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new("the token was revoked or has expired"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

type Refused = (Option<Arc<Caller>>, Refusal);

/// The request, ready for its handler, or the refusal with the caller if that is known. Before it is complete and
/// authenticated, a request waits only for its own body, and its connection gives way to others.
async fn admit(http: &Http, connection: &Arc<Connection>, request: Request) -> Result<Admitted, Refused> {
    let stranger = |refusal| (None, refusal);
    meant_for_us(http, request.headers(), request.uri()).map_err(stranger)?;
    if http.is_open(request.uri().path()) {
        return Ok(Admitted { request, claim: None });
    }
    let grant = http.authenticate(connection, request.headers()).map_err(stranger)?;
    let caller = http.callers.get(&grant.identity);
    connection.belongs_to(&grant.identity);
    match claim(http, connection, request, grant, &caller).await {
        Ok(admitted) => Ok(admitted),
        Err(refusal) => Err((Some(caller), refusal)),
    }
}

async fn claim(
    http: &Http,
    connection: &Arc<Connection>,
    request: Request,
    grant: Grant,
    caller: &Arc<Caller>,
) -> Result<Admitted, Refusal> {
    let later = |seconds, reason| Refusal::later(StatusCode::TOO_MANY_REQUESTS, seconds, reason);
    caller.request().map_err(|wait| {
        later(wait.as_secs(), format!("limit of {} requests per second reached (rate)", http.callers.rate))
    })?;
    let mut bytes = Held::nothing(&http.callers.bodies, grant.identity.clone());
    let (mut request, body) = whole(request, &mut bytes).await?;
    let room = caller.begin().map_err(|reason| later(1, reason))?;
    let place =
        http.connections.place().map_err(|reason| Refusal::later(StatusCode::SERVICE_UNAVAILABLE, 1, reason))?;
    let claim = http.sessions.check(&grant.identity, sessions::id(request.headers()), &body).await?;
    let busy = connection.begin(request.method() == Method::POST, room, place);
    let holds = Holds::default();
    let sender = Sender {
        caller: Arc::clone(caller),
        scope: Arc::clone(&grant.scope),
        peer: connection.peer.clone(),
        holds: Arc::clone(&holds),
    };
    request.extensions_mut().insert(sender);
    Ok(Admitted { request, claim: Some(Claimed { grant, held: (busy, claim, bytes, holds) }) })
}

/// Whether `Host` is a name of ours and `Origin`, if a browser sent one, is allowed: a web page elsewhere
/// must not reach a server on its reader's host, not even through a name that it has pointed here.
fn meant_for_us(http: &Http, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).map(|host| Authority::try_from(host.as_bytes()).ok());
    let host = host.unwrap_or_else(|| uri.authority().cloned());
    let known = host.as_ref().is_some_and(|host| {
        http.hosts
            .iter()
            .any(|known| known.eq_ignore_ascii_case(host.host()) || known.eq_ignore_ascii_case(host.as_str()))
    });
    if !known {
        let reason = "unknown Host header; the administrator can allow it (allowed_hosts)";
        return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
    }
    match headers.get(header::ORIGIN) {
        Some(origin)
            if !is_local(origin)
                && authority(origin) != host // our own page, under a name of ours
                && !http.origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes())) =>
        {
            let reason = "Origin not allowed; the administrator can allow it (allowed_origins)";
            Err(Refusal::new(StatusCode::FORBIDDEN, reason))
        }
        _ => Ok(()),
    }
}

/// Whether a page of this very host sent it, an inspector's say: it could connect anyway, and without leave
/// to read the answer (CORS) its browser shows it none.
fn is_local(origin: &HeaderValue) -> bool {
    authority(origin).is_some_and(|authority| LOCAL_HOSTS.contains(&authority.host()))
}

fn authority(origin: &HeaderValue) -> Option<Authority> {
    let (_, rest) = origin.to_str().ok()?.split_once("://")?;
    rest.parse().ok()
}

/// The request with all of its body, and the body, if that is small and comes soon. `held` counts what reading it
/// takes, until it is answered.
async fn whole(request: Request, held: &mut Held<Identity>) -> Result<(Request, Bytes), Refusal> {
    let (parts, mut body) = request.into_parts();
    let declared =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let too_large = || {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("request too long: at most {} bytes", limits::BODY_BYTES))
    };
    if declared.is_some_and(|length| length > limits::BODY_BYTES) {
        return Err(too_large());
    }
    let read = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "incomplete request"))?;
            let Some(chunk) = frame.data_ref() else { continue };
            if bytes.len() + chunk.len() > limits::BODY_BYTES {
                return Err(too_large());
            }
            bytes.extend_from_slice(chunk);
            held.resize(bytes.len() * limits::BODY_COST).map_err(|_| {
                let reason = "pending requests use all of their memory; try again";
                Refusal::later(StatusCode::TOO_MANY_REQUESTS, 1, reason)
            })?;
        }
        Ok(Bytes::from(bytes))
    };
    let bytes = tokio::time::timeout(limits::BODY_TIME, read).await.unwrap_or_else(|_| {
        let seconds = limits::BODY_TIME.as_secs();
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("the request was incomplete after {seconds} s")))
    })?;
    Ok((Request::from_parts(parts, Body::from(bytes.clone())), bytes))
}
