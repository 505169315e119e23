//! OAuth 2.1: this server as a protected resource. Tokens are JWTs of one authorization server, checked against its
//! published keys. This server issues no tokens and forwards none.
//!
//! A request never waits for the authorization server: a task fetches the keys, and a request with a new key gets an
//! answer to try again.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, UNIX_EPOCH},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation, decode, decode_header,
    jwk::{Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::identity::{Grant, Identity, Scope};
use crate::{limits, sync::lock, untrusted};

/// The required scope of a token.
pub const SCOPE: &str = "netmon:read";
/// Scopes that narrow a token to some tools, and to some hosts.
const TOOL_SCOPE: &str = "netmon:tool:";
const HOST_SCOPE: &str = "netmon:host:";
/// The address of the metadata about the authorization server (RFC 9728).
pub const METADATA: &str = "/.well-known/oauth-protected-resource";

/// Signatures with a public key. With a shared secret, everyone who can check a token could make one.
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

/// The accepted types of a token (`typ`, RFC 7519 and RFC 9068). Other types have other purposes: DPoP proofs, logouts.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// An authorization server, and what its tokens must say.
pub struct OAuth {
    issuer: String,
    /// This server's own URL, as clients know it.
    audience: String,
    /// The URL of the keys, if it is not in the server's metadata.
    jwks: Option<String>,
    client: reqwest::Client,
    keys: Mutex<Keys>,
    /// A request with an unknown key wakes the task.
    wanted: Notify,
}

#[derive(Default)]
struct Keys {
    set: Vec<Jwk>,
    /// When the set was fetched, and when the last attempt ended.
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

fn within(since: Option<Instant>, age: Duration) -> bool {
    since.is_some_and(|since| since.elapsed() <= age)
}

/// Why a token does not do.
#[derive(Debug, PartialEq)]
pub enum Denied {
    /// It is not valid here.
    Invalid(String),
    /// It is valid, for something else.
    Scope,
    /// Its key may be one that is being fetched.
    Later,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(default)]
    scope: String,
    exp: f64,
}

/// An https URL (nobody can change it in transit) without a password. The error does not show the URL, because it may
/// contain one.
fn secure(what: &str, url: &str) -> Result<reqwest::Url, String> {
    let parsed = reqwest::Url::parse(url).map_err(|e| format!("{what}: invalid URL: {e}"))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(format!("{what} contains a user name or a password; remove it"));
    }
    let local = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if parsed.scheme() != "https" && !(local && parsed.scheme() == "http") {
        return Err(format!("{what}: expected an https URL, because plain http can be changed in transit"));
    }
    Ok(parsed)
}

/// Whether these URLs are good: each is one, and HTTPS unless it stays on this host.
pub fn check_urls(issuer: Option<&str>, audience: Option<&str>, jwks: Option<&str>) -> Result<(), String> {
    let urls = [("http.oauth_issuer", issuer), ("http.oauth_audience", audience), ("http.oauth_jwks", jwks)];
    urls.into_iter().try_for_each(|(what, url)| url.map_or(Ok(()), |url| secure(what, url).map(drop)))
}

impl OAuth {
    pub fn new(issuer: &str, audience: &str, jwks: Option<&str>) -> Result<OAuth, String> {
        check_urls(Some(issuer), Some(audience), jwks)?;
        // A redirect could lead the question for keys anywhere.
        let client = reqwest::Client::builder().timeout(limits::JWKS_TIME).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(|e| e.to_string())?;
        let (issuer, audience, jwks) = (issuer.into(), audience.into(), jwks.map(Into::into));
        Ok(OAuth { issuer, audience, jwks, client, keys: Mutex::default(), wanted: Notify::new() })
    }

    /// Takes these keys (JWKS) as if the server had just shown them.
    pub fn with_keys(&self, jwks: &str) -> Result<(), String> {
        let set = serde_json::from_str(jwks).map_err(|e| e.to_string()).and_then(keys)?;
        let now = Some(Instant::now());
        *lock(&self.keys) = Keys { set, fetched: now, tried: now };
        Ok(())
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

    /// The part of a challenge that leads clients to the metadata.
    pub fn challenge(&self) -> String {
        let url = reqwest::Url::parse(&self.audience).ok().map(|mut url| {
            let path = format!("{METADATA}{}", url.path().trim_end_matches('/'));
            url.set_path(&path);
            url.to_string()
        });
        format!(", resource_metadata=\"{}\", scope=\"{SCOPE}\"", url.unwrap_or_default())
    }

    /// The grant of this token.
    pub fn grant(&self, token: &str) -> Result<Grant, Denied> {
        let header = header(token).map_err(|reason| Denied::Invalid(reason.into()))?;
        let key = self.key(&header)?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = limits::CLOCK_SKEW.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        let invalid = |e: jsonwebtoken::errors::Error| Denied::Invalid(untrusted::clean(&e.to_string()));
        let claims = decode::<Claims>(token, &key, &validation).map_err(invalid)?.claims;
        let subject = subject(claims.sub).map_err(|reason| Denied::Invalid(reason.into()))?;
        let identity = Identity::Jwt { issuer: self.issuer.clone(), subject };
        let valid_for = Duration::try_from_secs_f64(claims.exp).unwrap_or(Duration::MAX);
        let expires = UNIX_EPOCH.checked_add(valid_for.saturating_add(limits::CLOCK_SKEW));
        Ok(Grant { scope: Arc::new(scope(&claims.scope)?), expires, ..Grant::full(identity) })
    }

    /// The key that must have signed. One that is not known may be new: it is asked for, but not often, since
    /// strangers choose the ids that we look for.
    fn key(&self, header: &Header) -> Result<DecodingKey, Denied> {
        let keys = lock(&self.keys);
        let known = within(keys.fetched, limits::JWKS_KEPT).then(|| find(&keys.set, header)).flatten();
        match known {
            Some(key) => Ok(key),
            None if within(keys.tried, limits::JWKS_MIN_AGE) && keys.fetched.is_some() => {
                Err(Denied::Invalid("unknown signing key".into()))
            }
            None => {
                self.wanted.notify_one();
                Err(Denied::Later)
            }
        }
    }

    /// Fetches the keys, now and then and when they are wanted. Never ends.
    pub async fn keep_keys(&self) {
        loop {
            tokio::time::sleep(limits::JWKS_MIN_AGE).await;
            let fresh = within(lock(&self.keys).fetched, limits::JWKS_MIN_AGE * 2);
            let age = if fresh { limits::JWKS_MAX_AGE } else { limits::JWKS_RETRY };
            let _ = tokio::time::timeout(age, self.wanted.notified()).await;
            self.fetch_keys().await;
        }
    }

    /// Fetches the keys once, at most for [`limits::JWKS_TIME`]. Those that are known stay if this fails.
    pub async fn fetch_keys(&self) {
        let fetched = tokio::time::timeout(limits::JWKS_TIME, self.fetch()).await;
        let mut keys = lock(&self.keys);
        keys.tried = Some(Instant::now());
        match fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", limits::JWKS_TIME.as_secs()))) {
            Ok(set) => (keys.set, keys.fetched) = (set, keys.tried),
            Err(e) => tracing::warn!("fetching the keys of {} failed: {}", self.issuer, untrusted::clean(&e)),
        }
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        #[derive(Deserialize)]
        struct Server {
            issuer: String,
            jwks_uri: String,
        }
        if let Some(url) = &self.jwks {
            return self.get(url).await.and_then(keys);
        }
        let mut last = String::new();
        for url in metadata_urls(&self.issuer) {
            match self.get(&url).await.and_then(|value| Server::deserialize(value).map_err(|e| e.to_string())) {
                // RFC 8414: another issuer's metadata here is an attack, or a mistake.
                Ok(server) if server.issuer != self.issuer => {
                    return Err(format!("{url} is the metadata of another issuer, {}", server.issuer));
                }
                Ok(server) => {
                    secure("the jwks_uri of its metadata", &server.jwks_uri)?;
                    return self.get(&server.jwks_uri).await.and_then(keys);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let failed = |e: reqwest::Error| e.to_string();
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("{url} answers {}", response.status())); // a redirect is not followed
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::JWKS_BYTES {
                return Err(format!("{url} has more than {} bytes", limits::JWKS_BYTES));
            }
        }
        serde_json::from_slice(&body).map_err(|e| format!("{url}: {e}"))
    }
}

/// The header of a token that may be looked at further.
pub fn header(token: &str) -> Result<Header, &'static str> {
    let header = decode_header(token).map_err(|_| "not a JWT")?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err("unsupported signature algorithm: use one with a public key");
    }
    if header.crit.is_some() {
        return Err("unsupported critical header parameters (crit)");
    }
    let kind = header.typ.as_deref().unwrap_or(TYPES[0]).to_ascii_lowercase();
    if !TYPES.contains(&kind.strip_prefix("application/").unwrap_or(&kind)) {
        return Err("not an access token (typ)");
    }
    Ok(header)
}

/// Who it is about. Names that look alike in a log, or are too long for one, are refused, and never cut.
fn subject(sub: Option<String>) -> Result<String, &'static str> {
    let sub = sub.filter(|sub| !sub.is_empty()).ok_or("no subject (sub)")?;
    if untrusted::clean(&sub) == sub { Ok(sub) } else { Err("invalid sub: expected 1 to 255 printable characters") }
}

/// The scope of a token.
fn scope(text: &str) -> Result<Scope, Denied> {
    let (mut scope, mut reads) = (Scope::default(), false);
    for word in text.split_whitespace() {
        reads |= word == SCOPE;
        if let Some(tool) = word.strip_prefix(TOOL_SCOPE) {
            // One that does not exist here allows nothing, and narrows all the same.
            if scope.add_tool(tool).is_err() {
                scope.tools.get_or_insert_default();
            }
        }
        if let Some(host) = word.strip_prefix(HOST_SCOPE) {
            scope.add_host(host);
        }
    }
    if reads { Ok(scope) } else { Err(Denied::Scope) }
}

/// The possible URLs of an authorization server's metadata: RFC 8414, OpenID Connect Discovery, and a common misreading
/// of RFC 8414. They differ if the issuer has a path.
fn metadata_urls(issuer: &str) -> Vec<String> {
    const DOCUMENT: &str = ".well-known/oauth-authorization-server";
    let base = issuer.trim_end_matches('/');
    let mut urls = vec![format!("{base}/{DOCUMENT}"), format!("{base}/.well-known/openid-configuration")];
    if let Ok(mut url) = reqwest::Url::parse(base)
        && url.path() != "/"
    {
        url.set_path(&format!("/{DOCUMENT}{}", url.path()));
        urls.insert(0, url.into());
    }
    urls
}

/// The keys of a set, without those that we do not understand (RFC 7517, section 5).
fn keys(value: Value) -> Result<Vec<Jwk>, String> {
    let list = value.get("keys").and_then(Value::as_array).ok_or("not a key set (JWKS)")?;
    Ok(list.iter().filter_map(|key| Jwk::deserialize(key).ok()).collect())
}

/// The key that must have signed: the one with the header's id; without an id, the only one that could have.
fn find(set: &[Jwk], header: &Header) -> Option<DecodingKey> {
    let mut fit = set.iter().filter(|key| key.common.key_id == header.kid || header.kid.is_none());
    let mut fit =
        fit.by_ref().filter(|key| may_sign(key, header.alg)).filter_map(|key| DecodingKey::from_jwk(key).ok());
    let first = fit.next()?;
    if fit.next().is_some() { None } else { Some(first) }
}

/// Whether a key is for signatures of this algorithm.
fn may_sign(key: &Jwk, algorithm: Algorithm) -> bool {
    let common = &key.common;
    common.public_key_use.as_ref().is_none_or(|its| *its == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|its| its.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|its| Algorithm::try_from(its).is_ok_and(|its| its == algorithm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oauth_urls_are_https_or_local_without_password() {
        let new = |issuer: &str| OAuth::new(issuer, "https://netmon.example/mcp", None);
        assert!(new("https://as.example").is_ok() && new("http://127.0.0.1:9").is_ok());
        for issuer in ["http://as.example", "nonsense", "ftp://localhost", "https://user:secret@as.example"] {
            let reason = new(issuer).err().unwrap();
            assert!(reason.contains("oauth_issuer") && !reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn challenge_names_the_resource_metadata() {
        let oauth = OAuth::new("https://as.example", "https://netmon.example/mcp", None).unwrap();
        let expected = "resource_metadata=\"https://netmon.example/.well-known/oauth-protected-resource/mcp\"";
        assert!(oauth.challenge().contains(expected), "{}", oauth.challenge());
        assert_eq!(oauth.metadata()["authorization_servers"][0], "https://as.example");
    }

    #[test]
    fn metadata_urls_follow_rfc_8414() {
        assert_eq!(
            metadata_urls("https://as.example/")[0],
            "https://as.example/.well-known/oauth-authorization-server"
        );
        let urls = metadata_urls("https://as.example/realms/one");
        assert_eq!(urls[0], "https://as.example/.well-known/oauth-authorization-server/realms/one");
        assert_eq!(urls[2], "https://as.example/realms/one/.well-known/openid-configuration");
    }

    #[test]
    fn subject_must_be_present_short_and_printable() {
        assert_eq!(subject(Some("alice".into())), Ok("alice".into()));
        let long = "x".repeat(limits::NAME_CHARS + 1);
        for wrong in [None, Some(""), Some("a\u{200b}"), Some("a\nb"), Some(long.as_str())] {
            assert!(subject(wrong.map(str::to_owned)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn oauth_scopes_limit_tools_and_hosts() {
        assert_eq!(scope("netmon:write"), Err(Denied::Scope));
        assert!(scope("openid netmon:read").unwrap().is_full());
        let narrow = scope("netmon:read netmon:tool:status netmon:host:local").unwrap();
        assert!(narrow.allows_tool("status") && !narrow.allows_tool("diagnose") && narrow.allows_host(None));
        let nothing = scope("netmon:read netmon:tool:no_such_tool netmon:host:").unwrap();
        assert!(!nothing.allows_tool("status") && !nothing.allows_host(None));
    }

    #[test]
    fn keys_for_other_uses_are_ignored() {
        let key = |more: Value| {
            let mut key = json!({"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            keys(json!({"keys": [key, {"kty": "unheard-of"}]})).unwrap()
        };
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::EdDSA) };
        for good in [json!({}), json!({"use": "sig"}), json!({"alg": "EdDSA"}), json!({"key_ops": ["verify"]})] {
            assert!(find(&key(good.clone()), &header).is_some(), "{good}");
        }
        for bad in [json!({"use": "enc"}), json!({"alg": "ES256"}), json!({"key_ops": ["sign"]}), json!({"kid": "two"})]
        {
            assert!(find(&key(bad.clone()), &header).is_none(), "{bad}");
        }
    }
}
