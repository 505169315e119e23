//! Kernel features that programs need, with the first version that has them.

use std::fmt;

/// What a program needs of the kernel: its own kind first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// The kernel describes its own types, which every program of ours is adapted to.
    Btf,
    TracepointBtf,
    Fexit,
    IterateFiles,
    IterateTcp,
    IterateUdp,
    IterateMaps,
    TrafficControl,
    Xdp,
    /// At a cgroup, of addresses that processes send to and receive from.
    Cgroup,
    /// A socket's own storage and cookie, in a program at a tracepoint.
    SocketStorage,
    /// The same for the socket of a file, in an iterator. Without it, `bpf/files.h` reads copies of such sockets.
    FileSockets,
    /// `bpf_loop`.
    Loop,
}

impl Feature {
    pub const ALL: [Feature; 13] = [
        Feature::Btf,
        Feature::TracepointBtf,
        Feature::Fexit,
        Feature::IterateFiles,
        Feature::IterateTcp,
        Feature::IterateUdp,
        Feature::IterateMaps,
        Feature::TrafficControl,
        Feature::Xdp,
        Feature::Cgroup,
        Feature::SocketStorage,
        Feature::FileSockets,
        Feature::Loop,
    ];

    /// Its name in `status`: of a kind of program, the beginning of its section.
    pub fn name(self) -> &'static str {
        match self {
            Feature::Btf => "btf",
            Feature::TracepointBtf => "tp_btf",
            Feature::Fexit => "fexit",
            Feature::IterateFiles => "iter/task_file",
            Feature::IterateTcp => "iter/tcp",
            Feature::IterateUdp => "iter/udp",
            Feature::IterateMaps => "iter/bpf_map",
            Feature::TrafficControl => "tc",
            Feature::Xdp => "xdp",
            Feature::Cgroup => "cgroup",
            Feature::SocketStorage => "bpf_sk_storage_get",
            Feature::FileSockets => "bpf_sock_from_file",
            Feature::Loop => "bpf_loop",
        }
    }

    /// The first Linux that has it (`git describe --contains` of the commit that added it).
    pub fn since(self) -> Release {
        match self {
            Feature::TrafficControl => Release(4, 1),
            Feature::Xdp => Release(4, 8),
            Feature::Btf | Feature::Cgroup => Release(5, 2),
            Feature::TracepointBtf | Feature::Fexit => Release(5, 5),
            Feature::IterateFiles | Feature::IterateMaps => Release(5, 8),
            Feature::IterateTcp | Feature::IterateUdp => Release(5, 9),
            Feature::SocketStorage | Feature::FileSockets => Release(5, 12),
            Feature::Loop => Release(5, 17),
        }
    }

    /// The kind of a program, by its section; `None` for a kind that this list does not have.
    pub fn of_section(section: &str) -> Option<Feature> {
        let kind = |feature: &Feature| {
            section.strip_prefix(feature.name()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Feature::ALL.into_iter().find(kind)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A release of Linux, such as 5.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl Release {
    /// The one that runs.
    pub fn running() -> Release {
        let uname = rustix::system::uname();
        Release::parse(&uname.release().to_string_lossy()).unwrap_or(Release(0, 0))
    }

    fn parse(text: &str) -> Option<Release> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Release(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_names_the_feature() {
        for (section, feature) in [
            ("tp_btf/kfree_skb", Some(Feature::TracepointBtf)),
            ("fexit/nft_do_chain", Some(Feature::Fexit)),
            ("iter/task_file", Some(Feature::IterateFiles)),
            ("iter/tcp", Some(Feature::IterateTcp)),
            ("iter/bpf_map", Some(Feature::IterateMaps)),
            ("iter/bpf_map_elem", None),
            ("tc", Some(Feature::TrafficControl)),
            ("tcx/ingress", None),
            ("xdp", Some(Feature::Xdp)),
        ] {
            assert_eq!(Feature::of_section(section), feature, "{section}");
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(Release::parse("6.18.44-fc-v669"), Some(Release(6, 18)));
        assert_eq!(Release::parse("5.4.0+"), Some(Release(5, 4)));
        assert_eq!(Release::parse("linux"), None);
        assert!(Release(5, 4) < Release(5, 15) && Release(6, 1) > Release(5, 19));
    }
}
