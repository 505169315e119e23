//! The changes for a person, a line each.

use super::Output;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    if let Some(reason) = &output.not_enough {
        return format!("Nothing can be said: {reason}\n");
    }
    let (Some(period), Some(baseline)) = (&output.period, &output.baseline) else { return String::new() };
    let periods = format!("{} to {}, against {} to {}", period.from, period.to, baseline.from, baseline.to);
    if output.changes.is_empty() {
        return format!("Nothing changed: {periods}\n");
    }
    let lines: String = output.changes.iter().map(|change| format!("{}\n", change.summary)).collect();
    let more = if output.more > 0 { format!("{} more with a larger limit\n", output.more) } else { String::new() };
    format!("{lines}{more}\n{periods}\n")
}
