//! Completion: a shell asks this program what may come next, while its user types.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::Path,
};

use clap::{Command, builder::PossibleValuesParser};
use clap_complete::{
    ArgValueCompleter, CompletionCandidate, engine,
    env::{Bash, CompleteEnv, Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh},
};
use serde_json::Value;

use crate::{
    gateway::offer,
    tools::{Question, resolve},
};

/// The variable by which a script asks.
const VARIABLE: &str = "COMPLETE";

const NAME: &str = "netmon-mcp";

/// As clap's, but for bash.
const SHELLS: &[&dyn EnvCompleter] = &[&WholeWords, &Elvish, &Fish, &Powershell, &Zsh];

/// The shells that have a script.
pub fn shells() -> PossibleValuesParser {
    PossibleValuesParser::new(SHELLS.iter().map(|shell| shell.name()))
}

/// The script of a shell.
pub fn script(shell: &str) -> anyhow::Result<String> {
    let mut script = Vec::new(); // which may be written to: a pipe may be closed
    for known in SHELLS.iter().filter(|known| known.is(shell)) {
        known.write_registration(VARIABLE, NAME, NAME, NAME, &mut script)?;
    }
    if Zsh.is(shell) {
        // In a folder of zsh's functions, the file is the function: zsh runs it to complete.
        writeln!(script, "[[ $funcstack[1] == _{NAME} ]] && _clap_dynamic_completer_netmon_mcp")?;
    }
    Ok(String::from_utf8(script)?)
}

/// Answers a shell's question, if that is what this program was run for.
pub fn complete(command: fn() -> Command) -> bool {
    let asked = CompleteEnv::with_factory(command).var(VARIABLE).shells(Shells(SHELLS));
    let folder = std::env::current_dir().ok();
    asked.try_complete(std::env::args_os(), folder.as_deref()).unwrap_or(true)
}

/// Bash ends words at `=`, which belongs to ours: the script hands over the line, and gets what comes behind the last `=`.
struct WholeWords;

impl EnvCompleter for WholeWords {
    fn name(&self) -> &'static str {
        Bash.name()
    }

    fn is(&self, name: &str) -> bool {
        Bash.is(name)
    }

    fn write_registration(
        &self,
        variable: &str,
        _: &str,
        program: &str,
        completer: &str,
        script: &mut dyn Write,
    ) -> io::Result<()> {
        writeln!(
            script,
            r#"_netmon_mcp() {{
    local IFS=$' \t\n' words line=${{COMP_LINE:0:COMP_POINT}}
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local IFS=$'\n'
    COMPREPLY=($({variable}=bash {completer} -- "${{words[@]}}" 2>/dev/null))
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=/] ]] && compopt -o nospace
    return 0
}}
complete -o bashdefault -F _netmon_mcp {program}"#
        )
    }

    fn write_complete(
        &self,
        command: &mut Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        reply: &mut dyn Write,
    ) -> io::Result<()> {
        let last = words.len().saturating_sub(1);
        let written = words.last().map_or(0, |word| word.to_string_lossy().rfind('=').map_or(0, |at| at + 1));
        for candidate in engine::complete(command, words, last, folder)? {
            let text = candidate.get_value().to_string_lossy();
            writeln!(reply, "{}", text.get(written..).unwrap_or(&text))?;
        }
        Ok(())
    }
}

/// The possible next words of a tool's arguments.
pub fn arguments() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        // The tool stands before its arguments, whether behind `call` or by itself.
        let tool = std::env::args().find_map(|word| Question::named(&word));
        tool.map(|tool| candidates(&offer::arguments(tool), &word.to_string_lossy())).unwrap_or_default()
    })
}

/// The arguments that begin as `word` does, or the values where it names one already.
fn candidates(schema: &Value, word: &str) -> Vec<CompletionCandidate> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    match word.split_once('=') {
        None => properties
            .filter(|(key, _)| key.starts_with(word))
            .map(|(key, property)| {
                let meaning = property["description"].as_str().and_then(|text| text.split(". ").next());
                CompletionCandidate::new(format!("{key}=")).help(meaning.map(|text| text.to_owned().into()))
            })
            .collect(),
        Some((key, begun)) => values(key, resolve(&schema["properties"][key], schema))
            .into_iter()
            .filter(|value| value.starts_with(begun))
            .map(|value| CompletionCandidate::new(format!("{key}={value}")))
            .collect(),
    }
}

/// The possible values of an argument: from its schema, or from this host.
fn values(key: &str, property: &Value) -> Vec<String> {
    if property.is_null() {
        return vec![]; // the tool has no such argument
    }
    if let Some(values) = property["enum"].as_array() {
        return values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    match (key, &property["default"]) {
        ("interface", _) => words(interfaces()),
        ("process", _) => words(processes()),
        (_, Value::Bool(_)) => vec!["true".into(), "false".into()],
        ("duration_ms", Value::Number(default)) => vec![default.to_string()],
        _ => vec![],
    }
}

/// The interfaces of this network namespace (proc_net_dev(5)).
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

fn processes() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let name = |folder: &Path| std::fs::read_to_string(folder.join("comm")).ok();
    entries.filter_map(|entry| name(&entry.path())).map(|name| name.trim_end().to_owned()).collect()
}

/// Sorted, without duplicates, and without those that a shell would split (zsh splits at a colon).
fn words(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@+/".contains(c)));
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tool: &str, word: &str) -> Vec<String> {
        let candidates = candidates(&offer::arguments(Question::named(tool).unwrap()), word);
        candidates.iter().map(|candidate| candidate.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn completion_offers_keys_and_values_of_the_schema() {
        assert_eq!(texts("snapshot_sockets", "sta"), ["state="]);
        assert!(texts("snapshot_sockets", "state=l").contains(&"state=listen".to_owned()));
        assert_eq!(texts("network-monitor", "interface=lo"), ["interface=lo"]);
        assert!(!texts("trace_connections", "process=").is_empty());
        assert_eq!(texts("top_traffic", "nothing=").len() + texts("top_traffic", "nothing").len(), 0);
    }
}
