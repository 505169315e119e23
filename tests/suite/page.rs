//! The page over HTTP: its shell, its screens, the recording's minutes, and what clients of extensions get.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Instant,
};

use netmon_mcp::recorder::time;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::*,
    http_harness::*,
    past::{Recorder, facts, recording, until_recorded},
};

const FULL: &str = "0123456789abcdef0123456789abcdef";
const NARROW: &str = "fedcba9876543210fedcba9876543210";
const AUTHORIZED: &str = "Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n";
const NARROWED: &str = "Authorization: Bearer fedcba9876543210fedcba9876543210\r\n";

/// A server that requires tokens; the second one may use `status` only.
fn protected(daemon: &Daemon, folder: &TempDir) -> Server {
    let path = folder.path().join("tokens");
    fs::write(&path, format!("laptop {FULL}\nnarrow {NARROW} tools=status\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
    Server::start_with_credentials(&daemon.socket, &["--tokens", path.to_str().unwrap()])
}

/// The events of one viewer.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    fn open(server: &Server, headers: &str) -> Viewer {
        let mut stream = server.connect();
        write!(stream, "GET /live HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").unwrap();
        Viewer(BufReader::new(stream))
    }

    /// The next screen with a measurement.
    fn screen(&mut self) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream has ended");
            let data = line.trim_end().strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok());
            if let Some(screen) = data.filter(|data| data["state"] == "live") {
                return screen;
            }
        }
    }
}

#[test]
fn shell_needs_no_token_and_is_secured() {
    let (daemon, folder) = (Daemon::start(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    let shell = server.get("/", "");
    assert_eq!((shell.status, shell.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(shell.body.contains("data-auth=\"token\""), "{}", shell.body);
    let policy = shell.header("content-security-policy").unwrap();
    for part in
        ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let named = shell.body.split(['"']).filter(|text| text.starts_with("/page/"));
    for path in named.collect::<BTreeSet<_>>() {
        let file = server.get(path, "");
        assert_eq!((file.status, file.header("x-content-type-options")), (200, Some("nosniff")), "{path}");
    }
    assert_eq!(server.get("/page/other.js", "").status, 404);
    assert_eq!(server.get("/page/../metrics", "").status, 404, "no path leads out");
    // A name that somebody else has pointed here.
    for path in ["/", "/page/page.js", "/live"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        assert_eq!(exchange(server.connect(), &request).status, 403, "{path}");
    }
    let open = Server::start(&daemon.socket, &[]);
    assert!(open.get("/", "").body.contains("data-auth=\"none\""));
}

#[test]
fn data_of_the_page_requires_credentials_for_every_tool() {
    let (daemon, folder) = (Daemon::start(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    for path in ["/live", "/timeline/1000/2000"] {
        let refused = server.get(path, "");
        assert_eq!(
            (refused.status, refused.header("www-authenticate")),
            (401, Some("Bearer realm=\"netmon\"")),
            "{path}"
        );
        let narrow = server.get(path, NARROWED);
        assert!(narrow.status == 403 && narrow.body.contains("does not allow"), "{path}: {narrow:?}");
        let foreign = server.get(path, &format!("{AUTHORIZED}Origin: https://evil.example\r\n"));
        assert_eq!(foreign.status, 403, "{path}");
    }
    for period in ["2000/1000", "0/99999999999999", "yesterday/today"] {
        let wrong = server.get(&format!("/timeline/{period}"), AUTHORIZED);
        assert!(wrong.status == 400 && wrong.body.contains("invalid period"), "{wrong:?}");
    }
    let own = server.get("/timeline/1000/2000", &format!("{AUTHORIZED}Origin: http://{}\r\n", server.address));
    assert_eq!(own.status, 200, "the page's own origin: {own:?}");
    assert_eq!(own.header("cache-control"), Some("no-store"));
}

#[test]
fn page_under_an_allowed_name_may_use_it() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &["--allowed-host", "netmon.example"]);
    let (headers, body) = modern_call("status", json!({}));
    let status = |more: &str| server.post(&format!("{headers}Host: netmon.example\r\n{more}"), &body).status;
    assert_eq!(status("Origin: https://netmon.example\r\n"), 200);
    assert_eq!(status("Origin: https://other.example\r\n"), 403);
    assert_eq!(status("Origin: https://netmon.example:8443\r\n"), 403);
}

#[test]
fn ten_viewers_cost_one_session() {
    let (daemon, folder) = (Daemon::own(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    let mut client = Client::connect(&daemon.socket);
    let mut viewers: Vec<Viewer> = (0..10).map(|_| Viewer::open(&server, AUTHORIZED)).collect();
    let screens: Vec<Value> = viewers.iter_mut().map(Viewer::screen).collect();
    assert!(screens.iter().all(|screen| screen["answers"]["processes"]["rows"].is_array()), "{:#}", screens[0]);
    let status = client.call("status", json!({})).unwrap();
    let windows: u64 = status["tools"].as_array().unwrap().iter().filter_map(|tool| tool["windows"].as_u64()).sum();
    assert_eq!(client.tool_status("diagnose")["windows"], 1, "{status:#}");
    let alone = windows;
    assert!(server.get("/metrics", AUTHORIZED).body.contains("netmon_viewers 10\n"));
    viewers.truncate(1);
    server.until_logged(&["call", "tool=\"live\"", "who=token:laptop", "outcome=\"ok\""]);
    until("nine have left", || server.get("/metrics", AUTHORIZED).body.contains("netmon_viewers 1\n").then_some(()));
    let status = client.call("status", json!({})).unwrap();
    let windows: u64 = status["tools"].as_array().unwrap().iter().filter_map(|tool| tool["windows"].as_u64()).sum();
    assert_eq!(windows, alone, "one viewer costs as much as ten");
    viewers.clear();
    client.until_detached("diagnose");
}

#[test]
fn withdrawn_token_ends_its_view_within_a_second() {
    let (daemon, folder) = (Daemon::start(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    let mut viewer = Viewer::open(&server, AUTHORIZED);
    viewer.screen();
    fs::write(folder.path().join("tokens"), format!("narrow {NARROW} tools=status\n")).unwrap();
    let withdrawn = Instant::now();
    let _ = viewer.0.read_to_end(&mut Vec::new()); // the server may cut it off
    assert!(withdrawn.elapsed().as_secs_f64() < 1.0, "{:?}", withdrawn.elapsed());
}

#[test]
fn viewers_of_one_client_are_limited() {
    let (daemon, folder) = (Daemon::own(), TempDir::new().unwrap());
    let server = protected(&daemon, &folder);
    let limit = netmon_mcp::limits::VIEWERS_OF_A_CLIENT;
    let mut viewers: Vec<Viewer> = (0..limit).map(|_| Viewer::open(&server, AUTHORIZED)).collect();
    viewers.iter_mut().for_each(|viewer| drop(viewer.screen()));
    let refused = server.get("/live", AUTHORIZED);
    assert!(refused.status == 429 && refused.body.contains("limit of live pages"), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
}

#[test]
fn shutdown_ends_the_stream_of_a_viewer() {
    let (daemon, folder) = (Daemon::own(), TempDir::new().unwrap());
    let mut server = protected(&daemon, &folder);
    let mut viewer = Viewer::open(&server, AUTHORIZED);
    viewer.screen();
    server.signal(rustix::process::Signal::TERM);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn timeline_and_metrics_show_a_recorded_fault() {
    let (_folder, path) = recording();
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let _recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let server = Server::start(&daemon.socket, &["--recording", path.to_str().unwrap()]);
    server.get("/metrics", ""); // counts from now on
    let begin = time::now();
    for _ in 0..20 {
        connect(&pair.a, SocketAddr::new(B.parse().unwrap(), 21_732)).unwrap_err();
    }
    until_recorded(&path);
    let (from, to) = (begin / 1_000 - 60_000, time::now() / 1_000);
    let timeline = server.get(&format!("/timeline/{from}/{to}"), "").json();
    let failures: f64 =
        timeline["points"].as_array().unwrap().iter().filter_map(|point| point["failures"].as_f64()).sum();
    assert!(failures >= 20.0, "{timeline:#}");
    let found = |finding: &Value| finding["code"] == "connection_refused";
    assert!(timeline["findings"].as_array().unwrap().iter().any(found), "{timeline:#}");
    let page = server.get("/metrics", "").body;
    let failed = |line: &&str| line.starts_with("netmon_connection_failures_total{error_type=\"refused\"");
    let counted: f64 =
        page.lines().filter(failed).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!(counted >= 20.0, "{page}");
    assert_dashboard_is_served(&page);
}

/// Every metric of the dashboard is one of the page.
fn assert_dashboard_is_served(page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana/netmon.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let is_metric =
                |word: &&str| ["netmon_", "netmond_", "process_n", "system_"].iter().any(|it| word.starts_with(it));
            asked.extend(words.filter(is_metric).map(str::to_owned));
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
    for name in asked {
        assert!(page.contains(&format!("# TYPE {name} ")), "the dashboard asks for {name}\n{page}");
    }
}

/// A request of a client with these extensions.
fn as_client(server: &Server, extensions: Value, method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
    });
    let name = params["uri"].as_str().map(|uri| format!("Mcp-Name: {uri}\r\n")).unwrap_or_default();
    let headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: {method}\r\n{name}");
    server.post(&headers, &message(method, params)).json()
}

#[test]
fn only_clients_that_show_views_see_them() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    let shows = json!({"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}});
    let list =
        |extensions: &Value, method: &str| as_client(&server, extensions.clone(), method, json!({}))["result"].clone();
    let plain = list(&json!({}), "tools/list");
    assert!(plain["tools"].as_array().unwrap().iter().all(|tool| tool.get("_meta").is_none()));
    assert_eq!(plain["cacheScope"], "public");
    let linked = list(&shows, "tools/list");
    assert_eq!(linked["cacheScope"], "private");
    let views: Vec<_> = linked["tools"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|tool| tool["_meta"]["ui"]["resourceUri"].as_str())
        .collect();
    assert_eq!(
        BTreeSet::from_iter(views.clone()),
        ["ui://netmon/live", "ui://netmon/diagnose", "ui://netmon/changes"].into()
    );
    let uris = |resources: Value| -> Vec<String> {
        resources["resources"].as_array().unwrap().iter().map(|one| one["uri"].as_str().unwrap().into()).collect()
    };
    assert_eq!(uris(list(&json!({}), "resources/list")), ["netmon://incidents"]);
    assert_eq!(uris(list(&shows, "resources/list")).len(), 4);
    for uri in views {
        let read = as_client(&server, shows.clone(), "resources/read", json!({"uri": uri}));
        assert_eq!(read["result"]["contents"][0]["mimeType"], "text/html;profile=mcp-app", "{uri}");
    }
}

#[test]
fn skills_are_listed_and_read() {
    let daemon = Daemon::start();
    let server = Server::start(&daemon.socket, &[]);
    let knows = json!({"io.modelcontextprotocol/skills": {}});
    let list = as_client(&server, knows.clone(), "skills/list", json!({}))["result"].clone();
    let skills = list["skills"].as_array().unwrap().clone();
    assert_eq!(skills.len(), 6, "{list:#}");
    for skill in skills {
        let uri = skill["uri"].as_str().unwrap();
        let read = as_client(&server, knows.clone(), "resources/read", json!({"uri": uri}));
        let text = read["result"]["contents"][0]["text"].as_str().unwrap();
        assert_eq!(skill["resources"][0]["size"], text.len(), "{uri}");
        let name = skill["frontmatter"]["name"].as_str().unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/skills").join(name).join("SKILL.md");
        assert_eq!(text, fs::read_to_string(file).unwrap());
    }
}

#[test]
fn registry_entry_has_this_version() {
    let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("server.json")).unwrap();
    let entry: Value = serde_json::from_str(&file).unwrap();
    let (version, package) = (env!("CARGO_PKG_VERSION"), &entry["packages"][0]);
    assert_eq!(entry["version"], version);
    assert!(package["identifier"].as_str().unwrap().ends_with(&format!(":{version}")), "{package}");
    assert!(entry["description"].as_str().unwrap().len() <= 100);
    let label = format!("io.modelcontextprotocol.server.name={}", entry["name"]);
    let containerfile = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Containerfile")).unwrap();
    assert!(containerfile.contains(&label), "the registry compares the label of the image: {label}");
}
