//! Tests against the real kernel and the real protocol: "run this, expect that answer". They need root for network
//! namespaces and for netmond, and fail without it. Each creates its own namespaces and leaves nothing behind.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod abuse;
mod activation;
mod adding;
mod between;
mod clients;
mod closing;
mod command_line;
mod completion;
mod conformance;
mod diagnose;
mod disks;
mod docs;
mod hardening;
#[allow(dead_code)] // each module uses a part of it
mod harness;
mod injected;

mod fallbacks;
mod faults;
mod filters;
mod fuzzed;
mod gateway;
mod gateways;
mod hosts;
mod hours;
mod http;
#[allow(dead_code)]
mod http_harness;
mod hub;
mod interfaces;
mod io_uring;
mod late_recorder;
mod latency_recorded;
mod loading;
mod maps;
mod mounts;
mod mptcp;
mod network_monitor;
mod oauth;
mod page;
mod past;
mod past_tcp;
#[allow(dead_code)]
mod processes;
mod profile_tcp;
mod prompts;
mod protocol;
mod routing;
mod sdks;
mod separation;
mod service;
mod sessions;
mod shares;
mod snapshot_sockets;
mod soak;
mod structure;
mod tcp_state;
mod tidy;
mod tokens;
mod top;
mod top_traffic;
mod trace_connections;
mod trace_dns;
mod trace_drops;
mod trace_latency;
mod twins;
mod unheld;
mod usage;
mod watch;

/// Four times the total duration on two cores.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(25 * 60);
