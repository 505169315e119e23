//! OAuth 2.1: this server as a protected resource. Tokens are JWTs of one authorization server, checked
//! against the keys that it publishes; we issue none, and pass none on.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{bpf::lock, limits, untrusted};

/// What a token must allow.
pub const SCOPE: &str = "netmon:read";
/// Where clients find out whom to ask for a token (RFC 9728).
pub const METADATA: &str = "/.well-known/oauth-protected-resource";

/// Signatures with a public key. A shared secret would let whoever can check a token make one.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::EdDSA,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
];

/// An authorization server, and what its tokens must say.
pub struct OAuth {
    issuer: String,
    /// This server's own URL, as clients know it.
    audience: String,
    /// Where the keys are, if not where the server's metadata says.
    jwks: Option<String>,
    client: reqwest::Client,
    keys: Mutex<Keys>,
    /// Held while keys are fetched: one at a time, and only who needs them waits.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    /// When the set was, and when it was last tried.
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

impl Keys {
    /// The key with this id, if it was there not long ago.
    fn fresh(&self, id: Option<&str>) -> Option<DecodingKey> {
        self.set.as_ref().filter(|_| within(self.fetched, limits::JWKS_MAX_AGE)).and_then(|set| find(set, id))
    }

    /// The same of keys that the server could not be asked about since.
    fn kept(&self, id: Option<&str>) -> Option<DecodingKey> {
        self.set.as_ref().filter(|_| within(self.fetched, limits::JWKS_KEPT)).and_then(|set| find(set, id))
    }
}

fn within(since: Option<Instant>, age: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() <= age)
}

/// Why a token does not do.
#[derive(Debug, PartialEq)]
pub enum Denied {
    /// It is not valid here.
    Invalid(String),
    /// It is, for something else.
    Scope,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    client_id: Option<String>,
    #[serde(default)]
    scope: String,
}

impl OAuth {
    pub fn new(issuer: &str, audience: &str, jwks: Option<&str>) -> Result<OAuth, String> {
        for url in [Some(issuer), Some(audience), jwks].into_iter().flatten() {
            let parsed = reqwest::Url::parse(url).map_err(|e| format!("{}: {e}", untrusted::clean(url)))?;
            let local = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            if parsed.scheme() != "https" && !local {
                return Err(format!("{} is not https, so anybody on the way could change it", untrusted::clean(url)));
            }
        }
        let client = reqwest::Client::builder().timeout(limits::JWKS_TIME).build().map_err(|e| e.to_string())?;
        let (issuer, audience) = (issuer.into(), audience.into());
        Ok(OAuth {
            issuer,
            audience,
            jwks: jwks.map(Into::into),
            client,
            keys: Mutex::default(),
            fetching: Default::default(),
        })
    }

    /// The protected resource's metadata.
    pub fn metadata(&self) -> Value {
        json!({
            "resource": self.audience,
            "authorization_servers": [self.issuer],
            "scopes_supported": [SCOPE],
            "bearer_methods_supported": ["header"],
            "resource_name": "netmon-mcp",
        })
    }

    /// What a refusal adds to its challenge, so that a client finds the metadata.
    pub fn challenge(&self) -> String {
        let url = reqwest::Url::parse(&self.audience).ok().map(|mut url| {
            let path = format!("{METADATA}{}", url.path().trim_end_matches('/'));
            url.set_path(&path);
            url.to_string()
        });
        format!(", resource_metadata=\"{}\", scope=\"{SCOPE}\"", url.unwrap_or_default())
    }

    /// The name of who has this token.
    pub async fn name(&self, token: &str) -> Result<String, Denied> {
        let header = decode_header(token).map_err(|_| Denied::Invalid("it is no JWT".into()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Denied::Invalid("its signature is of a kind that is not taken".into()));
        }
        let key = self.key(header.kid.as_deref()).await.map_err(Denied::Invalid)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = limits::CLOCK_SKEW.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        let invalid = |e: jsonwebtoken::errors::Error| Denied::Invalid(untrusted::clean(&e.to_string()));
        let claims = decode::<Claims>(token, &key, &validation).map_err(invalid)?.claims;
        if !claims.scope.split_whitespace().any(|scope| scope == SCOPE) {
            return Err(Denied::Scope);
        }
        Ok(untrusted::clean(&claims.sub.or(claims.client_id).unwrap_or_else(|| "unnamed".into())))
    }

    /// The key with this id. One that is not known may be new, so the keys are fetched again, but not often:
    /// strangers choose the ids that we look for.
    async fn key(&self, id: Option<&str>) -> Result<DecodingKey, String> {
        let fresh = || lock(&self.keys).fresh(id);
        if let Some(key) = fresh() {
            return Ok(key);
        }
        // Who has a key that only may be old does not wait for another who is fetching.
        let kept = lock(&self.keys).kept(id);
        let _alone = match (self.fetching.try_lock(), kept) {
            (Ok(alone), _) => alone,
            (Err(_), Some(key)) => return Ok(key),
            (Err(_), None) => self.fetching.lock().await,
        };
        if let Some(key) = fresh() {
            return Ok(key); // somebody else has fetched it meanwhile
        }
        if !within(lock(&self.keys).tried, limits::JWKS_MIN_AGE) {
            let fetched = self.fetch().await;
            let mut keys = lock(&self.keys);
            keys.tried = Some(Instant::now());
            match fetched {
                Ok(set) => (keys.set, keys.fetched) = (Some(set), keys.tried),
                Err(e) => tracing::warn!("the keys of {} were not fetched: {e}", self.issuer),
            }
        }
        lock(&self.keys).kept(id).ok_or_else(|| "the key that signed it is not known".into())
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        #[derive(Deserialize)]
        struct Server {
            jwks_uri: String,
        }
        if let Some(url) = &self.jwks {
            return self.get(url).await;
        }
        let base = self.issuer.trim_end_matches('/');
        let mut last = String::new();
        for document in ["oauth-authorization-server", "openid-configuration"] {
            match self.get::<Server>(&format!("{base}/.well-known/{document}")).await {
                Ok(server) => return self.get(&server.jwks_uri).await,
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let failed = |e: reqwest::Error| e.to_string();
        let mut response =
            self.client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::BODY_BYTES {
                return Err(format!("{url} is too long"));
            }
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
    }
}

/// A key by its id; without one, the only key that there is.
fn find(set: &JwkSet, id: Option<&str>) -> Option<DecodingKey> {
    let jwk = match (id, &set.keys[..]) {
        (Some(id), _) => set.find(id)?,
        (None, [only]) => only,
        _ => return None,
    };
    DecodingKey::from_jwk(jwk).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_changed_on_the_way_is_trusted() {
        assert!(OAuth::new("https://as.example", "https://netmon.example/mcp", None).is_ok());
        assert!(OAuth::new("http://127.0.0.1:9", "http://localhost:8080/mcp", None).is_ok());
        assert!(OAuth::new("http://as.example", "https://netmon.example/mcp", None).is_err());
        assert!(OAuth::new("nonsense", "https://netmon.example/mcp", None).is_err());
    }

    #[test]
    fn a_refusal_leads_to_the_metadata() {
        let oauth = OAuth::new("https://as.example", "https://netmon.example/mcp", None).unwrap();
        let expected = "resource_metadata=\"https://netmon.example/.well-known/oauth-protected-resource/mcp\"";
        assert!(oauth.challenge().contains(expected), "{}", oauth.challenge());
        assert_eq!(oauth.metadata()["authorization_servers"][0], "https://as.example");
    }
}
