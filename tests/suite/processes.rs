//! Processes for the tests: this binary, which plays a role instead of testing.

use std::{
    env,
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg, sockopt,
};

use crate::harness::*;

const ROLE: &str = "NETMON_TEST_ROLE";

/// A process in a role, until it is dropped.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Plays `role` in a network namespace: the name of a function below and its arguments.
    pub fn in_netns(netns: &Netns, role: &str) -> Process {
        Process::start(netns.command(env::current_exe().unwrap().to_str().unwrap()), role)
    }

    /// The same in a cgroup, from its start.
    pub fn in_cgroup(netns: &Netns, cgroup: &Path, role: &str) -> Process {
        let mut command = netns.command("sh");
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
        command.args(["-c", &join, "sh", env::current_exe().unwrap().to_str().unwrap()]);
        Process::start(command, role)
    }

    fn start(mut command: Command, role: &str) -> Process {
        command.args(["--exact", "processes::play", "--nocapture"]).env(ROLE, role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Process { child, input, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the process has ended");
            if let Some((_, said)) = line.trim_end().split_once("role: ") {
                return said.to_owned();
            }
        }
    }

    /// Lets it continue.
    pub fn go(&mut self) {
        writeln!(self.input, "go").unwrap();
    }

    /// Waits for its end.
    pub fn join(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that a test started plays its role here. In an ordinary test run this does nothing.
#[test]
fn play() {
    let Ok(role) = env::var(ROLE) else { return };
    let words: Vec<_> = role.split(' ').collect();
    let to = || SocketAddr::new(words[1].parse::<IpAddr>().unwrap(), words[2].parse().unwrap());
    let size = || words[3].parse().unwrap();
    match words[0] {
        "tcp-listen" => tcp_listen(to()),
        "tcp-listen-fork" => tcp_listen_fork(to()),
        "tcp-serve-fork" => tcp_serve_fork(to()),
        "tcp-work" => tcp_work(to(), size()),
        "tcp-send" => tcp_send(to(), size()),
        "tcp-activate" => tcp_activate(to(), size()),
        "activated" => activated(),
        "tcp-execute" => tcp_execute(to()),
        "tcp-share" => tcp_share(to(), size()),
        "tcp-take" => tcp_take(Path::new(words[1]), words[2].parse().unwrap()),
        "udp-open" => udp_open(to(), size()),
        "udp-send" => udp_send(to(), size()),
        "udp-join" => udp_join(to()),
        "udp-briefly" => udp_briefly(to(), size()),
        other => panic!("no such role: {other}"),
    }
}

fn say(text: impl std::fmt::Display) {
    println!("role: {text}");
    std::io::stdout().flush().unwrap();
}

/// Returns when the test allows it, or is gone.
fn wait() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Listens, reads each connection to its end, and prints the number of bytes.
fn tcp_listen(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    say("listening");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let (mut buffer, mut total) = ([0; 65_536], 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            total += n;
        }
        say(total);
    }
}

/// Listens, and shares the socket with a child with a lower number: numbers have wrapped since the parent started.
fn tcp_listen_fork(at: SocketAddr) {
    let _listener = TcpListener::bind(at).unwrap();
    std::fs::write("/proc/sys/kernel/ns_last_pid", (std::process::id() / 2).to_string()).unwrap();
    // SAFETY: the child only waits for its end, so it takes no lock of another thread.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: only numbers, no memory. It ends within a minute in any case.
            unsafe {
                libc::alarm(60);
                libc::pause();
            }
        },
        child => say(child),
    }
    wait();
}

/// Serves each connection in a separate child and prints its pid. The child closes after its parent and the client.
fn tcp_serve_fork(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap();
    say("listening");
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let (connection, mut byte) = (stream.as_raw_fd(), 0u8);
        let (released, mut release) = std::io::pipe().unwrap();
        // SAFETY: the child only makes system calls, so it takes no lock of another thread.
        match unsafe { libc::fork() } {
            // SAFETY: both descriptors are open, and the byte outlives the calls.
            0 => unsafe {
                libc::read(released.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1);
                libc::read(connection, std::ptr::from_mut(&mut byte).cast(), 1);
                libc::_exit(0)
            },
            child => {
                drop(stream);
                release.write_all(b".").unwrap();
                say(child);
            }
        }
    }
}

/// Serves one connection: each byte costs this many milliseconds of CPU time before it is sent back.
fn tcp_work(at: SocketAddr, cpu_ms: usize) {
    let listener = TcpListener::bind(at).unwrap();
    say("listening");
    let (mut stream, _) = listener.accept().unwrap();
    let spent = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        let (begin, cost) = (spent(), std::time::Duration::from_millis(cpu_ms as u64).as_nanos());
        let took = |now: rustix::time::Timespec| {
            (i128::from(now.tv_sec - begin.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec - begin.tv_nsec)) as u128
        };
        while took(spent()) < cost {}
        stream.write_all(&byte).unwrap();
    }
}

/// Connects, and sends this number of bytes per go.
fn tcp_send(to: SocketAddr, size: usize) {
    let mut stream = TcpStream::connect(to).unwrap();
    say("connected");
    wait();
    stream.write_all(&vec![0; size]).unwrap();
    say("sent");
    wait();
}

/// Takes a passed connection at `path` (SCM_RIGHTS), and sends this number of bytes over it per go.
fn tcp_take(path: &Path, size: usize) {
    let at = UnixListener::bind(path).unwrap();
    say("ready");
    let from = at.accept().unwrap().0;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty()).unwrap();
    let mut passed = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let mut stream = TcpStream::from(passed.next().unwrap());
    say("taken");
    wait();
    stream.write_all(&vec![0; size]).unwrap();
    say("sent");
    wait();
}

/// Passes a connection to the process that waits at `path`.
pub fn pass(stream: TcpStream, path: &Path) {
    let to = UnixStream::connect(path).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let sockets = [stream.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)));
    sendmsg(&to, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()).unwrap();
}

/// Holds this number of sockets open.
fn udp_open(at: SocketAddr, count: usize) {
    let _sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind(at).unwrap()).collect();
    say("open");
    wait();
}

/// Sends one datagram of this size per go, from one socket.
fn udp_send(to: SocketAddr, size: usize) {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    say("ready");
    wait();
    let _ = socket.send_to(&vec![0; size], to); // a filter may refuse it at once
    say("sent");
    wait();
}

/// Opens this number of files, and sends a datagram from a socket that it closes at once.
fn udp_briefly(to: SocketAddr, files: usize) {
    let _files: Vec<_> = (0..files).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    say("ready");
    wait();
    let _ = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", to); // a filter may refuse it at once
    say("sent");
    wait();
}

/// Ends a process that a role left behind.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Listens beside others at the same address with this queue length, and never accepts.
fn tcp_share(at: SocketAddr, queue: usize) {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    rustix::net::bind(&socket, &at).unwrap();
    rustix::net::listen(&socket, queue as i32).unwrap();
    say("listens");
    wait();
}

/// Joins a group beside others, with its address, and never reads.
fn udp_join(group: SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 2_304).unwrap();
    rustix::net::bind(&socket, &group).unwrap();
    let IpAddr::V4(address) = group.ip() else { panic!("{group}") };
    UdpSocket::from(socket.try_clone().unwrap()).join_multicast_v4(&address, &[10, 77, 0, 2].into()).unwrap();
    say("joined");
    wait();
}

/// Listens for a service like a user's systemd: starts it with the listener as this descriptor (0: the same number).
fn tcp_activate(at: SocketAddr, number: usize) {
    use std::os::unix::process::CommandExt;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let listener = TcpListener::bind(at).unwrap();
    let from = listener.as_raw_fd();
    let to = if number == 0 { from } else { number as i32 };
    let mut service = Command::new(env::current_exe().unwrap());
    service.args(["--exact", "processes::play", "--nocapture"]).env(ROLE, "activated");
    // SAFETY: between fork and exec, two system calls on descriptors that are open.
    unsafe {
        service.pre_exec(move || {
            let kept = match from == to {
                true => libc::fcntl(from, libc::F_SETFD, 0),
                false => libc::dup2(from, to),
            };
            if kept < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let mut service = service.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(service.stdout.take().unwrap());
    while !line.contains("role: runs") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0);
    }
    say(service.id());
    wait();
    service.kill().unwrap();
    service.wait().unwrap();
}

/// Executes another program, which closes its connection.
fn tcp_execute(to: SocketAddr) {
    use std::os::unix::process::CommandExt;
    let _held = TcpStream::connect(to).unwrap();
    say("connected");
    wait();
    panic!("{}", Command::new("true").exec());
}

/// Holds the descriptors from its start.
fn activated() {
    say("runs");
    wait();
}
