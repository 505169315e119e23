//! A hostile client with a token, hostile clients without one, and a hostile local user at netmond's socket, while
//! another client works. Under the memory limits of the units none of its calls fails. `make adversary` runs this for
//! minutes, with optimization. It requires a 99th percentile of at most twice the quiet one, or of the one with the
//! same load on two other services that share the CPUs. `make test` runs it for some seconds and prints the result.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::UdpSocket,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

#[path = "../suite/harness/mod.rs"]
#[allow(dead_code)] // shared with the suite
mod harness;
#[path = "../suite/http_harness.rs"]
#[allow(dead_code)]
mod http_harness;

use harness::*;
use http_harness::*;

/// In addition to the requested time: two services start and 15,000 sockets are opened.
const TIME_LIMIT: Duration = Duration::from_secs(10 * 60);

const WORKER: &str = "0123456789abcdef0123456789abcdef";
const GREEDY: &str = "fedcba9876543210fedcba9876543210";
/// The number of rows in a long answer.
const SOCKETS: usize = 15_000;

/// A cgroup with the memory limit of a unit file.
struct Limited(PathBuf);

impl Limited {
    fn like(unit: &str, pid: u32) -> Limited {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(unit)).unwrap();
        let limit = text.lines().find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M')).unwrap();
        let bytes = limit.parse::<u64>().unwrap() << 20;
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = match v1.exists() {
            true => (v1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        let group = Limited(root.join(format!("netmon-adversary-{pid}")));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join(file), bytes.to_string()).unwrap();
        fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
        group
    }

    /// Peak memory, in MB.
    fn peak(&self) -> u64 {
        let read = |file| fs::read_to_string(self.0.join(file)).ok()?.trim().parse::<u64>().ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak")).unwrap_or_default() >> 20
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::read_to_string(self.0.join("cgroup.procs"))
            .map(|pids| pids.lines().for_each(|pid| drop(fs::write(self.0.join("../cgroup.procs"), pid))));
        until("the cgroup is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// The view of the working client: the duration of its calls in ms, by kind; and its failures.
#[derive(Default)]
struct Seen {
    status: Vec<f64>,
    windows: Vec<f64>,
    failed: Vec<String>,
}

impl Seen {
    fn p99(times: &[f64]) -> f64 {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[(times.len() * 99).div_ceil(100) - 1]
    }
}

fn request(server: &Server, token: &str, tool: &str, arguments: Value) -> String {
    let (headers, body) = modern_call(tool, arguments);
    server.request(&format!("{headers}Authorization: Bearer {token}\r\n"), &body)
}

/// Works for a while, like a few busy agents.
fn work(server: &Server, time: Duration) -> Seen {
    const AGENTS: usize = 4;
    let end = Instant::now() + time;
    let seen = thread::scope(|scope| {
        let agents: Vec<_> = (0..AGENTS).map(|_| scope.spawn(|| work_alone(server, end))).collect();
        agents.into_iter().map(|agent| agent.join().unwrap()).collect::<Vec<_>>()
    });
    seen.into_iter().fold(Seen::default(), |mut all, one| {
        all.status.extend(one.status);
        all.windows.extend(one.windows);
        all.failed.extend(one.failed);
        all
    })
}

fn work_alone(server: &Server, end: Instant) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < end {
        for (tool, arguments) in [("status", json!({})), ("snapshot_interfaces", json!({"duration_ms": 100}))] {
            let asked = Instant::now();
            let reply = exchange(server.connect(), &request(server, WORKER, tool, arguments));
            let ms = asked.elapsed().as_secs_f64() * 1e3;
            let result = if reply.status == 200 { reply.json()["result"].clone() } else { Value::Null };
            if !result["structuredContent"].is_object() || result["isError"] == true {
                seen.failed.push(format!("{tool}: {reply:?}"));
            }
            if tool == "status" { seen.status.push(ms) } else { seen.windows.push(ms) }
        }
        if exchange(server.connect(), "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").status
            != 200
        {
            seen.failed.push("healthz".into());
        }
    }
    seen
}

/// Every kind of hostile load, each on a thread of its own until the end; counts its actions.
struct Greedy<'a> {
    server: &'a Server,
    daemon: &'a Daemon,
    stop: AtomicBool,
    done: [AtomicU64; 6],
}

impl Greedy<'_> {
    const WAYS: [&'static str; 6] = [
        "long answers that nobody reads",
        "sessions",
        "bodies that never end",
        "heads that never end",
        "requests",
        "unread answers of netmond",
    ];

    fn run<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>) {
        for (way, act) in
            [Self::long_answers, Self::sessions, Self::bodies, Self::heads, Self::requests, Self::of_netmond]
                .iter()
                .enumerate()
        {
            scope.spawn(move || {
                // As if from another machine: what the client itself does takes no time from the services.
                // SAFETY: on Linux this changes the calling thread only.
                assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }, 0);
                while !self.stop.load(Ordering::Relaxed) {
                    self.done[way].fetch_add(act(self), Ordering::Relaxed);
                }
            });
        }
    }

    /// Connections that send something within a second.
    fn hold(&self, count: usize, text: &str) -> u64 {
        let open: Vec<_> = (0..count)
            .filter_map(|_| {
                let mut stream = std::net::TcpStream::connect(self.server.address).ok()?;
                stream.write_all(text.as_bytes()).ok()?;
                Some(stream)
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        open.len() as u64
    }

    fn long_answers(&self) -> u64 {
        self.hold(32, &request(self.server, GREEDY, "snapshot_sockets", json!({"limit": 10_000})))
    }

    fn sessions(&self) -> u64 {
        let hello =
            json!({"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "greedy", "version": "0"}});
        let text = self.server.request(&format!("Authorization: Bearer {GREEDY}\r\n"), &message("initialize", hello));
        self.hold(100, &text)
    }

    fn bodies(&self) -> u64 {
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {GREEDY}\r\nContent-Length: 1000000\r\n\r\n{}",
            " ".repeat(50_000)
        );
        self.hold(500, &head)
    }

    fn heads(&self) -> u64 {
        self.hold(1_000, &format!("POST /mcp HTTP/1.1\r\nX: {}", "x".repeat(8_000)))
    }

    fn requests(&self) -> u64 {
        let good = request(self.server, GREEDY, "status", json!({}));
        let bad = request(self.server, "nobody's", &"x".repeat(5_000), json!({"a": "\u{1b}".repeat(5_000)}));
        for text in [&good, &bad, &good.replace("tools/call", "completion/complete")] {
            if let Ok(mut stream) = std::net::TcpStream::connect(self.server.address) {
                let _ = stream.write_all(text.as_bytes());
                let _ = stream.read(&mut [0; 512]);
            }
        }
        3
    }

    /// A member of the group that reads nothing.
    fn of_netmond(&self) -> u64 {
        // SAFETY: only the ids of this thread change, which is this client's.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 12_345, 12_345, 0) }, 0);
        let question = "{\"version\":2,\"tool\":\"snapshot_sockets\",\"input\":{\"limit\":10000}}\n";
        let open: Vec<_> = (0..64)
            .filter_map(|_| {
                let mut stream = UnixStream::connect(&self.daemon.socket).ok()?;
                stream.write_all(question.as_bytes()).ok()?;
                Some(stream)
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }, 0);
        open.len() as u64
    }
}

/// The view of a client of `server` while another one attacks `victims`.
fn work_beside(server: &Server, victims: (&Server, &Daemon), time: Duration) -> Seen {
    let (greedy_at, daemon) = victims;
    let greedy = Greedy { server: greedy_at, daemon, stop: AtomicBool::new(false), done: Default::default() };
    let seen = thread::scope(|scope| {
        let _ending = Ending(&greedy.stop);
        greedy.run(scope);
        thread::sleep(Duration::from_secs(1)); // every resource is in use by now
        work(server, time)
    });
    for (way, done) in Greedy::WAYS.iter().zip(&greedy.done) {
        println!("{way}: {}", done.load(Ordering::Relaxed));
    }
    seen
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn greedy_client_leaves_other_clients_unaffected() {
    let asked = std::env::var("NETMON_SOAK_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let seconds = asked.unwrap_or(8);
    let (daemon, folder, time) = (Daemon::own(), open_folder(), Duration::from_secs(seconds));
    fs::set_permissions(&daemon.socket, fs::Permissions::from_mode(0o666)).unwrap(); // uid 12345 is in the group
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, format!("worker {WORKER}\ngreedy {GREEDY}\n")).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&tokens, Some(NOBODY), None).unwrap();
    let server = Server::start_with_credentials(&daemon.socket, &["--tokens", tokens.to_str().unwrap()]);
    let other_daemon = Daemon::own();
    fs::set_permissions(&other_daemon.socket, fs::Permissions::from_mode(0o666)).unwrap();
    let other = Server::start_with_credentials(&other_daemon.socket, &["--tokens", tokens.to_str().unwrap()]);
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let _sockets: Vec<_> = (0..SOCKETS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let limits =
        [Limited::like("netmond.service", daemon.pid()), Limited::like("netmon-mcp.service", server.child.id())];
    let quiet = work(&server, time);
    // The same load on two services beside these: the cost of the shared CPUs alone.
    let machine = work_beside(&server, (&other, &other_daemon), time);
    let loud = work_beside(&server, (&server, &daemon), time);
    println!("memory at most: netmond {} MB, netmon-mcp {} MB", limits[0].peak(), limits[1].peak());
    println!("log of netmon-mcp: {} kB", server.log().len() >> 10);
    let failed = [quiet.failed, machine.failed, loud.failed].concat();
    println!("{} calls failed", failed.len());
    let mut slow = Vec::new();
    for (what, quiet, machine, loud) in [
        ("status", quiet.status, machine.status, loud.status),
        ("a window of 100 ms", quiet.windows, machine.windows, loud.windows),
    ] {
        let [before, elsewhere, after] = [&quiet, &machine, &loud].map(|times| Seen::p99(times));
        let text = format!(
            "{what}: p99 {before:.1} ms of {} calls when quiet, {elsewhere:.1} ms beside a greedy client of two other services, \
             {after:.1} ms of {} calls beside one of these",
            quiet.len(),
            loud.len()
        );
        println!("{text}");
        // A few seconds have too few calls for a percentile, and unoptimized programs are slow.
        if asked.is_some() && after > before.max(elsewhere) * 2.0 {
            slow.push(text);
        }
    }
    assert_eq!((failed, slow), (vec![], vec![]));
}
