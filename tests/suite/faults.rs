//! Faults of the host, injected for real or with a seccomp filter that fails a system call like the kernel. Each one
//! ends in a clear message, and everything else continues to work.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use netmon_mcp::tools::SAMPLERS;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::*;

/// Commands of bpf(2), `linux/bpf.h`.
const MAP_CREATE: u64 = 0;
const MAP_UPDATE_ELEM: u64 = 2;
const PROG_LOAD: u64 = 5;
const RAW_TRACEPOINT_OPEN: u64 = 17;
const BTF_LOAD: u64 = 18;

const STATUS: &str = "{\"version\":2,\"tool\":\"status\",\"input\":{}}";

/// A netmond that was not started by the harness.
pub struct Faulty {
    pub child: Child,
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Faulty {
    /// Starts the command that `command` builds from a socket's path, and waits until it serves.
    fn start(command: impl FnOnce(&Path) -> Command) -> Faulty {
        require_root();
        let folder = open_folder();
        let socket = folder.path().join("netmond.sock");
        let child = command(&socket).env("RUST_LOG", "warn").stdin(Stdio::null()).spawn().unwrap();
        let mut faulty = Faulty { child, socket, _folder: folder };
        until("netmond serves", || {
            assert!(faulty.child.try_wait().unwrap().is_none(), "netmond ended");
            ask(&faulty.socket, STATUS).ok()
        });
        faulty
    }

    /// A netmond whose bpf(2) fails with `errno` for the commands in `commands`.
    fn refusing(commands: &[u64], errno: i32) -> Faulty {
        let filter = failing_bpf(commands, errno);
        Faulty::start(|socket| {
            let mut command = netmond(socket);
            // SAFETY: between fork and exec it only makes two system calls, with existing memory.
            unsafe { command.pre_exec(move || seccompiler::apply_filter(&filter).map_err(std::io::Error::other)) };
            command
        })
    }

    /// A netmond in a separate mount namespace, after `preparation` in a shell; `$SOCKET` is the folder of its socket.
    pub fn after(preparation: &str) -> Faulty {
        Faulty::start(|socket| {
            let mut command = in_own_mounts(preparation, &netmond(socket));
            command.env("SOCKET", socket.parent().unwrap());
            command
        })
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn netmond(socket: &Path) -> Command {
    let mut command = Command::new(DAEMON);
    command.arg("--socket").arg(socket).args(["--group", GROUP]);
    command
}

fn in_own_mounts(preparation: &str, netmond: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{preparation}; exec \"$@\""), "sh"]);
    command.arg(netmond.get_program()).args(netmond.get_args());
    command
}

fn failing_bpf(commands: &[u64], errno: i32) -> BpfProgram {
    let rule = |command: &u64| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *command).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    };
    let rules = [(libc::SYS_bpf, commands.iter().map(rule).collect())].into();
    let (pass, fail) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    SeccompFilter::new(rules, pass, fail, std::env::consts::ARCH.try_into().unwrap()).unwrap().try_into().unwrap()
}

/// The unavailable tools in `status`.
fn reasons(client: &mut Client) -> Vec<(String, String)> {
    let status = client.call("status", json!({})).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let lost = status["tools"].as_array().unwrap().iter().filter(|tool| tool["available"] == false);
    lost.map(|tool| (text(&tool["name"]), text(&tool["reason"]))).collect()
}

/// Tools without eBPF work, whatever the kernel refuses.
fn the_rest_works(client: &mut Client) {
    let answer = client.call("snapshot_interfaces", json!({"duration_ms": 100})).unwrap();
    assert!(answer["interfaces"].as_array().unwrap().iter().any(|i| i["name"] == "lo"), "{answer}");
}

/// Every tool with eBPF is unavailable with `words` in its reason, and returns that reason as its error.
fn refused_with(daemon: &Faulty, words: &str) {
    let mut client = Client::connect(&daemon.socket);
    let reasons = reasons(&mut client);
    assert!(reasons.iter().any(|(tool, _)| tool == "network-monitor"), "{reasons:?}");
    for (tool, reason) in &reasons {
        assert!(reason.contains(words), "{tool}: {reason}");
    }
    let text = client.call("network-monitor", json!({"operation": "incoming"})).unwrap_err();
    assert!(text.contains("not available on this host") && text.contains(words), "{text}");
    the_rest_works(&mut client);
}

#[test]
fn map_creation_without_memory() {
    refused_with(&Faulty::refusing(&[MAP_CREATE], libc::ENOMEM), "MemoryMax=");
}

#[test]
fn full_map() {
    refused_with(&Faulty::refusing(&[MAP_UPDATE_ELEM], libc::ENOSPC), "No space left on device");
}

#[test]
fn program_rejected_by_the_verifier() {
    refused_with(&Faulty::refusing(&[PROG_LOAD], libc::EACCES), "EACCES: a kernel policy denies it");
}

#[test]
fn btf_rejected_by_the_kernel() {
    refused_with(&Faulty::refusing(&[BTF_LOAD], libc::EINVAL), "the kernel refused");
}

#[test]
fn enomem_on_attach_fails_only_the_call() {
    let daemon = Faulty::refusing(&[RAW_TRACEPOINT_OPEN], libc::ENOMEM);
    let mut client = Client::connect(&daemon.socket);
    assert_eq!(reasons(&mut client), []);
    let status = client.call("status", json!({})).unwrap();
    let probed = status["kernel_features"].as_array().unwrap().iter().find(|f| f["name"] == "tp_btf").unwrap();
    assert!(probed["available"].is_null() && probed["reason"].as_str().unwrap().starts_with("ENOMEM"), "{probed}");
    let text = client.call("trace_drops", json!({"duration_ms": 100})).unwrap_err();
    assert!(text.contains("MemoryMax="), "{text}");
    the_rest_works(&mut client);
}

#[test]
fn kernel_without_btf_keeps_other_tools() {
    let daemon = Faulty::after("mount -t tmpfs none /sys/kernel/btf");
    refused_with(&daemon, "btf");
    let status = Client::connect(&daemon.socket).call("status", json!({})).unwrap();
    let btf = status["kernel_features"].as_array().unwrap().iter().find(|f| f["name"] == "btf").unwrap();
    assert!(btf["reason"].as_str().unwrap().contains("CONFIG_DEBUG_INFO_BTF=y"), "{btf}");
}

#[test]
fn read_only_file_system() {
    require_root();
    let read_only = "mount -t tmpfs none /run; mount -o remount,ro,bind /run";
    let output = in_own_mounts(read_only, &netmond(Path::new("/run/netmon/netmond.sock"))).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("cannot listen at") && text.contains("Read-only"), "{text}");
    // Where its socket is elsewhere, nothing else of it writes.
    let daemon = Faulty::after("mount --bind $SOCKET $SOCKET; mount -o remount,ro,bind /");
    let mut client = Client::connect(&daemon.socket);
    assert_eq!(reasons(&mut client), []);
    the_rest_works(&mut client);
}

/// The answer of an `outgoing` call, during connections to `to` from `netns`.
fn outgoing(client: &mut Client, netns: &Netns, to: SocketAddr) -> Value {
    let id = client.begin_call("network-monitor", json!({"operation": "outgoing", "duration": 20}));
    connect_until_answered(client, id, netns, to)
}

fn connect_until_answered(client: &mut Client, id: i64, netns: &Netns, to: SocketAddr) -> Value {
    let (done, stop) = std::sync::mpsc::channel::<()>();
    let goes_on = |stop: &Receiver<()>| stop.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout);
    thread::scope(|scope| {
        scope.spawn(|| {
            let stop = stop;
            while goes_on(&stop) {
                let _ = connect(netns, to);
            }
        });
        let answer = client.end_call(id);
        drop(done);
        answer.unwrap()
    })
}

/// A connection in `outgoing` from a namespace that is gone by then. Other tests connect as well.
pub fn reported_connection(socket: &Path) -> Value {
    let mut client = Client::connect(socket);
    until("our connection is reported", || {
        let netns = Netns::new();
        let listener = listen(&netns, "127.0.0.1");
        let answer = outgoing(&mut client, &netns, listener.local_addr().unwrap());
        let inode = netns.inode();
        answer["connections"].as_array().unwrap().iter().find(|c| c["owner"]["netns"] == inode).cloned()
    })
}

#[test]
fn client_outside_the_pid_namespace_is_served() {
    let daemon = Faulty::start(|socket| {
        let (mut command, netmond) = (Command::new("unshare"), netmond(socket));
        // The shell is the first process of the namespace, so its end ends all others. netmond changes its user, which
        // clears the parent-death signal.
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", "\"$@\" & wait", "sh"]);
        command.arg(netmond.get_program()).args(netmond.get_args());
        command
    });
    let answer = ask(&daemon.socket, STATUS).unwrap();
    assert!(answer.contains("\"sample\""), "{answer}");
}

#[test]
fn ring_buffer_overflow() {
    const CONNECTS: usize = 10_000; // two events each, of 120 bytes: the ring has 512 KiB
    let netns = Netns::new();
    let daemon = daemon_in(&netns);
    let mut client = Client::connect(&daemon.socket);
    // A private loopback without other connections.
    let id = client.begin_call("network-monitor", json!({"operation": "outgoing", "interface": "lo", "duration": 30}));
    client.until_open("network-monitor", 1);
    run(&format!("kill -STOP {}", daemon.pid()));
    // The other threads stop when one of them has taken the signal.
    until("every thread has stopped", || {
        let mut tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let has_stopped = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("status")).is_ok_and(|status| status.contains("State:\tT"))
        };
        tasks.all(|task| has_stopped(task.unwrap())).then_some(())
    });
    netns.enter(|| {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (0..CONNECTS).for_each(|_| drop(TcpStream::connect(closed)));
    });
    run(&format!("kill -CONT {}", daemon.pid()));
    let answer = client.end_call(id).unwrap();
    assert!(answer["measured"]["lost_events"].as_u64().unwrap() > 0, "{}", answer["measured"]);
    client.until_detached("network-monitor");
}

#[test]
fn vanished_namespace() {
    let daemon = Daemon::start();
    let connection = reported_connection(&daemon.socket);
    assert_eq!(connection["owner"]["pid"], std::process::id(), "what happened in it is still told: {connection}");
    the_rest_works(&mut Client::connect(&daemon.socket));
}

/// Steps the wall clock, and restores it when dropped.
struct Step(i64);

impl Step {
    fn by(seconds: i64) -> Step {
        let now = clock_gettime(ClockId::Realtime);
        clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + seconds, ..now }).unwrap();
        Step(seconds)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let now = clock_gettime(ClockId::Realtime);
        let _ = clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec - self.0, ..now });
    }
}

#[test]
fn clock_step_during_a_window() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    for seconds in [2, -2] {
        let arguments = json!({"operation": "incoming", "interface": "lo", "duration": 1});
        let id = client.begin_call("network-monitor", arguments);
        client.until_open("network-monitor", 1);
        let stepped = Step::by(seconds);
        client.call("snapshot_interfaces", json!({"duration_ms": 100})).unwrap();
        drop(stepped);
        let answer = client.end_call(id).unwrap();
        let window_ms = answer["measured"]["window_ms"].as_f64().unwrap();
        assert!((900.0..1_900.0).contains(&window_ms), "{seconds} s: {window_ms}");
    }
}

#[test]
fn open_file_limit_reached() {
    const LIMIT: usize = 140; // loading needs more than serving
    let log = tempfile::NamedTempFile::new().unwrap();
    let daemon = Faulty::start(|socket| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={LIMIT}")).arg(DAEMON).arg("--socket").arg(socket).args(["--group", GROUP]);
        command.args(["--log-format", "text"]).stderr(log.reopen().unwrap());
        command
    });
    let window = json!({"version": 2, "tool": "network-monitor", "input": {"operation": "incoming", "interface": "lo", "duration": 60}});
    let ask = |_| {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        writeln!(stream, "{window}").unwrap();
        stream
    };
    let windows: Vec<_> = (0..LIMIT).map(ask).collect();
    until("it says that there are too many", || {
        std::fs::read_to_string(log.path()).unwrap().contains("Too many open files").then_some(())
    });
    drop(windows);
    let mut client = Client::connect(&daemon.socket);
    // First it must notice that the waiting clients have left.
    let question = json!({"operation": "outgoing", "duration": 0.1});
    until("it measures again", || client.call("network-monitor", question.clone()).ok());
    client.until_open("network-monitor", 0);
}

/// A cgroup that limits its processes to one thread: `pids` of cgroup v1, or v2.
struct OneThread(PathBuf);

impl OneThread {
    fn of(pid: u32) -> OneThread {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let root = if v1.exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let _ = std::fs::write(root.join("cgroup.subtree_control"), "+pids");
        let group = OneThread(root.join(format!("netmon-test-{pid}")));
        std::fs::create_dir(&group.0).unwrap();
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        group.allow("1");
        group
    }

    fn allow(&self, threads: &str) {
        std::fs::write(self.0.join("pids.max"), threads).unwrap();
    }
}

impl Drop for OneThread {
    fn drop(&mut self) {
        let _ = std::fs::read_to_string(self.0.join("cgroup.procs"))
            .map(|pids| pids.lines().for_each(|pid| drop(std::fs::write(self.0.join("../cgroup.procs"), pid))));
        until("the cgroup is empty", || std::fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn thread_limit_reached() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    let group = OneThread::of(daemon.pid());
    let text = client.call("snapshot_interfaces", json!({"duration_ms": 100})).unwrap_err();
    assert!(text.contains("could not start a thread") && text.contains("try again"), "{text}");
    group.allow("max");
    the_rest_works(&mut client);
}

#[test]
fn blind_daemon_is_not_healthy() {
    let others = SAMPLERS.iter().map(|sampler| sampler.name).filter(|name| !["diagnose", "status"].contains(name));
    let without: Vec<_> = others.flat_map(|name| ["--without", name]).collect();
    let daemon = Daemon::start_with(&without);
    let answer = Client::connect(&daemon.socket).call("diagnose", json!({"duration_ms": 100})).unwrap();
    assert_eq!(answer["healthy"], Value::Null, "{answer:#}");
    // Data that diagnose reads itself and no other tool shows.
    let alone = json!(["duplicate_mac", "duplicate_address", "dscp_remarked"]);
    assert!(answer["checked"] == json!([]) || answer["checked"] == alone, "{answer:#}");
    assert!(answer["checks"]["judged"].as_u64().unwrap() <= 3, "{answer:#}");
    assert!(!answer["blind_spots"].as_array().unwrap().is_empty(), "{answer:#}");
}
