//! Drops root: the first thing that a gateway does if root started it.
//!
//! A gateway reads client data, settings, tokens and host names, and must not read them as root. So before it reads
//! anything, including its arguments, it forks a starter and becomes nobody. The starter is a copy of this process
//! without anything of the caller: no environment, no descriptor, no working directory. It waits until the gateway
//! hands over a first connection, reads nothing from it, and becomes netmond.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, socketpair},
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    sandbox::{self, Account},
    sync::lock,
};

/// Where the service listens.
pub const SOCKET: &str = "/run/netmon/netmond.sock";
/// The group that may ask it.
const GROUP: &str = "netmon";
/// Where programs are looked for that are not beside this one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// What a gateway has of the starter.
pub struct Starter {
    /// The way to the netmond that it becomes: one end of a socket pair for each request.
    pub channel: OwnedFd,
    /// The error output of netmond.
    pub complaints: OwnedFd,
}

static STARTER: Mutex<Option<Starter>> = Mutex::new(None);

/// Gives root up for good if this process has it. Call it first, while there is one thread.
pub fn give_up_root() -> io::Result<()> {
    sandbox::no_new_privileges()?;
    if !sandbox::is_root() {
        return Ok(());
    }
    if !a_service_answers() {
        *lock(&STARTER) = Some(leave_starter()?);
        forget_children()?;
    }
    sandbox::give_up_root(&Account::system("nobody"), sandbox::group(GROUP))
}

/// The kernel forgets the starter when it ends. Unlike an ignored SIGCHLD, this ends with exec (sigaction(2)): programs
/// that this one starts can wait for children of their own.
fn forget_children() -> io::Result<()> {
    // SAFETY: zeros are a valid sigaction: the default, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_NOCLDWAIT;
    // SAFETY: the action is valid for the call, and runs no code of ours.
    match unsafe { libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The starter, if there is one. The caller that takes it owns it.
pub fn take() -> Option<Starter> {
    lock(&STARTER).take()
}

/// Whether root has started this process.
pub fn was_root() -> bool {
    sandbox::gave_up_root()
}

/// Whether netmond runs as a service; a full queue counts as running.
fn a_service_answers() -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| rustix::net::connect(&socket, &SocketAddrUnix::new(SOCKET)?));
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// The program that lies beside this one, else the one that is installed.
pub fn netmond() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("netmond")));
    let installed = || PATH.split(':').map(|folder| Path::new(folder).join("netmond")).find(|path| path.exists());
    beside.filter(|path| path.exists()).or_else(installed).unwrap_or_else(|| "/usr/bin/netmond".into())
}

/// Everything that the starter needs to become netmond, made while there is still one process.
struct Plan {
    program: CString,
    arguments: [CString; 3],
    environment: [CString; 2],
    nothing: OwnedFd,
    channel: OwnedFd,
    complaints: OwnedFd,
}

fn leave_starter() -> io::Result<Starter> {
    let (ours, channel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (read, complaints) = pipe_with(PipeFlags::CLOEXEC)?;
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
    let words = |words: [&str; 3]| words.map(|word| CString::new(word).unwrap_or_default());
    let program = netmond();
    let [path, log, _] = words([&format!("PATH={PATH}"), "RUST_LOG=warn", ""]);
    let plan = Plan {
        program: text(program.as_os_str())?,
        arguments: words(["netmond", "--parent", "0"]),
        environment: [path, log],
        nothing: File::options().read(true).write(true).open("/dev/null")?.into(),
        channel,
        complaints,
    };
    // SAFETY: there is one thread, so the child may do all that its parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => plan.carry_out(),
        _ => Ok(Starter { channel: ours, complaints: read }),
    }
}

impl Plan {
    /// Waits for work, and becomes netmond. Never returns to what the caller's process was.
    fn carry_out(self) -> ! {
        if self.strip().is_ok() && self.is_wanted() {
            let pointers = |words: &[CString]| {
                words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
            };
            let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
            // SAFETY: both lists end with a null pointer, and their strings live as long as `self`.
            unsafe { libc::execve(self.program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            let e = io::Error::last_os_error();
            eprintln!("starting {} failed: {e}", self.program.to_string_lossy());
        }
        // SAFETY: it ends this process, without what the parent would do at its end.
        unsafe { libc::_exit(1) }
    }

    /// Lets go of everything that came from the caller.
    fn strip(&self) -> io::Result<()> {
        let checked = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        rustix::process::chdir("/")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::setsid()?; // Ctrl-C is for the gateway; netmond ends when that does
        for (from, to) in [(&self.channel, 0), (&self.nothing, 1), (&self.complaints, 2)] {
            // SAFETY: descriptors are plain numbers here; the standard ones are nobody else's in this process.
            checked(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
        }
        // SAFETY: what is closed is not used any more; `self` is never dropped.
        checked(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })?;
        for signal in 1..=64 {
            // SAFETY: the default disposition is valid for every signal; those that have none fail, and may.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: an empty set of signals is valid, and nobody wants the old one.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            checked(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))
        }
    }

    /// Whether a first connection has come. If the gateway ends before that, there is nothing to do.
    fn is_wanted(&self) -> bool {
        // SAFETY: `strip` has made it the channel, and it stays open.
        let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(0) };
        loop {
            let mut fds = [PollFd::new(&channel, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return has_message(),
            }
        }
    }
}

/// Whether the channel has a message, and not only its end. Nothing is taken from it.
fn has_message() -> bool {
    let mut byte = 0u8;
    // SAFETY: the byte is valid for its size.
    let got = unsafe { libc::recv(0, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    got > 0
}
