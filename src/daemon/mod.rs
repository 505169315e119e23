//! netmond's half: loads BPF objects, drops its capabilities, serves samples.
//!
//! [`serve`] takes requests, [`host`] holds the loaded tools, [`window`] is a measurement window and [`windows`]
//! numbers the open ones; [`kernel`] loads, attaches and reads; [`shared`] is what windows share, [`events`] fans rare
//! events out, [`closed`] keeps closed connections; [`attribution`], [`holders`], [`sockets`] and [`netlink`] add names
//! to the counters, [`quotas`] reads which control groups are kept from running, [`stamping`] has the kernel stamp what
//! arrives; [`peers`] controls access, [`answers`] holds the memory of answers, and [`turns`] the order.

mod answers;
pub mod attribution;
pub mod closed;
pub mod events;
pub mod holders;
pub mod host;
pub mod kernel;
pub mod largest;
pub mod netlink;
pub mod peers;
pub mod quotas;
pub mod serve;
pub mod session;
pub mod shared;
pub mod sockets;
pub mod stamping;
pub mod turns;
pub mod window;
pub mod windows;
