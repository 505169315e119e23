//! Limits the memory that the allocator keeps after use.
//!
//! glibc gives every few threads an arena, and each arena keeps its largest size: fifty windows at once left 120 MB
//! behind, one arena leaves 40 MB. The allocations here are too rare for lock contention.

/// From now on all threads share one arena. To be called before the first thread starts.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; a value that it does not know is refused.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
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
