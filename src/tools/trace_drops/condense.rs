//! What a recording keeps of a window's drops.

use std::collections::BTreeMap;

use super::{
    Dropped, Flow, Sample,
    report::{Erase, MANY, client_port, key, row, source_port},
};
use crate::{answer, limits};

/// An answer shows flows that differ only in an ephemeral port as one row, if there are enough of them. So many stay, and the
/// last one gets the packets of the others.
pub fn condense(mut sample: Sample) -> Sample {
    // Two of many may become one row before.
    for (kept, erase) in [(2, source_port as Erase), (2, client_port), (MANY + 1, high_port)] {
        let mut groups = BTreeMap::<_, Vec<Flow>>::new();
        for flow in std::mem::take(&mut sample.flows) {
            let mut alike: Dropped = row(&flow, &sample);
            erase(&mut alike);
            groups.entry(key(alike)).or_default().push(flow);
        }
        sample.flows = groups.into_values().flat_map(|flows| few(flows, kept)).collect();
    }
    sample
}

/// A client's port by the range that Linux takes them from (`ip_local_port_range`), where the service's is high, too.
fn high_port(row: &mut Dropped) {
    const FIRST: u16 = 32_768;
    if let Some(end) = row.destination.as_mut().filter(|end| end.port.is_some_and(|port| port >= FIRST)) {
        end.port = None;
    }
}

/// Of the sum of many windows: the flows with the most packets. All packets of a place are counted there.
pub fn reduce(mut sum: Sample) -> Sample {
    if sum.flows.len() > 2 * limits::SUM_ROWS {
        sum = condense(sum);
        (sum.flows, _) = answer::largest(sum.flows, limits::SUM_ROWS, |flow| flow.packets);
    }
    sum
}

fn few(mut flows: Vec<Flow>, kept: usize) -> Vec<Flow> {
    let rest: u64 = flows.drain(kept.min(flows.len())..).map(|flow| flow.packets).sum();
    flows.iter_mut().skip(kept - 1).for_each(|flow| flow.packets += rest);
    flows
}
