//! The command line, for people and scripts: Ctrl-C, closed pipes, full disks, help.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use netmon_mcp::{
    limits,
    tools::{QUESTIONS, Question},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::*;

pub fn cli(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(GATEWAY);
    command.arg("--socket").arg(socket).args(line.split(' ')).stdin(Stdio::null());
    command
}

pub fn begin(socket: &Path, line: &str) -> Child {
    cli(socket, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub fn interrupt(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
}

fn run_in_shell(line: &str) -> Output {
    Command::new("bash").args(["-c", line]).stdin(Stdio::null()).output().unwrap()
}

/// The connection with a request; another one only probes for a server.
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
fn ctrl_c_ends_the_window_and_prints_the_answer() {
    let daemon = Daemon::own();
    let mut client = Client::connect(&daemon.socket);
    let has_window = |question: &&Question| (question.input_schema)()["properties"].get("duration_ms").is_some();
    let calls: Vec<_> = QUESTIONS
        .iter()
        .filter(has_window)
        .map(|question| (question.name, "duration_ms=60000"))
        .chain([
            ("network-monitor", "operation=incoming interface=lo duration=60"),
            ("network-monitor", "operation=outgoing interface=lo"),
        ])
        .collect();
    for (tool, arguments) in calls {
        client.until_open(tool, 0); // diagnose has just asked it
        let only_ours = if tool == "trace_connections" { " outcome=failed port=1" } else { "" };
        let child = begin(&daemon.socket, &format!("call {tool} {arguments}{only_ours} --json"));
        client.until_open(tool, 1);
        let refused = (tool == "trace_connections").then(|| TcpStream::connect("127.0.0.1:1").unwrap_err());
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{tool} {output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let window_ms = answer["measured"]["window_ms"].as_f64().unwrap();
        assert!(window_ms < 50_000.0, "{tool}: {window_ms} ms");
        if tool == "diagnose" {
            assert!(answer["ended_early"] == true && answer["healthy"] != true, "{answer:#}");
        }
        if refused.is_some() {
            let rows = answer["connections"].as_array().unwrap();
            assert!(rows.iter().any(|row| row["remote"]["port"] == 1 && row["outcome"] == "refused"), "{answer}");
        }
        client.until_open(tool, 0);
    }
}

#[test]
fn second_ctrl_c_cancels() {
    let folder = open_folder();
    let socket = folder.path().join("silent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
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

/// The output of a command on a terminal with this number of columns.
fn on_a_terminal(mut command: Command, columns: u16) -> String {
    let (ours, its) = terminal(columns);
    let mut child = command.stdout(its).stderr(Stdio::null()).spawn().unwrap();
    drop(command); // with its copy of the terminal: reading ends when the last copy is closed
    let mut text = Vec::new();
    let _ = File::from(ours).read_to_end(&mut text); // EIO instead of an end, when it is closed
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap().replace('\r', "")
}

#[test]
fn narrow_terminal_hides_the_least_important_columns() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let server = echo_server(&pair.b, B6);
    let _stream = connect(&pair.a, server).unwrap();
    let ask = || {
        let mut command =
            cli(&daemon.socket, &format!("call snapshot_sockets port={} state=established", server.port()));
        command.env("NO_COLOR", "1");
        command
    };
    let piped = String::from_utf8(ask().output().unwrap().stdout).unwrap();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let table = |text: &str| text.split("\n\n").next().unwrap().to_owned();
    assert!(table(&piped).lines().all(|line| line.chars().count() > 80 && !line.starts_with(' ')), "{piped}");
    assert_eq!(table(&on_a_terminal(ask(), 300)), table(&piped));
    let narrow = table(&on_a_terminal(ask(), 80));
    assert!(narrow.lines().all(|line| line.chars().count() <= 80 && !line.starts_with(' ')), "{narrow}");
    assert!(words(&narrow).is_subset(&words(&table(&piped))) && narrow.contains("remote"), "{narrow}");
}

#[test]
fn closed_pipe_is_success_and_full_disk_an_error() {
    for command in ["completions zsh", "man", "tools", "clients", "call status"] {
        let line = format!("{GATEWAY} --socket /none {command} | true; echo ${{PIPESTATUS[0]}}");
        let output = run_in_shell(&line);
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        // A daemon that `status` starts for itself may warn.
        assert!(out == "0\n" && !err.contains("panic") && !err.contains("ipe"), "{command}: {out}{err}");
    }
    for command in ["completions zsh", "man", "tools"] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = cli(Path::new("/none"), command).stdout(full).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && err.contains("writing the answer failed"), "{command}: {err}");
    }
}

#[test]
fn tool_runs_as_a_command_in_every_output_format() {
    let daemon = Daemon::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ask = |form: &str| {
        let output = cli(&daemon.socket, &format!("snapshot_sockets state=listen port={port}{form}")).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask("").contains(&format!("127.0.0.1:{port}")), "{}", ask(""));
    for form in [" -o json", " --json", " -o ndjson"] {
        let answer: Value = serde_json::from_str(&ask(form)).unwrap();
        assert_eq!(answer["listeners"][0]["local"]["port"], port, "{answer}");
    }
    assert_eq!(ask(" -o ndjson").lines().count(), 1);
    let table = ask(" -o csv");
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split(',').collect()).collect();
    let column = rows[0].iter().position(|name| *name == "local.port").unwrap();
    assert_eq!((rows.len(), rows[1][column]), (2, port.to_string().as_str()), "{table}");
    let _others = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let cut = cli(&daemon.socket, "snapshot_sockets state=listen limit=1 -o csv").output().unwrap();
    assert!(String::from_utf8_lossy(&cut.stderr).contains("more rows: use a higher limit"), "{cut:?}");
}

#[test]
fn failed_connects_are_red_if_color_is_wanted() {
    let (netns, daemon) = (Netns::new(), Daemon::own());
    let mut client = Client::connect(&daemon.socket);
    let mut ask = |variable: &str| {
        let mut command = cli(&daemon.socket, "trace_connections remote=127.0.0.1 port=9 outcome=failed duration=60s");
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env(variable, "1");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        client.until_open("trace_connections", 1);
        assert!(connect(&netns, ([127, 0, 0, 1], 9).into()).is_err());
        interrupt(&child);
        let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        client.until_detached("trace_connections");
        text
    };
    let refused = "refused (ECONNREFUSED)";
    let coloured = ask("CLICOLOR_FORCE");
    assert!(coloured.contains(&format!("\x1b[1;31m{refused}\x1b[0m")), "{coloured}");
    let plain = ask("NO_COLOR");
    assert!(plain.contains(refused) && !plain.contains('\x1b'), "{plain}");
}

#[test]
fn watch_redraws_and_ends_with_its_reader() {
    let daemon = Daemon::start();
    let line = format!("{GATEWAY} --socket {} snapshot_interfaces --watch=0.1 | head -n 3", daemon.socket.display());
    assert_eq!(String::from_utf8(run_in_shell(&line).stdout).unwrap().lines().count(), 3);
    let (ours, its) = terminal(100);
    let mut child = cli(&daemon.socket, "snapshot_interfaces --watch=0.1").stdout(its).spawn().unwrap();
    let mut screen = BufReader::new(File::from(ours));
    let mut frames = 0;
    while frames < 3 {
        let mut row = Vec::new();
        screen.read_until(b'\n', &mut row).unwrap();
        frames += String::from_utf8_lossy(&row).matches("\u{1b}[H").count();
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap(); // like Ctrl-C, which another test covers
    let mut rest = Vec::new();
    let _ = screen.read_to_end(&mut rest); // EIO instead of an end, when it is closed
    let rest = String::from_utf8(rest).unwrap();
    let (_, after) = rest.split_once("\u{1b}[?1049l").expect("the other screen is left");
    assert!(after.starts_with("Total, ") && child.wait().unwrap().success(), "{after}");
    for wrong in ["diagnose --watch --exit-code", "top_traffic --watch -o csv", "top_traffic --watch=0"] {
        assert_eq!(cli(&daemon.socket, wrong).output().unwrap().status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn watch_marks_rows_that_are_new_since_the_last_reading() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let server = echo_server(&pair.b, B);
    let (ours, its) = terminal(200);
    let line = format!("snapshot_sockets port={} state=established --watch=0.2", server.port());
    let mut child = cli(&daemon.socket, &line).stdout(its).spawn().unwrap();
    let mut rows = BufReader::new(File::from(ours)).lines().map_while(Result::ok);
    rows.find(|row| row.contains("\u{1b}[H")).unwrap(); // the first reading
    let _first = connect(&pair.a, server).unwrap();
    let mut row = || rows.find(|row| row.contains(&format!("{server}"))).unwrap();
    assert!(row().starts_with("+ "), "both ends are new");
    let settled = std::iter::from_fn(|| Some(row())).find(|row| row.starts_with("  ")).unwrap();
    assert!(settled.contains("established"), "{settled}");
    interrupt(&child);
    let total = rows.skip_while(|row| !row.contains("Total, ")).find(|row| row.contains(&format!("{server}"))).unwrap();
    assert!(!total.starts_with(['+', ' ']), "{total}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn durations_accept_units() {
    let daemon = Daemon::start();
    for line in [
        "snapshot_interfaces duration=300ms --json",
        "snapshot_interfaces duration_ms=0.3s --json",
        "network-monitor operation=incoming interface=lo duration_ms=300 --json",
        "network-monitor operation=incoming interface=lo duration=300ms --json",
    ] {
        let output = cli(&daemon.socket, line).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{line}: {e} {output:?}"));
        let window = answer["measured"]["window_ms"].as_f64().unwrap();
        assert!((200.0..2_000.0).contains(&window), "{line}: {window}");
    }
    let mut client = Client::connect(&daemon.socket);
    let answer = client.call("snapshot_interfaces", json!({"duration": "300ms"})).unwrap();
    assert!(answer["measured"]["window_ms"].as_f64().unwrap() >= 200.0, "{answer}");
}

#[test]
fn errors_suggest_fixes_and_have_exit_codes() {
    let daemon = Daemon::start();
    let fails = |socket: &Path, line: &str| {
        let output = cli(socket, line).output().unwrap();
        assert!(output.stdout.is_empty() || line.starts_with("status"), "{output:?}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let here = daemon.socket.as_path();
    let (code, text) = fails(here, "top_traffic durations=5");
    assert!(code == 2 && text.contains("did you mean duration_ms?"), "{code} {text}");
    let (code, text) = fails(here, "top_trafic");
    assert!(code == 2 && text.contains("top_traffic"), "{code} {text}");
    let (code, text) = fails(here, "top_traffic limit=0 -o json");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert!(code == 2 && error["error"].as_str().unwrap().contains("from 1 to 10000"), "{code} {text}");
    for line in ["top_trafic -o json", "top_traffic --watch=x --json", "diagnose foo -o ndjson"] {
        let (code, text) = fails(here, line);
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(code == 2 && !error["error"].as_str().unwrap().contains("Usage"), "{line}: {code} {text}");
    }
    let (code, text) = fails(here, "snapshot_interfaces interface=none -o ndjson");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert!(code == 2 && error["error"].as_str().unwrap().contains("interfaces: lo"), "{code} {text}");
    // Without root there is no daemon to start.
    let nobody = |line: &str| {
        let mut command = cli(Path::new("/nonexistent/netmond.sock"), line);
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        command.output().unwrap()
    };
    let output = nobody("status -o json");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["daemon"]["connected"]), (Some(1), &json!(false)), "{output:?}");
    assert_eq!(nobody("snapshot_sockets").status.code(), Some(1));
}

#[test]
fn empty_environment_variable_is_unset() {
    let daemon = Daemon::start();
    let mut command = cli(&daemon.socket, "call network-monitor operation=incoming duration=0.1");
    command.envs([("NET_IFACE", ""), ("MCP_TRANSPORT", ""), ("MCP_PORT", "")]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn help_lists_tools_arguments_and_values() {
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
    for words in ["call", "\\-\\-json", "The token file for a host", "TOOL"] {
        assert!(page.contains(words), "{words} in {page}");
    }
    assert!(!page.contains("netmon\\-mcp\\-call(1)"), "no page of that name is installed");
    let output = cli(Path::new("/none"), "call network-monitor").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("operation is missing") && error.contains("outgoing"), "{error}");
}

#[test]
fn help_states_the_actual_defaults() {
    let help = Command::new(GATEWAY).args(["http", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let options = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/nix/options.md")).unwrap();
    for (name, default) in [
        ("max-connections", limits::CONNECTIONS),
        ("max-sessions", limits::SESSIONS),
        ("max-calls", limits::CALLS_PER_CALLER),
        ("rate", limits::RATE as usize),
    ] {
        let text = help.split(&format!("--{name} ")).nth(1).unwrap().split("\n      --").next().unwrap();
        assert!(text.contains(&format!("[default: {default}]")), "{name}: {text}");
        let section = options.split(&format!("settings.http.{}`", name.replace('-', "_"))).nth(1).unwrap();
        let section = section.split("\n#").next().unwrap();
        assert!(section.contains(&format!("The default is {default}.")), "{name}: {section}");
    }
}
