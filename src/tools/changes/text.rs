//! The changes for a person, a line each.

use super::Output;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    if let Some(reason) = &output.not_enough {
        return format!("No comparison: {reason}\n");
    }
    let (Some(period), Some(baseline)) = (&output.period, &output.baseline) else { return String::new() };
    let periods = format!("{} to {}, compared with {} to {}", period.from, period.to, baseline.from, baseline.to);
    if output.changes.is_empty() {
        return format!("No changes: {periods}\n");
    }
    let lines: String = output.changes.iter().map(|change| format!("{}\n", change.summary)).collect();
    let more = if output.more > 0 { format!("{} more: use a higher limit\n", output.more) } else { String::new() };
    format!("{lines}{more}\n{periods}\n")
}
