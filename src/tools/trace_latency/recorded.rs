//! The past: the recorder keeps times to the first byte, which `profile_tcp` counts at a lower cost.

use super::{Group, Limitation, Sample, Side, Stage, Times};
use crate::{
    answer::{Code, Protocol},
    replies::{Replier, Repliers},
};

/// A window of the past.
pub fn sample(recorded: Repliers) -> Sample {
    let Repliers { rows, missed, window_ns } = recorded;
    let text = "The recording has request_to_reply of TCP and the least round trip. A server's time begins when the \
        request arrives. Measure now for the other stages.";
    let lacks = vec![Limitation::new(Code::OnlyRepliesRecorded, text)];
    Sample { groups: rows.into_iter().map(group).collect(), missed, lacks, window_ns, ..Sample::default() }
}

fn group(row: Replier) -> Group {
    let Replier { process, is_here, end, replies, least_rtt_us } = row;
    let least = least_rtt_us.map(|us| (Stage::LeastRtt, Times::once(us)));
    let times = [(Stage::RequestToReply, replies.times)].into_iter().chain(least);
    Group {
        process,
        protocol: Protocol::Tcp,
        side: if is_here { Side::Server } else { Side::Client },
        local: is_here.then_some(end),
        remote: (!is_here).then_some((end.address, end.port)),
        times: times.filter(|(_, times)| times.count() > 0).collect(),
        left_out: replies.left_out,
    }
}
