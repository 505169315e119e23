//! Sessions of clients of MCP 2025-11-25 and older: their number, their owners, and their pending requests.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use axum::http::{HeaderMap, StatusCode};
use rmcp::transport::streamable_http_server::session::{SessionManager, local::LocalSessionManager};
use serde::Deserialize;
use serde_json::Value;

use super::{identity::Identity, refusal::Refusal};
use crate::{limits, sync::lock};

const ID: &str = "mcp-session-id";

/// The sessions that are open, and the client that opened each: another one may not use it.
pub struct Sessions {
    max: usize,
    /// Of these, the maximum per client.
    share: usize,
    pub manager: Arc<LocalSessionManager>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    open: HashMap<String, Open>,
    /// Sessions that are being opened.
    opening: HashMap<Identity, usize>,
}

struct Open {
    owner: Identity,
    /// The ids of requests that are not answered yet.
    waiting: HashSet<String>,
}

/// The entries of a request in its session's table until it is answered.
pub struct Claim {
    table: Arc<Mutex<Table>>,
    what: What,
}

enum What {
    Opening(Identity),
    Waiting { session: String, request: String },
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        match &self.what {
            What::Opening(owner) => {
                if let Some(count) = table.opening.get_mut(owner) {
                    *count -= 1;
                    if *count == 0 {
                        table.opening.remove(owner);
                    }
                }
            }
            What::Waiting { session, request } => {
                if let Some(open) = table.open.get_mut(session) {
                    open.waiting.remove(request);
                }
            }
        }
    }
}

impl Sessions {
    pub fn new(max: usize) -> Self {
        let mut manager = LocalSessionManager::default();
        manager.session_config.keep_alive = Some(limits::SESSION_IDLE);
        manager.session_config.init_timeout = Some(limits::BODY_TIME);
        // No client resumes an answer of ours: they are small, and a call can be made again.
        manager.session_config.completed_cache_ttl = limits::SESSION_CACHE;
        let share = (max / limits::SESSION_SHARES).max(1);
        Sessions { max, share, manager: Arc::new(manager), table: Arc::default() }
    }

    /// Whether clients get sessions at all.
    pub fn enabled(&self) -> bool {
        self.max > 0
    }

    pub async fn count(&self) -> usize {
        self.manager.sessions.read().await.len()
    }

    /// Refuses a session beyond the limits, another client's session, and a duplicate id of a pending request: rmcp
    /// would never answer the first. `body` is there for requests that have one.
    pub async fn check(
        &self,
        identity: &Identity,
        session: Option<String>,
        body: &[u8],
    ) -> Result<Option<Claim>, Refusal> {
        let message: Message = serde_json::from_slice(body).unwrap_or_default();
        let what = match session {
            Some(session) => self.waits(identity, session, message)?,
            None if self.enabled() && message.method == "initialize" => Some(self.opens(identity).await?),
            None => None,
        };
        Ok(what.map(|what| Claim { table: Arc::clone(&self.table), what }))
    }

    fn waits(&self, identity: &Identity, session: String, message: Message) -> Result<Option<What>, Refusal> {
        // rmcp answers 404 to what it does not know; the owner of what it does know must match.
        let mut table = lock(&self.table);
        let Some(open) = table.open.get_mut(&session) else { return Ok(None) };
        if open.owner != *identity {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "Not Found: Session not found"));
        }
        let (Some(id), false) = (message.id, message.method.is_empty()) else { return Ok(None) };
        let request = id.to_string();
        if !open.waiting.insert(request.clone()) {
            let reason = "duplicate request id: an earlier request with this id is still pending";
            return Err(Refusal::new(StatusCode::CONFLICT, reason));
        }
        Ok(Some(What::Waiting { session, request }))
    }

    async fn opens(&self, identity: &Identity) -> Result<What, Refusal> {
        let running = self.manager.sessions.read().await;
        let mut table = lock(&self.table);
        table.open.retain(|id, _| running.contains_key(id.as_str()));
        let own = table.open.values().filter(|open| open.owner == *identity).count()
            + table.opening.get(identity).copied().unwrap_or_default();
        let later = |status, reason| Refusal::later(status, limits::SESSION_RETRY.as_secs(), reason);
        if own >= self.share {
            let reason = format!("limit of {own} sessions per client reached, of {} in total (max_sessions)", self.max);
            return Err(later(StatusCode::TOO_MANY_REQUESTS, reason));
        }
        let all = table.open.len() + table.opening.values().sum::<usize>();
        let kept = if own < limits::SESSIONS_FEW { 0 } else { self.max / limits::SESSION_SHARES };
        if all + kept >= self.max {
            let reason = format!("{all} sessions are open; limit: {} (max_sessions)", self.max);
            return Err(later(StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        *table.opening.entry(identity.clone()).or_default() += 1;
        Ok(What::Opening(identity.clone()))
    }

    /// Remembers the owner of a new session.
    pub fn note(&self, owner: &Identity, id: String) {
        let new = || Open { owner: owner.clone(), waiting: HashSet::new() };
        lock(&self.table).open.entry(id).or_insert_with(new);
    }

    /// Ends the sessions of clients that may not come in any more.
    pub async fn close_unless(&self, may_stay: impl Fn(&Identity) -> bool) {
        let closed: Vec<String> = {
            let table = lock(&self.table);
            table.open.iter().filter(|(_, open)| !may_stay(&open.owner)).map(|(id, _)| id.clone()).collect()
        };
        for id in closed {
            lock(&self.table).open.remove(&id);
            if let Err(e) = self.manager.close_session(&id.into()).await {
                tracing::debug!("closing a session failed: {e}");
            }
        }
    }
}

/// The session that a message belongs to.
pub fn id(headers: &HeaderMap) -> Option<String> {
    headers.get(ID).and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// The relevant fields of a message.
#[derive(Deserialize, Default)]
struct Message {
    #[serde(default)]
    method: String,
    id: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(body: &[u8]) -> String {
        serde_json::from_slice::<Message>(body).unwrap_or_default().method
    }

    #[test]
    fn session_starts_only_with_initialize() {
        assert_eq!(method(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{}}"), "initialize");
        assert_eq!(method(b"{\"params\":{},\"method\":\"init\\u0069alize\"}"), "initialize");
        for body in [&b""[..], b"[]", b"{}", b"{\"method\":\"ping\"}", b"{\"params\":{\"method\":\"initialize\"}}"] {
            assert_ne!(method(body), "initialize");
        }
    }

    #[tokio::test]
    async fn sessions_are_limited_by_client() {
        let sessions = Sessions::new(16);
        let (greedy, other) = (Identity::Token("greedy".into()), Identity::Token("other".into()));
        let mut claims = Vec::new();
        let refused = loop {
            match sessions.check(&greedy, None, b"{\"method\":\"initialize\"}").await {
                Ok(claim) => claims.push(claim.unwrap()),
                Err(refused) => break refused,
            }
        };
        assert_eq!((claims.len(), refused.status), (16 / limits::SESSION_SHARES, StatusCode::TOO_MANY_REQUESTS));
        assert!(sessions.check(&other, None, b"{\"method\":\"initialize\"}").await.is_ok());
        claims.clear();
        assert!(sessions.check(&greedy, None, b"{\"method\":\"initialize\"}").await.is_ok(), "given back");
    }

    #[tokio::test]
    async fn request_ids_are_unique_and_sessions_have_one_owner() {
        let sessions = Sessions::new(16);
        let (alice, eve) = (Identity::Token("alice".into()), Identity::Uid(0));
        sessions.note(&alice, "s".into());
        sessions.note(&eve, "s".into()); // as a header of a request in it
        let ask = |who, id: &'static str| sessions.check(who, Some("s".into()), id.as_bytes());
        let first = ask(&alice, "{\"method\":\"ping\",\"id\":1}").await.unwrap();
        assert_eq!(ask(&alice, "{\"method\":\"ping\",\"id\":1}").await.err().unwrap().status, StatusCode::CONFLICT);
        assert!(ask(&alice, "{\"method\":\"ping\",\"id\":\"1\"}").await.is_ok(), "another id");
        assert!(ask(&alice, "{\"result\":{},\"id\":1}").await.is_ok(), "an answer, not a request");
        assert_eq!(ask(&eve, "{\"method\":\"ping\",\"id\":2}").await.err().unwrap().status, StatusCode::NOT_FOUND);
        drop(first);
        assert!(ask(&alice, "{\"method\":\"ping\",\"id\":1}").await.is_ok());
    }
}
