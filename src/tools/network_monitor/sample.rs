//! The daemon's side: both questions, as far as this kernel lets them be asked.

use libbpf_rs::skel::SkelBuilder;

use super::{
    BoxSession, Feature, Input, NetworkMonitor, Operation, Sample, Tool, incoming::Incoming, outgoing::Outgoing, skel,
};
use crate::{
    daemon::kernel::{self, Loader},
    wire::Error,
};

pub struct Monitor {
    incoming: Incoming,
    /// Or why this kernel cannot.
    outgoing: Result<Outgoing, String>,
}

impl Monitor {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = kernel::object();
        let mut open = skel::NetworkMonitorSkelBuilder::default().open(&mut object)?;
        // Who may trace may read: both need CAP_PERFMON.
        let reads_kernel = loader.features().refusal(Feature::TracepointBtf).is_none();
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.reads_kernel = reads_kernel;
        }
        let skel = loader.load(open)?;
        let outgoing = Outgoing::new(loader, &skel)?;
        let refused = || format!("operation=outgoing needs {}", loader.refused("connect_state").unwrap_or_default());
        let outgoing = outgoing.ok_or_else(refused);
        Ok(Monitor { incoming: Incoming::new(loader, &skel, reads_kernel)?, outgoing })
    }

    pub fn open(&self, input: &Input) -> Result<BoxSession<'_, Sample>, Error> {
        let unavailable =
            |reason: &String| Error::Unavailable { tool: NetworkMonitor::NAME.into(), reason: reason.clone() };
        Ok(match input.operation {
            Operation::Incoming => Box::new(self.incoming.open(input.interface.as_deref(), input.mode)?),
            Operation::Outgoing => Box::new(self.outgoing.as_ref().map_err(unavailable)?.open(input)?),
        })
    }
}
