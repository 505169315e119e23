//! From what was recorded to the answer.

use serde_json::Value;

use super::{Input, Output, Row, Sample};
use crate::{
    recorder::{store::Incident, time::shown},
    tools::recollect::NOTHING,
    untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Result<Sample, String>) -> Output {
    match sample {
        Err(reason) => Output { incidents: Vec::new(), more: 0, recorded: None, reason: Some(reason) },
        Ok(Sample { incidents, recorded }) => {
            let limit = input.limit.rows();
            let more = incidents.len().saturating_sub(limit) as u64;
            let reason = recorded.is_none().then(|| NOTHING.to_owned());
            Output { incidents: incidents.into_iter().take(limit).map(row).collect(), more, recorded, reason }
        }
    }
}

fn row(incident: Incident) -> Row {
    let finding: Value = serde_json::from_str(&incident.finding).unwrap_or_default();
    let text = |key: &str| untrusted::lines(finding[key].as_str().unwrap_or_default());
    Row {
        code: incident.code,
        severity: incident.severity,
        from: shown(incident.begin_us),
        to: incident.closed.then(|| shown(incident.end_us)),
        summary: text("summary"),
        evidence: finding["evidence"].as_object().cloned().unwrap_or_default(),
        next_step: text("next_step"),
    }
}
