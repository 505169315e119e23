//! netmon-mcp measures a Linux host's network in the kernel, with eBPF, and answers over MCP.
//!
//! ```text
//!  AI client, or a person
//!    │ stdio · HTTP · ssh
//!  netmon-mcp     gateway    MCP, authentication, limits, command line; no privilege
//!    │ Unix socket           wire: a line of JSON with the request, one or more with samples
//!  netmond        daemon     loads BPF objects, gives its capabilities up, serves samples
//!    │ daemon::kernel        links, maps, iterators, ring buffers
//!  kernel
//! ```
//!
//! # Where things are
//!
//! - [`tools`]: the slices. A tool is `Input` → `Sample` → `Output`, in `tools/NAME/` and `bpf/NAME.bpf.c`: `sample.rs`
//!   runs in the daemon, `report.rs` and `text.rs` in the gateway.
//! - [`daemon`]: netmond's half. [`gateway`]: netmon-mcp's half. Neither uses the other.
//! - [`recorder`]: keeps what the daemon says of every window, and answers from it.
//! - What both share is at the root: [`wire`] between them, [`answer`] for what answers have in common, [`owner`] for
//!   who a socket belongs to, [`filter`] for what
//!   questions have, [`packet`] and [`dns`] for bytes from the network, [`untrusted`] for text from outside, [`limits`] for
//!   every bound, [`numbers`] for those that C writes, [`sandbox`] to give rights up, [`supervisor`] for systemd, [`logging`], [`memory`], [`sync`], [`tcp`], [`version`].
//!
//! # Invariants
//!
//! - The process boundary is the purity boundary: a session does the I/O, in the daemon; `Tool::report` is pure, in the
//!   gateway. Bytes from the network are parsed in the gateway only.
//! - The gateway links no libbpf; the daemon links no MCP, no HTTP and no async runtime.
//! - Nothing is attached while nobody asks, and windows never disturb each other: counters only grow, the first window
//!   attaches, the last one detaches.
//! - A socket is attributed where its process really is, never by `current` in a soft interrupt.
//! - Each answer says how complete it is.

pub mod answer;
pub mod budget;
pub mod daemon;
pub mod dns;
pub mod filter;
pub mod gateway;
pub mod interface;
pub mod limits;
pub mod logging;
pub mod memory;
pub mod numbers;
pub mod owner;
pub mod packet;
pub mod recorder;
pub mod replies;
pub mod sandbox;
pub mod starter;
pub mod supervisor;
pub mod sync;
pub mod tcp;
pub mod times;
pub mod tools;
pub mod untrusted;
pub mod version;
pub mod wire;
