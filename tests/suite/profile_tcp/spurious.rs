//! Retransmits of data that had arrived: acknowledgements are lost, and no data.

use std::io::{Read, Write};

use serde_json::json;

use super::{Ends, TcpInfo, until_acknowledged, watched};
use crate::harness::*;

#[test]
fn lost_ack_makes_a_spurious_retransmit() {
    let (pair, daemon) = (Pair::new(), Daemon::of("profile_tcp"));
    pair.a.run("nft add table inet t");
    pair.a.run("nft add chain inet t in { type filter hook input priority 0 ; }");
    let mut ends = Ends::new(&pair.a, &pair.b, B, B);
    ends.round_trips(1);
    until_acknowledged(&ends.server);
    let arguments = json!({"port": ends.to.port()});
    let answer = watched(&daemon, arguments, || {
        pair.a.run(&format!("nft add rule inet t in tcp sport {} drop", ends.to.port()));
        ends.client.write_all(b"heard").unwrap();
        ends.server.read_exact(&mut [0; 5]).unwrap();
        until("it is sent again", || (TcpInfo::of(&ends.client).retransmits() > 0).then_some(()));
        pair.a.run("nft flush chain inet t in");
        until("the receiver says that it had it", || (TcpInfo::of(&ends.client).spurious() > 0).then_some(()));
        until_acknowledged(&ends.client);
    });
    let (after, row) = (TcpInfo::of(&ends.client), ends.row(&answer));
    assert_eq!((&row["retransmits"], &row["spurious"]), (&json!(after.retransmits()), &json!(after.spurious())));
}
