//! netmon-mcp measures a Linux host's network in the kernel, with eBPF, and answers over MCP.
//!
//! ```text
//!  AI client, or a person
//!    │ stdio · HTTP · ssh
//!  netmon-mcp     gateway    MCP, authentication, limits, command line; no privilege
//!    │ Unix socket           wire: one request a connection, one line of JSON each way
//!  netmond        serve      loads BPF objects, gives its capabilities up, serves samples
//!    │ bpf, events           links, maps, iterators, ring buffers
//!  kernel
//! ```
//!
//! # Where things are
//!
//! - [`tools`]: the slices. A tool is `Input` → `Sample` → `Output`, in `tools/NAME.rs` and `bpf/NAME.bpf.c`.
//! - The daemon's half: [`serve`] takes requests, [`window`] is the time in which one watches, [`windows`] numbers those that are open, [`bpf`] loads, attaches and
//!   reads, [`events`] fans rare events out, [`btf`], [`netlink`], [`holders`] and [`attribution`] put names to numbers, [`sandbox`] gives
//!   rights up.
//! - The gateway's half: [`gateway`]; [`packet`] and [`dns`] parse what came from outside.
//! - Both: [`wire`] between them, [`memory`] gives memory back, [`answer`] for what answers have in common, [`untrusted`] for text from outside,
//!   [`limits`] for every bound.
//!
//! # Invariants
//!
//! - The process boundary is the purity boundary: `Tool::sample` does the I/O, in the daemon; `Tool::report` is pure, in the
//!   gateway. Bytes from the network are parsed in the gateway only.
//! - The gateway links no libbpf; the daemon links no MCP, no HTTP and no async runtime.
//! - Nothing is attached while nobody asks, and windows never disturb each other: counters only grow, the first window
//!   attaches, the last one detaches.
//! - A socket is attributed where its process really is, never by `current` in a soft interrupt.
//! - Each answer says how complete it is.

pub mod answer;
pub mod attribution;
pub mod bpf;
pub mod btf;
pub mod dns;
pub mod events;
pub mod filter;
pub mod gateway;
pub mod holders;
pub mod largest;
pub mod limits;
pub mod logging;
pub mod memory;
pub mod netlink;
pub mod packet;
pub mod peers;
pub mod sandbox;
pub mod serve;
pub mod supervisor;
pub mod tcp;
pub mod tools;
pub mod untrusted;
pub mod window;
pub mod windows;
pub mod wire;
