//! The gateway as a remote server: the overhead of MCP, stdio and HTTP beyond a tool's own time, calls per second, and
//! memory. Servers on the official Python and TypeScript SDKs with the same answer take turns with it.
//!
//! The tool is `snapshot_interfaces`. Its daemon answers at once with a recorded sample of two interfaces. So the
//! tool's own time is the daemon's; it is measured in the same rounds and subtracted.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Figure,
    callers::{Calls, Http, Pipes, TOOL},
    first_light::resident,
    harness::{installed, *},
    http_harness::Server,
    median,
};

/// Rounds in which every server has its turn; an odd number has a middle.
const ROUNDS: usize = 5;
/// Calls per turn.
const CALLS: usize = 400;
/// Connections of the throughput figure, and the duration of their calls per turn.
const CONNECTIONS: usize = 8;
const TURN: Duration = Duration::from_secs(1);
/// Sessions that start and never end.
const ABANDONED: usize = 10_000;

/// A daemon that answers at once with a recorded answer.
struct Recorded {
    folder: tempfile::TempDir,
    socket: PathBuf,
    question: String,
}

impl Recorded {
    fn new() -> Recorded {
        let pair = Pair::new();
        let daemon = daemon_in(&pair.b);
        let input = json!({"duration_ms": 100});
        let question = json!({"version": netmon_mcp::wire::VERSION, "tool": TOOL, "input": input}).to_string();
        let line = ask(&daemon.socket, &question).unwrap();
        let answer = Client::connect(&daemon.socket).call(TOOL, input).unwrap();
        let folder = open_folder();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("answer.json"), answer.to_string()).unwrap();
        let socket = folder.path().join("netmond.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        thread::spawn(move || {
            let line: std::sync::Arc<str> = line.into();
            for stream in listener.incoming().flatten() {
                let line = line.clone();
                thread::spawn(move || serve(&stream, &line));
            }
        });
        Recorded { folder, socket, question }
    }

    fn answer(&self) -> PathBuf {
        self.folder.path().join("answer.json")
    }

    /// The tool's own time, in microseconds: over a reused connection, like the gateway.
    fn own_time(&self) -> f64 {
        let mut daemon = Kept::connect(&self.socket);
        p50(|| assert!(daemon.ask(&self.question).contains("sample")))
    }
}

/// A connection to the daemon that carries consecutive requests.
struct Kept(BufReader<UnixStream>);

impl Kept {
    fn connect(socket: &Path) -> Kept {
        Kept(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn ask(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer
    }
}

/// Answers each request of a connection with `line`.
fn serve(mut stream: &UnixStream, line: &str) {
    let mut requests = BufReader::new(stream);
    while requests.read_line(&mut String::new()).is_ok_and(|read| read > 0) {
        if stream.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

/// The median time of a call in a turn, in microseconds.
fn p50(mut call: impl FnMut()) -> f64 {
    let time = |_| {
        let begun = Instant::now();
        call();
        begun.elapsed().as_secs_f64() * 1e6
    };
    median(&mut (0..CALLS).map(time).collect::<Vec<_>>()).0
}

/// A server on another SDK.
fn python(answer: &Path) -> Command {
    let mut command = installed::python("equivalent.py");
    command.arg(answer);
    command
}

fn typescript(answer: &Path) -> Command {
    let mut command = installed::node();
    command.arg(installed::driver("equivalent.mjs")).arg(installed::packages().join("node")).arg(answer);
    command
}

/// rmcp alone.
fn fixed(answer: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--fixed").arg(answer);
    command
}

/// The same, which asks the daemon at each call.
fn asking(recorded: &Recorded) -> Command {
    let mut command = fixed(&recorded.answer());
    command.arg(&recorded.socket).arg(&recorded.question);
    command
}

/// The same over HTTP, with its address.
fn over_http(mut command: Command) -> (Ended, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    command.arg(address.port().to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Ended(command.spawn().unwrap());
    drop(until("it listens", || TcpStream::connect(address).ok()));
    (child, address)
}

/// The overhead of ours beyond the tool's own time, and the whole time of the others, as medians of all rounds.
fn beyond(
    name: &str,
    recorded: &Recorded,
    limit: f64,
    reach: &'static str,
    mut clients: Vec<Box<dyn Calls>>,
) -> Figure {
    let mut rounds = vec![Vec::new(); clients.len()];
    for _ in 0..ROUNDS {
        let own = recorded.own_time();
        for (i, client) in clients.iter_mut().enumerate() {
            let whole = p50(|| client.call());
            rounds[i].push(if i == 0 { whole - own } else { whole });
        }
    }
    let middles: Vec<_> = rounds.iter_mut().map(|times| median(times)).collect();
    let (ours, least, most) = middles[0];
    Figure {
        name: format!("{name}, p50 above the tool's own{}", others("µs", &middles[1..])),
        measured: format!("{ours:.0} µs ({least:.0}-{most:.0})"),
        reach,
        reached: ours <= limit,
    }
}

/// The figures of the other SDKs, if they are installed.
fn others(unit: &str, figures: &[(f64, f64, f64)]) -> String {
    let names = ["rmcp alone", "Python", "TypeScript"].iter().zip(figures);
    let list: Vec<_> = names.map(|(name, (figure, ..))| format!("{name} {figure:.0} {unit}")).collect();
    if list.is_empty() { String::new() } else { format!(" ({})", list.join(", ")) }
}

/// The time of a call.
pub fn latency() -> Vec<Figure> {
    let recorded = Recorded::new();
    let answer = recorded.answer();
    let mut ours = Command::new(GATEWAY);
    ours.arg("--socket").arg(&recorded.socket);
    let pipes: Vec<Box<dyn Calls>> = [ours, fixed(&answer), python(&answer), typescript(&answer)]
        .into_iter()
        .map(|command| Box::new(Pipes::new(command)) as Box<dyn Calls>)
        .collect();
    let stdio = beyond("a call over stdio", &recorded, 50.0, "<= 50 µs", pipes);
    let mut relay = Command::new(std::env::current_exe().unwrap());
    relay.arg("--relay").arg(&recorded.socket);
    let relay = Pipes::to(relay, recorded.question.clone(), "sample");
    let floor = |name: &str, client| beyond(name, &recorded, f64::MAX, "-", vec![client]);
    let relayed = floor("… a process that only passes lines on", Box::new(relay));
    let asked = floor("… rmcp alone, if it asks the daemon", Box::new(Pipes::new(asking(&recorded))));
    let server = Server::start(&recorded.socket, &["--rate", "0"]);
    let (_fixed, at_fixed) = over_http(fixed(&answer));
    let (_python, at_python) = over_http(python(&answer));
    let (_typescript, at_typescript) = over_http(typescript(&answer));
    let (_asking, at_asking) = over_http(asking(&recorded));
    let legacy = [server.address, at_fixed, at_python, at_typescript];
    let legacy = legacy.into_iter().map(|address| Box::new(Http::legacy(address)) as Box<dyn Calls>).collect();
    let modern: Vec<Box<dyn Calls>> = vec![Box::new(Http::modern(server.address)), Box::new(Http::modern(at_fixed))];
    let name = "… rmcp alone, if it asks the daemon, over HTTP";
    vec![
        stdio,
        relayed,
        asked,
        beyond("a call over HTTP with a session", &recorded, 150.0, "<= 150 µs", legacy),
        floor(&format!("{name} with a session"), Box::new(Http::legacy(at_asking))),
        beyond("a call over HTTP, 2026-07-28", &recorded, 150.0, "<= 150 µs", modern),
        floor(name, Box::new(Http::modern(at_asking))),
    ]
}

/// The cost of any process between client and daemon: this one forwards each line and its answer.
pub fn relay() {
    let mut daemon = Kept::connect(Path::new(&std::env::args().nth(2).expect("a socket")));
    for line in std::io::stdin().lines() {
        let answer = daemon.ask(&line.unwrap());
        std::io::stdout().write_all(answer.as_bytes()).unwrap();
        std::io::stdout().flush().unwrap();
    }
}

/// A server, and how its clients connect.
type Turn = (SocketAddr, fn(SocketAddr) -> Http);

/// Calls a second of one turn.
fn rate(address: SocketAddr, client: fn(SocketAddr) -> Http) -> f64 {
    let turn = |_| {
        thread::spawn(move || {
            let mut client = client(address);
            let (begun, mut calls) = (Instant::now(), 0);
            while begun.elapsed() < TURN {
                client.call();
                calls += 1;
            }
            f64::from(calls) / begun.elapsed().as_secs_f64()
        })
    };
    let turns: Vec<_> = (0..CONNECTIONS).map(turn).collect();
    turns.into_iter().map(|turn| turn.join().unwrap()).sum()
}

/// Calls a second over eight connections.
pub fn throughput() -> Vec<Figure> {
    let recorded = Recorded::new();
    let answer = recorded.answer();
    let server = Server::start(&recorded.socket, &["--rate", "0"]);
    let (_fixed, at_fixed) = over_http(fixed(&answer));
    let (_python, at_python) = over_http(python(&answer));
    let (_typescript, at_typescript) = over_http(typescript(&answer));
    let (_asking, at_asking) = over_http(asking(&recorded));
    let turns: [Turn; 6] = [
        (server.address, Http::modern),
        (at_fixed, Http::modern),
        (at_python, Http::legacy),
        (at_typescript, Http::legacy),
        (server.address, Http::legacy),
        (at_asking, Http::modern),
    ];
    let mut rounds = vec![Vec::new(); turns.len()];
    for _ in 0..ROUNDS {
        turns.iter().zip(&mut rounds).for_each(|((address, client), rates)| rates.push(rate(*address, *client)));
    }
    let middles: Vec<_> = rounds.iter_mut().map(|rates| median(rates)).collect();
    let figure = |name: String, (middle, least, most): (f64, f64, f64)| Figure {
        name,
        measured: format!("{middle:.0}/s ({least:.0}-{most:.0})"),
        reach: ">= 10,000/s",
        reached: middle >= 10_000.0,
    };
    vec![
        figure(format!("calls over 8 HTTP connections{}", others("/s", &middles[1..4])), middles[0]),
        figure("calls over 8 HTTP connections with sessions".into(), middles[4]),
        Figure { reach: "-", reached: true, ..figure("… rmcp alone, if it asks the daemon".into(), middles[5]) },
    ]
}

/// Resident memory, idle and with sessions that never end.
pub fn sessions() -> Vec<Figure> {
    let recorded = Recorded::new();
    let answer = recorded.answer();
    let server = Server::start(&recorded.socket, &["--rate", "0"]);
    let others_over_http = [fixed(&answer), python(&answer), typescript(&answer)].map(over_http);
    let [fixed, python, typescript] = others_over_http.each_ref().map(|(child, address)| (child.0.id(), *address));
    let servers = [(server.child.id(), server.address), fixed, python, typescript];
    let memory = || servers.map(|(pid, _)| (resident(pid) / 1e6, 0.0, 0.0));
    let idle = memory();
    for (_, address) in servers {
        let mut http = Http::connect(address);
        (0..ABANDONED).for_each(|_| drop(http.begin()));
    }
    let after = memory();
    let figure = |name: &str, all: [(f64, f64, f64); 4], limit: f64, reach| Figure {
        name: format!("{name}{}", others("MB", &all[1..])),
        measured: format!("{:.1} MB", all[0].0),
        reach,
        reached: all[0].0 <= limit,
    };
    vec![
        figure("resident memory of an idle HTTP gateway", idle, 10.0, "<= 10 MB"),
        figure("after 10,000 abandoned sessions", after, 64.0, "<= 64 MB"),
    ]
}
