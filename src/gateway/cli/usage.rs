//! A command line that cannot be parsed: its error is JSON if the answer would have been JSON.

use clap::Parser;

use super::{Form, USAGE, complain};
use crate::{
    gateway::{http::oauth, settings::Settings},
    untrusted,
};

/// The command line. Errors, help and the version end the program.
pub fn parse<A: Parser>() -> A {
    A::try_parse().unwrap_or_else(|e| {
        if e.use_stderr() && form() == Form::Json {
            complain(&in_short(&e), Form::Json);
            std::process::exit(USAGE.into());
        }
        e.exit()
    })
}

/// Checks what clap does not check of the flags. An error ends the program. The file completes the flags later: its
/// faults are not usage errors.
pub fn check(flags: &Settings) {
    if let Err(reason) = fault(flags) {
        complain(&reason, form());
        std::process::exit(USAGE.into());
    }
}

fn fault(flags: &Settings) -> Result<(), String> {
    let of = |flag: &'static str| move |reason: String| format!("{flag}: {reason}");
    once(flags.hosts.iter().map(|named| named.name.as_str())).map_err(of("--host"))?;
    once(flags.host_tokens.iter().map(|(name, _)| name.as_str())).map_err(of("--host-token"))?;
    let http = &flags.http;
    oauth::check_urls(http.oauth_issuer.as_deref(), http.oauth_audience.as_deref(), http.oauth_jwks.as_deref())
}

/// Refuses a name that is given several times: only one of its values would count.
pub fn once<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
    let count = |wanted: &str| names.clone().filter(|name| *name == wanted).count();
    let twice = names.clone().map(|name| (name, count(name))).find(|(_, count)| *count > 1);
    twice
        .map_or(Ok(()), |(name, count)| Err(format!("{} is given {count} times: give it once", untrusted::clean(name))))
}

/// How an error is printed before a tool is known.
fn form() -> Form {
    if wants_json(std::env::args()) { Form::Json } else { Form::Text }
}

/// Whether a command line that cannot be parsed asks for JSON.
fn wants_json(mut arguments: impl Iterator<Item = String>) -> bool {
    let is_json = |form: &str| ["json", "ndjson"].contains(&form.trim_start_matches('='));
    while let Some(argument) = arguments.next() {
        let form = ["--output", "-o"].iter().find_map(|name| argument.strip_prefix(name));
        if argument == "--json" || form.is_some_and(is_json) {
            return true;
        }
        if form == Some("") && arguments.next().is_some_and(|form| is_json(&form)) {
            return true;
        }
    }
    false
}

/// What clap says, without the usage that it adds for people.
fn in_short(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    said.trim_start_matches("error: ").split("\n\nFor more information").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::gateway::cli::Arguments;

    #[test]
    fn usage_error_is_json_where_the_answer_would_be() {
        let wants = |line: &str| wants_json(line.split(' ').map(str::to_owned));
        assert!(["x -o json", "x --json", "x --output=ndjson", "x -ojson", "x --output json"].into_iter().all(wants));
        assert!(!["x", "x -o text", "x json", "x -o csv name=json"].into_iter().any(wants));
        let error = Arguments::try_parse_from(["netmon-mcp", "top_trafic"]).err().unwrap();
        let said = in_short(&error);
        assert!(said.contains("top_trafic") && !said.contains("Usage"), "{said}");
    }
}
