//! The command line, as a person and as a script: Ctrl-C, pipes that close, disks that are full, what it teaches.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::*;

fn cli(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(GATEWAY);
    command.arg("--socket").arg(socket).args(line.split(' ')).stdin(Stdio::null());
    command
}

fn begin(socket: &Path, line: &str) -> Child {
    cli(socket, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

fn run_in_shell(line: &str) -> Output {
    Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().unwrap()
}

/// The connection on which a question comes, and not the one that only looks whether somebody is there.
fn asked(listener: &UnixListener) -> UnixStream {
    loop {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).unwrap() > 0 {
            return stream;
        }
    }
}

#[test]
fn ctrl_c_ends_a_window_and_prints_what_was_seen_until_then() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    for (tool, arguments) in [
        ("trace_connections", "outcome=failed duration_ms=60000 limit=1000"),
        ("network-monitor", "operation=incoming interface=lo duration=60"),
        ("network-monitor", "operation=outgoing interface=lo"),
        ("snapshot_interfaces", "duration_ms=60000"),
        ("top_traffic", "duration_ms=60000"),
        ("profile_tcp", "duration_ms=60000"),
        ("trace_drops", "duration_ms=60000"),
        ("trace_dns", "duration_ms=60000"),
        ("diagnose", "duration_ms=60000"),
    ] {
        let child = begin(&daemon.socket, &format!("call {tool} {arguments} --json"));
        client.until_open(tool, 1);
        let refused = (tool == "trace_connections").then(|| TcpStream::connect("127.0.0.1:1").unwrap_err());
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{tool} {output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let window_ms = answer["measured"]["window_ms"].as_f64().unwrap();
        assert!(window_ms < 50_000.0, "{tool}: {window_ms} ms");
        if refused.is_some() {
            let rows = answer["connections"].as_array().unwrap();
            assert!(rows.iter().any(|row| row["remote"]["port"] == 1 && row["outcome"] == "refused"), "{answer}");
        }
        client.until_open(tool, 0);
    }
}

#[test]
fn the_first_ctrl_c_asks_for_the_answer_and_the_second_one_cancels() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("silent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let child = begin(&socket, "call top_traffic duration_ms=60000");
    let stream = asked(&listener);
    interrupt(&child);
    assert_eq!((&stream).read(&mut [0; 8]).unwrap(), 0, "half of the connection is closed");
    let hung_up = || rustix::io::write(&stream, b" ") == Err(rustix::io::Errno::PIPE);
    assert!(!hung_up(), "the other half is open for the answer");
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(130), 0), "{output:?}");
    assert!(hung_up());
    let child = begin(&socket, "call snapshot_sockets");
    let _stream = asked(&listener);
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130), "what has no window is cancelled at once");
}

/// What a command prints on a terminal of so many columns.
fn on_a_terminal(mut command: Command, columns: u16) -> String {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut its) = (-1, -1);
    // SAFETY: the descriptors and the size are valid for the call; neither name nor settings are given.
    let done = unsafe { libc::openpty(&mut ours, &mut its, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty has just made both, and nobody else has them.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    let mut child = command.stdout(its).stderr(Stdio::null()).spawn().unwrap();
    drop(command); // with its copy of the terminal: the last one to close it ends the reading
    let mut text = Vec::new();
    let _ = File::from(ours).read_to_end(&mut text); // EIO, and not an end, when it is closed
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap().replace('\r', "")
}

#[test]
fn a_table_is_folded_at_a_narrow_terminal_and_nowhere_else() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let server = echo_server(&pair.b, B6);
    let _stream = connect(&pair.a, server).unwrap();
    let ask = || cli(&daemon.socket, &format!("call snapshot_sockets port={} state=established", server.port()));
    let piped = String::from_utf8(ask().output().unwrap().stdout).unwrap();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let table = |text: &str| text.split("\n\n").next().unwrap().to_owned();
    assert!(table(&piped).lines().all(|line| line.chars().count() > 80 && !line.starts_with(' ')), "{piped}");
    assert_eq!(table(&on_a_terminal(ask(), 300)), table(&piped));
    let narrow = table(&on_a_terminal(ask(), 80));
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    assert_eq!(words(&narrow), words(&table(&piped)), "{narrow}");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error_and_a_full_disk_is_one() {
    for command in ["completions zsh", "man", "tools", "clients", "call status"] {
        let line = format!("{GATEWAY} --socket /none {command} | true; echo ${{PIPESTATUS[0]}}");
        let output = run_in_shell(&line);
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        // A daemon of its own that `status` starts may warn.
        assert!(out == "0\n" && !err.contains("panic") && !err.contains("ipe"), "{command}: {out}{err}");
    }
    for command in ["completions zsh", "man", "tools"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = cli(Path::new("/none"), command).stdout(full).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && err.contains("could not be written"), "{command}: {err}");
    }
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set() {
    let daemon = Daemon::start();
    let mut command = cli(&daemon.socket, "call network-monitor operation=incoming duration=0.1");
    command.envs([("NET_IFACE", ""), ("MCP_TRANSPORT", ""), ("MCP_PORT", "")]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn it_teaches_what_may_be_asked() {
    let print = |line: &str| String::from_utf8(cli(Path::new("/none"), line).output().unwrap().stdout).unwrap();
    let list = print("tools");
    assert!(list.contains("Find who uses the bandwidth") && list.lines().all(|line| line.len() <= 80), "{list}");
    let tool = print("tools network-monitor");
    assert!(tool.contains("incoming|outgoing") && tool.contains("0.1 to 60"), "{tool}");
    let tool = print("tools trace_drops");
    assert!(tool.contains("100 to 60000") && tool.contains("true|false") && tool.contains("1 to 65535"), "{tool}");
    assert!(print("tools status").contains("no arguments"));
    assert!(print("call --help").contains("Ctrl-C") && print("call --help").contains("outcome=failed"));
    let page = print("man");
    for words in ["call", "\\-\\-json", "The file of the token that a host wants", "TOOL"] {
        assert!(page.contains(words), "{words} in {page}");
    }
    assert!(!page.contains("netmon\\-mcp\\-call(1)"), "no page of that name is installed");
    let output = cli(Path::new("/none"), "call network-monitor").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("operation is missing") && error.contains("outgoing"), "{error}");
}
