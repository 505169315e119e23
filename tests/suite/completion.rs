//! Completion at a terminal: the tests type into bash and zsh, and ask fish through its own command.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use crate::harness::*;

/// A shell on a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a shell without user settings, and waits for its prompt.
    fn open(shell: &str, arguments: &[&str], prepare: &str) -> Terminal {
        let (ours, its) = terminal(160);
        let its = || -> OwnedFd { its.try_clone().unwrap() };
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", shell]).args(arguments);
        command.env("PATH", with_ours()).env("TERM", "dumb").env("HOME", "/nonexistent");
        let child = command.stdin(its()).stdout(its()).stderr(its()).spawn().unwrap();
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut screen, shown) = (File::from(ours.try_clone().unwrap()), Arc::clone(&seen));
        thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut part) {
                shown.lock().unwrap().extend(&part[..read]);
            }
        });
        let mut terminal = Terminal { child, keys: ours.into(), seen };
        // The typed text does not contain the sum.
        terminal.type_keys(&format!("{prepare}; echo ready-$((40 + 2))\n"));
        terminal.until_shown("ready-42");
        terminal
    }

    fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn until_shown(&self, text: &str) {
        let shown = || String::from_utf8_lossy(&self.seen.lock().unwrap()).replace(['\r', '\u{7}'], "");
        until(text, || shown().contains(text).then_some(()));
    }

    /// Types the beginning of a line and the tab key, until the rest appears; then deletes the line.
    fn completes(&mut self, begin: &str, whole: &str) {
        self.seen.lock().unwrap().clear();
        self.type_keys(&format!("{begin}\t"));
        self.until_shown(whole);
        self.type_keys("\u{15}"); // kill the line
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_ours() -> String {
    format!("{}:{}", Path::new(GATEWAY).parent().unwrap().display(), std::env::var("PATH").unwrap())
}

/// The typed text, and the line after the tab key.
const LINES: &[(&str, &str)] = &[
    ("netmon-mcp top_tr", "netmon-mcp top_traffic "),
    ("netmon-mcp top_traffic gr", "netmon-mcp top_traffic group_by="),
    ("netmon-mcp call snapshot_sockets state=list", "netmon-mcp call snapshot_sockets state=listen "),
    ("netmon-mcp network-monitor operation=inc", "netmon-mcp network-monitor operation=incoming "),
    ("netmon-mcp top_traffic --exit", "netmon-mcp top_traffic --exit-code "),
];

#[test]
fn bash_completes_tools_keys_and_values() {
    let mut bash = Terminal::open("bash", &["--norc", "--noprofile", "-i"], "source <(netmon-mcp completions bash)");
    for (begin, whole) in LINES {
        bash.completes(begin, whole);
    }
}

#[test]
fn zsh_completes_tools_keys_and_values() {
    let prepare = "autoload -Uz compinit && compinit -u -D; source <(netmon-mcp completions zsh)";
    let mut zsh = Terminal::open("zsh", &["-f", "-i"], prepare);
    for (begin, whole) in LINES {
        zsh.completes(begin, whole.trim_end());
    }
}

#[test]
fn zsh_completes_with_the_installed_script() {
    let folder = open_folder();
    let script = Command::new(GATEWAY).args(["completions", "zsh"]).output().unwrap().stdout;
    std::fs::write(folder.path().join("_netmon-mcp"), script).unwrap();
    let prepare = format!("fpath+=({}); autoload -Uz compinit && compinit -u -D", folder.path().display());
    let mut zsh = Terminal::open("zsh", &["-f", "-i"], &prepare);
    zsh.completes("netmon-mcp top_tr", "netmon-mcp top_traffic");
}

#[test]
fn fish_completes_tools_keys_and_values() {
    let folder = open_folder();
    let complete = |line: &str| {
        let text = format!("netmon-mcp completions fish | source; complete -C '{line}'");
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", &text]).env("PATH", with_ours()).env("HOME", folder.path());
        let output = fish.stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (begin, whole) in LINES {
        let (text, word) = (complete(begin), whole.trim_end().rsplit(' ').next().unwrap());
        let offered = |line: &str| line.split('\t').next() == Some(word);
        assert!(text.lines().any(offered), "{begin}: {text}");
    }
}

#[test]
fn completion_offers_processes_and_interfaces() {
    let offers = |tool: &str, word: &str, whole: &str| {
        let mut asked = Command::new(GATEWAY);
        asked.args(["--", "netmon-mcp", tool, word]).env("COMPLETE", "bash");
        String::from_utf8(asked.output().unwrap().stdout).unwrap().lines().any(|line| line == whole)
    };
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert!(offers("network-monitor", "interface=l", "lo"));
    assert!(offers("snapshot_sockets", &format!("process={}", &own[..3]), own.trim_end()), "{own}");
    assert!(!offers("network-monitor", "process=", own.trim_end()), "network-monitor takes no process");
}
