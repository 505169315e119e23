//! The answer to a request that goes no further.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A request that goes no further.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub reason: String,
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
