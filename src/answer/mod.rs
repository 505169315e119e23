//! Types that the answers of several tools share: windows, endpoints, owners, and their text form.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod bounded;
mod count;
mod followed;
mod limitation;
mod table;
pub use bounded::{Limit, WindowMs, WindowSeconds};
pub use count::{count, cut};
pub use followed::{follow, next_reading};
pub use limitation::{Code, Limitation, exchanges_left_out};
pub use table::{fit, prose, table};

/// Bytes that the limits of an answer take in its text: rows need the rest of [`crate::limits::TEXT_UNASKED`]. The structured
/// answer has all limits.
pub const LIMITS_TEXT: usize = 600;

/// How complete an answer is.
#[derive(Serialize, Deserialize, JsonSchema, Default, Clone, Debug, PartialEq)]
pub struct Measured {
    /// The window as it was, in milliseconds.
    pub window_ms: f64,
    /// Events that the kernel had no room for.
    pub lost_events: u64,
    /// Rows that were left out; `limit` brings more.
    pub rows_cut: u64,
    /// What this kernel or these rights could not show.
    pub limits: Vec<Limitation>,
}

impl Measured {
    /// A window of this length in which nothing was lost.
    pub fn window(length: Duration) -> Self {
        Measured { window_ms: (length.as_secs_f64() * 1e6).round() / 1e3, ..Self::default() }
    }

    /// One line for people about the limits of an answer with this many rows; empty if it is complete.
    pub fn text(&self, shown: usize) -> String {
        let mut parts = Vec::new();
        if self.lost_events > 0 {
            parts.push(format!("{}.", count(self.lost_events, "event was lost", "events were lost")));
        }
        parts.extend(cut(shown, self.rows_cut).map(|text| format!("{text}.")));
        let mut room = LIMITS_TEXT;
        let told = self.limits.iter().map(Limitation::to_string).take_while(|text| {
            let fits = text.len() <= room;
            room = room.saturating_sub(text.len());
            fits
        });
        let told: Vec<_> = told.collect();
        let more = (self.limits.len() - told.len()) as u64;
        parts.extend(told);
        if more > 0 {
            parts.push(format!("{} in measured.limits.", count(more, "more limit", "more limits")));
        }
        if parts.is_empty() { String::new() } else { format!("\n{}\n", prose(&parts.join(" "), 0)) }
    }
}

/// The name of a field without its unit, for where the value is shown with one: `rtt_us_p50` is `rtt_p50`.
pub fn label(key: &str) -> String {
    let bare = key.replace("bits_per_second", "").replace("__", "_");
    let words: Vec<_> = bare.split('_').filter(|word| !["", "us", "bytes"].contains(word)).collect();
    match (words.is_empty(), key) {
        (true, "bits_per_second") => "rate".into(),
        (true, _) => key.into(),
        (false, _) => words.join("_"),
    }
}

/// One end of a connection.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IPv4 or IPv6; an IPv4-mapped IPv6 address is shown as IPv4.
    pub address: IpAddr,
    pub port: u16,
}

impl Endpoint {
    /// From the kernel's form: 16 bytes, IPv4 as `::ffff:a.b.c.d`.
    pub fn new(address: [u8; 16], port: u16) -> Self {
        Endpoint { address: IpAddr::from(address).to_canonical(), port }
    }

    /// `ipv4` or `ipv6`.
    pub fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

// The address family on the wire.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Family {
    Ipv4,
    Ipv6,
}

// Which transport protocols a question is about.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Protocols {
    #[default]
    All,
    Tcp,
    Udp,
}

// A transport protocol.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

/// Who a socket belongs to. A field that is absent is not known.
#[derive(Serialize, Deserialize, JsonSchema, Default, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Process id, in the initial PID namespace.
    pub pid: Option<u32>,
    /// The process' own name (comm): untrusted text.
    pub process: Option<String>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Container id.
    pub container: Option<String>,
    /// Network namespace, by inode.
    pub netns: Option<u32>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (&self.process, self.pid) {
            (Some(process), Some(pid)) => write!(f, "{process}[{pid}]"),
            (Some(process), None) => f.write_str(process),
            (None, Some(pid)) => write!(f, "[{pid}]"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// The best `limit` of `rows` by `weight`, largest first, and how many were cut.
pub fn largest<T, W: PartialOrd>(mut rows: Vec<T>, limit: usize, weight: impl Fn(&T) -> W) -> (Vec<T>, u64) {
    rows.sort_by(|a, b| weight(b).partial_cmp(&weight(a)).unwrap_or(std::cmp::Ordering::Equal));
    let cut = rows.len().saturating_sub(limit);
    rows.truncate(limit);
    (rows, cut as u64)
}

/// `1.2 M`: a figure that a person takes in at a glance, with an SI prefix.
pub fn si(value: f64) -> String {
    let magnitude = value.abs();
    for (factor, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if magnitude >= factor {
            return format!("{:.1} {prefix}", value / factor);
        }
    }
    if magnitude >= 10.0 || value.fract() == 0.0 { format!("{value:.0} ") } else { format!("{value:.1} ") }
}

/// `1.2 Mbit/s`.
pub fn bit_rate(bits_per_second: f64) -> String {
    format!("{}bit/s", si(bits_per_second))
}

/// `1.2 MB`, in powers of ten as network figures are.
pub fn bytes(count: u64) -> String {
    format!("{}B", si(count as f64))
}

/// `12.3 ms` from microseconds.
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// For fields that are left out where they are 0.
pub fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `ECONNREFUSED` and the like, for the errors that a connection or the loading of a program can meet.
pub fn errno_name(errno: i32) -> String {
    /// The kernel's own: no C library has it.
    const ENOTSUPP: i32 = 524;
    let name = match errno {
        ENOTSUPP => "ENOTSUPP",
        libc::EACCES => "EACCES",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EAGAIN => "EAGAIN",
        libc::EBUSY => "EBUSY",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EMFILE => "EMFILE",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENFILE => "ENFILE",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::EPROTO => "EPROTO",
        libc::ESRCH => "ESRCH",
        libc::ETIMEDOUT => "ETIMEDOUT",
        0 => "aborted by the process",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}

/// The text for an unknown value.
pub fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".into(), T::to_string)
}

/// A rate over a window; 0 for an empty one.
pub fn per_second(count: u64, window: Duration) -> f64 {
    if window.is_zero() { 0.0 } else { (count as f64 / window.as_secs_f64() * 1e3).round() / 1e3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_has_no_unit() {
        let told = ["rtt_us_p50", "tx_bits_per_second", "bits_per_second", "backlog_bytes", "bytes", "used"].map(label);
        assert_eq!(told, ["rtt_p50", "tx", "rate", "backlog", "bytes", "used"]);
    }

    #[test]
    fn ipv4_mapped_address_is_shown_as_ipv4() {
        let e = Endpoint::new("::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets(), 80);
        assert_eq!((e.to_string().as_str(), e.family()), ("10.0.0.1:80", Family::Ipv4));
        let e = Endpoint::new("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets(), 80);
        assert_eq!((e.to_string().as_str(), e.family()), ("[fd00::1]:80", Family::Ipv6));
    }

    #[test]
    fn numbers_have_two_to_three_digits() {
        assert_eq!([si(0.0), si(9.5), si(999.0), si(1_500.0), si(2e9)], ["0 ", "9.5 ", "999 ", "1.5 k", "2.0 G"]);
        assert_eq!([micros(999), micros(1_500), micros(2_000_000)], ["999 µs", "1.5 ms", "2.0 s"]);
    }

    #[test]
    fn largest_rows_are_kept_and_the_rest_counted() {
        assert_eq!(largest(vec![1, 5, 3], 2, |n| *n), (vec![5, 3], 1));
    }
}
