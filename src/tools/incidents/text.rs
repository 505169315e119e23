//! The incidents for a person: a line each, and what to do.

use std::fmt::Write;

use super::Output;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = String::new();
    for row in &output.incidents {
        let end = match (&row.to, &output.recorded) {
            (Some(to), _) => format!(" to {to}"),
            (None, Some(recorded)) => format!(", ongoing at {}", recorded.to),
            (None, None) => ", ongoing".into(),
        };
        let _ = writeln!(text, "{} {}: {}", row.severity.to_uppercase(), row.code, row.summary);
        let _ = writeln!(text, "    from {}{end}", row.from);
        text.extend(row.next_step.lines().map(|line| format!("  {line}\n")));
    }
    if output.more > 0 {
        let _ = writeln!(text, "{} more: use a higher limit", output.more);
    }
    match (&output.recorded, &output.reason) {
        (_, Some(reason)) => text + "No data: " + reason + "\n",
        (Some(recorded), None) if output.incidents.is_empty() => {
            format!("No incidents from {} to {}\n", recorded.from, recorded.to)
        }
        _ => text,
    }
}
