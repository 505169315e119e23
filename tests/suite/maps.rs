//! The maps of the kernel, as the daemon uses them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    path::PathBuf,
};

use libbpf_rs::{
    MapCore, MapHandle, MapType,
    query::{MapInfoIter, ProgInfoIter, ProgInfoQueryOptions},
};
use netmon_mcp::daemon::kernel::{Listed, entries};
use serde_json::{Value, json};

use crate::harness::*;

#[test]
fn list_too_long_for_its_map_leaves_no_keys() {
    require_root();
    let options =
        libbpf_sys::bpf_map_create_opts { sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _, ..Default::default() };
    let map = MapHandle::create(MapType::Hash, Some("netmon_test"), 8, 4, 2, &options).unwrap();
    assert!(Listed::add(&map, [1u64, 2, 3], &0u32).is_err());
    assert_eq!(entries::<u64, u32>(&map).unwrap(), []);
    let listed = Listed::add(&map, [1u64, 2], &0u32).unwrap();
    assert_eq!(map.keys().count(), 2);
    drop(listed);
    assert_eq!(map.keys().count(), 0);
}

/// The maps with this name that the programs of a daemon use.
fn maps_of(daemon: &Daemon, name: &str) -> BTreeSet<u32> {
    let fields = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let id = |info: String| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok());
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).unwrap();
    let programs: BTreeSet<_> = infos.filter_map(|entry| id(fields(entry.unwrap().path()))).collect();
    let named: BTreeSet<_> =
        MapInfoIter::default().filter(|map| map.name.to_string_lossy() == name).map(|map| map.id).collect();
    let loaded = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_map_ids(true));
    let used = loaded.filter(|program| programs.contains(&program.id)).flat_map(|program| program.map_ids);
    used.filter(|id| named.contains(id)).collect()
}

/// What the tools say of connections, with their owners.
const ROWS: [(&str, &str); 3] =
    [("trace_connections", "connections"), ("top_traffic", "rows"), ("profile_tcp", "remotes")];

#[test]
fn tools_share_the_storage_of_sockets_and_keep_their_parts() {
    let (netns, daemon) = (Netns::new(), Daemon::own());
    let mut status = Client::connect(&daemon.socket);
    let listener = listen(&netns, "127.0.0.1");
    let to = listener.local_addr().unwrap();
    for (kept, list) in ROWS {
        for (ended, _) in ROWS.iter().filter(|(tool, _)| *tool != kept) {
            let [longer, shorter] = [kept, ended].map(|tool| daemon.watch(tool, json!({"port": to.port()})));
            let mut client = connect(&netns, to).unwrap();
            let mut server = listener.accept().unwrap().0;
            client.write_all(&[1; 10]).unwrap();
            server.read_exact(&mut [0; 10]).unwrap();
            shorter.end(); // and forgets the sockets
            status.until_detached(ended);
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            drop(server);
            let answer = longer.end();
            status.until_detached(kept);
            let rows = answer[list].as_array().unwrap();
            let owner = |row: &Value| row["owner"]["pid"].as_u64().or(row["owners"][0]["pid"].as_u64());
            let owners: Vec<_> = rows.iter().map(owner).collect();
            assert!(!rows.is_empty() && owners.iter().all(|pid| *pid == Some(std::process::id().into())), "{answer:#}");
        }
    }
    assert_eq!(maps_of(&daemon, "storages").len(), 1);
}
