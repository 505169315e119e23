//! Reading maps whole, and the parts of them that libbpf-rs does not read right.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use libbpf_sys::{bpf_map_batch_opts, bpf_map_lookup_batch};

use super::{Pod, bytes, read};

/// A per-CPU value, one element a CPU.
pub fn per_cpu<T: Pod>(map: &MapHandle, key: u32) -> libbpf_rs::Result<Vec<T>> {
    let values = map.lookup_percpu(bytes(&key), MapFlags::ANY)?.unwrap_or_default();
    Ok(values.iter().filter_map(|value| read(value)).collect())
}

/// Sets the element of every CPU.
pub fn set_on_every_cpu<T: Pod>(map: &MapHandle, key: u32, value: &T) -> libbpf_rs::Result<()> {
    let values = vec![bytes(value).to_vec(); libbpf_rs::num_possible_cpus()?];
    map.update_percpu(bytes(&key), &values, MapFlags::ANY)
}

/// Every element of a per-CPU array: for each index one value a CPU, CPU after CPU.
pub fn per_cpu_array<T: Pod>(map: &MapHandle) -> io::Result<Vec<T>> {
    let stride = size_of::<T>().next_multiple_of(8);
    let cpus = libbpf_rs::num_possible_cpus().map_err(other)?;
    let (mut count, mut token) = (map.max_entries(), 0u32);
    let (mut keys, mut values) = (vec![0u32; count as usize], vec![0u8; count as usize * cpus * stride]);
    let options = bpf_map_batch_opts { sz: size_of::<bpf_map_batch_opts>() as _, ..Default::default() };
    // SAFETY: the buffers hold every key and every value; the token of an array is a u32.
    let result = unsafe {
        bpf_map_lookup_batch(
            map.as_fd().as_raw_fd(),
            ptr::null_mut(),
            ptr::from_mut(&mut token).cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &mut count,
            &options,
        )
    };
    match -result {
        0 | libc::ENOENT => Ok(values.chunks_exact(stride).filter_map(read).collect()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A variable of `.bss`, where our programs count; `offset` is `offset_of!(types::bss, FIELD)`, since what else is there,
/// and in which order, is the compiler's to say.
pub fn field<T: Pod>(bss: &MapHandle, offset: usize) -> io::Result<T> {
    let value = bss.lookup(bytes(&0u32), MapFlags::ANY).map_err(other)?;
    let field = value.as_deref().and_then(|value| read(value.get(offset..)?));
    field.ok_or_else(|| io::Error::other("a counter of a program is missing"))
}

/// Sets an entry of a map, which needs no capability, unlike making a map.
pub fn set<K: Pod, V: Pod>(map: &MapHandle, key: K, value: &V) -> libbpf_rs::Result<()> {
    map.update(bytes(&key), bytes(value), MapFlags::ANY)
}

/// Deletes entries with unused values, and returns their keys. An entry that disappeared meanwhile is not an error.
pub fn remove<K: Pod, V: Pod>(map: &MapHandle, unneeded: impl Fn(&V) -> bool) -> io::Result<Vec<K>> {
    let entries = entries::<K, V>(map)?;
    let keys: Vec<K> = entries.into_iter().filter(|(_, value)| unneeded(value)).map(|(key, _)| key).collect();
    let together: Vec<u8> = keys.iter().flat_map(|key| bytes(key).to_vec()).collect();
    if !keys.is_empty() && map.delete_batch(&together, keys.len() as u32, MapFlags::ANY, MapFlags::ANY).is_err() {
        keys.iter().try_for_each(|key| delete(map, key))?; // a batch ends at a key that is gone
    }
    Ok(keys)
}

/// Deletes an entry, if there is one.
pub fn delete<K: Pod>(map: &MapHandle, key: &K) -> io::Result<()> {
    match map.delete(bytes(key)) {
        Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => Err(other(e)),
        _ => Ok(()),
    }
}

fn other(e: libbpf_rs::Error) -> io::Error {
    io::Error::other(format!("{e:#}"))
}

/// Keys that a program looks up, in a map until this is dropped, however what they are for ends.
pub struct Listed<'a, K: Pod> {
    map: &'a MapHandle,
    keys: Vec<K>,
}

impl<'a, K: Pod> Listed<'a, K> {
    /// Adds `keys`, each with `value`. If one does not fit, all of them are removed.
    pub fn add<V: Pod>(map: &'a MapHandle, keys: impl IntoIterator<Item = K>, value: &V) -> libbpf_rs::Result<Self> {
        let mut listed = Listed { map, keys: Vec::new() };
        for key in keys {
            set(map, key, value)?;
            listed.keys.push(key);
        }
        Ok(listed)
    }
}

impl<K: Pod> Drop for Listed<'_, K> {
    fn drop(&mut self) {
        for key in &self.keys {
            if let Err(e) = self.map.delete(bytes(key)) {
                tracing::warn!("deleting a map key failed: {e}");
            }
        }
    }
}

/// All entries of a hash map, in batches of up to a few thousand (libbpf-rs 0.27's own batches lose rows:
/// a batch that the kernel cut short at a bucket is taken for the last).
pub fn entries<K: Pod, V: Pod>(map: &MapHandle) -> io::Result<Vec<(K, V)>> {
    const MOST: u32 = 4_096;
    let mut batch = 64u32; // most maps are almost empty, and buffers are cleared
    let mut out = Vec::new();
    let (mut from, mut token, mut first) = (0u32, 0u32, true);
    loop {
        let (mut keys, mut values) =
            (vec![0u8; batch as usize * size_of::<K>()], vec![0u8; batch as usize * size_of::<V>()]);
        let mut count = batch;
        let options = bpf_map_batch_opts { sz: size_of::<bpf_map_batch_opts>() as _, ..Default::default() };
        let start = if first { ptr::null_mut() } else { ptr::from_mut(&mut from).cast() };
        // SAFETY: the buffers hold `batch` keys and values; the token of a hash map is a u32.
        let result = unsafe {
            bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                start,
                ptr::from_mut(&mut token).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                &options,
            )
        };
        match -result {
            libc::ENOSPC => {
                batch *= 2; // one bucket holds more than the batch
                continue;
            }
            0 | libc::ENOENT => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        let rows = keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(size_of::<V>()));
        out.extend(rows.take(count as usize).filter_map(|(k, v)| Some((read(k)?, read(v)?))));
        if result != 0 {
            return Ok(out); // ENOENT: that was the last
        }
        (from, first, batch) = (token, false, (batch * 8).min(MOST.max(batch)));
    }
}
