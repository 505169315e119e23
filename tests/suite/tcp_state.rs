//! What only the kernel's own state of a TCP connection tells: which end opened it, what its sender waits for, whether its
//! peer is still there, and whether a round trip is the way's or the peer's.

mod directions;
mod late;
mod limits;
mod lost;
mod remote;
