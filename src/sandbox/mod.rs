//! What the processes may do, and how they give up the rest.
//!
//! `netmond` holds three capabilities while it loads, and while it serves those without which the
//! running kernel refuses a tool: none at all on Linux 6.6 and newer. Every set is read back.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, Ordering},
};

mod confine;
mod files;
mod layer;
mod syscalls;

pub use confine::{allow_locking, confine, layers};
pub use files::{Reach, folder_of};
pub use layer::{Layer, Role};

use caps::{CapSet, Capability, CapsHashSet};

/// What loading needs: eBPF itself, tracing programs, traffic programs.
pub const LOADING: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN];

/// A user and its primary group.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The system user `name`, else `nobody`: the daemon owns no files, so it needs no user of its own.
    pub fn system(name: &str) -> Account {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        account(&passwd, name).or_else(|| account(&passwd, "nobody")).unwrap_or(Account {
            name: "nobody".into(),
            uid: 65534,
            gid: 65534,
        })
    }
}

fn account(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (user, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (user == name).then_some(Account { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

/// The id of a group of `/etc/group`.
pub fn group(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// The group ID of gateways that root started and that became nobody. The table of "Users, Groups, UIDs and GIDs on
/// systemd Systems" assigns no purpose to it (60578 to 61183 are unused). None if /etc/group assigns it to a group.
pub fn group_of_root() -> Option<u32> {
    const NUMBER: u32 = 61_183;
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let is_taken = groups.lines().any(|line| line.split(':').nth(2) == Some(&NUMBER.to_string()));
    (!is_taken).then_some(NUMBER)
}

/// Whether this process is root, and so has something to give up.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// From now on no program that this process starts can gain privileges.
pub fn no_new_privileges() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true).map_err(Into::into)
}

/// Becomes `account`, with no supplementary groups but these. Capabilities are lost with it unless they are kept
/// (`PR_SET_KEEPCAPS`).
fn become_user(account: &Account, groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: the list of groups is valid for its length.
    let done = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setresgid(account.gid, account.gid, account.gid) == 0
            && libc::setresuid(account.uid, account.uid, account.uid) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether [`give_up_root`] did.
static GAVE_UP_ROOT: AtomicBool = AtomicBool::new(false);

pub fn gave_up_root() -> bool {
    GAVE_UP_ROOT.load(Ordering::Relaxed)
}

/// Gives root up for good, on every thread: the first thing that a gateway does. `group` is kept, to ask a service, and
/// the [group of root](group_of_root), to ask a netmond that has no group.
pub fn give_up_root(account: &Account, group: Option<u32>) -> io::Result<()> {
    for capability in caps::read(None, CapSet::Bounding).unwrap_or_default() {
        let _ = caps::drop(None, CapSet::Bounding, capability); // in some containers root may not; none is held anyway
    }
    // In a user namespace the number may stand for nothing.
    let groups: Vec<_> = group.into_iter().chain(group_of_root()).collect();
    become_user(account, &groups).or_else(|_| become_user(account, group.as_slice()))?;
    GAVE_UP_ROOT.store(true, Ordering::Relaxed);
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    if is_root() || !held.is_empty() {
        return Err(io::Error::other("dropping root failed"));
    }
    Ok(())
}

/// Before Linux 5.11, maps and programs count as locked memory, with a default limit of 64 KiB per process. Without
/// CAP_SYS_RESOURCE, the service manager must raise the limit; newer kernels need neither.
fn lock_memory_without_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Cuts the process down to what loading needs. CAP_SYS_ADMIN stays permitted, not in effect, if it was held: the kernel
/// gives the types of its modules to nobody else; see [`with_module_types`]. Capabilities are per thread: call it before
/// any other is started.
pub fn cut_to_loading(account: &Account) -> io::Result<()> {
    no_new_privileges()?;
    lock_memory_without_limit();
    let loading = CapsHashSet::from(LOADING);
    if is_root() {
        for capability in caps::read(None, CapSet::Bounding).map_err(io::Error::other)?.difference(&loading) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
        }
        rustix::thread::set_keep_capabilities(true)?;
        become_user(account, &[])?;
    }
    // Fewer than three (a container, a unit of one's own) may be enough for some tools: go on and see.
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let mut permitted: CapsHashSet = held.intersection(&loading).copied().collect();
    let effective = permitted.clone();
    permitted.extend(held.get(&Capability::CAP_SYS_ADMIN));
    cut_to(&permitted)?;
    caps::set(None, CapSet::Effective, &effective).map_err(io::Error::other)
}

/// Runs `load` with the right to read the types of kernel modules, if this thread was left it.
pub fn with_module_types<R>(load: impl FnOnce() -> R) -> R {
    let raised = caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_ok();
    let loaded = load();
    if raised && let Err(e) = caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN) {
        tracing::warn!("CAP_SYS_ADMIN stays effective until this thread has loaded its tool: {e}");
    }
    loaded
}

/// Reduces the effective and permitted sets to exactly `wanted`, empties the inheritable set, and verifies the result.
/// After an error nothing may be served.
pub fn cut_to(wanted: &CapsHashSet) -> io::Result<()> {
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, wanted).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, wanted).map_err(io::Error::other)?;
    for (set, expected) in [
        (CapSet::Effective, wanted),
        (CapSet::Permitted, wanted),
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Ambient, &CapsHashSet::new()),
    ] {
        let held = caps::read(None, set).map_err(io::Error::other)?;
        if held != *expected {
            return Err(io::Error::other(format!(
                "dropping {set:?} capabilities failed: they are {held:?}, expected {expected:?}"
            )));
        }
    }
    Ok(())
}

/// The smallest set of capabilities under which `rehearsal` succeeds, of those that are held: none,
/// eBPF's, the network's, all; the kernel's reason if it does under none of them. Tried on a thread of its own,
/// since capabilities are a thread's.
pub fn needed(rehearsal: impl Fn() -> io::Result<()> + Sync) -> io::Result<CapsHashSet> {
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON};
    let choices: [&[Capability]; 4] = [&[], &[CAP_BPF, CAP_PERFMON], &[CAP_NET_ADMIN], &LOADING];
    let mut refusal = io::Error::other("testing the attachment failed");
    for choice in choices {
        let set: CapsHashSet = choice.iter().copied().collect();
        let attempt = || caps::set(None, CapSet::Effective, &set).is_ok().then(&rehearsal);
        match std::thread::scope(|scope| scope.spawn(attempt).join()) {
            Ok(Some(Ok(()))) => return Ok(set),
            Ok(Some(Err(e))) => refusal = e,
            Ok(None) | Err(_) => {} // not held, or a panic that has been logged
        }
    }
    Err(refusal)
}

/// The names of the capabilities in effect, in order.
pub fn held() -> Vec<String> {
    let mut names: Vec<_> =
        caps::read(None, CapSet::Effective).unwrap_or_default().iter().map(ToString::to_string).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_matches_the_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnetmonitor:x:7:7::/:\nnetmon:x:998:997::/:/usr/sbin/nologin\n";
        assert_eq!(account(passwd, "netmon"), Some(Account { name: "netmon".into(), uid: 998, gid: 997 }));
        assert_eq!(account(passwd, "absent"), None);
    }
}
