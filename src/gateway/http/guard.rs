//! What every HTTP request passes before it reaches MCP: is it meant for us, who sends it, may they, is
//! it small enough. And the line in the log if it does not pass.

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
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};

use super::{
    Http, LOCAL_HOSTS,
    callers::Sender,
    connection::{Busy, Connection},
    listen::Peer,
    sessions,
};
use crate::{limits, logging::Throttle, untrusted};

/// Strangers cause these lines, so they are bounded.
static REFUSALS: Throttle = Throttle::new(limits::LOG_LINES_PER_SECOND);

/// A request that goes no further.
pub struct Refusal {
    status: StatusCode,
    reason: String,
    header: Option<(header::HeaderName, String)>,
}

impl Refusal {
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Refusal { status, reason: reason.into(), header: None }
    }

    /// No token, or a wrong one. `parameters` extend the challenge (RFC 6750, RFC 9728).
    pub fn unauthorized(reason: &str, parameters: &str) -> Self {
        Refusal::challenge(StatusCode::UNAUTHORIZED, reason, parameters)
    }

    /// A token that does not allow it.
    pub fn forbidden(reason: &str, parameters: &str) -> Self {
        Refusal::challenge(StatusCode::FORBIDDEN, reason, parameters)
    }

    fn challenge(status: StatusCode, reason: &str, parameters: &str) -> Self {
        let header = Some((header::WWW_AUTHENTICATE, format!("Bearer realm=\"netmon\"{parameters}")));
        Refusal { header, ..Refusal::new(status, reason) }
    }

    /// Come back later.
    pub fn later(status: StatusCode, seconds: u64, reason: impl Into<String>) -> Self {
        Refusal { header: Some((header::RETRY_AFTER, seconds.max(1).to_string())), ..Refusal::new(status, reason) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.reason + "\n").into_response();
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::try_from(value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// The middleware.
pub async fn guard(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let (peer, method, uri) = (connection.peer.clone(), request.method().clone(), request.uri().clone());
    let busy = connection.begin(method == Method::POST);
    let [host, origin] = [header::HOST, header::ORIGIN].map(|name| request.headers().get(name).cloned());
    let response = match admit(&http, &peer, request).await {
        Ok(request) => next.run(request).await,
        Err((who, refusal)) => {
            let status = refusal.status.as_u16();
            let (path, host, origin) = (untrusted::clean(uri.path()), host.map(shown), origin.map(shown));
            if let Some(skipped) = REFUSALS.admit() {
                tracing::warn!(target: "netmon_mcp::audit", %peer, who, %method, path, host, origin, status, reason = refusal.reason, skipped, "refused");
            }
            http.metrics.refused(refusal.status);
            refusal.into_response()
        }
    };
    response.map(|body| Body::new(Answer { body, _busy: busy }))
}

/// The body of an answer. The request is over when it is out, and it may be a stream.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn shown(value: HeaderValue) -> String {
    untrusted::clean(&String::from_utf8_lossy(value.as_bytes()))
}

/// The request, ready for its handler, or why not, and whose it was if that is known.
async fn admit(http: &Http, peer: &Peer, mut request: Request) -> Result<Request, (Option<String>, Refusal)> {
    meant_for_us(http, request.headers(), request.uri()).map_err(|refusal| (None, refusal))?;
    let path = request.uri().path();
    if http.is_open(path) {
        return Ok(request);
    }
    let name = http.authenticate(peer, request.headers()).await.map_err(|refusal| (None, refusal))?;
    let caller = http.callers.get(&name);
    caller
        .request(http.rate)
        .map_err(|wait| {
            Refusal::later(
                StatusCode::TOO_MANY_REQUESTS,
                wait.as_secs(),
                format!("more than {} requests a second", http.rate),
            )
        })
        .map_err(|refusal| (Some(name.clone()), refusal))?;
    let sender = Sender { caller, peer: peer.clone() };
    request.extensions_mut().insert(sender);
    let (request, body) = whole(request).await.map_err(|refusal| (Some(name.clone()), refusal))?;
    let session = sessions::id(request.headers());
    http.sessions.check(&name, session, &body).await.map_err(|refusal| (Some(name), refusal))?;
    Ok(request)
}

/// Whether `Host` is a name of ours and `Origin`, if a browser sent one, is allowed: a web page elsewhere
/// must not reach a server on its reader's host, not even through a name that it has pointed here.
fn meant_for_us(http: &Http, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).map(|host| Authority::try_from(host.as_bytes()).ok());
    let host = host.unwrap_or_else(|| uri.authority().cloned());
    let known = host.is_some_and(|host| {
        http.hosts
            .iter()
            .any(|known| known.eq_ignore_ascii_case(host.host()) || known.eq_ignore_ascii_case(host.as_str()))
    });
    if !known {
        let reason = "this server is not known under that Host; its administrator can allow it (allowed_hosts)";
        return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
    }
    match headers.get(header::ORIGIN) {
        Some(origin)
            if !is_local(origin)
                && !http.origins.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes())) =>
        {
            let reason =
                "web pages of that Origin may not use this server; its administrator can allow it (allowed_origins)";
            Err(Refusal::new(StatusCode::FORBIDDEN, reason))
        }
        _ => Ok(()),
    }
}

/// Whether a page of this very host sent it, an inspector's say: it could connect anyway, and without leave
/// to read the answer (CORS) its browser shows it none.
fn is_local(origin: &HeaderValue) -> bool {
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
    let authority = authority.and_then(|authority| authority.parse::<Authority>().ok());
    authority.is_some_and(|authority| LOCAL_HOSTS.contains(&authority.host()))
}

/// The request with all of its body, and the body, if that is small and comes soon.
async fn whole(request: Request) -> Result<(Request, Bytes), Refusal> {
    let (parts, body) = request.into_parts();
    let declared =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {} bytes", limits::BODY_BYTES));
    if declared.is_some_and(|length| length > limits::BODY_BYTES) {
        return Err(too_large());
    }
    let body = tokio::time::timeout(limits::BODY_TIME, Limited::new(body, limits::BODY_BYTES).collect()).await;
    let bytes: Bytes = match body {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "the request broke off")),
        Err(_) => {
            let seconds = limits::BODY_TIME.as_secs();
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("a request comes whole within {seconds} s")));
        }
    };
    Ok((Request::from_parts(parts, Body::from(bytes.clone())), bytes))
}
