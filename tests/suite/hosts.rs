//! Other hosts through one gateway: over a real sshd on loopback, over HTTP with a token, over a Unix socket.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::{UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use crate::{harness::*, http_harness::*};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An sshd on loopback. One key is restricted to a remote MCP server, another one to port forwarding.
struct Sshd {
    child: Child,
    folder: TempDir,
}

impl Sshd {
    fn start(daemon: &Daemon) -> Sshd {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host", "user", "tunnel"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]).status();
            assert!(made.unwrap().success());
        }
        let public = |key: &str| fs::read_to_string(path(key)).unwrap();
        let forced = format!("command=\"{GATEWAY} --socket {}\",restrict", daemon.socket.display());
        let keys = format!("{forced} {}restrict,port-forwarding {}", public("user.pub"), public("tunnel.pub"));
        fs::write(path("authorized_keys"), keys).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            path("host"),
            path("authorized_keys"),
        );
        fs::write(path("sshd_config"), config).unwrap();
        let client = format!(
            "Host loop\nHostName 127.0.0.1\nPort {port}\nUser root\nIdentityFile {}\nIdentitiesOnly yes\n\
             StrictHostKeyChecking accept-new\nUserKnownHostsFile {}\n\
             Host hop\nHostName 127.0.0.1\nPort {port}\nUser root\nIdentityFile {}\nIdentitiesOnly yes\n\
             StrictHostKeyChecking accept-new\nUserKnownHostsFile {}\n\
             Host behind\nHostName 127.0.0.1\nProxyJump hop\nPort {port}\nUser root\nIdentityFile {}\n\
             IdentitiesOnly yes\nStrictHostKeyChecking accept-new\nUserKnownHostsFile {}\n\
             Host proxied\nProxyCommand true\n",
            path("user"),
            path("known_hosts"),
            path("tunnel"),
            path("known_hosts"),
            path("user"),
            path("known_hosts"),
        );
        fs::write(path("ssh_config"), client).unwrap();
        for file in ["", "user", "tunnel", "ssh_config"] {
            chown(folder.path().join(file), Some(NOBODY), None).unwrap();
        }
        fs::create_dir_all("/run/sshd").unwrap();
        // sshd requires an absolute path.
        let mut command = Command::new(path_of("sshd"));
        command.args(["-D", "-e", "-f", &path("sshd_config")]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("openssh-server is installed");
        until("sshd listens", || {
            assert!(child.try_wait().unwrap().is_none(), "sshd ended");
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Sshd { child, folder }
    }

    fn client_config(&self) -> String {
        self.folder.path().join("ssh_config").display().to_string()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ssh_tunnel_reaches_the_unix_socket() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let sshd = Sshd::start(&daemon);
    let path = folder.path().join("mcp.sock");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let server = Server::spawn(gateway(&daemon, &["http", "--listen", &format!("unix:{}", path.display())]));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut tunnel = Command::new("ssh");
    tunnel.args(["-N", "-F", &sshd.client_config(), "-i"]).arg(sshd.folder.path().join("tunnel"));
    tunnel.args(["-L", &format!("127.0.0.1:{port}:{}", path.display()), "loop"]).stdin(Stdio::null());
    let _tunnel = Ended(tunnel.spawn().unwrap());
    let stream = until("the tunnel listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let (headers, body) = modern_call("status", json!({}));
    let reply = exchange(stream, &server.request(&headers, &body));
    assert_eq!(reply.json()["result"]["structuredContent"]["daemon"]["connected"], true, "{reply:?}");
}

fn gateway(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = daemon.gateway_of_a_user();
    command.args(arguments);
    command
}

#[test]
fn ssh_forced_command_is_a_remote_server() {
    let daemon = Daemon::light();
    let sshd = Sshd::start(&daemon);
    let mut command = Command::new("ssh");
    command.args(["-T", "-F", &sshd.client_config(), "loop", "netmon-mcp"]);
    let mut client = Client::connect_to(command);
    assert_eq!(client.call("status", json!({})).unwrap()["daemon"]["connected"], true);
    // The forced command is the only ability: no shell, no tunnel.
    let output =
        Command::new("ssh").args(["-T", "-F", &sshd.client_config(), "loop", "id"]).stdin(Stdio::null()).output();
    assert!(!String::from_utf8_lossy(&output.unwrap().stdout).contains("uid="));
}

#[test]
fn every_tool_accepts_host_and_hosts_lists_them() {
    let (daemon, far, folder) = (Daemon::light(), Daemon::light(), TempDir::new().unwrap());
    let sshd = Sshd::start(&far);
    let token = folder.path().join("token");
    fs::write(&token, format!("test {TOKEN}\n")).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    for path in [folder.path(), &token] {
        chown(path, Some(NOBODY), None).unwrap();
    }
    let http = Server::start(&far.socket, &["--tokens", token.to_str().unwrap()]);
    let path = folder.path().join("mcp.sock");
    let mut unix = Command::new(GATEWAY);
    unix.args(["http", "--unix-mode", "0666", "--listen", &format!("unix:{}", path.display()), "--socket"])
        .arg(&far.socket);
    let _unix = Server::spawn(unix);
    let mut client = Client::connect_to(gateway(
        &daemon,
        &[
            &format!("--host=web=http://{}/mcp", http.address),
            &format!("--host-token=web={}", token.display()),
            &format!("--host=sock=unix:{}", path.display()),
            "--host=shell=ssh:loop",
            &format!("--ssh-config={}", sshd.client_config()),
            "--host=down=http://127.0.0.1:1/mcp",
        ],
    ));
    let listed = client.request("tools/list", json!({}));
    let tools = listed["result"]["tools"].as_array().unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "hosts"), "{listed}");
    let names = &tools[0]["inputSchema"]["properties"]["host"]["enum"];
    assert_eq!(names, &json!(["web", "sock", "shell", "down"]));
    let near_pid = client.call("status", json!({})).unwrap()["daemon"]["pid"].clone();
    assert_eq!(near_pid, daemon.pid());
    for host in ["web", "sock", "shell"] {
        let status = client.call("status", json!({"host": host})).unwrap();
        assert_eq!(status["daemon"]["pid"], far.pid(), "{host}: {status}");
        let wrong =
            client.call("network-monitor", json!({"host": host, "operation": "incoming", "interface": "nope0"}));
        assert!(wrong.unwrap_err().starts_with(&format!("{host} says: ")));
    }
    let down = client.call("status", json!({"host": "down"})).unwrap_err();
    assert!(down.contains("host down is unreachable"), "{down}");
    let unknown = client.call("status", json!({"host": "elsewhere"})).unwrap_err();
    assert!(unknown.contains("hosts: web, sock, shell, down"), "{unknown}");
    let states = client.call("hosts", json!({})).unwrap();
    let connected: Vec<_> = states["hosts"].as_array().unwrap().iter().map(|host| host["connected"] == true).collect();
    assert_eq!(connected, [true, true, true, false], "{states}");
}

/// The sandbox layer with that name of this gateway.
fn layer(client: &mut Client, name: &str) -> serde_json::Value {
    let status = client.call("status", json!({})).unwrap();
    let layers = status["gateway"]["sandbox"].as_array().unwrap();
    layers.iter().find(|layer| layer["name"] == name).unwrap().clone()
}

#[test]
fn ssh_sandbox_allows_only_its_files_and_ports() {
    let (daemon, far) = (Daemon::light(), Daemon::light());
    let sshd = Sshd::start(&far);
    let config = format!("--ssh-config={}", sshd.client_config());
    for host in ["loop", "behind"] {
        let mut client = Client::connect_to(gateway(&daemon, &[&format!("--host=shell=ssh:{host}"), &config]));
        let landlock = layer(&mut client, "landlock");
        assert_eq!(landlock["applied"], true, "{landlock}");
        let status = client.call("status", json!({"host": "shell"})).unwrap();
        assert_eq!(status["daemon"]["pid"], far.pid(), "{host}: {status}");
    }
    let known = fs::read_to_string(sshd.folder.path().join("known_hosts")).unwrap();
    assert!(known.contains("ssh-ed25519"), "the key of the host was noted: {known}");
    let mut client = Client::connect_to(gateway(&daemon, &["--host=shell=ssh:proxied", &config]));
    let landlock = layer(&mut client, "landlock");
    assert!(landlock["detail"].as_str().unwrap().contains("runs programs (proxycommand)"), "{landlock}");
}

/// A Unix socket that forwards to another one, with a delay for the first connection.
fn late(target: &std::path::Path, folder: &TempDir, delay: Duration) -> String {
    let (path, target) = (folder.path().join("late.sock"), target.to_owned());
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    thread::spawn(move || {
        let mut delay = Some(delay);
        for near in listener.incoming().flatten() {
            thread::sleep(delay.take().unwrap_or_default());
            let far = UnixStream::connect(&target).unwrap();
            let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut &ends.0, &mut &ends.1));
            thread::spawn(move || std::io::copy(&mut &far, &mut &near));
        }
    });
    format!("unix:{}", path.display())
}

/// Listing a host has the same timeout as a request. The progress names the pending hosts.
#[test]
fn hosts_waits_longer_than_three_seconds() {
    let (daemon, folder) = (Daemon::light(), open_folder());
    chown(folder.path(), Some(NOBODY), None).unwrap();
    let path = folder.path().join("mcp.sock");
    let mut far = Command::new(GATEWAY);
    far.args(["http", "--unix-mode", "0666", "--listen", &format!("unix:{}", path.display()), "--socket"])
        .arg(&daemon.socket);
    let _far = Server::spawn(far);
    let target = late(&path, &folder, Duration::from_secs(4));
    let mut client = Client::connect_to(gateway(&daemon, &[&format!("--host=late={target}")]));
    let params = json!({"name": "hosts", "arguments": {}, "_meta": {"progressToken": "p"}});
    let states = client.request("tools/call", params)["result"]["structuredContent"].clone();
    assert_eq!(states["hosts"][0]["connected"], true, "{states}");
    let told: Vec<_> = client.notifications.iter().map(|told| told["params"]["message"].clone()).collect();
    assert!(told.contains(&json!("connecting to late")), "{told:?}");
    let refused = client.call("hosts", json!({"host": "late"})).unwrap_err();
    assert_eq!(refused, "hosts takes no arguments");
}

#[test]
fn command_line_lists_hosts() {
    let daemon = Daemon::light();
    let at = "--host=down=http://127.0.0.1:1/mcp";
    let run = |arguments: &[&str]| {
        let output = gateway(&daemon, arguments).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out, err)
    };
    let (_, _, message) = run(&[at, "call", "status", "host=down"]);
    assert!(message.contains("`netmon-mcp call hosts`"), "{message}");
    let (code, text, err) = run(&[at, "call", "hosts"]);
    assert!(code == Some(0) && text.contains("down") && text.contains("unreachable"), "{text}{err}");
    let (_, json, _) = run(&[at, "call", "hosts", "--json"]);
    let states: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(states["hosts"][0]["connected"], false, "{json}");
    for arguments in [&[at, "tools"][..], &[at, "tools", "hosts"], &[at, "tools", "status"]] {
        let (code, text, err) = run(arguments);
        assert!(code == Some(0) && text.contains("host"), "{arguments:?}: {text}{err}");
    }
    for arguments in [&["call", "hosts"][..], &["tools", "hosts"], &[at, "call", "hosts", "host=down"]] {
        let (code, _, err) = run(arguments);
        assert!(code == Some(2) && (err.contains("--host NAME=TARGET") || err.contains("no arguments")), "{err}");
    }
}

/// Over HTTP and over ssh: both have a limit, and neither answer is ever complete.
#[test]
fn endless_answer_of_a_host_is_cut_off() {
    let (daemon, folder) = (Daemon::light(), TempDir::new().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n");
                while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
            });
        }
    });
    let ssh = folder.path().join("ssh");
    fs::write(&ssh, "#!/bin/sh\nexec cat /dev/zero\n").unwrap();
    for path in [folder.path(), &ssh] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let hosts = [format!("--host=web=http://{address}/mcp"), "--host=shell=ssh:endless".into()];
    let mut command = gateway(&daemon, &hosts.each_ref().map(String::as_str));
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", folder.path().display()));
    let mut client = Client::connect_to(command);
    for host in ["web", "shell"] {
        let reason = client.call("status", json!({"host": host})).unwrap_err();
        assert!(reason.contains(&format!("host {host} is unreachable")), "{reason}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", client.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    assert!(peak.trim().parse::<u64>().unwrap() < 100_000, "{peak} kB");
    assert!(client.call("status", json!({})).is_ok());
}

#[test]
fn cancelled_call_ends_the_remote_window() {
    let (daemon, far) = (Daemon::light(), Daemon::light());
    let sshd = Sshd::start(&far);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // accepts connections and stays silent
    let mut client = Client::connect_to(gateway(
        &daemon,
        &[
            "--host=shell=ssh:loop",
            &format!("--ssh-config={}", sshd.client_config()),
            &format!("--host=silent=http://{}/mcp", silent.local_addr().unwrap()),
        ],
    ));
    let mut watcher = Client::connect(&far.socket);
    let waiting = client.begin_call("status", json!({"host": "silent"}));
    let asked = Instant::now();
    let window = json!({"host": "shell", "operation": "incoming", "interface": "lo", "duration": 60});
    let id = client.begin_call("network-monitor", window);
    watcher.until_open("network-monitor", 1);
    assert!(client.call("status", json!({"host": "shell"})).is_ok());
    assert!(asked.elapsed().as_secs() < 8, "{:?}", asked.elapsed());
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
    watcher.until_open("network-monitor", 0);
    assert!(client.end_call(waiting).unwrap_err().contains("no answer within"));
}

#[test]
fn unreachable_host_error_includes_the_ssh_error() {
    let daemon = Daemon::light();
    let mut client =
        Client::connect_to(gateway(&daemon, &["--host=nowhere=ssh:nobody@127.0.0.1:x", "--ssh-config=/dev/null"]));
    let reason = client.call("status", json!({"host": "nowhere"})).unwrap_err();
    assert!(reason.contains("host nowhere is unreachable") && reason.contains("ssh"), "{reason}");
}
