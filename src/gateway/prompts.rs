//! MCP prompts: two workflows that a person picks from a menu. Their steps are those of the skills. Completions come from
//! the open sockets of this host.

use std::collections::BTreeSet;

use rmcp::{
    ErrorData,
    model::{
        ArgumentInfo, CompletionInfo, GetPromptRequestParams, GetPromptResult, JsonObject, Prompt, PromptArgument,
        PromptMessage, Role,
    },
};
use serde_json::{Value, json};

use super::skills;
use crate::{filter::Port, limits, untrusted};

const DIAGNOSE: &str = "diagnose_host";
const SLOW: &str = "explain_slow_connection";

/// The prompts, as clients list them.
pub fn list() -> Vec<Prompt> {
    let argument = |name: &str, text: &str| PromptArgument::new(name).with_description(text).with_required(false);
    vec![
        Prompt::new(
            DIAGNOSE,
            Some("Find out what is wrong with this host's network, and how to fix it."),
            Some(vec![
                argument("symptom", "The symptom, such as: a page does not load, timeouts, a slow download."),
                argument("seconds", "Seconds to measure, 1 to 60. Default 10."),
            ]),
        ),
        Prompt::new(
            SLOW,
            Some("Find out why connections to a remote, or of a process, are slow."),
            Some(vec![
                argument("remote", "The remote address."),
                argument("port", "The remote port."),
                argument("process", "Or a process name on this host."),
            ]),
        ),
    ]
}

/// A prompt with its arguments filled in.
pub fn get(request: &GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    let arguments = request.arguments.clone().unwrap_or_default();
    let text = match request.name.as_str() {
        DIAGNOSE => diagnose(&arguments)?,
        SLOW => slow(&arguments)?,
        name => {
            let name = untrusted::clean(name);
            return Err(invalid(format!("unknown prompt {name}; prompts: {DIAGNOSE}, {SLOW}")));
        }
    };
    Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]))
}

fn invalid(text: String) -> ErrorData {
    ErrorData::invalid_params(text, None)
}

/// An argument's text, cleaned; `None` if it is missing or empty.
fn text(arguments: &JsonObject, name: &str) -> Option<String> {
    arguments
        .get(name)
        .and_then(Value::as_str)
        .map(|text| untrusted::clean(text.trim()))
        .filter(|text| !text.is_empty())
}

fn parsed<T: std::str::FromStr>(arguments: &JsonObject, name: &str, allowed: &str) -> Result<Option<T>, ErrorData> {
    let wrong = |text: String| invalid(format!("{name}: invalid value \"{text}\": expected {allowed}"));
    text(arguments, name).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

fn diagnose(arguments: &JsonObject) -> Result<String, ErrorData> {
    const ALLOWED: &str = "a whole number of seconds from 1 to 60";
    let seconds = parsed::<u64>(arguments, "seconds", ALLOWED)?.unwrap_or(10);
    if !(1..=60).contains(&seconds) {
        return Err(invalid(format!("seconds: invalid value {seconds}: expected {ALLOWED}")));
    }
    let symptom = text(arguments, "symptom").map_or_else(String::new, |text| format!("Symptom: \"{text}\".\n\n"));
    Ok(format!(
        "Find out what is wrong with the network of this host.\n\n{symptom}Arguments for `diagnose`: {}\n\n{}",
        json!({"duration_ms": seconds * 1_000}),
        skills::steps("diagnose-network"),
    ))
}

fn slow(arguments: &JsonObject) -> Result<String, ErrorData> {
    let remote =
        parsed::<std::net::IpAddr>(arguments, "remote", "an IP address; `trace_dns` or `getent hosts NAME` finds it")?;
    let port = parsed::<Port>(arguments, "port", "a port number from 1 to 65535")?;
    let process = text(arguments, "process");
    let mut meant = json!({});
    if let Some(remote) = remote {
        meant["remote"] = json!(remote);
    }
    if let Some(port) = port {
        meant["port"] = json!(port.get());
    }
    if let Some(process) = process {
        meant["process"] = json!(process);
    }
    Ok(format!(
        "Explain why connections of this host are slow. Selected connections (empty: find the slowest): {meant}\n\n{}",
        skills::steps("slow-connection"),
    ))
}

/// The tool that knows what an argument may be, if one has to be asked: its answer to [`question`].
pub fn asks(argument: &ArgumentInfo) -> Option<&'static str> {
    matches!(argument.name.as_str(), "remote" | "port" | "process").then_some("snapshot_sockets")
}

/// The question to that tool.
pub fn question() -> JsonObject {
    JsonObject::from_iter([("limit".into(), limits::COMPLETION_ROWS.into()), ("protocol".into(), "tcp".into())])
}

/// The possible values of an argument, from the open sockets.
pub fn complete(argument: &ArgumentInfo, open: &Value) -> CompletionInfo {
    let candidates = match argument.name.as_str() {
        "seconds" => ["5", "10", "30", "60"].map(str::to_owned).into(),
        name => open_sockets(open, name),
    };
    let matching = candidates.into_iter().filter(|value| value.starts_with(&argument.value));
    let mut values: Vec<String> = matching.take(CompletionInfo::MAX_VALUES + 1).collect();
    let has_more = values.len() > CompletionInfo::MAX_VALUES;
    values.truncate(CompletionInfo::MAX_VALUES);
    let mut info = CompletionInfo::default();
    (info.values, info.has_more) = (values, Some(has_more));
    info
}

fn open_sockets(answer: &Value, argument: &str) -> BTreeSet<String> {
    let value = |socket: &Value| match argument {
        "remote" => socket["remote"]["address"].as_str().map(str::to_owned),
        "port" => socket["remote"]["port"].as_u64().map(|port| port.to_string()),
        "process" => socket["owner"]["process"].as_str().map(str::to_owned),
        _ => None,
    };
    answer["sockets"].as_array().into_iter().flatten().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(name: &str, arguments: Value) -> Result<String, String> {
        let mut request = GetPromptRequestParams::new(name);
        request.arguments = arguments.as_object().cloned();
        let result = get(&request).map_err(|e| e.message.into_owned())?;
        Ok(serde_json::to_value(&result.messages[0].content).unwrap()["text"].as_str().unwrap().to_owned())
    }

    #[test]
    fn prompts_work_without_arguments() {
        for prompt in list() {
            assert!(filled(&prompt.name, json!({})).is_ok(), "{}", prompt.name);
        }
    }

    #[test]
    fn prompt_arguments_become_tool_arguments() {
        let text = filled(DIAGNOSE, json!({"seconds": "30", "symptom": "pages\u{1b}[2J hang"})).unwrap();
        assert!(text.contains("{\"duration_ms\":30000}") && text.contains("\"pages\u{fffd}[2J hang\""), "{text}");
        let text = filled(SLOW, json!({"remote": "10.0.0.1", "port": "443"})).unwrap();
        assert!(text.contains("{\"remote\":\"10.0.0.1\",\"port\":443}"), "{text}");
    }

    #[test]
    fn invalid_prompt_argument_names_the_allowed_values() {
        assert!(filled(DIAGNOSE, json!({"seconds": "99"})).unwrap_err().contains("from 1 to 60"));
        assert!(filled(SLOW, json!({"remote": "example.org"})).unwrap_err().contains("an IP address"));
        assert!(filled(SLOW, json!({"port": "0"})).unwrap_err().contains("from 1 to 65535"));
        assert!(filled("other", json!({})).unwrap_err().contains(DIAGNOSE));
    }
}
