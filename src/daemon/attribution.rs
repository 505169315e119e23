//! From what the kernel records of a process to what `owner` makes an owner of: the daemon turns a cgroup id into its
//! path, for which it reads cgroupfs.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{daemon::kernel, limits, logging::Throttle, owner::Process, sync::lock};

impl Process {
    /// From the kernel's record; pid 0 and netns 0 mean unknown.
    pub fn new(pid: u32, comm: &[u8], cgroup: u64, netns: u32) -> Self {
        let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
        Process { pid, comm: String::from_utf8_lossy(&comm[..end]).into_owned(), cgroup: cgroup_path(cgroup), netns }
    }
}

/// The inode of our own network namespace, 0 if /proc does not say.
pub fn own_netns() -> u32 {
    fs::metadata("/proc/self/ns/net").map_or(0, |meta| meta.ino() as u32)
}

/// The files that name network namespaces (`ip netns`, Docker), by inode.
pub fn netns_files() -> HashMap<u32, String> {
    let folders = ["/run/docker/netns", "/run/netns"].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let files = folders.flatten().flatten().take(limits::CGROUPS).map(|file| file.path());
    files
        .filter_map(|path| Some((fs::metadata(&path).ok()?.ino() as u32, path.into_os_string().into_string().ok()?)))
        .collect()
}

/// The path of the cgroup with this id (the inode of its folder) below the cgroup v2 root; `None` if
/// it is gone or cgroup v2 is not mounted. The root itself is `/`.
fn cgroup_path(id: u64) -> Option<String> {
    static KNOWN: Mutex<Option<Cgroups>> = Mutex::new(None);
    if id == 0 {
        return None;
    }
    lock(&KNOWN)
        .get_or_insert_with(Cgroups::new)
        .path(id, || walk(Path::new(kernel::cgroup_root().ok_or(io::ErrorKind::NotFound)?)))
}

/// The known cgroups. An id that a complete search did not find is gone: the kernel does not reuse ids.
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
    fn missing_cgroup_is_searched_once() {
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
}
