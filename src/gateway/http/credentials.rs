//! Client credentials: tokens of a file, or of an authorization server. And whether they are required.

use std::{path::Path, sync::Arc};

use axum::http::{HeaderMap, StatusCode, header};

use super::{
    callers::Stranger,
    identity::Grant,
    listen,
    oauth::{self, Denied, OAuth},
    place::{self, Listen},
    refusal::Refusal,
    tls::Tls,
    tokens::Tokens,
};
use crate::gateway::settings;

/// Client credentials: a token of the file, or one of the authorization server.
pub struct Credentials {
    pub tokens: Option<Tokens>,
    pub oauth: Option<OAuth>,
}

impl Credentials {
    pub fn are_wanted(&self) -> bool {
        self.tokens.is_some() || self.oauth.is_some()
    }

    /// The grant for the credentials in these headers. Nothing here waits.
    pub fn grant(&self, headers: &HeaderMap, stranger: &Stranger) -> Result<Grant, Refusal> {
        let challenge = self.oauth.as_ref().map(OAuth::challenge).unwrap_or_default();
        let token = bearer(headers).ok_or_else(|| Refusal::unauthorized("bearer token required", &challenge))?;
        if let Some(grant) = self.tokens.as_ref().and_then(|tokens| tokens.grant(token)) {
            return Ok(grant);
        }
        let denied = match &self.oauth {
            None => Denied::Invalid("not in the token file".into()),
            // To check a signature takes a while, and strangers can send many.
            Some(_) if stranger.is_tiresome() => {
                let reason = "too many invalid tokens from your address; try again later";
                return Err(Refusal::later(StatusCode::TOO_MANY_REQUESTS, 1, reason));
            }
            Some(oauth) => match oauth.grant(token) {
                Ok(grant) => return Ok(grant),
                Err(denied) => denied,
            },
        };
        Err(match denied {
            Denied::Invalid(reason) => {
                let parameters = format!(", error=\"invalid_token\"{challenge}");
                Refusal::unauthorized(&format!("invalid token: {reason}"), &parameters)
            }
            Denied::Scope => Refusal::forbidden(
                &format!("the token does not allow {}", oauth::SCOPE),
                &format!(", error=\"insufficient_scope\"{challenge}"),
            ),
            Denied::Later => Refusal::later(
                StatusCode::SERVICE_UNAVAILABLE,
                1,
                "fetching the signing key from the authorization server; try again",
            ),
        })
    }
}

/// Checks the settings without opening a socket: reads their files, or returns what is wrong.
pub fn check(settings: &settings::Http) -> anyhow::Result<(Credentials, Option<Arc<Tls>>)> {
    let tokens = settings.tokens_file().map(|path| Tokens::load(&path)).transpose()?;
    let oauth = authorization_server(settings)?.map(|(issuer, audience)| {
        OAuth::new(issuer, audience, settings.oauth_jwks.as_deref()).map_err(anyhow::Error::msg)
    });
    let tls = certificate_and_key(settings)?.map(|(certificate, key)| Tls::load(certificate, key));
    let credentials = Credentials { tokens, oauth: oauth.transpose()? };
    protected(&credentials, settings, &listen::places(settings, credentials.are_wanted()))?;
    Ok((credentials, tls.transpose()?.map(Arc::new)))
}

/// Checks the settings without opening their files. It does not check whether a TCP address has credentials: tokens may
/// come as a systemd credential.
pub fn check_syntax(settings: &settings::Http) -> anyhow::Result<()> {
    if let Some((issuer, audience)) = authorization_server(settings)? {
        oauth::check_urls(Some(issuer), Some(audience), settings.oauth_jwks.as_deref()).map_err(anyhow::Error::msg)?;
    }
    certificate_and_key(settings)?;
    Ok(())
}

/// Issuer and audience, which are set together.
fn authorization_server(settings: &settings::Http) -> anyhow::Result<Option<(&str, &str)>> {
    match (&settings.oauth_issuer, &settings.oauth_audience) {
        (None, None) => Ok(None),
        (Some(issuer), Some(audience)) => Ok(Some((issuer, audience))),
        _ => {
            anyhow::bail!(
                "http.oauth_issuer and http.oauth_audience must both be set: the authorization server's \
                URL, and this server's URL"
            )
        }
    }
}

/// The files for TLS, which are set together.
fn certificate_and_key(settings: &settings::Http) -> anyhow::Result<Option<(&Path, &Path)>> {
    match (&settings.tls_certificate, &settings.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        _ => anyhow::bail!("http.tls_certificate and http.tls_key must both be set"),
    }
}

/// Refuses TCP without credentials: every user of this host can connect to a loopback port.
pub fn protected<'a>(
    credentials: &Credentials,
    settings: &settings::Http,
    places: impl IntoIterator<Item = &'a Listen>,
) -> anyhow::Result<()> {
    let Some(place) = place::tcp(places).filter(|_| !credentials.are_wanted() && !settings.is_open()) else {
        return Ok(());
    };
    anyhow::bail!(
        "TCP address {place} without credentials: give a token file (--tokens FILE; `netmon-mcp token NAME` makes a \
         line for it) or an authorization server (--oauth-issuer), listen on a Unix socket (--listen unix:/PATH; \
         other hosts reach it with `ssh -L`), or allow everyone with --insecure-no-auth"
    )
}

/// The token of `Authorization: Bearer …`. Two such headers are none.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = one.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_needs_exactly_one_bearer_header() {
        let headers = |values: &[&str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            map
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["bearer  abc"])), Some("abc"));
        for values in [&[][..], &["abc"], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(values)), None, "{values:?}");
        }
    }
}
