//! Which chain of nftables dropped a packet, on kernels that let an fexit program see where chains end.

use libbpf_rs::{
    MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use super::{T, flow_slots};
use crate::{
    bpf::{self, Loader, Pod, Program},
    tools::Tool,
    untrusted,
    wire::Error,
};

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/trace_drops_verdicts.rs"));
}
pub use skel::types::chain as Chain;

// SAFETY: integers and arrays of integers, with explicit padding.
unsafe impl Pod for Chain {}

/// The program, and the maps that it shares with the one that counts drops.
pub struct Verdicts {
    pub program: Program,
    pub notes: MapHandle,
    pub chains: MapHandle,
}

impl Verdicts {
    /// Loads it, or says why not in the log: nothing fails without. nf_tables is a module of most kernels, whose types
    /// only who has CAP_SYS_ADMIN may ask for, so this comes before everything else.
    pub fn load(without: &[String]) -> Option<Self> {
        if without.iter().any(|name| name == T::NAME) {
            return None;
        }
        Self::try_load().inspect_err(|e| tracing::debug!("chains of nftables are not named: {e}")).ok()
    }

    fn try_load() -> Result<Self, Error> {
        let mut object = bpf::object();
        let mut open = skel::TraceDropsVerdictsSkelBuilder::default().open(&mut object)?;
        open.maps.chains.set_max_entries(flow_slots()?)?;
        let skel = open.load()?;
        let mut loader = Loader::default();
        Ok(Verdicts {
            program: loader.program(&skel.progs.chain_ends)?,
            notes: loader.map(&skel.maps.verdicts)?,
            chains: loader.map(&skel.maps.chains)?,
        })
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
