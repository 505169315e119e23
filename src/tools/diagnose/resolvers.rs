//! Which DNS servers are configured: files that anyone may read.

use std::{collections::HashMap, fs, io::Read, net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

/// The servers that one file names.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Resolvers {
    pub file: String,
    /// For processes in this network namespace that see the host's files.
    pub netns: u32,
    pub servers: Vec<IpAddr>,
}

/// Those of the daemon's own network namespace, and of the others that `ip netns` names, which `ip netns exec` puts in
/// place of the host's.
pub fn configured(own: u32, files: &HashMap<u32, String>) -> Vec<Resolvers> {
    let named = files.iter().filter(|(netns, _)| **netns != own).filter_map(|(netns, file)| {
        let name = Path::new(file).strip_prefix("/run/netns").ok()?.to_str()?;
        Some((*netns, format!("/etc/netns/{name}/resolv.conf")))
    });
    [(own, "/etc/resolv.conf".to_owned())]
        .into_iter()
        .chain(named)
        .filter_map(|(netns, file)| read(netns, file))
        .collect()
}

fn read(netns: u32, file: String) -> Option<Resolvers> {
    /// The C library reads three servers; a longer file is another thing.
    const BYTES: u64 = 16 << 10;
    let mut text = String::new();
    fs::File::open(&file).ok()?.take(BYTES).read_to_string(&mut text).ok()?;
    Some(Resolvers { file, netns, servers: servers(&text) })
}

/// As resolv.conf(5) says: `nameserver`, and an address, with a scope perhaps.
fn servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_parsed_like_glibc() {
        let text =
            "# nameserver 10.0.0.9\nsearch a.test\nnameserver 10.0.0.53\n nameserver fe80::1%eth0\nnameserver x\n";
        let expected: Vec<IpAddr> = vec!["10.0.0.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(servers(text), expected);
    }
}
