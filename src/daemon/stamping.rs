//! Arrival times of packets. The kernel stamps what arrives while a socket asks for it (SO_TIMESTAMPNS), at about 30 ns a
//! packet: much less than a program for each packet. A netlink socket will do, and the sandbox leaves us those.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The kernel stamps packets until this is dropped.
pub struct Stamping {
    _socket: OwnedFd,
}

impl Stamping {
    pub fn begin() -> io::Result<Stamping> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the value is an int of the length that is passed.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPNS,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if done == 0 { Ok(Stamping { _socket: socket }) } else { Err(io::Error::last_os_error()) }
    }
}
