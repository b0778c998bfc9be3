//! Memory for tensors: freed buffers are kept for the next tensor, and the heap lies on large pages.
//!
//! A training step frees and asks for the same large buffers again and again. With glibc's defaults each of them is mapped
//! and cleared anew, and matrices on many small pages miss the processor's translation buffer (TLB): together a third of a step.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

/// The system's allocator, with large buffers on large pages where Linux offers them (`madvise`).
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: espalier_kernels::allocator::LargePages = espalier_kernels::allocator::LargePages;
/// # fn main() {}
/// ```
#[derive(Debug, Clone, Copy)]
pub struct LargePages;

/// Size of a large page on x86-64 and usually on 64-bit ARM. Where it is another, the advice is merely useless.
const PAGE: usize = 2 << 20;

/// Sizes of buffers that may have made the heap larger, so that the advice comes before anything is written there: less would be
/// asked too often, more too late.
const NOTABLE: usize = 1 << 10;
/// Where the heap began when it was first asked for, and where the part of it with large pages ends; nowhere before that.
static HEAP: [AtomicUsize; 2] = [AtomicUsize::new(usize::MAX), AtomicUsize::new(usize::MAX)];

/// Asks for large pages for a new buffer: for the heap as far as it has grown, else for the pages that lie in the buffer as a whole.
fn advise(start: *mut u8, size: usize) {
    if size < NOTABLE || start.is_null() {
        return;
    }
    let [first, last] = HEAP.each_ref().map(|end| end.load(Ordering::Relaxed));
    let grown = heap_end();
    if grown > last {
        let last = HEAP[1].fetch_max(grown, Ordering::Relaxed);
        ask(last.min(grown), grown);
    }
    if size >= 2 * PAGE && !(first..grown).contains(&start.addr()) {
        ask(
            start.addr().next_multiple_of(PAGE),
            (start.addr() + size) / PAGE * PAGE,
        );
    }
}

/// Where the heap of the system's allocator ends, with what it has in reserve; at zero where that is not known.
fn heap_end() -> usize {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: growth by nothing reads a number, -1 where there is none.
    return match unsafe { libc::sbrk(0) }.addr() {
        usize::MAX => 0,
        end => end,
    };
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    0
}

/// Asks for large pages from one address to another.
fn ask(start: usize, end: usize) {
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    // SAFETY: the range belongs to the allocator, and the advice changes no byte of it. Refusal does no harm.
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(start),
            end.saturating_sub(start),
            libc::MADV_HUGEPAGE,
        );
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, end);
}

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        let start = unsafe { System.alloc(layout) };
        advise(start, layout.size());
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's promise.
        let start = unsafe { System.alloc_zeroed(layout) };
        advise(start, layout.size());
        start
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: by the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

/// Asks glibc to keep the memory that is freed for the next tensor, rather than to give it back to the system. To be called
/// once, before threads start; other allocators are left as they are.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const NEVER: libc::c_int = libc::c_int::MAX;
        set(&[
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, NEVER),
            (libc::M_TOP_PAD, 64 << 20),
        ]);
        HEAP.iter()
            .for_each(|end| end.store(heap_end().next_multiple_of(PAGE), Ordering::Relaxed));
    }
}

/// Gives the memory that is free now back to the system, after work that needed much and comes once, as reading a tokenizer.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: pages without anything alive on them are given back; they come back empty when they are asked for.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks glibc to serve all threads from one arena, where models are trained in threads of their own: a thread's arena consists of
/// 64 MiB at most, and what is larger would be mapped anew each time, freed memory kept or not. Many small allocations on many
/// threads, as of tokenizers, wait for each other then. To be called before threads start.
pub fn share_one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set(&[(libc::M_ARENA_MAX, 1)]);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set(parameters: &[(libc::c_int, libc::c_int)]) {
    for (parameter, value) in parameters {
        #[allow(unsafe_code)]
        // SAFETY: `mallopt` takes two plain numbers; an unknown one changes nothing.
        unsafe {
            libc::mallopt(*parameter, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_size_are_whole() {
        for size in [1, 4096, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE + 3] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            #[allow(unsafe_code)]
            // SAFETY: the buffer is read and written inside its size and freed once.
            unsafe {
                let start = LargePages.alloc_zeroed(layout);
                assert!(
                    std::slice::from_raw_parts(start, size)
                        .iter()
                        .all(|byte| *byte == 0)
                );
                start.write_bytes(7, size);
                LargePages.dealloc(start, layout);
            }
        }
    }

    /// Runs a test by itself: `mallopt` has to come before threads do, which the harness starts for tests.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn alone(test: &str) {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let name = format!("allocator::tests::{test}");
        assert!(
            again
                .args([&name, "--exact", "--ignored", "--test-threads=1"])
                .status()
                .unwrap()
                .success()
        );
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn the_heap_is_on_large_pages_and_kept() {
        alone("the_second_buffer_needs_no_new_pages");
        // Kernels without large pages refuse the advice.
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            alone("small_buffers_lie_on_large_pages_too");
        }
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    #[ignore = "in a process of its own, which the test above starts"]
    fn small_buffers_lie_on_large_pages_too() {
        keep_freed_memory();
        share_one_arena();
        let layout = Layout::from_size_align(1 << 20, 64).unwrap();
        // The thread of this test has an arena already.
        let buffers = move || {
            for _ in 0..100 {
                #[allow(unsafe_code)]
                // SAFETY: the size is not zero; the process ends with its buffers.
                let start = unsafe { LargePages.alloc(layout) };
                assert!(!start.is_null());
            }
        };
        std::thread::spawn(buffers).join().unwrap();
        // Of every range its name, its size in KiB and its flags.
        let ranges = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut in_heap, mut size, mut advised) = (false, 0, 0);
        for line in ranges.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[0] {
                "Size:" => size = words[1].parse::<usize>().unwrap(),
                "VmFlags:" if in_heap && words.contains(&"hg") => advised += size,
                name if !name.ends_with(':') => in_heap = line.ends_with("[heap]"),
                _ => (),
            }
        }
        assert!(advised >= 100 << 10, "{advised} KiB");
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    #[ignore = "in a process of its own, which the test above starts"]
    fn the_second_buffer_needs_no_new_pages() {
        let faults = || {
            #[allow(unsafe_code)]
            // SAFETY: the structure is plain numbers, which the call fills in.
            unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
                usage.ru_minflt
            }
        };
        let buffer = move || {
            let before = faults();
            let buffer = std::hint::black_box(vec![1u8; 100 << 20]);
            assert!(buffer.iter().all(|byte| *byte == 1));
            faults() - before
        };
        keep_freed_memory();
        share_one_arena();
        std::thread::spawn(move || {
            let (first, second) = (buffer(), buffer());
            assert!(
                first > 0 && 10 * second < first,
                "{first} and {second} pages"
            );
        })
        .join()
        .unwrap();
    }
}
