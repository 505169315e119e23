//! The table of bytes by owner.

use std::fmt::Write;

use super::{Other, Output, Row};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let rate = |bytes: u64| answer::bit_rate(bytes as f64 * 8.0 / seconds.max(1e-3));
    let mut text = format!(
        "in {seconds:.1} s: received {} ({}), sent {} ({})\n\n",
        answer::bytes(output.total.rx_bytes),
        rate(output.total.rx_bytes),
        answer::bytes(output.total.tx_bytes),
        rate(output.total.tx_bytes),
    );
    if output.rows.is_empty() {
        text += "No matching socket sent or received data.\n";
    } else {
        text += &answer::table(
            ["who", "?", ">received", ">sent", "?>share", "?>sockets", "?unit"],
            output.rows.iter().map(line),
        );
    }
    let Other { rows, rx_bytes, tx_bytes } = output.other;
    if rx_bytes + tx_bytes > 0 {
        let (received, sent) = (answer::bytes(rx_bytes), answer::bytes(tx_bytes));
        let _ = writeln!(text, "\nother ({}): received {received}, sent {sent}", answer::count(rows, "row", "rows"));
    }
    text + &output.measured.text(output.rows.len())
}

fn line(row: &Row) -> [String; 7] {
    [
        who(row),
        row.protocol.map_or_else(|| "both".into(), |protocol| protocol.to_string()),
        answer::bit_rate(row.rx_bits_per_second),
        answer::bit_rate(row.tx_bits_per_second),
        format!("{:.1} %", row.share * 1e2),
        row.connections.to_string(),
        answer::or_dash(&row.owner.unit),
    ]
}

/// What distinguishes a row from the others.
fn who(row: &Row) -> String {
    let owner = &row.owner;
    let remote = row.remote.map(|remote| match remote.port {
        Some(port) if port != 0 => std::net::SocketAddr::new(remote.address, port).to_string(),
        _ => remote.address.to_string(),
    });
    let short = |id: &String| id.chars().take(12).collect::<String>();
    match (&row.local, remote) {
        (Some(local), Some(remote)) => return format!("{owner} {local} → {remote}"),
        (Some(local), None) => return format!("{owner} {local}"),
        (None, Some(remote)) => return remote,
        (None, None) => {}
    }
    match (row.port, owner.pid, &row.netns_name, &owner.container, &owner.unit, owner.netns) {
        (Some(port), None, ..) => format!("port {port}"),
        (Some(port), Some(_), ..) => format!("port {port} {owner}"),
        (_, _, Some(name), ..) => format!("netns {name}"),
        (_, Some(_), ..) => owner.to_string(),
        (_, _, _, Some(id), ..) => format!("container {}", short(id)),
        (_, _, _, _, Some(unit), _) => unit.clone(),
        (_, _, _, _, _, Some(netns)) => format!("netns {netns}"),
        _ => "unknown".into(),
    }
}
