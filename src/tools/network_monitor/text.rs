//! The rates of an interface, or the table of connects.

use std::fmt::Write;

use super::{Connection, Output, Rates};
use crate::answer::{self, Measured};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    match (&output.connections, &output.received) {
        (Some(connections), _) => outgoing_text(connections, output),
        (None, Some(rx)) => incoming_text(output, rx),
        (None, None) => String::new(),
    }
}

fn incoming_text(output: &Output, rx: &Rates) -> String {
    let mut text =
        format!("{} in {:.1} s\n\n", output.interface.as_deref().unwrap_or_default(), output.measured.window_ms / 1e3);
    let row = |way: &str, r: &Rates| {
        [
            way.to_owned(),
            format!("{}/s", answer::si(r.packets_per_second)),
            answer::bit_rate(r.bits_per_second),
            r.packets.to_string(),
            answer::bytes(r.bytes),
        ]
    };
    let rows = [Some(row("received", rx)), output.transmitted.as_ref().map(|tx| row("sent", tx))];
    text += &answer::table(["", ">packets", ">bits", "?>total packets", "?>total bytes"], rows.into_iter().flatten());
    if let Some(p) = &output.by_protocol {
        let _ = writeln!(
            text,
            "\nreceived packets: {} TCP, {} UDP, {} ICMP, {} ARP, {} other",
            p.tcp, p.udp, p.icmp, p.arp, p.other
        );
    }
    text + &output.measured.text(0)
}

fn outgoing_text(connections: &[Connection], output: &Output) -> String {
    let measured = &Measured { rows_cut: 0, ..output.measured.clone() };
    if connections.is_empty() {
        return format!(
            "No process opened a TCP connection in {:.1} s.\n{}",
            measured.window_ms / 1e3,
            measured.text(0)
        );
    }
    let rows = connections.iter().map(|c| {
        let outcome = c.error.clone().unwrap_or_else(|| "established".into());
        [
            c.owner.to_string(),
            c.local.to_string(),
            c.remote.to_string(),
            outcome,
            answer::micros(c.connect_latency_us),
            answer::or_dash(&c.owner.unit),
        ]
    });
    let more = match (output.measured.rows_cut, &output.next) {
        (0, _) | (_, None) => String::new(),
        (cut, Some(next)) => {
            let (shown, all) = (connections.len(), connections.len() as u64 + cut);
            format!(
                "\n{shown} of {all} connections; for the rest, call again within 1 s with after={next}, or use a \
                    higher limit.\n"
            )
        }
    };
    answer::table(["process", "?local", "remote", "outcome", "?>after", "?unit"], rows)
        + &more
        + &measured.text(connections.len())
}
