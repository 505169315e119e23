//! netmon-mcp: measures a Linux host's network in the kernel, and answers over MCP.
pub mod answer;
pub mod attribution;
pub mod bpf;
pub mod events;
pub mod gateway;
pub mod largest;
pub mod limits;
pub mod logging;
pub mod netlink;
pub mod peers;
pub mod sandbox;
pub mod serve;
pub mod supervisor;
pub mod tools;
pub mod untrusted;
pub mod window;
pub mod wire;
