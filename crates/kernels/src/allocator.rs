//! The system allocator's habits.

/// Asks the allocator to keep the memory that is freed for the next tensor, rather than to give it back to the system page
/// by page. To be called once, before threads start.
///
/// A training step frees and asks for the same large buffers again and again; with glibc's defaults each of them is mapped
/// and cleared anew, which costs a fifth of the step. Other allocators are left as they are.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const NEVER: libc::c_int = libc::c_int::MAX;
        for (parameter, value) in [(libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, NEVER), (libc::M_TOP_PAD, 64 << 20)] {
            #[allow(unsafe_code)]
            // SAFETY: `mallopt` takes two plain numbers; an unknown one changes nothing.
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}
