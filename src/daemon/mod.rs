//! netmond's half: loads BPF objects, gives its capabilities up, serves samples.
//!
//! [`serve`] takes requests, [`host`] holds the loaded tools, [`window`] is the time in which one watches and [`windows`]
//! numbers those that are open; [`kernel`] loads, attaches and reads; [`shared`] is what windows
//! share, [`events`] fans rare events out,
//! [`closed`] keeps connections that closed; [`attribution`],
//! [`holders`], [`sockets`] and [`netlink`] put names to what was counted; [`peers`] says who may ask, and [`turns`] when.

pub mod attribution;
pub mod closed;
pub mod events;
pub mod holders;
pub mod host;
pub mod kernel;
pub mod largest;
pub mod netlink;
pub mod peers;
pub mod serve;
pub mod session;
pub mod shared;
pub mod sockets;
pub mod turns;
pub mod window;
pub mod windows;
