//! Other hosts as settings name them: a name, and where its gateway answers.

use std::{path::PathBuf, str::FromStr};

use crate::untrusted;

/// The address of another host's gateway.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A destination of ssh's: `user@host`, `//user@host:port`, or an alias of its settings.
    Ssh(String),
    /// The URL of its `/mcp`.
    Http(String),
    /// A Unix socket that leads there.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A URL may have a password in it, so it is not shown.
        let shown = if text.contains('@') { "the target" } else { &untrusted::clean(text) };
        let wrong = || format!("{shown} is invalid: expected ssh:USER@HOST, https://HOST/mcp or unix:/PATH");
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Target::Unix(path.into()));
        }
        if let Some(rest) = text.strip_prefix("ssh:") {
            let destination = rest.trim_start_matches("//");
            // ssh would take it for an option, or a shell for more than a word.
            let good =
                !destination.is_empty() && !destination.starts_with('-') && !destination.contains(char::is_whitespace);
            return if good { Ok(Target::Ssh(rest.into())) } else { Err(wrong()) };
        }
        let url = text.parse::<axum::http::Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        url.map(|_| Target::Http(text.into())).ok_or_else(wrong)
    }
}

/// A host as the settings name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub target: Target,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, target) = text.split_once('=').ok_or("expected NAME=TARGET, such as web1=ssh:root@web1")?;
        Named::new(name, target)
    }
}

/// Whether a host may have this name.
pub fn check_name(name: &str) -> Result<(), String> {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Ok(());
    }
    Err(format!("invalid host name {}: use letters, digits, -, _ and .", untrusted::clean(name)))
}

impl Named {
    pub fn new(name: &str, target: &str) -> Result<Self, String> {
        check_name(name)?;
        Ok(Named { name: name.into(), target: target.parse()? })
    }
}

/// A URL as it may be shown.
pub(super) fn without_password(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => url.into(),
    }
}

/// Reads a host's target on the command line. clap would show a wrong one, with the password that may be in it.
#[derive(Clone)]
pub struct NamedParser;

impl clap::builder::TypedValueParser for NamedParser {
    type Value = Named;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Named, clap::Error> {
        let parsed = value.to_str().ok_or("it is not UTF-8".to_owned()).and_then(str::parse);
        parsed.map_err(|reason| {
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("invalid value for --host: {reason}\n"))
                .with_cmd(command)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_shown_without_password() {
        for (url, shown) in [
            ("https://web1/mcp", "https://web1/mcp"),
            ("https://user:secret@web1:8443/mcp?a=@", "https://web1:8443/mcp?a=@"),
            ("http://a@b@web1", "http://web1"),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let reason = "a=ftp://user:secret@web1".parse::<Named>().unwrap_err();
        assert!(!reason.contains("secret"), "{reason}");
    }
}
