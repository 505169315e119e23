//! The table of interfaces.

use super::Output;
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let rows = output.interfaces.iter().map(|i| {
        let name = if output.primary.as_ref() == Some(&i.name) { format!("{} *", i.name) } else { i.name.clone() };
        let trouble = i.rx.errors + i.rx.dropped + i.tx.errors + i.tx.dropped;
        [
            name,
            i.kind.clone(),
            i.state.clone(),
            answer::bit_rate(i.rx.bits_per_second),
            answer::bit_rate(i.tx.bits_per_second),
            format!("{}/s", answer::si(i.rx.packets_per_second)),
            format!("{}/s", answer::si(i.tx.packets_per_second)),
            trouble.to_string(),
            i.addresses.first().cloned().unwrap_or_else(|| "-".into()),
        ]
    });
    let table = answer::table(
        ["interface", "?kind", "~state", ">received", ">sent", "?>packets in", "?>out", "?>errors+drops", "address"],
        rows,
    );
    let primary = output.primary.as_ref().map_or_else(String::new, |p| format!("\n* {p} is the primary interface.\n"));
    table + &primary + &output.measured.text(output.interfaces.len())
}
