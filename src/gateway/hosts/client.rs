//! HTTP to another host's gateway, over TCP or a Unix socket. It follows no redirect, and what comes is counted as it
//! comes ([`super::arrivals`]); rmcp's own client counts it when it is there.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue},
};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;

use super::arrivals::{Arrivals, Message};
use crate::{limits, untrusted};

const SESSION: &str = "mcp-session-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

type Failed = StreamableHttpError<reqwest::Error>;
type Headers = HashMap<HeaderName, HeaderValue>;

/// A client of one host.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub arrivals: Arrivals,
}

impl Client {
    fn request(
        &self,
        method: Method,
        uri: &str,
        session: Option<&str>,
        token: Option<String>,
        headers: Headers,
    ) -> RequestBuilder {
        let mut request = self.http.request(method, uri).header(ACCEPT, format!("{EVENTS}, {JSON}"));
        if let Some(session) = session {
            request = request.header(SESSION, session);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        headers.into_iter().fold(request, |request, (name, value)| request.header(name, value))
    }

    /// The body, up to `most` bytes of it.
    async fn body(&self, response: Response, most: usize) -> Result<(Vec<u8>, Message), Failed> {
        let (mut body, mut message) = (Vec::new(), self.arrivals.message());
        let mut parts = response.bytes_stream();
        while body.len() < most {
            let next = message.in_time(async { Ok(parts.next().await) }).await?;
            let Some(part) = next.transpose().map_err(Failed::Client)? else { break };
            message.grow(part.len()).await?;
            body.extend_from_slice(&part);
        }
        Ok((body, message))
    }
}

impl StreamableHttpClient for Client {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let request = self.request(Method::POST, &uri, session.as_deref(), token, headers);
        let response = request.json(&message).send().await.map_err(Failed::Client)?;
        let status = response.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(Failed::SessionExpired);
        }
        let named = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (kind, session) = (named(CONTENT_TYPE.as_str()).unwrap_or_default(), named(SESSION));
        let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON));
        let most = if is_json { usize::MAX } else { limits::COMPLAINT_BYTES as usize };
        let (body, counted) = self.body(response, most).await?;
        let parsed = if is_json { serde_json::from_slice::<ServerJsonRpcMessage>(&body).ok() } else { None };
        drop(counted); // from here on it is the caller's
        let said = || untrusted::short(&String::from_utf8_lossy(&body), limits::LOGGED_CHARS);
        match (parsed, &message) {
            (Some(message), _) if status.is_success() => Ok(StreamableHttpPostResponse::Json(message, session)),
            (Some(message @ ServerJsonRpcMessage::Error(_)), _) => {
                Ok(StreamableHttpPostResponse::Json(message, session))
            }
            (_, message) if status.is_success() && !matches!(message, ClientJsonRpcMessage::Request(_)) => {
                Ok(StreamableHttpPostResponse::Accepted)
            }
            _ => Err(Failed::UnexpectedServerResponse(format!("HTTP {status}: {}", said()).into())),
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        token: Option<String>,
        headers: Headers,
    ) -> Result<(), Failed> {
        let request = self.request(Method::DELETE, &uri, Some(&session), token, headers);
        request.send().await.map(drop).map_err(Failed::Client)
    }

    /// Another gateway answers in JSON, and sends no events that this one would need.
    async fn get_stream(
        &self,
        _: Arc<str>,
        _: Option<Arc<str>>,
        _: Option<String>,
        _: Option<String>,
        _: Headers,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        Err(Failed::ServerDoesNotSupportSse)
    }
}
