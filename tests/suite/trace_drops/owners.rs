//! The owner of a dropped packet.

use super::*;
use crate::processes::Process;

#[test]
fn short_lived_socket_of_a_process_with_many_files() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    nft(&pair.a, "output", "udp dport 92 drop");
    let mut server = Process::in_netns(&pair.a, &format!("udp-briefly {B} 92 3000"));
    server.hear();
    let answer = answer_to(&daemon, || {
        server.go();
        server.hear()
    });
    let row = row(&answer, &pair.a, "NETFILTER_DROP");
    assert_eq!(row["owner"]["pid"], server.pid(), "{row:#}");
}
