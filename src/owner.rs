//! Who a socket belongs to: the process that the kernel named, and the unit and container that its cgroup stands for.
//!
//! The daemon finds the path of a cgroup; what the path says is parsed here, in the gateway.

use serde::{Deserialize, Serialize};

use crate::{answer::Owner, untrusted};

/// An owner as the daemon saw it.
#[derive(Serialize, Deserialize, Default, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub pid: u32,
    /// The comm, any characters.
    pub comm: String,
    /// The path of its cgroup below the root of the cgroup v2 hierarchy.
    pub cgroup: Option<String>,
    pub netns: u32,
}

impl Process {
    /// The owner that an answer names.
    pub fn owner(&self) -> Owner {
        let cgroup = self.cgroup.as_deref().unwrap_or_default();
        Owner {
            pid: (self.pid != 0).then_some(self.pid),
            process: (!self.comm.is_empty()).then(|| untrusted::label(&self.comm)),
            unit: unit(cgroup).map(untrusted::label),
            container: container(cgroup).map(str::to_owned),
            netns: (self.netns != 0).then_some(self.netns),
        }
    }
}

/// A control group that the kernel kept from running in the window: its quota was used up.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Throttled {
    /// Below the root of the hierarchy.
    pub cgroup: String,
    /// Periods of its quota in which it wanted to run, and those in which it used the quota up.
    pub periods: u64,
    pub throttled_periods: u64,
    /// Summed over CPUs.
    pub throttled_us: u64,
    /// Its processes, and those of the groups below it.
    pub pids: Vec<u32>,
}

impl Throttled {
    /// The groups of two adjacent periods.
    pub fn merge(earlier: Vec<Throttled>, mut later: Vec<Throttled>) -> Vec<Throttled> {
        for before in earlier {
            match later.iter_mut().find(|group| group.cgroup == before.cgroup) {
                Some(group) => {
                    group.periods += before.periods;
                    group.throttled_periods += before.throttled_periods;
                    group.throttled_us += before.throttled_us;
                }
                None => later.push(before),
            }
        }
        later
    }
}

/// The name of a network namespace that has this file.
pub fn netns_name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or_default()
}

/// The systemd unit of a cgroup path: the innermost service or scope, else the slice.
/// A user's own manager runs under `user@UID.service`; what it starts is named first.
pub fn unit(cgroup: &str) -> Option<&str> {
    let named = |suffixes: &[&str]| {
        cgroup.rsplit('/').find(|part| suffixes.iter().any(|s| part.len() > s.len() && part.ends_with(s)))
    };
    named(&[".service", ".scope", ".socket", ".mount"]).or_else(|| named(&[".slice"]))
}

/// The container id in a cgroup path, as Docker, Podman, containerd, CRI-O and Kubernetes write it:
/// the innermost run of 64 hexadecimal digits, whatever is around it.
pub fn container(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find_map(|part| {
        part.split(['-', '.', ':', '_']).find(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn unit_and_container_come_from_the_cgroup_path() {
        let check = |path: &str, expected: (Option<&str>, Option<&str>)| {
            assert_eq!((unit(path), container(path)), expected, "{path}")
        };
        check("/", (None, None));
        check("/system.slice/nginx.service", (Some("nginx.service"), None));
        check("/user.slice/user-1000.slice/session-3.scope", (Some("session-3.scope"), None));
        check(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox.scope",
            (Some("app-firefox.scope"), None),
        );
        check("/user.slice", (Some("user.slice"), None));
        check(&format!("/system.slice/docker-{ID}.scope"), (Some(&format!("docker-{ID}.scope")), Some(ID)));
        check(&format!("/docker/{ID}"), (None, Some(ID)));
        check(&format!("/machine.slice/libpod-{ID}.scope/container"), (Some(&format!("libpod-{ID}.scope")), Some(ID)));
        check(
            &format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{ID}.scope"
            ),
            (Some(&format!("cri-containerd-{ID}.scope")), Some(ID)),
        );
        check(&format!("/kubepods/burstable/pod12/{ID}"), (None, Some(ID)));
        check(
            &format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}"),
            (Some("containerd.service"), Some(ID)),
        );
        check("/.service/x", (None, None));
    }

    #[test]
    fn unknown_owner_has_no_zeros() {
        let owner = Process { pid: 0, comm: String::new(), cgroup: None, netns: 0 }.owner();
        assert_eq!(owner, Owner::default());
        assert_eq!(owner.to_string(), "unknown");
    }
}
