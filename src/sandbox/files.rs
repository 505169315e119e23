//! Landlock: which files a process may open, whatever their permissions say.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::layer::{Layer, Role};

/// What attribution, interfaces and the names of drop reasons are read from, which is the kernel's own, and which DNS
/// servers are configured.
const READ: [&str; 11] = [
    "/proc",
    "/sys/class/net",
    "/sys/devices", // where /sys/class/net leads to, and the number of CPUs is
    "/sys/fs/cgroup",
    "/sys/kernel/btf",
    "/sys/module", // whether IPv6, conntrack are there
    // Which DNS servers are configured: a link to one of these, or a file that anyone may read. Not all of /etc.
    "/etc/resolv.conf",
    "/etc/netns",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager/resolv.conf",
];
/// The folder whose folders are listed: `ip netns` and Docker make theirs for the names of network namespaces below it
/// when the first one is made, which may be later.
const LISTED: [&str; 1] = ["/run"];

/// What the C library resolves names with. /etc as a whole, since resolv.conf is replaced when the network changes; what
/// is secret there is not readable to the user of a gateway.
const RESOLVE: [&str; 4] = ["/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"];
/// What ssh is, and the programs that it starts: all of them stay in this sandbox.
const PROGRAMS: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/run/current-system", "/etc/profiles"];
/// The files that show its identity and its descriptors.
const RUNTIME: [&str; 5] = ["/proc", "/dev/urandom", "/run/systemd/userdb", "/var/lib/sss/mc", "/run/nscd"];
/// The port of DNS, which is asked by TCP where an answer is long.
const DNS: u16 = 53;

/// The newest rules that we have tried. Older kernels apply what they know of them, and `status` says so.
const NEWEST: ABI = ABI::V7;

/// What a process may still reach, beside what its role always does.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Files, and folders with what is below them, that it reads.
    pub read: Vec<PathBuf>,
    /// Files that it writes to; it makes none.
    pub write: Vec<PathBuf>,
    /// Folders in which it makes, writes and removes files.
    pub own: Vec<PathBuf>,
    /// TCP ports to which it connects.
    pub ports: Vec<u16>,
    /// Why the required files are unknown.
    pub unknown: Option<String>,
}

impl Reach {
    /// Whether a program is in one of the folders whose programs a gateway may start for ssh.
    pub fn has_program(path: &Path) -> bool {
        PROGRAMS.iter().any(|folder| path.starts_with(folder))
    }

    /// Reaches for both.
    pub fn and(mut self, other: Reach) -> Reach {
        self.read.extend(other.read);
        self.write.extend(other.write);
        self.own.extend(other.own);
        self.ports.extend(other.ports);
        self.ports.sort_unstable();
        self.ports.dedup();
        self.unknown = self.unknown.or(other.unknown);
        self
    }
}

/// The folder of a file. A name without a folder is a file in the working directory.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Takes the file system and TCP away, but for what `role` needs; a gateway has no more than `reach`.
pub fn restrict(role: Role, reach: &Reach) -> Layer {
    let readable = &reach.read;
    let ports: Vec<u16> = reach.ports.iter().copied().chain([DNS]).collect();
    let shown = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let resolving = RESOLVE.map(PathBuf::from).into_iter().chain(readable.iter().cloned());
    let result = match role {
        Role::Daemon => apply(rules_for_daemon()).map(|kept| {
            format!(
                "{kept}: reads /proc, cgroups, interfaces, modules, resolv.conf; lists /run for names of network \
                    namespaces; no writes, no TCP"
            )
        }),
        Role::Gateway | Role::Viewer if readable.is_empty() => {
            apply(rules(readable, &[])).map(|kept| format!("{kept}: opens no file, no TCP"))
        }
        Role::Gateway | Role::Viewer => {
            let paths: Vec<_> = readable.iter().map(|path| path.display().to_string()).collect();
            let paths = paths.join(", ");
            apply(rules(readable, &[]))
                .map(|kept| format!("{kept}: opens files in {paths} only; no new TCP connections"))
        }
        Role::Recorder => {
            let paths: Vec<_> = reach.own.iter().map(|path| path.display().to_string()).collect();
            let paths = paths.join(", ");
            apply(rules_to_write(&reach.own))
                .map(|kept| format!("{kept}: opens and creates files in {paths} only; no TCP"))
        }
        Role::ClientGateway => apply(rules(resolving, &ports))
            .map(|kept| format!("{kept}: reads the files for name resolution, no writes; TCP to ports {shown}")),
        Role::SshGateway => match &reach.unknown {
            Some(reason) => Err(format!("the files that ssh needs are unknown. {reason}")),
            None => apply(rules_for_ssh(resolving, &reach.write, &ports)).map(|kept| {
                format!("{kept}: reads programs, /etc and ssh's files, writes known_hosts; TCP to ports {shown}")
            }),
        },
    };
    Layer::new("landlock", result)
}

/// Says how much of it this kernel enforces.
fn apply(ruleset: Result<RulesetCreated, RulesetError>) -> Result<String, String> {
    // Before Linux 7.0 it is for the calling thread and those that it starts.
    let others = std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
    let status = ruleset.and_then(RulesetCreated::restrict_self).map_err(|e| e.to_string())?;
    match status.ruleset {
        RulesetStatus::FullyEnforced if others > 0 => {
            Ok(format!("enforced, except for {others} threads that started earlier"))
        }
        RulesetStatus::FullyEnforced => Ok("enforced".into()),
        RulesetStatus::PartiallyEnforced => Ok("partly enforced: this kernel supports only a part".into()),
        RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=landlock): only file permissions apply"
                .into())
        }
    }
}

fn rules_for_daemon() -> Result<RulesetCreated, RulesetError> {
    rules(READ, &[])?.add_rules(path_beneath_rules(LISTED, AccessFs::ReadDir))
}

/// Files of folders, to read, make, write, rename and remove.
fn rules_to_write(folders: &[PathBuf]) -> Result<RulesetCreated, RulesetError> {
    let own = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    rules(&[] as &[PathBuf], &[])?.add_rules(path_beneath_rules(folders, own))
}

/// What has to be written to, run and read for ssh.
fn rules_for_ssh(
    readable: impl IntoIterator<Item = impl AsRef<Path>>,
    writable: &[PathBuf],
    ports: &[u16],
) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    rules(readable, ports)?
        .add_rules(path_beneath_rules(PROGRAMS, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules(RUNTIME, read))?
        .add_rules(path_beneath_rules(writable, AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))
}

fn rules(readable: impl IntoIterator<Item = impl AsRef<Path>>, ports: &[u16]) -> Result<RulesetCreated, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp))))
}
