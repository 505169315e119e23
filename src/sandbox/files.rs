//! Landlock: which files a process may open, whatever their permissions say.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::confine::{Layer, Role};

/// What attribution, interfaces and the names of drop reasons are read from. All of it is the kernel's own.
const READ: [&str; 8] = [
    "/proc",
    "/sys/class/net",
    "/sys/devices", // where /sys/class/net leads to, and the number of CPUs is
    "/sys/fs/cgroup",
    "/sys/kernel/btf",
    "/sys/module", // whether IPv6, conntrack are there
    "/run/netns",
    "/run/docker/netns",
];

/// The newest rules that we have tried. Older kernels apply what they know of them, and `status` says so.
const NEWEST: ABI = ABI::V7;

/// Takes the file system away but for what `role` reads; a gateway reads only `readable`.
pub fn restrict(role: Role, readable: &[PathBuf]) -> Layer {
    let result = match role {
        Role::Daemon => apply(READ).map(|kept| {
            format!(
                "{kept}: reads /proc, cgroups, interfaces, modules, names of network namespaces; writes nothing, no TCP"
            )
        }),
        Role::Gateway if readable.is_empty() => apply(readable).map(|kept| format!("{kept}: opens no file, no TCP")),
        Role::Gateway => {
            let paths: Vec<_> = readable.iter().map(|path| path.display().to_string()).collect();
            let paths = paths.join(", ");
            apply(readable).map(|kept| format!("{kept}: opens no file but in {paths}, no new TCP"))
        }
        Role::SshGateway => {
            Err("not applied: hosts are configured, and ssh reads the keys and settings of its user".into())
        }
    };
    Layer::new("landlock", result)
}

/// Says how much of it this kernel enforces.
fn apply(readable: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<String, String> {
    // Before Linux 7.0 it is for the calling thread and those that it starts.
    let others = std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
    let status = ruleset(readable).and_then(RulesetCreated::restrict_self).map_err(|e| e.to_string())?;
    match status.ruleset {
        RulesetStatus::FullyEnforced if others > 0 => Ok(format!("enforced but for {others} threads that ran before")),
        RulesetStatus::FullyEnforced => Ok("enforced".into()),
        RulesetStatus::PartiallyEnforced => Ok("enforced as far as this kernel knows it".into()),
        RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=landlock): file permissions alone hold"
                .into())
        }
    }
}

fn ruleset(readable: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<RulesetCreated, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(readable, read))
}
