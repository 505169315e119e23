//! Losses that make no packet event, only a counter: read twice, of the daemon's own network namespace.

use std::{collections::HashMap, fs};

use serde::{Deserialize, Serialize};

use crate::{daemon::netlink, interface::Interface, limits};

/// Growth in the window. null: this kernel does not count it, or the module is not loaded.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// Connections refused because a listener's accept queue was full.
    pub listen_overflows: Option<u64>,
    /// SYNs and handshakes that a listener dropped, overflows included.
    pub listen_drops: Option<u64>,
    /// SYN cookies sent: a SYN queue was full.
    pub syn_cookies_sent: Option<u64>,
    /// SYNs dropped because the SYN queue was full and cookies are off.
    pub syn_queue_drops: Option<u64>,
    pub syn_queue_cookies: Option<u64>,
    /// Packets dropped because the connection tracking table was full.
    pub conntrack_drops: Option<u64>,
    pub conntrack_insert_failed: Option<u64>,
    /// Packets that found a CPU's backlog full.
    pub softnet_dropped: Option<u64>,
    /// How often a CPU had packets left when its time was up.
    pub softnet_time_squeeze: Option<u64>,
    /// Dropped or missed by interfaces, both ways.
    pub interface_dropped: Option<u64>,
    pub qdisc_dropped: Option<u64>,
}

impl Counters {
    /// What the counters read now.
    pub fn read() -> Counters {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (tcp, conntrack) = (file("/proc/net/netstat"), file("/proc/net/stat/nf_conntrack"));
        let (tcp, conntrack) = (netstat(&tcp), columns(&conntrack));
        let softnet = file("/proc/net/softnet_stat");
        let interfaces = netlink::interfaces().ok();
        let dropped = |i: &Interface| i.counters.rx_dropped + i.counters.tx_dropped;
        Counters {
            listen_overflows: tcp.get("ListenOverflows").copied(),
            listen_drops: tcp.get("ListenDrops").copied(),
            syn_cookies_sent: tcp.get("SyncookiesSent").copied(),
            syn_queue_drops: tcp.get("TCPReqQFullDrop").copied(),
            syn_queue_cookies: tcp.get("TCPReqQFullDoCookies").copied(),
            conntrack_drops: conntrack.get("drop").copied(),
            conntrack_insert_failed: conntrack.get("insert_failed").copied(),
            softnet_dropped: column(&softnet, 1),
            softnet_time_squeeze: column(&softnet, 2),
            interface_dropped: interfaces.as_ref().map(|all| all.iter().map(dropped).sum()),
            qdisc_dropped: interfaces.map(|all| all.iter().filter_map(|i| i.qdisc.as_ref()).map(|q| q.dropped).sum()),
        }
    }

    /// Growth since an earlier reading. An interface that went away takes its counts with it.
    pub fn since(&self, before: &Counters) -> Counters {
        self.with(before, |now, then| now.map(|now| now.saturating_sub(then.unwrap_or(0))))
    }

    /// Growth of two periods together.
    pub fn plus(&self, later: &Counters) -> Counters {
        self.with(later, |a, b| a.into_iter().chain(b).reduce(u64::saturating_add))
    }

    fn with(&self, other: &Counters, f: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Counters {
        Counters {
            listen_overflows: f(self.listen_overflows, other.listen_overflows),
            listen_drops: f(self.listen_drops, other.listen_drops),
            syn_cookies_sent: f(self.syn_cookies_sent, other.syn_cookies_sent),
            syn_queue_drops: f(self.syn_queue_drops, other.syn_queue_drops),
            syn_queue_cookies: f(self.syn_queue_cookies, other.syn_queue_cookies),
            conntrack_drops: f(self.conntrack_drops, other.conntrack_drops),
            conntrack_insert_failed: f(self.conntrack_insert_failed, other.conntrack_insert_failed),
            softnet_dropped: f(self.softnet_dropped, other.softnet_dropped),
            softnet_time_squeeze: f(self.softnet_time_squeeze, other.softnet_time_squeeze),
            interface_dropped: f(self.interface_dropped, other.interface_dropped),
            qdisc_dropped: f(self.qdisc_dropped, other.qdisc_dropped),
        }
    }

    /// Those that grew, with what a person calls them.
    pub fn grown(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("accept queue overflows", self.listen_overflows),
            ("drops at listeners", self.listen_drops),
            ("SYN cookies sent", self.syn_cookies_sent),
            ("SYNs dropped, queue full", self.syn_queue_drops),
            ("conntrack table full", self.conntrack_drops),
            ("conntrack inserts failed", self.conntrack_insert_failed),
            ("CPU backlog full", self.softnet_dropped),
            ("CPU time squeezes", self.softnet_time_squeeze),
            ("dropped by interfaces", self.interface_dropped),
            ("dropped by queueing disciplines", self.qdisc_dropped),
        ];
        all.into_iter().filter_map(|(name, count)| Some((name, count.filter(|count| *count > 0)?)))
    }
}

/// How often a connection has found an accept queue full (`ListenOverflows`), by network namespace. Each is given with a
/// process in it.
pub fn listen_overflows(namespaces: impl Iterator<Item = (u32, u32)>) -> HashMap<u32, u64> {
    let mut found = HashMap::new();
    for (netns, pid) in namespaces {
        if found.len() < limits::LISTENING_NAMESPACES && !found.contains_key(&netns) {
            let text = fs::read_to_string(format!("/proc/{pid}/net/netstat")).unwrap_or_default();
            found.extend(netstat(&text).get("ListenOverflows").map(|count| (netns, *count)));
        }
    }
    found
}

/// `TcpExt` of `/proc/net/netstat`: a line of names, a line of figures.
fn netstat(text: &str) -> HashMap<&str, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, figures) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let figures = figures.split_whitespace().map(|figure| figure.parse().unwrap_or(0));
    names.split_whitespace().zip(figures).collect()
}

/// `/proc/net/stat/nf_conntrack`: a line of names, and a line of hexadecimal figures for each CPU.
fn columns(text: &str) -> HashMap<&str, u64> {
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    let mut sums = HashMap::new();
    for line in lines {
        for (name, figure) in names.iter().zip(line.split_whitespace()) {
            *sums.entry(*name).or_default() += u64::from_str_radix(figure, 16).unwrap_or(0);
        }
    }
    sums
}

/// The sum of a column of hexadecimal figures, a line a CPU.
fn column(text: &str, index: usize) -> Option<u64> {
    let figure = |line: &str| u64::from_str_radix(line.split_whitespace().nth(index)?, 16).ok();
    (!text.is_empty()).then(|| text.lines().filter_map(figure).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_counter_tables_are_parsed_by_name() {
        let tcp = netstat("TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 5 6 7\nIpExt: A\nIpExt: 9\n");
        assert_eq!((tcp["SyncookiesSent"], tcp["ListenDrops"]), (5, 7));
        let conntrack = columns("entries drop insert_failed\n0000000a 00000010 1\n0000000a 00000001 2\n");
        assert_eq!((conntrack["drop"], conntrack["insert_failed"]), (17, 3));
        assert_eq!((column("0a 1 2\n0b ff 2\n", 1), column("", 1)), (Some(256), None));
        assert!(netstat("").is_empty() && columns("").is_empty());
    }

    #[test]
    fn missing_counters_stay_unknown() {
        let before = Counters { listen_drops: Some(5), ..Counters::default() };
        let after = Counters { listen_drops: Some(9), ..Counters::default() };
        let grown = after.since(&before);
        assert_eq!((grown.listen_drops, grown.conntrack_drops), (Some(4), None));
        assert_eq!(grown.grown().collect::<Vec<_>>(), [("drops at listeners", 4)]);
    }
}
