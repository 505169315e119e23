//! Facts from the kernel's state of a TCP connection: the end that opened it, the sender's limit, the peer's liveness,
//! and whether a round trip is that of the path or of the peer's timer.

mod directions;
mod late;
mod limits;
mod lost;
mod remote;
