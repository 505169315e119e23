//! What it costs to record always: to traffic, in CPU time, in memory, and on disk.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::store::{Recording, Sqlite};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Figure, cost,
    first_light::resident,
    floor::Empty,
    harness::*,
    workload::{Close, Load},
};

/// A daemon, and a recorder with its usual interval.
pub struct Recorder {
    process: Ended,
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Recorder {
    /// Starts it, and waits until it watches.
    pub fn start(socket: &Path, client: &mut Client) -> Recorder {
        let folder = open_folder();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let path = folder.path().join("recording.sqlite");
        let mut command = Command::new(GATEWAY);
        command.args(["record", "--socket"]).arg(socket).arg("--recording").arg(&path);
        let process = Ended(command.env("RUST_LOG", "error").stdin(Stdio::null()).spawn().unwrap());
        client.until_open("diagnose", 1);
        Recorder { process, path, _folder: folder }
    }

    /// Ends it like systemd, and waits until nothing is watched any more.
    fn stop(mut self, client: &mut Client) {
        kill_process(Pid::from_child(&self.process.0), Signal::TERM).unwrap();
        assert!(self.process.0.wait().unwrap().success());
        client.until_detached("diagnose");
    }

    /// What is in use of its pages. Each window is added at the end, so pages become full.
    fn bytes(&self) -> i64 {
        let recording = rusqlite::Connection::open(&self.path).unwrap();
        recording.query_row("SELECT sum(pgsize - unused) FROM dbstat", [], |row| row.get(0)).unwrap()
    }

    /// Waits for the next write.
    pub fn until_written(&self) {
        let windows = || Some(Sqlite::read(&self.path).ok()?.facts().ok()?.windows);
        let before = windows().unwrap_or_default();
        until("a window is written", || windows().filter(|windows| *windows > before));
    }
}

type Case = (&'static str, fn(&Pair) -> Load, (f64, &'static str));

/// Traffic while a recorder runs and while none does.
pub fn cost() -> Vec<Figure> {
    let closes: fn(&Pair) -> Load = |pair| Load::connects(pair.clone(), Close::Fin);
    let loads: [Case; 4] = [
        ("TCP request/response", Load::tcp_requests, (1.03, "<= 1.03")),
        ("TCP 64 KiB over veth", Load::tcp_bulk, (1.02, "<= 1.02")),
        ("UDP request/response", Load::udp_requests, (1.05, "<= 1.05")),
        ("connect + accept + close by FIN", closes, (1.12, "<= 1.12")),
    ];
    let compare = |(what, load, reach): Case| {
        let (pair, daemon) = (Pair::new(), Daemon::start());
        let client = std::cell::RefCell::new(Client::connect(&daemon.socket));
        let on = || Recorder::start(&daemon.socket, &mut client.borrow_mut());
        let off = |recorder: Recorder| recorder.stop(&mut client.borrow_mut());
        let ours = cost::compare(&format!("{what}, CPU, recording / not"), load(&pair), reach, on, off);
        let empty = Empty::diagnose;
        let floor = format!("… {what}, an empty program at its tracepoints");
        [ours, cost::compare(&floor, load(&pair), (0.0, "-"), empty, drop)]
    };
    loads.into_iter().flat_map(compare).collect()
}

/// What DNS adds to that, and what the hooks would cost that see it.
pub fn dns() -> Vec<Figure> {
    type Traffic = (&'static str, fn(&Pair) -> Load);
    type Hook = (&'static str, fn() -> Empty);
    let loads: [Traffic; 2] =
        [("TCP request/response", Load::tcp_requests), ("UDP request/response", Load::udp_requests)];
    let hooks: [Hook; 3] = [
        ("net_dev_queue and netif_receive_skb", || Empty::trace(&[c"net_dev_queue", c"netif_receive_skb"])),
        ("netif_receive_skb", || Empty::trace(&[c"netif_receive_skb"])),
        ("cgroup_skb in both directions", Empty::cgroup),
    ];
    let mut figures = Vec::new();
    for (what, load) in loads {
        for (with, arguments) in [("with", &[][..]), ("without", &["--without", "trace_dns"])] {
            let (pair, daemon) = (Pair::new(), Daemon::start_with(arguments));
            let client = std::cell::RefCell::new(Client::connect(&daemon.socket));
            let on = || Recorder::start(&daemon.socket, &mut client.borrow_mut());
            let off = |recorder: Recorder| recorder.stop(&mut client.borrow_mut());
            let name = format!("{what}, CPU, recording {with} DNS / not");
            figures.push(cost::compare(&name, load(&pair), (0.0, "-"), on, off));
        }
        let pair = Pair::new();
        let empty = |(hook, empty): Hook| {
            let name = format!("… {what}, an empty program at {hook}");
            cost::compare(&name, load(&pair), (0.0, "-"), empty, drop)
        };
        figures.extend(hooks.map(empty));
    }
    figures
}

/// CPU time, memory and disk of recorder and daemon, on an idle host and with connections.
pub fn always() -> Vec<Figure> {
    let netns = Netns::new(); // without sockets: the daemon searches for those without a process only where there are some
    let daemon = daemon_in(&netns);
    let mut client = Client::connect(&daemon.socket);
    let recorder = Recorder::start(&daemon.socket, &mut client);
    drop(client);
    let pids = [daemon.pid(), recorder.process.0.id()];
    let mut figures = Vec::new();
    for (what, rate, cpu, disk) in [
        ("no traffic", 0, (0.3, "<= 0.3 %"), Some((10.0, "<= 10 MB"))),
        ("100 connections/s", 100, (f64::MAX, "-"), Some((150.0, "<= 150 MB"))),
        ("1,000 connections/s", 1_000, (5.0, "<= 5 %"), None),
    ] {
        let connections = Connections::start(rate);
        recorder.until_written();
        let (before, begun, used) = (recorder.bytes(), Instant::now(), cpu_s(&pids));
        (0..WINDOWS).for_each(|_| recorder.until_written());
        let (elapsed, used) = (begun.elapsed().as_secs_f64(), cpu_s(&pids) - used);
        drop(connections);
        let share = used / elapsed * 100.0;
        figures.push(Figure {
            name: format!("recorder and daemon, {what}: of a core"),
            measured: format!("{share:.2} %"),
            reach: cpu.1,
            reached: share <= cpu.0,
        });
        if let Some((most, reach)) = disk {
            let megabytes = (recorder.bytes() - before) as f64 / elapsed * 86_400.0 / 1e6;
            figures.push(Figure {
                name: format!("… a day on disk, {what}"),
                measured: format!("{megabytes:.1} MB"),
                reach,
                reached: megabytes <= most,
            });
        }
    }
    let memory = pids.map(resident);
    figures.push(Figure {
        name: "resident memory, daemon + recorder".into(),
        measured: format!("{:.1} + {:.1} MB", memory[0] / 1e6, memory[1] / 1e6),
        reach: "<= 48 MB together",
        reached: memory.iter().sum::<f64>() <= 48e6,
    });
    figures
}

/// Windows of ten seconds that a figure is of.
const WINDOWS: usize = 6;

/// User and system time of processes, in seconds (proc_pid_stat(5)).
fn cpu_s(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>()
    };
    pids.iter().map(of).sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

/// Connections at a steady rate, in a namespace of their own, until they are dropped.
pub struct Connections {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Connections {
    pub fn start(rate: u32) -> Connections {
        let ended = Arc::new(AtomicBool::new(rate == 0));
        let end = Arc::clone(&ended);
        let work = move || {
            let netns = Netns::new();
            netns.run("sysctl -qw net.ipv4.tcp_max_tw_buckets=0");
            let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0").unwrap());
            let to = listener.local_addr().unwrap();
            let begun = Instant::now();
            netns.enter(|| {
                for n in 0.. {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let client = TcpStream::connect(to).unwrap();
                    drop((client, listener.accept().unwrap()));
                    thread::sleep((Duration::from_secs(1) / rate * n).saturating_sub(begun.elapsed()));
                }
            });
        };
        let thread = (rate > 0).then(|| thread::spawn(work));
        Connections { ended, thread }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().map(thread::JoinHandle::join);
    }
}
