//! The answer, from what the kernel said.

use std::{collections::HashMap, fmt::Write, time::Duration};

use super::{Bytes, Gaps, Group, GroupBy, Input, Other, Output, Row, Sample};
use crate::{
    answer::{self, Measured, Owner},
    limits, untrusted,
};

pub fn output(input: &Input, sample: Sample) -> Output {
    let window = Duration::from_nanos(sample.window_ns);
    let mut rows: Vec<_> = sample.rows.iter().map(row).collect();
    match input.group_by {
        GroupBy::Unit => rows = merge(rows, |owner| owner.unit.clone()),
        GroupBy::Container => rows = merge(rows, |owner| owner.container.clone()),
        _ => {}
    }
    rows.iter_mut().for_each(|row| rate(row, &sample.total, window));
    let (rows, cut) = answer::largest(rows, input.limit.rows(), |row| row.rx_bytes + row.tx_bytes);
    let mut measured = Measured::window(window);
    measured.rows_cut = cut + sample.rows_cut;
    (measured.limits, measured.lost_events) = (unseen(&sample.gaps), sample.gaps.missed);
    let shown = rows.iter().fold(Bytes::default(), |mut sum, row| {
        sum += Bytes { rx_bytes: row.rx_bytes, tx_bytes: row.tx_bytes };
        sum
    });
    let other = Other {
        rows: measured.rows_cut,
        rx_bytes: sample.total.rx_bytes.saturating_sub(shown.rx_bytes),
        tx_bytes: sample.total.tx_bytes.saturating_sub(shown.tx_bytes),
    };
    Output { rows, other, total: sample.total, measured }
}

/// A row without the figures that follow from others.
fn row(group: &Group) -> Row {
    Row {
        owner: group.process.owner(),
        protocol: group.protocol,
        local: group.local,
        remote: group.remote,
        port: group.port,
        netns_name: group.netns_name.as_deref().map(untrusted::clean),
        rx_bytes: group.bytes.rx_bytes,
        tx_bytes: group.bytes.tx_bytes,
        rx_bits_per_second: 0.0,
        tx_bits_per_second: 0.0,
        connections: group.connections,
        share: 0.0,
    }
}

fn rate(row: &mut Row, total: &Bytes, window: Duration) {
    row.rx_bits_per_second = answer::per_second(row.rx_bytes * 8, window);
    row.tx_bits_per_second = answer::per_second(row.tx_bytes * 8, window);
    let share = (row.rx_bytes + row.tx_bytes) as f64 / total.sum().max(1) as f64;
    row.share = (share * 1e4).round() / 1e4;
}

/// Puts the cgroups of one unit (or container) together.
fn merge(rows: Vec<Row>, name: impl Fn(&Owner) -> Option<String>) -> Vec<Row> {
    let mut merged: HashMap<Option<String>, Row> = HashMap::new();
    for row in rows {
        match merged.entry(name(&row.owner)) {
            std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(row)),
            std::collections::hash_map::Entry::Occupied(mut entry) => add(entry.get_mut(), row),
        }
    }
    merged.into_values().collect()
}

fn add(sum: &mut Row, row: Row) {
    /// What differs is not common to both.
    fn keep<T: PartialEq>(common: &mut Option<T>, value: &Option<T>) {
        if common != value {
            *common = None;
        }
    }
    // A process' number without its name, or the other way round, would be half an owner.
    if (sum.owner.pid, &sum.owner.process) != (row.owner.pid, &row.owner.process) {
        (sum.owner.pid, sum.owner.process) = (None, None);
    }
    keep(&mut sum.owner.unit, &row.owner.unit);
    keep(&mut sum.owner.container, &row.owner.container);
    keep(&mut sum.owner.netns, &row.owner.netns);
    keep(&mut sum.protocol, &row.protocol);
    sum.rx_bytes += row.rx_bytes;
    sum.tx_bytes += row.tx_bytes;
    sum.connections += row.connections;
}

fn unseen(gaps: &Gaps) -> Vec<String> {
    let mut said = Vec::new();
    if gaps.udp_uncounted {
        let why = "the kernel has no sock_send_length tracepoint (Linux 6.3 and newer have it)";
        said.push(format!("UDP is not counted: {why}."));
    }
    if gaps.udp_untracked > 0 {
        let (count, kept) = (gaps.udp_untracked, limits::UDP_SOCKETS_COUNTED);
        said.push(format!("{count} datagrams of UDP sockets beyond the first {kept} are only in `other`."));
    }
    if gaps.tcp_untracked > 0 {
        let (count, kept) = (gaps.tcp_untracked, limits::TCP_CLOSED_KEPT);
        said.push(format!("{count} TCP connections that closed after the first {kept} are only in `other`."));
    }
    if gaps.tcp_unknown > 0 {
        let count = gaps.tcp_unknown;
        said.push(format!("Of these, {count} were older than the window, and their bytes are missing."));
    }
    if gaps.tcp_older > 0 {
        let count = gaps.tcp_older;
        said.push(format!("{count} TCP connections older than the window closed before they were read, and are missing."));
    }
    if gaps.other_netns {
        let which = "connections in other network namespaces than the daemon's that no process held when it began";
        said.push(format!("Not seen: {which}."));
    }
    said
}

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
        text += "No socket moved anything.\n";
    } else {
        text += &answer::table(["who", "", ">received", ">sent", ">share", ">sockets", "unit"], output.rows.iter().map(line));
    }
    let Other { rows, rx_bytes, tx_bytes } = output.other;
    if rx_bytes + tx_bytes > 0 {
        let (received, sent) = (answer::bytes(rx_bytes), answer::bytes(tx_bytes));
        let _ = writeln!(text, "\nother ({rows} rows): received {received}, sent {sent}");
    }
    text + &output.measured.text()
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

/// What tells a row from the others.
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
