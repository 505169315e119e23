//! Usage errors: each says what is wrong and what is allowed, and exits with 2.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use crate::{command_line::cli, harness::*};

/// The exit code, and what a command says on standard error.
fn failure(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn invalid_values_of_any_command_exit_with_2() {
    let daemon = Daemon::start();
    for (line, words) in [
        ("record --interval 0", "expected 1 to 60 seconds, not 0"),
        ("record --interval 61", "expected 1 to 60 seconds, not 61"),
        ("record --interval nan", "expected 1 to 60 seconds"),
        ("record --recording-max-bytes 5", "expected at least 16777216"),
        ("record --recording-max-age 0", "expected at least 1 day"),
        ("token #a", "expected one word that does not begin with #"),
        ("top --at noon", "expected 03:12"),
        ("top --delay 0", "expected 0.1 s to 60 s"),
        ("completions csh", "bash"),
        ("http --oauth-issuer nowhere --oauth-audience https://a.example", "invalid URL"),
        ("http --oauth-issuer http://a.example --oauth-audience https://a.example", "expected an https URL"),
        ("http --oauth-audience nowhere --oauth-issuer https://a.example", "invalid URL"),
        ("http --oauth-jwks nowhere", "invalid URL"),
        ("snapshot_interfaces interface=none", "interfaces: lo"),
        ("snapshot_interfaces interface=none --watch", "interfaces: lo"),
        ("diagnose since=-1h --watch", "leave out since and until"),
        ("network-monitor operation=incoming since=-1h", "is not recorded"),
        ("incidents since=soon --recording /none", "since: invalid time `soon`"),
        ("changes until=soon --recording /none", "until: invalid time `soon`"),
        ("changes baseline_since=-1m --recording /none", "is not before"),
    ] {
        let (code, text) = failure(cli(&daemon.socket, line));
        assert!(code == 2 && text.contains(words), "{line}: {code} {text}");
    }
    for name in ["a b", ""] {
        let mut token = Command::new(GATEWAY);
        token.args(["token", name]);
        let (code, text) = failure(token);
        assert!(code == 2 && text.contains("one word"), "{name}: {code} {text}");
    }
}

#[test]
fn settings_file_names_the_line_of_an_invalid_recording() {
    let folder = open_folder();
    let file = folder.path().join("netmon.toml");
    for (line, words) in [
        ("interval_s = 0", "recording.interval_s: expected 1 to 60 seconds, not 0"),
        ("max_bytes = 5", "recording.max_bytes: expected at least 16777216 bytes, not 5"),
        ("max_age_days = 0", "recording.max_age_days: expected at least 1 day, not 0"),
    ] {
        std::fs::write(&file, format!("[recording]\n{line}\n")).unwrap();
        let mut check = Command::new(GATEWAY);
        check.arg("--check-config").arg("--config").arg(&file);
        let (code, text) = failure(check);
        assert!(code == 1 && text.contains(&format!(":2: {words}")), "{line}: {code} {text}");
    }
}

#[test]
fn argument_twice_is_refused() {
    for (line, words) in [
        ("snapshot_sockets port=1 port=2", "port is given 2 times"),
        ("call snapshot_sockets port=1 state=listen port=1", "port is given 2 times"),
        ("--host a=unix:/x --host a=unix:/y tools", "a is given 2 times"),
        ("--host-token a=/x --host-token a=/y tools", "a is given 2 times"),
        ("top_traffic duration=1s duration_ms=1000", "are the same"),
    ] {
        let (code, text) = failure(cli(Path::new("/none"), line));
        assert!(code == 2 && text.contains(words), "{line}: {code} {text}");
    }
}

/// The usage error of a command line that needs no daemon and no privilege.
fn usage_error(line: &str) -> String {
    let mut command = cli(Path::new("/none"), line);
    command.uid(65534);
    let (code, text) = failure(command);
    assert_eq!(code, 2, "{line}: {text}");
    text
}

#[test]
fn unknown_tool_error_lists_the_tools_that_exist_here() {
    for line in ["tools nope", "call nope", "call nope -o json"] {
        let text = usage_error(line);
        assert!(text.contains("unknown tool nope") && text.contains("trace_dns"), "{line}: {text}");
        assert!(!text.contains("hosts"), "{line}: {text}");
        assert!(usage_error(&format!("--host web1=unix:/none {line}")).contains(", hosts"), "{line}");
    }
    assert!(usage_error("tools trace_dsn").contains("did you mean trace_dns?"));
    assert!(usage_error("tools hosts").contains("no other host is configured"));
    let mut help = cli(Path::new("/none"), "tools --help");
    let help = String::from_utf8(help.output().unwrap().stdout).unwrap();
    assert!(help.contains("trace_dns") && !help.contains("hosts,") && !help.contains(", hosts"), "{help}");
}

#[test]
fn unknown_argument_error_lists_every_accepted_one() {
    for line in ["diagnose nope=1", "snapshot_sockets nope=1", "snapshot_sockets duration=1s"] {
        let text = usage_error(line);
        assert!(text.contains("since, until") && !text.contains("host"), "{line}: {text}");
        let text = usage_error(&format!("--host web1=unix:/none {line}"));
        assert!(text.contains("since, until, host"), "{line}: {text}");
    }
    assert!(usage_error("diagnose sinc=-1h").contains("did you mean since?"));
    assert!(!usage_error("network-monitor operation=incoming nope=1").contains("since"), "it is not recorded");
    assert!(usage_error("--host web1=unix:/none status nope=1").contains("Arguments: host"));
    assert!(usage_error("status nope=1").contains("this tool takes no arguments"));
}

#[test]
fn completion_offers_since_and_until() {
    let offers = |line: &[&str], whole: &str| {
        let mut asked = Command::new(GATEWAY);
        asked.args(["--", "netmon-mcp"]).args(line).env("COMPLETE", "bash");
        String::from_utf8(asked.output().unwrap().stdout).unwrap().lines().any(|line| line == whole)
    };
    assert!(offers(&["diagnose", "sin"], "since=") && offers(&["call", "diagnose", "unt"], "until="));
    assert!(!offers(&["network-monitor", "sin"], "since="));
    assert!(offers(&["tools", "trace_dn"], "trace_dns") && offers(&["call", "trace_dn"], "trace_dns"));
}
