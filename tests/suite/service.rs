//! The daemon under systemd, and the files of `make install`. The test plays the service manager: the VM tests have the
//! real one.

use std::{
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::harness::{DAEMON, Ended, GATEWAY, ask, require_root, run, until};

/// Starts netmond with a listening socket as descriptor 3, like systemd.
fn activate(listener: &UnixListener, notify: &Path) -> Ended {
    require_root();
    let child = Command::new("sh")
        .args(["-c", "LISTEN_PID=$$ WATCHDOG_PID=$$ exec \"$0\" 3<&0 </dev/null", DAEMON])
        .envs([("LISTEN_FDS", "1"), ("WATCHDOG_USEC", "200000"), ("RUST_LOG", "warn")])
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
        .spawn();
    Ended(child.unwrap())
}

/// The next message to the service manager.
fn heard(notify: &UnixDatagram) -> String {
    let mut text = [0; 256];
    let length = notify.recv(&mut text).expect("a message within 20 s");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

fn terminate(Ended(child): &mut Ended) {
    run(&format!("kill -TERM {}", child.id()));
    assert!(child.wait().unwrap().success());
}

const STATUS: &str = "{\"version\":2,\"tool\":\"status\",\"input\":{}}";
/// Only its time ends it. A window of connects would end at the next connect of any test.
const WINDOW: &str = "{\"version\":2,\"tool\":\"snapshot_interfaces\",\"input\":{\"duration_ms\":50000}}";

#[test]
fn systemd_restart_keeps_pending_requests() {
    let folder = TempDir::new().unwrap();
    let (socket, notify) = (folder.path().join("netmond.sock"), folder.path().join("notify"));
    let listener = UnixListener::bind(&socket).unwrap();
    let messages = UnixDatagram::bind(&notify).unwrap();
    messages.set_read_timeout(Some(Duration::from_secs(20))).unwrap();

    // Sent before the start: the request waits in systemd's socket.
    let early = std::thread::spawn({
        let socket = socket.clone();
        move || ask(&socket, STATUS)
    });
    let mut first = activate(&listener, &notify);
    assert_eq!(heard(&messages), "READY=1");
    assert!(early.join().unwrap().unwrap().contains("\"sample\""));
    assert_eq!(heard(&messages), "WATCHDOG=1");

    let window = std::thread::spawn({
        let socket = socket.clone();
        move || ask(&socket, WINDOW)
    });
    until("the window is open", || ask(&socket, STATUS).unwrap().contains("\"windows\":1").then_some(()));
    terminate(&mut first);
    let said = window.join().unwrap().unwrap();
    assert!(said.contains("shutting_down"), "{said}");
    until("it says that it stops", || (heard(&messages) == "STOPPING=1").then_some(()));

    let between = std::thread::spawn({
        let socket = socket.clone();
        move || ask(&socket, STATUS)
    });
    let mut second = activate(&listener, &notify);
    assert!(between.join().unwrap().unwrap().contains("\"sample\""));
    terminate(&mut second);
    assert!(socket.exists(), "the socket is systemd's to remove");
}

#[test]
fn uninstall_leaves_only_changed_settings() {
    let folder = TempDir::new().unwrap();
    let root = folder.path();
    let built = Path::new(GATEWAY).parent().unwrap();
    let make = |target: &str| {
        run(&format!("make {target} PREFIX=/opt/netmon DESTDIR={} BUILT={}", root.display(), built.display()))
    };
    let files = || {
        let list = run(&format!("find {} -type f -printf %P\\n", root.display()));
        let mut files: Vec<_> = list.lines().map(str::to_owned).collect();
        files.sort();
        files
    };
    make("install");
    assert_eq!(
        files(),
        [
            "etc/netmon/netmon.toml",
            "opt/netmon/bin/netmon-mcp",
            "opt/netmon/bin/netmond",
            "opt/netmon/lib/systemd/system/netmon-mcp.service",
            "opt/netmon/lib/systemd/system/netmon-recorder.service",
            "opt/netmon/lib/systemd/system/netmond.service",
            "opt/netmon/lib/systemd/system/netmond.socket",
            "opt/netmon/lib/sysusers.d/netmon.conf",
            "opt/netmon/share/bash-completion/completions/netmon-mcp",
            "opt/netmon/share/fish/vendor_completions.d/netmon-mcp.fish",
            "opt/netmon/share/man/man1/netmon-mcp.1",
            "opt/netmon/share/man/man8/netmond.8",
            "opt/netmon/share/netmon-mcp/grafana/netmon.json",
            "opt/netmon/share/netmon-mcp/skills/bandwidth-use/SKILL.md",
            "opt/netmon/share/netmon-mcp/skills/compare-deploy/SKILL.md",
            "opt/netmon/share/netmon-mcp/skills/diagnose-network/SKILL.md",
            "opt/netmon/share/netmon-mcp/skills/dns-trouble/SKILL.md",
            "opt/netmon/share/netmon-mcp/skills/slow-connection/SKILL.md",
            "opt/netmon/share/netmon-mcp/skills/vanished-packets/SKILL.md",
            "opt/netmon/share/zsh/site-functions/_netmon-mcp",
        ]
    );
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    assert!(read("opt/netmon/lib/systemd/system/netmond.service").contains("\nExecStart=/opt/netmon/bin/netmond\n"));
    assert!(read("opt/netmon/share/man/man8/netmond.8").contains(".TH netmond 8"));

    make("uninstall");
    assert_eq!(files(), Vec::<String>::new());
    assert!(!root.join("etc/netmon").exists());

    make("install");
    std::fs::write(root.join("etc/netmon/netmon.toml"), "# mine\n").unwrap();
    make("install");
    make("uninstall");
    assert_eq!(files(), ["etc/netmon/netmon.toml"]);
    assert_eq!(read("etc/netmon/netmon.toml"), "# mine\n");
}

#[test]
fn packaged_settings_use_existing_keys() {
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/netmon.toml");
    let check = |path: &Path| run(&format!("{GATEWAY} --config {} --check-config", path.display()));
    check(&packaged);
    let text = std::fs::read_to_string(&packaged).unwrap();
    let written: Vec<_> = text.lines().map(written_out).collect();
    assert!(written.iter().filter(|line| line.contains(" = ")).count() > 10, "{written:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), written.join("\n")).unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    check(file.path());
}

/// A line of the settings, with its default made explicit. The token file would have to exist.
fn written_out(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') && !setting.starts_with("tokens") => setting,
        _ => line,
    }
}
