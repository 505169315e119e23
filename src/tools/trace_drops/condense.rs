//! What a recording keeps of a window's drops.

use std::collections::BTreeMap;

use super::{
    Dropped, Flow, Sample,
    report::{Erase, client_port, key, row, source_port},
};

/// An answer shows flows that differ only in an ephemeral port as one row. Two of them stay, and the second one gets the
/// packets of the others: two are enough for the answer to leave out the port.
pub fn condense(mut sample: Sample) -> Sample {
    for erase in [source_port as Erase, client_port] {
        let mut groups = BTreeMap::<_, Vec<Flow>>::new();
        for flow in std::mem::take(&mut sample.flows) {
            let mut alike: Dropped = row(&flow, &sample);
            erase(&mut alike);
            groups.entry(key(alike)).or_default().push(flow);
        }
        sample.flows = groups.into_values().flat_map(both).collect();
    }
    sample
}

/// The first and the last.
fn both(mut flows: Vec<Flow>) -> Vec<Flow> {
    if flows.len() > 2 {
        let rest: u64 = flows.drain(1..flows.len() - 1).map(|flow| flow.packets).sum();
        flows.iter_mut().skip(1).for_each(|flow| flow.packets += rest);
    }
    flows
}
