//! Limits the memory that the allocator keeps after use.
//!
//! glibc gives every few threads an arena, and each arena keeps its largest size: fifty windows at once left 120 MB
//! behind, one arena leaves 40 MB. netmond allocates rarely, so its threads do not wait for each other. The
//! threads that serve HTTP allocate often.

/// Limits the number of arenas. Call it before a second thread allocates: glibc ignores later calls.
pub fn share_arenas(number: usize) {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; a value that it does not know is refused.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, number as libc::c_int);
    }
}

/// Returns free memory to the kernel: after a large answer is written, and after clients have disconnected.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
