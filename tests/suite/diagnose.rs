//! `diagnose` for people and scripts: headline, colour, exit code and counts.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::tools::{
    profile_tcp, snapshot_interfaces, snapshot_sockets, top_traffic, trace_connections, trace_dns, trace_drops,
};
use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command_line::{begin, cli, interrupt},
    harness::*,
};

/// A daemon's sample of a host without events for 10 s.
fn quiet() -> Value {
    fn saw_nothing<S: Serialize + Default>() -> Value {
        json!({"samples": [S::default()]})
    }
    json!({
        "heard": {
            "connections": saw_nothing::<trace_connections::Sample>(),
            "dns": saw_nothing::<trace_dns::Sample>(),
            "drops": saw_nothing::<trace_drops::Sample>(),
            "interfaces": saw_nothing::<snapshot_interfaces::Sample>(),
            "profile": saw_nothing::<profile_tcp::Sample>(),
            "sockets": saw_nothing::<snapshot_sockets::Sample>(),
            "tcp": saw_nothing::<snapshot_sockets::Sample>(),
            "traffic": saw_nothing::<top_traffic::Sample>(),
        },
        "conntrack": null,
        "network": {},
        "netns": 0,
        "window_ns": 10_000_000_000u64,
    })
}

/// A daemon that returns the same sample for every request.
struct Says {
    socket: PathBuf,
    _folder: TempDir,
}

impl Says {
    fn new(sample: &Value) -> Says {
        let folder = open_folder();
        let socket = folder.path().join("netmond.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let line = format!("{}\n", json!({"version": 2, "sample": sample}));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut question = String::new();
                // A connection without a request only probes for a server.
                if BufReader::new(&stream).read_line(&mut question).unwrap() > 0 {
                    stream.write_all(line.as_bytes()).unwrap();
                }
            }
        });
        Says { socket, _folder: folder }
    }

    /// The number of judged checks in the structured answer, and their total.
    fn checks(&self) -> (u64, u64) {
        let output = cli(&self.socket, "call diagnose --json").output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let count = |name: &str| answer["checks"][name].as_u64().unwrap();
        (count("judged"), count("total"))
    }

    /// The first line of the command line's output, and its exit code.
    fn headline(&self, colour: (&str, &str)) -> (String, Option<i32>) {
        let mut command = cli(&self.socket, "call diagnose --exit-code");
        command.env_remove("NO_COLOR").env_remove("CLICOLOR").env_remove("CLICOLOR_FORCE").env(colour.0, colour.1);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (text.lines().next().unwrap_or_default().to_owned(), output.status.code())
    }
}

const FORCED: (&str, &str) = ("CLICOLOR_FORCE", "1");

#[test]
fn headline_is_green_only_when_healthy() {
    let host = Says::new(&quiet());
    let (judged, total) = host.checks();
    assert_eq!(judged, total);
    let plain = format!("No fault seen ({total} of {total} checks, 10.0 s)");
    assert_eq!(host.headline(FORCED), (format!("\x1b[32m{plain}\x1b[0m"), Some(0)));
    assert_eq!(host.headline(("NO_COLOR", "1")), (plain.clone(), Some(0)));
    assert_eq!(host.headline(("CLICOLOR", "1")), (plain, Some(0)), "not a terminal");
}

#[test]
fn headline_is_yellow_after_skipped_checks() {
    let mut early = quiet();
    early["ended_early"] = json!(true);
    let host = Says::new(&early);
    let (judged, total) = host.checks();
    assert_eq!(judged, total);
    let told = format!("No fault seen ({total} of {total} checks, 10.0 s); the window ended early");
    assert_eq!(host.headline(FORCED), (format!("\x1b[1;33m{told}\x1b[0m"), Some(0)));

    let mut missing = quiet();
    missing["heard"]["dns"] = json!({"error": "trace_dns is not available on this host"});
    let mut lost = quiet();
    lost["heard"]["dns"]["samples"][0]["lost"] = json!(3);
    let mut unreadable = quiet();
    unreadable["heard"]["traffic"] = json!({"samples": ["of another release"]});
    for (sample, see) in [(missing, "see status"), (lost, "see below"), (unreadable, "see status")] {
        let host = Says::new(&sample);
        let (judged, total) = host.checks();
        assert!((1..total).contains(&judged), "{judged} of {total}");
        let told = format!(
            "No fault seen by the {judged} of {total} checks that could run; {} could not ({see}); the window was 10.0 s",
            total - judged
        );
        assert_eq!(host.headline(FORCED), (format!("\x1b[1;33m{told}\x1b[0m"), Some(0)));
    }
}

/// A listener that accepts nothing, with a queue filled by two clients.
struct Full {
    at: SocketAddr,
    _listener: TcpListener,
    _clients: [TcpStream; 2],
}

fn full() -> Full {
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&listener, 1).unwrap();
    let listener = TcpListener::from(listener);
    let at = listener.local_addr().unwrap();
    // The kernel accepts one more than the backlog.
    let clients = [(); 2].map(|()| TcpStream::connect(at).unwrap());
    Full { at, _listener: listener, _clients: clients }
}

#[test]
fn exit_code_option_reports_findings() {
    let (daemon, full) = (Daemon::start(), full());
    let exits = |line: &str| cli(&daemon.socket, line).output().unwrap();
    let found = exits("call diagnose duration_ms=500 limit=1000 --exit-code --json");
    let answer: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((found.status.code(), &answer["healthy"]), (Some(3), &json!(false)), "{answer:#}");
    let findings = answer["findings"].as_array().unwrap();
    let ours = |f: &&Value| f["code"] == "listen_queue_overflow" && f["evidence"]["local"]["port"] == full.at.port();
    assert!(findings.iter().any(|finding| ours(&finding)), "{answer:#}");
    assert_eq!(exits("call diagnose duration_ms=500").status.code(), Some(0), "nobody asked for it");
}

#[test]
fn usage_errors_have_their_own_exit_code() {
    let host = Says::new(&quiet());
    for line in [
        "call nosuch",
        "call diagnose nosuch=1",
        "call diagnose duration_ms=1",
        "call diagnose limit=none",
        "call network-monitor",
        "call top_traffic --exit-code",
    ] {
        let output = cli(&host.socket, line).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}: {output:?}");
        assert!(!output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn headline_counts_all_and_shown_findings() {
    let (daemon, _full) = (Daemon::start(), [full(), full(), full()]);
    let mut client = Client::connect(&daemon.socket);
    let mut ask = |limit: usize| {
        let arguments = json!({"duration_ms": 500, "limit": limit});
        let result = client.request("tools/call", json!({"name": "diagnose", "arguments": arguments}))["result"].take();
        (result["structuredContent"].clone(), result["content"][0]["text"].as_str().unwrap().to_owned())
    };
    let (answer, text) = ask(1);
    let all = 1 + answer["measured"]["rows_cut"].as_u64().unwrap();
    assert!(answer["findings"].as_array().unwrap().len() == 1 && all >= 3, "{answer:#}");
    assert!(text.starts_with(&format!("{all} findings, 1 shown; {} more with limit={all}: ", all - 1)), "{text}");
    let (answer, text) = ask(10_000);
    let shown = answer["findings"].as_array().unwrap().len();
    assert!(text.starts_with(&format!("{shown} findings: ")), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).count(),
        shown + 1,
        "{text}"
    );
}

#[test]
fn excluded_tool_skips_its_checks() {
    let daemon = Daemon::start_with(&["--without", "trace_dns", "--without", "profile_tcp"]);
    let mut client = Client::connect(&daemon.socket);
    let result =
        client.request("tools/call", json!({"name": "diagnose", "arguments": {"duration_ms": 2_000, "limit": 1_000}}));
    let (answer, text) = (&result["result"]["structuredContent"], &result["result"]["content"][0]["text"]);
    assert_ne!(answer["healthy"], true, "{answer:#}");
    let (checked, checks) = (answer["checked"].as_array().unwrap(), &answer["checks"]);
    assert_eq!(checks["judged"], checked.len(), "{answer:#}");
    assert!(["dns_slow", "retransmits", "high_rtt"].iter().all(|code| !checked.contains(&json!(code))), "{answer:#}");
    let told = format!("{} of {} checks", checked.len(), checks["total"]);
    let headline = text.as_str().unwrap().lines().next().unwrap();
    assert!(headline.contains(&told) && headline.contains("could run"), "{headline}");
    let spots = answer["blind_spots"].to_string();
    assert!(spots.contains("trace_dns") && spots.contains("dns_slow") && spots.contains("--without"), "{spots}");
}

#[test]
fn answer_states_the_measured_window() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    let begun = Instant::now();
    let answer = client.call("diagnose", json!({"duration_ms": 500})).unwrap();
    let (window_ms, took) = (answer["measured"]["window_ms"].as_f64().unwrap(), begun.elapsed());
    assert!((400.0..=took.as_secs_f64() * 1e3).contains(&window_ms), "{window_ms} ms of {took:?}");
    assert_ne!(window_ms, 500.0, "the length that was asked for");
    let child = begin(&daemon.socket, "call diagnose duration_ms=60000");
    client.until_open("diagnose", 1);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let headline = text.lines().next().unwrap_or_default();
    assert!(output.status.success() && headline.contains("ended early"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{headline}");
}

/// A container that restarts gets the number of its network namespace, its address, and another link-layer address.
#[test]
fn namespace_with_the_number_of_a_removed_one_has_no_duplicate_address() {
    const TRIES: usize = 50;
    let daemon = Daemon::start();
    let window = daemon.watch("diagnose", json!({"limit": 1_000}));
    let refused = |client: &Netns| connect(client, (B.parse::<Ipv4Addr>().unwrap(), 9).into()).unwrap_err().kind();
    let (client, mut others) = (Netns::new(), Vec::new());
    let (number, server) = until("the kernel uses a number again", || {
        let first = Pair::new();
        let number = first.a.inode();
        until("B has an address for A", || (refused(&first.a) == std::io::ErrorKind::ConnectionRefused).then_some(()));
        drop(first);
        for _ in 0..TRIES {
            let netns = Netns::new();
            if netns.inode() == number {
                return Some((number, netns));
            }
            others.push(netns); // which keeps its number
        }
        others.clear();
        None // another test may have got it
    });
    run(&format!("ip link add v0 netns {} type veth peer name v0 netns {}", client.name(), server.name()));
    for (netns, address) in [(&client, A), (&server, B)] {
        netns.ip(&format!("addr add {address}/24 dev v0"));
        netns.ip("link set v0 up");
    }
    for _ in 0..4 {
        assert_eq!(refused(&client), std::io::ErrorKind::ConnectionRefused);
    }
    let answer = window.end();
    let codes: Vec<_> = answer["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["evidence"].to_string().contains(&number.to_string()))
        .map(|finding| finding["code"].as_str().unwrap())
        .collect();
    assert!(!codes.contains(&"duplicate_address"), "{answer:#}");
}
