//! What a question is about, of a sample of all connections: as far as its sums can be taken apart.

use super::{Counts, Input, Sample};
use crate::{
    answer::{Code, Limitation},
    filter::Filter,
    owner::Process,
};

/// The remotes and resets that a question is about.
pub fn narrow(input: &Input, mut sample: Sample) -> Sample {
    if input.filter().matches_everything() {
        return sample;
    }
    let filter = Filter { process: input.process.as_ref(), pid: input.pid, remote: None, port: input.port };
    let within = |address| input.remote.is_none_or(|range| range.includes(address));
    let by_owner = input.process.is_some() || input.pid.is_some();
    sample.total = Counts::default();
    let mut unnamed = 0;
    sample.remotes.retain_mut(|group| {
        let Some(remote) = group.remote else { return false };
        if !within(remote.address) || !filter.ends([0; 16], [remote.port.unwrap_or_default(), 0]) {
            return false;
        }
        if by_owner {
            // Sums of a recording have no numbers of a remote's smaller processes, and of some no names.
            let is_unnamed = |process: &Process| process.pid == 0 && (input.pid.is_some() || process.comm.is_empty());
            let owners = group.owners.iter().filter(|(process, _)| is_unnamed(process));
            unnamed += owners.map(|(_, counts)| counts.connections).sum::<u64>();
            group.owners.retain(|(process, _)| filter.owner(process.pid, process.comm.as_bytes()));
            group.counts = Counts::default();
            group.owners.iter().for_each(|(_, counts)| group.counts += *counts);
        }
        sample.total += group.counts;
        !group.owners.is_empty()
    });
    sample.resets.retain(|reset| {
        within(reset.remote.address)
            && filter.owner(reset.process.pid, reset.process.comm.as_bytes())
            && filter.ends([0; 16], [reset.local.port, reset.remote.port])
    });
    // The times of a listener are those of all its clients.
    sample.services.retain(|service| {
        input.remote.is_none()
            && filter.owner(service.process.pid, service.process.comm.as_bytes())
            && filter.ends([0; 16], [service.local.port, 0])
    });
    let why = "left out. Their processes are not recorded by number, or not by name.";
    sample.lacks.extend(Limitation::counted(Code::OwnersCut, unnamed, "connection", why));
    if by_owner || input.port.is_some() || input.remote.is_some() {
        let text = "The recording groups by remote: round trips, waits and times to the first byte cover all processes of \
            a remote, `port` does not match clients' connections, and `remote` leaves out listeners.";
        sample.lacks.push(Limitation::new(Code::RecordedByRemote, text));
    }
    sample
}
