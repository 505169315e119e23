//! The page and its data: the shell at `/` for everyone, screens at `/live` and minutes of the recording at `/timeline` for
//! clients with credentials.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio_util::sync::CancellationToken;

use super::{Http, callers::Sender, connection::Connection, listen::Peer, viewers};
use crate::{
    gateway::{Failure, page, timeline},
    tools::{QUESTIONS, Tool, status::Status},
};

/// The shell holds no data, so it needs no credentials: a browser sends none when its reader opens an address.
pub const SHELL: &str = "/";
const FILES: &str = "/page/";
pub const LIVE: &str = "/live";
/// A period, in milliseconds since 1970.
pub const TIMELINE: &str = "/timeline/{from_ms}/{to_ms}";

/// Only our own files, no frame around it, and no address but ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// What the routes share.
#[derive(Clone)]
pub struct Page {
    http: Arc<Http>,
    /// Cancelled when the server stops.
    ended: CancellationToken,
}

/// Whether a path is part of the shell.
pub fn is_shell(path: &str) -> bool {
    path == SHELL || path.starts_with(FILES)
}

/// The routes of the page.
pub fn routes(http: &Arc<Http>, ended: &CancellationToken) -> Router<Arc<Http>> {
    let page = Page { http: Arc::clone(http), ended: ended.clone() };
    Router::new()
        .route(SHELL, get(shell))
        .route("/page/{file}", get(file))
        .route(LIVE, get(live))
        .route(TIMELINE, get(minutes))
        .with_state(page)
}

async fn shell(State(page): State<Page>, request: Request) -> Response {
    let peer = request.extensions().get::<Arc<Connection>>().map(|connection| connection.peer.clone());
    let is_trusted = page.http.trust_unix && matches!(peer, Some(Peer::Unix { .. }));
    let text = page::index(page.http.credentials.are_wanted() && !is_trusted);
    secured("text/html; charset=utf-8", "no-cache", text.into_response())
}

async fn file(Path(name): Path<String>) -> Response {
    match page::FILES.iter().find(|(known, _, _)| *known == name) {
        // Another release has other files under the same names.
        Some((_, kind, content)) => secured(kind, "no-cache", content.into_response()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Screens, one a second, until the viewer leaves.
async fn live(State(page): State<Page>, request: Request) -> Response {
    let Some(sender) = request.extensions().get::<Sender>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Err(reason) = may_see(&sender) {
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    match viewers::stream(&page.http.viewers, sender, &page.http.metrics, page.ended.clone()) {
        Ok(body) => secured("text/event-stream", "no-store", body.into_response()),
        Err(reason) => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "5")], reason + "\n").into_response(),
    }
}

/// The recording by minute.
async fn minutes(
    State(page): State<Page>,
    asked: Result<Path<(i64, i64)>, PathRejection>,
    request: Request,
) -> Response {
    let Some(sender) = request.extensions().get::<Sender>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Err(reason) = may_see(&sender) {
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    let wrong = |_| "invalid period: expected /timeline/FROM/TO in milliseconds since 1970".to_owned();
    let period = match asked.map_err(wrong).and_then(|Path((from, to))| timeline::period(from, to)) {
        Ok(period) => period,
        Err(reason) => return (StatusCode::BAD_REQUEST, reason + "\n").into_response(),
    };
    let gateway = &page.http.gateway;
    let answer = async {
        let _room = sender.caller.call(&gateway.places, true).await?;
        gateway.past.timeline(period).await
    };
    match answer.await {
        Ok(value) => {
            let text = value.to_string();
            sender.caller.answered(text.len());
            secured("application/json", "no-store", text.into_response())
        }
        Err(e @ Failure::Busy(_)) => {
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], format!("{e}\n")).into_response()
        }
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    }
}

/// Whether a client may see what every tool sees of this host.
fn may_see(sender: &Sender) -> Result<(), String> {
    let missing = QUESTIONS.iter().find(|tool| tool.name != Status::NAME && !sender.scope.allows_tool(tool.name));
    match missing {
        Some(tool) => Err(format!("the page shows every tool, and the token does not allow {}\n", tool.name)),
        None if !sender.scope.allows_host(None) => Err("the token does not allow this host (local)\n".into()),
        None => Ok(()),
    }
}

/// Adds the headers that keep a browser from doing anything else with it.
fn secured(kind: &'static str, cache: &'static str, mut response: Response) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, cache),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
