//! The abilities of the two processes while they serve, tried from inside; and their limits according to the kernel.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::net::UnixStream},
    process::{Command, Stdio},
    ptr, thread,
};

use netmon_mcp::{
    daemon::kernel::feature::Release,
    sandbox::{self, Reach, Role},
};
use rustix::fs::{Mode, OFlags, open, openat};
use serde_json::json;

use crate::harness::*;

/// Selects the role that a copy of this test takes.
const INSIDE: &str = "NETMON_TEST_CONFINED";

/// The outcome of a system call by number: bpf(2) with an empty `union bpf_attr`.
fn bpf(command: i32) -> io::Result<()> {
    let attributes = [0u8; 128];
    // SAFETY: the attributes are zeroed and have the given length.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), attributes.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed; the descriptor stays open until the process ends.
    if unsafe { libc::socket(family, kind, 0) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn executable_memory() -> io::Result<()> {
    let wanted = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping at any address.
    let at = unsafe { libc::mmap(ptr::null_mut(), 4096, wanted, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn signal_init() -> io::Result<()> {
    // SAFETY: signal 0 only checks the permission.
    if unsafe { libc::kill(1, 0) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn new_namespace() -> io::Result<()> {
    let own = File::open("/proc/self/ns/net")?;
    // SAFETY: the descriptor is open.
    if unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWNET) } == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A child that ends at once.
fn cloned(flags: i32) -> io::Result<()> {
    // SAFETY: without CLONE_VM the child has a copy of all memory, and only exits.
    match unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a system call that does not return.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn cloned3(flags: i32) -> io::Result<()> {
    let mut arguments = [0u64; 11]; // struct clone_args
    (arguments[0], arguments[4]) = (flags as u64, libc::SIGCHLD as u64);
    // SAFETY: as above; the arguments have the given length.
    match unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a system call that does not return.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

/// The attempts of an attacker with control of the process, each with its result.
fn attempts() -> Vec<(&'static str, io::Result<()>)> {
    vec![
        ("start a program", Command::new("true").status().map(drop)),
        ("read a password file", File::open("/etc/shadow").map(drop)),
        ("read /proc", File::open("/proc/self/statm").map(drop)),
        ("write a file", tempfile::NamedTempFile::new().map(drop)),
        ("map code", executable_memory()),
        ("signal another process", signal_init()),
        ("enter a namespace", new_namespace()),
        ("make a namespace with clone", cloned(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)),
        ("make a namespace with clone3", cloned3(libc::CLONE_NEWUSER)),
        ("connect by TCP to another port", TcpStream::connect("127.0.0.1:2").map(drop)),
        ("connect by TCP", TcpStream::connect("127.0.0.1:1").map(drop)),
        ("send by UDP", UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("open a packet socket", socket(libc::AF_PACKET, libc::SOCK_RAW)),
        ("open a raw socket", socket(libc::AF_INET, libc::SOCK_RAW)),
        ("open a netlink socket", socket(libc::AF_NETLINK, libc::SOCK_RAW)),
        ("open a Unix socket", UnixStream::pair().map(drop)),
        ("make a map", bpf(0)),
        ("load a program", bpf(5)),
        ("reach a map by its id", bpf(14)),
        ("read a map", bpf(1)),
        ("start a thread", thread::Builder::new().spawn(|| ()).map(drop)),
    ]
}

/// Runs as root with every capability, so that only the sandbox refuses.
fn allowed_to(role: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hardening::sandboxed_roles_have_only_allowed_operations", "--nocapture"])
        .env(INSIDE, role)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|line| line.strip_prefix("allowed: ")).map(str::to_owned).collect()
}

// In guests, since Linux 5.13.
#[test]
fn sandboxed_roles_have_only_allowed_operations() {
    require_root();
    let role = match std::env::var(INSIDE).as_deref() {
        Ok("daemon") => Some(Role::Daemon),
        Ok("gateway") => Some(Role::Gateway),
        Ok("client") => Some(Role::ClientGateway),
        Ok("ssh") => Some(Role::SshGateway),
        _ => None,
    };
    if let Some(role) = role {
        sandbox::confine(role, &Reach { ports: vec![1], ..Reach::default() });
        for (what, result) in attempts() {
            // An error about an argument means that the filter passed the call.
            let passed =
                result.is_ok_or_is(&[libc::EINVAL, libc::EBADF, libc::ENOENT, libc::EFAULT, libc::ECONNREFUSED]);
            println!("{}: {what}", if passed { "allowed" } else { "refused" });
        }
        return;
    }
    assert_eq!(
        allowed_to("daemon"),
        ["read /proc", "open a netlink socket", "open a Unix socket", "read a map", "start a thread"]
    );
    assert_eq!(allowed_to("gateway"), ["open a Unix socket", "start a thread"]);
    // Landlock opens /etc for name resolution; file modes protect secrets there from its user.
    // Landlock supports ports since Linux 6.7 (ABI 4); before, a process that may create TCP sockets may use any port.
    let knows_ports = Release::running() >= Release(6, 7);
    let client: Vec<_> = [
        "read a password file",
        "connect by TCP to another port",
        "connect by TCP",
        "send by UDP",
        "open a netlink socket",
        "open a Unix socket",
        "start a thread",
    ]
    .into_iter()
    .filter(|what| !(knows_ports && *what == "connect by TCP to another port"))
    .collect();
    assert_eq!(allowed_to("client"), client);
    let ssh = allowed_to("ssh");
    assert!(ssh.iter().any(|what| what == "start a program"), "{ssh:?}");
    assert!(ssh.contains(&"connect by TCP".into()), "{ssh:?}");
    assert!(!(knows_ports && ssh.contains(&"connect by TCP to another port".into())), "{ssh:?}");
    // Landlock supports signals since Linux 6.12 (ABI 6).
    let knows_signals = Release::running() >= Release(6, 12);
    assert!(!(knows_signals && ssh.contains(&"signal another process".into())), "{ssh:?}");
    for what in [
        "write a file",
        "open a packet socket",
        "open a raw socket",
        "load a program",
        "make a map",
        "read a map",
        "enter a namespace",
        "make a namespace with clone",
        "make a namespace with clone3",
    ] {
        assert!(!ssh.iter().any(|allowed| allowed == what), "{what}: {ssh:?}");
    }
}

trait Outcome {
    fn is_ok_or_is(&self, errors: &[i32]) -> bool;
}

impl Outcome for io::Result<()> {
    fn is_ok_or_is(&self, errors: &[i32]) -> bool {
        self.as_ref().map_or_else(|e| e.raw_os_error().is_some_and(|errno| errors.contains(&errno)), |()| true)
    }
}

/// A field of /proc/PID/status.
fn field(pid: u32, name: &str) -> String {
    field_in(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), name)
}

fn field_in(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find(|line| line.split(':').next() == Some(name))
        .unwrap_or_else(|| panic!("{name} in {status}"));
    line.split_once(':').unwrap().1.trim().to_owned()
}

// In guests, since Linux 5.13.
#[test]
fn sandbox_of_both_processes_matches_status() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let status = client.call("status", json!({})).unwrap();
    for (pid, layers) in
        [(daemon.pid(), &status["daemon"]["sandbox"]), (client.child.id(), &status["gateway"]["sandbox"])]
    {
        let applied =
            |name| layers.as_array().unwrap().iter().any(|layer| layer["name"] == name && layer["applied"] == true);
        assert!(applied("seccomp") && applied("landlock") && applied("dumps"), "{layers}");
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            // A thread may end between the list and this; the first one lives as long as its process.
            let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
            assert_eq!([field_in(&status, "Seccomp"), field_in(&status, "NoNewPrivs")], ["2", "1"], "{task:?}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core: Vec<_> =
            limits.lines().find(|line| line.starts_with("Max core")).unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{limits}");
    }
}

/// Prints a table of docs/kernels.md: capabilities before, while loading, while serving, and the tools that keep some.
// In guests, since Linux 5.17.
#[test]
fn capabilities_before_loading_and_serving() {
    require_root();
    let folder = open_folder();
    let child = Command::new(DAEMON)
        .arg("--socket")
        .arg(folder.path().join("netmond.sock"))
        .args(["--group", GROUP])
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut daemon = Ended(child);
    let mut lines = BufReader::new(daemon.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut held = |state: &str| {
        let line = lines.find(|line| line.contains(&format!("{state} capabilities="))).unwrap();
        line.split('"').nth(1).unwrap().replace("CAP_", "")
    };
    let (loading, serving) = (held("loading"), held("serving"));
    let before = u64::from_str_radix(&field(std::process::id(), "CapEff"), 16).unwrap().count_ones();
    let mut client = Client::connect(&folder.path().join("netmond.sock"));
    let status = client.call("status", json!({})).unwrap();
    let (mut kept, mut tools) = (Vec::new(), 0);
    for tool in status["tools"].as_array().unwrap() {
        // A kernel may be too old for a tool; no capability may be missing.
        let is_too_old = tool["reason"].as_str().is_some_and(|reason| reason.contains("it needs Linux"));
        assert!(tool["available"] == true || is_too_old, "{tool}");
        tools += 1;
        let keeps: Vec<_> = tool["keeps"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        if !keeps.is_empty() {
            kept.push(format!("{}: {}", tool["name"].as_str().unwrap(), keeps.join(" ")));
        }
    }
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    println!("| kernel | started as | held while loading | held while serving | kept for |\n|---|---|---|---|---|");
    println!(
        "| {} | root, {before} capabilities | {loading} | {} | {} of {tools} tools |",
        status["kernel"].as_str().unwrap(),
        or_none(serving.clone()),
        or_none(kept.join("; ")),
    );
    assert_eq!(loading, "BPF NET_ADMIN PERFMON");
    assert_eq!(serving.is_empty(), kept.is_empty(), "{serving}: {kept:?}");
}

/// The reason why a gateway from root keeps no folder of secrets open: a folder's descriptor gives no right to read.
#[test]
fn folder_opened_by_root_is_unreadable_to_nobody() {
    require_root();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokens"), "a secret").unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(&folder.path().join("tokens"), 0o600);
    for (folder_mode, flags) in [(0o700, OFlags::PATH), (0o755, OFlags::PATH), (0o755, OFlags::RDONLY)] {
        mode(folder.path(), folder_mode);
        let opened = open(folder.path(), flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let read = || openat(&opened, "tokens", OFlags::RDONLY, Mode::empty()).map(drop);
        assert_eq!(read(), Ok(()), "root reads it");
        let nobody = thread::scope(|scope| {
            let attempt = scope.spawn(|| {
                // SAFETY: no pointer is passed; only the ids of this thread change.
                assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
                read()
            });
            attempt.join().unwrap()
        });
        assert_eq!(nobody, Err(rustix::io::Errno::ACCESS), "{folder_mode:o}");
    }
}
