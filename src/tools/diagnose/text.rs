//! How a diagnosis reads: findings in order, their evidence indented, next steps as lines to paste.

use serde_json::{Map, Value};

use super::{Finding, Output, Severity};
use crate::answer::{self, Owner};

/// The first line: how it stands.
pub fn verdict(output: &Output) -> String {
    let harmful = output.findings.iter().filter(|finding| finding.severity != Severity::Info).count();
    let checked = output.checked.len();
    let seconds = output.measured.window_ms / 1e3;
    match harmful {
        0 if checked == 0 => "Nothing could be judged; see below.\n".into(),
        0 => format!("Nothing is wrong: {checked} kinds of trouble were looked for, for {seconds:.1} s.\n"),
        1 => format!("1 finding ({checked} kinds of trouble were looked for, for {seconds:.1} s).\n"),
        n => format!("{n} findings, worst first ({checked} kinds of trouble were looked for, for {seconds:.1} s).\n"),
    }
}

/// One finding: severity and code, what it is, the evidence, what to do.
pub fn finding(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Critical => "CRITICAL",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let width = finding.evidence.keys().map(String::len).max().unwrap_or_default();
    let evidence = finding.evidence.iter().map(|(key, value)| format!("    {key:width$}  {}\n", figure(key, value)));
    let steps = finding.next_step.lines().map(|line| format!("  {line}\n"));
    format!(
        "{severity} {}: {}\n{}{}",
        finding.code,
        finding.summary,
        evidence.collect::<String>(),
        steps.collect::<String>()
    )
}

/// What was not seen, a line each.
pub fn blind_spots(output: &Output) -> String {
    if output.blind_spots.is_empty() {
        return output.measured.text();
    }
    let lines: String = output.blind_spots.iter().map(|spot| format!("  {spot}\n")).collect();
    format!("\nNot seen:\n{lines}{}", output.measured.text())
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
                _ if key.contains("_us") => answer::micros(n as u64),
                _ if key.contains("_bytes") => answer::bytes(n as u64),
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
    let Ok(owner) = serde_json::from_value::<Owner>(value.clone()) else {
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

#[cfg(test)]
mod tests {
    use super::{super::*, *};
    use crate::answer::Endpoint;

    fn output(findings: Vec<Finding>) -> Output {
        let measured = Measured::window(Duration::from_secs(10));
        let healthy = findings.is_empty();
        Output { healthy, findings, checked: vec![Code::Resets], blind_spots: vec![], measured }
    }

    #[test]
    fn all_well_is_one_line() {
        assert_eq!(T::text(&output(vec![])), "Nothing is wrong: 1 kinds of trouble were looked for, for 10.0 s.\n");
    }

    #[test]
    fn a_finding_has_its_evidence_indented_and_its_steps_to_paste() {
        let owner = Owner { process: Some("nginx".into()), pid: Some(5), ..Owner::default() };
        let finding = Finding::new(Code::ConnectTimeout, Severity::Warning, "it waits")
            .owner(&owner)
            .with("remote", Endpoint { address: [10, 0, 0, 1].into(), port: 80 })
            .with("rtt_us_p50", 1_500)
            .look("trace_connections", &[("outcome", "failed".into())]);
        let text = T::text(&output(vec![finding]));
        let told = "WARNING connect_timeout: it waits\n    owner       nginx[5]\n    remote      10.0.0.1:80\n    rtt_us_p50  1.5 ms\n  netmon-mcp call trace_connections outcome=failed\n";
        assert!(text.ends_with(told), "{text}");
    }
}
