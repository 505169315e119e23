//! Sessions, which clients of MCP 2025-11-25 and older have: how many, and whose.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::http::{HeaderMap, StatusCode};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use serde::Deserialize;

use super::guard::Refusal;
use crate::{bpf::lock, limits};

const ID: &str = "mcp-session-id";

/// The sessions that are open, and the name of the client that opened each: another one may not use it.
pub struct Sessions {
    max: usize,
    pub manager: Arc<LocalSessionManager>,
    owners: Mutex<HashMap<String, String>>,
}

impl Sessions {
    pub fn new(max: usize) -> Self {
        let mut manager = LocalSessionManager::default();
        manager.session_config.keep_alive = Some(limits::SESSION_IDLE);
        // No client resumes an answer of ours: they are small, and a call can be made again.
        manager.session_config.completed_cache_ttl = limits::SESSION_CACHE;
        Sessions { max, manager: Arc::new(manager), owners: Mutex::default() }
    }

    /// Whether clients get sessions at all.
    pub fn enabled(&self) -> bool {
        self.max > 0
    }

    pub async fn count(&self) -> usize {
        self.manager.sessions.read().await.len()
    }

    /// Refuses a session beyond the cap, and the use of a stranger's. `body` is there for requests that
    /// may begin one.
    pub async fn check(&self, name: &str, id: Option<String>, body: &[u8]) -> Result<(), Refusal> {
        if let Some(id) = id {
            // rmcp answers 404 to what it does not know; the owner of what it does know must match.
            return match lock(&self.owners).get(&id) {
                Some(owner) if owner != name => {
                    Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found: Session not found"))
                }
                _ => Ok(()),
            };
        }
        if self.enabled() && is_initialize(body) && self.count().await >= self.max {
            let reason = format!("{} sessions are open, which is the limit (max_sessions)", self.max);
            return Err(Refusal::later(StatusCode::SERVICE_UNAVAILABLE, limits::SESSION_RETRY.as_secs(), reason));
        }
        Ok(())
    }

    /// Remembers whose a new session is.
    pub async fn note(&self, name: &str, id: String) {
        let open = self.manager.sessions.read().await;
        let mut owners = lock(&self.owners);
        if owners.len() >= self.max.max(open.len()) {
            owners.retain(|id, _| open.contains_key(id.as_str()));
        }
        owners.insert(id, name.into());
    }
}

/// The session that a message belongs to.
pub fn id(headers: &HeaderMap) -> Option<String> {
    headers.get(ID).and_then(|id| id.to_str().ok()).map(str::to_owned)
}

fn is_initialize(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, default)]
        method: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Message>(body).is_ok_and(|message| message.method == "initialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_begins_with_initialize_only() {
        assert!(is_initialize(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{}}"));
        assert!(is_initialize(b"{\"params\":{},\"method\":\"init\\u0069alize\"}"));
        for body in [&b""[..], b"[]", b"{}", b"{\"method\":\"ping\"}", b"{\"params\":{\"method\":\"initialize\"}}"] {
            assert!(!is_initialize(body));
        }
    }
}
