use serde_json::json;

use super::*;
use crate::recorder::time::SECOND;

fn incident(code: &str, closed: bool) -> Incident {
    let finding = json!({"code": code, "summary": "it broke", "evidence": {"count": 3}, "next_step": "look"});
    Incident {
        id: Some(1),
        identity: code.into(),
        code: code.into(),
        severity: "warning".into(),
        begin_us: 1_800_000_000 * SECOND,
        end_us: 1_800_000_060 * SECOND,
        closed,
        windows: 6,
        host: "h".into(),
        finding: finding.to_string(),
    }
}

fn recorded() -> Option<FromTo> {
    Some(FromTo { from: "a".into(), to: "b".into() })
}

fn ask(input: Value, sample: Result<Sample, String>) -> Output {
    Incidents::report(&serde_json::from_value(input).unwrap(), sample)
}

#[test]
fn open_incident_has_no_end() {
    let incidents = vec![incident("resets", false), incident("dns_slow", true)];
    let output = ask(json!({}), Ok(Sample { incidents, recorded: recorded() }));
    assert_eq!((output.incidents[0].to.as_deref(), output.incidents[0].evidence["count"].as_u64()), (None, Some(3)));
    assert_eq!(output.incidents[1].to.as_deref(), Some("2027-01-15T08:01:00.000Z"));
    let text = Incidents::text(&output);
    assert!(
        text.contains("WARNING resets: it broke\n    from 2027-01-15T08:00:00.000Z, ongoing at b\n  look"),
        "{text}"
    );
}

#[test]
fn limit_counts_the_omitted_incidents() {
    let incidents = vec![incident("resets", true), incident("dns_slow", true)];
    let output = ask(json!({"limit": 1}), Ok(Sample { incidents, recorded: recorded() }));
    assert_eq!((output.incidents.len(), output.more), (1, 1));
}

#[test]
fn missing_recording_is_not_healthy() {
    let output = ask(json!({}), Ok(Sample { incidents: vec![], recorded: None }));
    assert!(Incidents::text(&output).contains("No data"));
    let output = ask(json!({}), Err("no recording".into()));
    assert!(Incidents::text(&output).contains("no recording"));
    let output = ask(json!({}), Ok(Sample { incidents: vec![], recorded: recorded() }));
    assert_eq!(Incidents::text(&output), "No incidents from a to b\n");
}
