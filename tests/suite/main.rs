//! Tests against the real kernel and the real protocol: "run this, expect that answer". They need root, for network
//! namespaces and for netmond, and fail without it. Each makes namespaces of its own and leaves nothing behind.

mod abuse;
mod between;
mod clients;
mod command_line;
mod conformance;
mod hardening;
#[allow(dead_code)] // each module takes what it needs of it
mod harness;
mod injected;

mod faults;
mod filters;
mod fuzzed;
mod gateway;
mod hosts;
mod http;
#[allow(dead_code)]
mod http_harness;
mod interfaces;
mod network_monitor;
mod oauth;
#[allow(dead_code)]
mod processes;
mod profile_tcp;
mod prompts;
mod protocol;
mod sdks;
mod separation;
mod service;
mod snapshot_sockets;
mod soak;
mod tidy;
mod top_traffic;
mod trace_connections;
mod trace_dns;
mod trace_drops;

/// Four times what all of it takes on two cores.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(25 * 60);
