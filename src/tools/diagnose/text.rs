//! How a diagnosis reads: findings in order, their evidence indented, next steps as lines to paste.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Checks, Finding, Output, Severities, coverage, finding::Severity};
use crate::answer::{self, LIMITS_TEXT, Owner};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = headline(output);
    let (detailed, brief) = output.findings.split_at(output.detailed.min(output.findings.len()));
    for shown in detailed {
        let _ = write!(text, "\n{}", finding(shown));
    }
    for (place, shown) in brief.iter().enumerate() {
        let gap = if place == 0 { "\n" } else { "" };
        let _ = writeln!(text, "{gap}{}", told(shown));
    }
    text + &blind_spots(output)
}

/// The first line: how the host stands, and how much of it was seen.
pub fn headline(output: &Output) -> String {
    let line = if output.severities.above_info() > 0 { fault_seen(output) } else { no_fault_seen(output) };
    answer::prose(&line, 2) + "\n"
}

/// `3 findings, 1 shown; 2 more with limit=3: 1 warning, 2 info (24 of 24 checks, 10.0 s)`.
fn fault_seen(output: &Output) -> String {
    let Checks { judged, total } = output.checks;
    let Severities { critical, warning, info } = output.severities;
    let kinds = [(critical, "critical"), (warning, "warning"), (info, "info")];
    let kinds: Vec<_> = kinds.iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!("{n} {kind}")).collect();
    let ran = if judged == total { "" } else { " could run" };
    let early = if output.ended_early { ", ended early" } else { "" };
    let (counted, kinds) = (counted(output, "finding", "findings"), kinds.join(", "));
    format!("{counted}: {kinds} ({judged} of {total} checks{ran}, {}{early})", length(output))
}

fn no_fault_seen(output: &Output) -> String {
    let Checks { judged, total } = output.checks;
    let length = length(output);
    let whole = judged == total;
    let seen = match judged {
        0 => format!("None of the {total} checks could run ({})", explained_in(output)),
        _ if whole => format!("No fault seen ({judged} of {total} checks, {length})"),
        _ => format!(
            "No fault seen by the {judged} of {total} checks that could run; {} could not ({})",
            total - judged,
            explained_in(output)
        ),
    };
    // What is whole and still does not say that the host is healthy was too short.
    let window = match (output.ended_early, whole) {
        (true, true) => "; the window ended early".to_owned(),
        (true, false) => format!("; the window ended early, after {length}"),
        // Of the past: the window is long enough, and there is a gap in it.
        (false, true) if output.healthy.is_none() && output.measured.window_ms >= 2_000.0 => {
            "; the recording has a gap".to_owned()
        }
        (false, true) if output.healthy.is_none() => "; window too short: use duration_ms=2000 or more".to_owned(),
        (false, true) => String::new(),
        (false, false) => format!("; the window was {length}"),
    };
    let info = if output.severities.info > 0 {
        format!("; {}", counted(output, "info finding", "info findings"))
    } else {
        String::new()
    };
    seen + &window + &info
}

/// Where the reader learns why a check could not run: `status` knows of tools that are not available, and the answer
/// itself of what was lost or cut.
fn explained_in(output: &Output) -> &'static str {
    if output.tool_missing { "see status" } else { "see below" }
}

/// How many findings there are, and how many of them follow.
fn counted(output: &Output, one: &str, more: &str) -> String {
    let (all, shown) = (output.severities.all(), output.findings.len());
    let counted = answer::count(all as u64, one, more);
    if shown == all { counted } else { format!("{counted}, {shown} shown; {} more with limit={all}", all - shown) }
}

fn length(output: &Output) -> String {
    format!("{:.1} s", output.measured.window_ms / 1e3)
}

/// Severity, code, and what it is.
fn told(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Critical => "CRITICAL",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    answer::prose(&format!("{severity} {}: {}", finding.code, finding.summary), 2)
}

/// One finding: what it is, the evidence, what to do.
fn finding(finding: &Finding) -> String {
    let told_as = |key: &str, value: &Value| if value.is_number() { answer::label(key) } else { key.to_owned() };
    let rows: Vec<_> = named(finding).iter().map(|(key, value)| (told_as(key, value), figure(key, value))).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let evidence = rows
        .iter()
        .map(|(name, value)| answer::prose(&format!("    {name:width$}  {value}"), width + "      ".len()) + "\n");
    let steps = finding.next_step.lines().map(|line| format!("  {line}\n"));
    format!("{}\n{}{}", told(finding), evidence.collect::<String>(), steps.collect::<String>())
}

/// The evidence without the number of the owner's network namespace, if its name is there.
fn named(finding: &Finding) -> Map<String, Value> {
    let mut evidence = finding.evidence.clone();
    let number = evidence.get("netns").cloned();
    let has_name = evidence.contains_key("namespace");
    if let Some(Value::Object(owner)) = evidence.get_mut("owner")
        && has_name
        && number.is_none_or(|number| owner.get("netns") == Some(&number))
    {
        owner.shift_remove("netns");
    }
    evidence
}

/// What was not seen, a line each, as far as they leave room for the findings.
fn blind_spots(output: &Output) -> String {
    /// So many bytes beside findings, which come first.
    const BESIDE: usize = 250;
    let mut room = if output.findings.is_empty() { LIMITS_TEXT } else { BESIDE };
    let mut lines: Vec<_> = output.blind_spots.iter().map(|spot| coverage::brief(spot)).collect();
    let all = lines.len();
    lines.retain(|line| {
        let fits = line.len() <= room;
        room -= if fits { line.len() } else { 0 };
        fits
    });
    let more = (all - lines.len()) as u64;
    lines.extend((more > 0).then(|| format!("{} in blind_spots (-o json)", answer::count(more, "more", "more"))));
    let lines: String = lines.iter().map(|line| answer::prose(&format!("  {line}"), 4) + "\n").collect();
    if lines.is_empty() { lines } else { format!("\nUnavailable:\n{lines}") }
}

/// A figure with its unit, an endpoint as `address:port`, an owner as a process with its unit.
fn figure(key: &str, value: &Value) -> String {
    match value {
        Value::Object(object) => thing(object, value),
        Value::Array(values) => values.iter().map(|value| figure(key, value)).collect::<Vec<_>>().join(", "),
        Value::Number(number) => {
            let n = number.as_f64().unwrap_or_default();
            match key {
                _ if key.ends_with("bits_per_second") => answer::bit_rate(n),
                _ if key.split('_').any(|word| word == "us") => answer::micros(n as u64),
                _ if key.split('_').any(|word| word == "bytes") => answer::bytes(n as u64),
                _ => number.to_string(),
            }
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn thing(object: &Map<String, Value>, value: &Value) -> String {
    if let Ok(endpoint) = serde_json::from_value::<answer::Endpoint>(value.clone()) {
        return endpoint.to_string();
    }
    if let (Some(Value::String(address)), 1) = (object.get("address"), object.len()) {
        return address.clone();
    }
    // Every field of an owner may be absent: what has none of them is something else.
    let owner = serde_json::from_value::<Owner>(value.clone()).ok().filter(|owner| *owner != Owner::default());
    let Some(owner) = owner else {
        return object
            .iter()
            .map(|(key, value)| format!("{key} {}", figure(key, value)))
            .collect::<Vec<_>>()
            .join(", ");
    };
    let mut parts = vec![owner.to_string()];
    parts.extend(owner.unit.map(|unit| format!("unit {unit}")));
    parts.extend(owner.container.map(|id| format!("container {}", id.chars().take(12).collect::<String>())));
    parts.extend(owner.netns.map(|netns| format!("netns {netns}")));
    parts.join(", ")
}
