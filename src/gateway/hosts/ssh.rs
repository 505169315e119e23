//! The files and ports that ssh needs to reach other hosts: the sandbox allows only these. ssh lists them itself: `ssh
//! -v -G` prints its settings for a destination, and the files that it read.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Host, Target};
use crate::{limits, sandbox::Reach, untrusted};

/// Settings that name a program, which then reads what it likes; and what they say if there is none.
const PROGRAMS: [(&str, &str); 4] = [
    ("proxycommand", "none"),
    ("knownhostscommand", "none"),
    ("pkcs11provider", "none"),
    ("securitykeyprovider", "internal"),
];

/// `ssh` with what every use of it here has in common. Nobody is there to be asked for a password. It makes no file, as
/// the sandbox would not let it: no socket to share a connection, no new list of a host's keys.
pub fn command(config: Option<&Path>) -> Command {
    let mut command = Command::new("ssh");
    if let Some(config) = config {
        command.arg("-F").arg(config);
    }
    command.args(["-T", "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "UpdateHostKeys=no"]);
    command
}

/// A destination as ssh takes it.
pub fn destination(text: &str) -> String {
    if text.starts_with("//") { format!("ssh:{text}") } else { text.into() }
}

/// The requirements of all ssh hosts. Files that do not exist yet are not included, except the list of known hosts.
pub fn reach(hosts: &[Arc<Host>]) -> Reach {
    let ssh = hosts.iter().filter_map(|host| match &host.named.target {
        Target::Ssh(text) => Some((destination(text), host.ssh_config.as_deref())),
        _ => None,
    });
    let (mut waiting, configs): (Vec<_>, Vec<_>) = ssh.unzip();
    if waiting.is_empty() {
        return Reach::default();
    }
    let config = configs.into_iter().flatten().next(); // all have the same
    let home = std::env::home_dir().unwrap_or_else(|| "/".into());
    let mut reach = Reach { read: vec![home.join(".ssh")], ..Reach::default() };
    let mut seen: Vec<String> = Vec::new();
    while let Some(next) = waiting.pop() {
        if seen.contains(&next) || seen.len() >= limits::SSH_DESTINATIONS {
            continue;
        }
        let name = untrusted::clean(&next);
        let text = settings(&next, config).unwrap_or_else(|reason| {
            tracing::warn!("the sandbox keeps ssh from {name}: {reason}");
            String::new()
        });
        match Needs::of(&text, &home) {
            Ok(needs) => {
                needs.known_hosts.iter().filter(|_| needs.notes_hosts).for_each(|path| make(path));
                reach.read.extend(needs.read);
                reach.write.extend(needs.known_hosts);
                reach.ports.extend(needs.port);
                waiting.extend(needs.jumps);
            }
            Err(reason) => reach.unknown = Some(format!("{name}: {reason}")),
        }
        seen.push(next);
    }
    if let Some(path) = program().filter(|path| !Reach::has_program(path)) {
        reach.unknown = Some(format!("{} is not in a system program directory", path.display()));
    }
    reach
}

/// The ssh that is started.
fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).find_map(|folder| folder.join("ssh").canonicalize().ok())
}

/// An empty list of known hosts. ssh would make it when it first notes a key.
fn make(path: &Path) {
    let _ = File::options().append(true).create(true).mode(0o600).open(path); // without it no key is noted, as ssh says
}

/// The output of ssh about a destination. It does not connect.
fn settings(to: &str, config: Option<&Path>) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("starting `ssh -G` failed: {e}");
    let (mut read, write) = std::io::pipe().map_err(failed)?;
    let mut command = command(config);
    command.args(["-v", "-G", "--", to]).stdin(Stdio::null());
    command.stdout(write.try_clone().map_err(failed)?).stderr(write);
    let mut child = command.spawn().map_err(failed)?;
    drop(command); // its ends of the pipe
    let (said, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = read.by_ref().take(limits::COMPLAINT_BYTES).read_to_end(&mut text);
        let _ = said.send(text);
    });
    let text = hear.recv_timeout(limits::HOST_CONNECT);
    if text.is_err() {
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait().map_err(failed)?;
    let seconds = limits::HOST_CONNECT.as_secs();
    let text =
        String::from_utf8_lossy(&text.map_err(|_| format!("`ssh -G` did not end within {seconds} s"))?).into_owned();
    if status.success() { Ok(text) } else { Err("`ssh -G` failed".into()) }
}

/// The requirements of one destination.
#[derive(Debug, Default, PartialEq)]
struct Needs {
    read: Vec<PathBuf>,
    known_hosts: Option<PathBuf>,
    /// Whether keys of hosts that are not known yet are noted without a question.
    notes_hosts: bool,
    port: Option<u16>,
    /// Jump hosts.
    jumps: Vec<String>,
}

impl Needs {
    /// Parses the output of `ssh -v -G`, or returns why the required files are unknown.
    fn of(text: &str, home: &Path) -> Result<Needs, String> {
        let mut needs = Needs::default();
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("debug1: Reading configuration data ") {
                needs.read.push(path.trim_end().into());
                continue;
            }
            if line.contains("Executing command: ") {
                return Err("the ssh configuration runs programs (Match exec)".into());
            }
            let Some((key, value)) = line.split_once(' ') else { continue };
            if PROGRAMS.iter().any(|(name, none)| *name == key && *none != value) {
                return Err(format!("the ssh configuration runs programs ({key})"));
            }
            match key {
                "port" => needs.port = value.parse().ok(),
                "stricthostkeychecking" => needs.notes_hosts = ["accept-new", "false"].contains(&value),
                "userknownhostsfile" => {
                    let first = value.split(' ').next().map(|path| expand(path, home));
                    needs.known_hosts = first.filter(|path| path.is_absolute());
                    needs.read.extend(value.split(' ').map(|path| expand(path, home)));
                }
                "globalknownhostsfile" => needs.read.extend(value.split(' ').map(|path| expand(path, home))),
                "identityfile" | "certificatefile" | "revokedhostkeys" => {
                    let endings = ["", ".pub", "-cert.pub"];
                    needs.read.extend(endings.map(|ending| expand(&format!("{value}{ending}"), home)));
                }
                "proxyjump" if value != "none" => {
                    needs.jumps = value
                        .split(',')
                        .map(|jump| destination(&format!("//{}", jump.trim_start_matches("ssh://"))))
                        .collect();
                }
                _ => {}
            }
        }
        needs.read.retain(|path| path.is_absolute());
        Ok(needs)
    }
}

/// ssh prints some paths as they were written.
fn expand(path: &str, home: &Path) -> PathBuf {
    let below = path.strip_prefix("~/").or_else(|| path.strip_prefix("%d/"));
    below.map_or_else(|| path.into(), |below| home.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Needs, String> {
        Needs::of(text, Path::new("/home/a"))
    }

    #[test]
    fn ssh_needs_are_read_from_ssh_g_output() {
        let text = "debug1: Reading configuration data /x/ssh_config\r\nhost web\nport 2222\n\
                    identityfile ~/.ssh/id_ed25519\nstricthostkeychecking accept-new\n\
                    userknownhostsfile /home/a/.ssh/known_hosts /x/b\nproxyjump u@k:33,l\nsecuritykeyprovider internal\n";
        let needs = of(text).unwrap();
        for path in ["/x/ssh_config", "/home/a/.ssh/id_ed25519", "/home/a/.ssh/id_ed25519-cert.pub", "/x/b"] {
            assert!(needs.read.contains(&path.into()), "{path}: {needs:?}");
        }
        assert_eq!(needs.known_hosts, Some("/home/a/.ssh/known_hosts".into()));
        assert_eq!((needs.port, needs.notes_hosts), (Some(2222), true));
        assert_eq!(needs.jumps, ["ssh://u@k:33", "ssh://l"]);
    }

    #[test]
    fn ssh_config_that_runs_programs_is_refused() {
        for text in ["proxycommand nc %h %p\n", "knownhostscommand /x\n", "debug1: Executing command: 'test -f /x'\n"] {
            assert!(of(text).unwrap_err().contains("runs programs"), "{text}");
        }
        assert!(of("proxycommand none\nproxyjump none\n").is_ok());
    }
}
