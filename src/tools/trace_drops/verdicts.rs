//! Which chain of nftables dropped a packet, on kernels that let an fexit program see where chains end.

use libbpf_rs::{MapHandle, skel::SkelBuilder};

use super::flow_slots;
use crate::{
    daemon::kernel::{self, Loader, Program},
    sandbox, untrusted,
    wire::Error,
};

skeleton!("trace_drops_verdicts");
pub use skel::types::chain as Chain;

kernel::pod!(Chain);

/// The program, and the maps that it shares with the one that counts drops.
pub struct Verdicts {
    pub program: Program,
    pub notes: MapHandle,
    pub chains: MapHandle,
}

impl Verdicts {
    /// Loads it, or logs why not: nothing fails without it. nf_tables is usually a module, and the kernel shows a
    /// module's types only with CAP_SYS_ADMIN.
    pub fn load(loader: &mut Loader) -> Option<Self> {
        let loaded = sandbox::with_module_types(|| Self::try_load(loader));
        loaded.unwrap_or_else(|e| {
            tracing::debug!("nftables chain names are unavailable: {e}");
            None
        })
    }

    fn try_load(loader: &mut Loader) -> Result<Option<Self>, Error> {
        let mut object = kernel::object();
        let mut open = skel::TraceDropsVerdictsSkelBuilder::default().open(&mut object)?;
        open.maps.chains.set_max_entries(flow_slots()?)?;
        let skel = loader.load(open)?;
        if !skel.progs.chain_ends.autoload() {
            return Ok(None);
        }
        let program = loader.program(&skel.progs.chain_ends)?;
        Ok(Some(Verdicts { program, notes: loader.map(&skel.maps.verdicts)?, chains: loader.map(&skel.maps.chains)? }))
    }
}

/// As `nft list` has it: family, table, chain; `None` if there was none, or several.
pub fn name(chain: &Chain) -> Option<String> {
    let family = match chain.family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    };
    let [table, chain] = [chain.table, chain.name].map(|name| {
        let bytes = name.map(|c| c as u8);
        // The kernel's names have up to 255 bytes. What is full, but for its NUL, was cut.
        let cut = if bytes[bytes.len() - 2] == 0 { "" } else { "…" };
        untrusted::name(&bytes) + cut
    });
    Some(format!("{family} {table} {chain}"))
}
