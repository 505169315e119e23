//! The maps of the kernel, as the daemon uses them.

use libbpf_rs::{MapCore, MapHandle, MapType};
use netmon_mcp::daemon::kernel::{Listed, entries};

use crate::harness::require_root;

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
