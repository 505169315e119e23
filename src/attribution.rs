//! From what the kernel records of a process to an owner that a person knows.
//!
//! The daemon turns a cgroup id into its path (it reads cgroupfs); the gateway reads unit and
//! container out of the path, since that is parsing.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use crate::{answer::Owner, bpf::lock, limits, logging::Throttle, untrusted};

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
    /// From the kernel's record; pid 0 and netns 0 stand for what is not known.
    pub fn new(pid: u32, comm: &[u8], cgroup: u64, netns: u32) -> Self {
        let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
        Process { pid, comm: String::from_utf8_lossy(&comm[..end]).into_owned(), cgroup: cgroup_path(cgroup), netns }
    }

    /// The owner that an answer names.
    pub fn owner(&self) -> Owner {
        let cgroup = self.cgroup.as_deref().unwrap_or_default();
        Owner {
            pid: (self.pid != 0).then_some(self.pid),
            process: (!self.comm.is_empty()).then(|| untrusted::clean(&self.comm)),
            unit: unit(cgroup).map(untrusted::clean),
            container: container(cgroup).map(str::to_owned),
            netns: (self.netns != 0).then_some(self.netns),
        }
    }
}

/// The inode of our own network namespace, 0 if /proc does not say.
pub fn own_netns() -> u32 {
    fs::metadata("/proc/self/ns/net").map_or(0, |meta| meta.ino() as u32)
}

/// The files by whose names network namespaces are known (`ip netns`, Docker), by inode.
pub fn netns_files() -> HashMap<u32, String> {
    let folders = ["/run/docker/netns", "/run/netns"].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let files = folders.flatten().flatten().take(limits::CGROUPS).map(|file| file.path());
    files
        .filter_map(|path| Some((fs::metadata(&path).ok()?.ino() as u32, path.into_os_string().into_string().ok()?)))
        .collect()
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

/// The path of the cgroup with this id (the inode of its folder) below the cgroup v2 root; `None` if
/// it is gone or cgroup v2 is not mounted. The root itself is `/`.
fn cgroup_path(id: u64) -> Option<String> {
    static KNOWN: Mutex<Option<Cgroups>> = Mutex::new(None);
    if id == 0 {
        return None;
    }
    lock(&KNOWN).get_or_insert_with(Cgroups::new).path(id, || walk(Path::new(root().ok_or(io::ErrorKind::NotFound)?)))
}

/// What cgroupfs has shown. An id that a whole search has not found is gone for good: the kernel gives none out twice.
struct Cgroups {
    paths: HashMap<u64, String>,
    gone: HashSet<u64>,
    /// However many cgroups end in a window, looking for them takes no more than a part of the time.
    walks: Throttle,
}

impl Cgroups {
    fn new() -> Self {
        let walks = Throttle::new(limits::CGROUP_WALKS_PER_SECOND);
        Cgroups { paths: HashMap::new(), gone: HashSet::new(), walks }
    }

    fn path(&mut self, id: u64, walk: impl FnOnce() -> io::Result<HashMap<u64, String>>) -> Option<String> {
        if !self.paths.contains_key(&id) && !self.gone.contains(&id) && self.walks.admit().is_some() {
            self.paths = walk().ok()?;
            if self.gone.len() >= limits::CGROUPS {
                self.gone.clear();
            }
            if !self.paths.contains_key(&id) {
                self.gone.insert(id);
            }
        }
        self.paths.get(&id).cloned()
    }
}

/// Where cgroup v2 is mounted: alone, or beside v1 (the hybrid layout).
fn root() -> Option<&'static str> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|path| Path::new(path).join("cgroup.controllers").exists())
}

/// Inode to path of every folder below `root`, breadth first, at most [`limits::CGROUPS`]. Folders may vanish meanwhile.
fn walk(root: &Path) -> io::Result<HashMap<u64, String>> {
    let mut found = HashMap::new();
    found.insert(fs::metadata(root)?.ino(), "/".to_owned());
    let mut folders: VecDeque<PathBuf> = VecDeque::from([root.to_owned()]);
    while let Some(folder) = folders.pop_front() {
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries.flatten() {
            if found.len() >= limits::CGROUPS || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            found.insert(entry.ino(), format!("/{name}"));
            folders.push_back(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_gone_is_looked_for_once() {
        let (mut cgroups, walks) = (Cgroups::new(), std::cell::Cell::new(0));
        let walk = || {
            walks.set(walks.get() + 1);
            Ok(HashMap::from([(7, "/a.service".to_owned())]))
        };
        let asked: Vec<_> = [7, 8, 8, 7, 8].map(|id| cgroups.path(id, walk)).into();
        assert_eq!(asked.iter().flatten().count(), 2);
        assert_eq!(walks.get(), 2, "one for each that was not known");
        assert_eq!(cgroups.path(9, || Err(io::ErrorKind::PermissionDenied.into())), None);
        assert_eq!(cgroups.path(9, || Ok(HashMap::from([(9, "/b".to_owned())]))).as_deref(), Some("/b"));
    }

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn units_and_containers_are_read_from_the_paths_that_exist() {
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
    fn an_owner_has_no_zeros() {
        let owner = Process { pid: 0, comm: String::new(), cgroup: None, netns: 0 }.owner();
        assert_eq!(owner, Owner::default());
        assert_eq!(owner.to_string(), "unknown");
    }
}
