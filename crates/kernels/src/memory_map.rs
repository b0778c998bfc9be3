//! Read-only memory maps of files: weights are paged in as they are read, and those that are not trained are never copied.
//!
//! This is the one place of the workspace that maps a file. Left out: writable maps.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::path::Path;

/// Maps the whole file at `path` for reading; an empty file gives an empty map.
///
/// The bytes must be treated as untrusted. A model that is not trained reads its weights from the map as long as it lives. Until then
/// the file must not be shortened: reading past the new end stops the process (`SIGBUS` on Unix), with a sentence where
/// [`explain_lost_pages`] was called; whether a file is as long as its header says is checked when it is opened, and a shorter one is refused.
/// A program that writes into the file changes the model. Writers that replace a file by renaming a new one over it, as the
/// checkpoint writer does, change no mapped file: the map keeps the old one, even where a model is saved over itself.
///
/// # Errors
/// When the file cannot be opened, is a folder, or cannot be mapped.
#[allow(unsafe_code)]
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    // SAFETY: the map is read-only and outlives the handle by design of `mmap`. Another process may still change the
    // file's bytes under us; they are plain `u8`, for which every value is valid, and the rule above asks for no more.
    unsafe { Mmap::map(&file) }
}

/// From here on, a mapped file that is shortened while it is read ends the process with code 1 and a sentence, where the system
/// would end it without a word (`SIGBUS`). A program calls it once; libraries leave signals alone. Elsewhere than on Linux it
/// does nothing.
///
/// # Errors
/// When the system refuses.
pub fn explain_lost_pages() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        const SENTENCE: &[u8] = b"error: a file of weights became shorter, or unreadable, while it was in use; restore it and start again\n";
        extern "C" fn explain(_: libc::c_int) {
            #[allow(unsafe_code)]
            // SAFETY: both calls are safe in a signal handler, and the second does not return to the read that failed.
            unsafe {
                libc::write(
                    libc::STDERR_FILENO,
                    SENTENCE.as_ptr().cast(),
                    SENTENCE.len(),
                );
                libc::_exit(1);
            }
        }
        #[allow(unsafe_code)]
        // SAFETY: the action is wholly written before it is read, and its handler keeps to what handlers may do.
        let refused = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = explain as extern "C" fn(libc::c_int) as libc::sighandler_t;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) != 0
        };
        if refused {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives the pages of `range` back: they do not count as the process's memory until they are read again.
///
/// A tensor that was copied out of a map is not needed twice. Failing to release it costs memory, not correctness, so that
/// an error passes silently; other systems than Unix keep the pages.
pub fn release(map: &Mmap, range: std::ops::Range<usize>) {
    #[cfg(unix)]
    if range.end <= map.len() && !range.is_empty() {
        #[allow(unsafe_code)]
        // SAFETY: the map is read-only and backed by its file: dropped pages come back with the same bytes.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_the_file_holds() {
        let path = std::env::temp_dir().join(format!("espalier-memory-map-{}", std::process::id()));
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&map_file(&path).unwrap()[..], b"abc");
        std::fs::write(&path, b"").unwrap();
        assert!(map_file(&path).unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(map_file(&path).is_err());
    }

    #[test]
    fn released_pages_read_the_same() {
        let path =
            std::env::temp_dir().join(format!("espalier-memory-release-{}", std::process::id()));
        std::fs::write(&path, vec![7u8; 100_000]).unwrap();
        let map = map_file(&path).unwrap();
        release(&map, 10..90_000);
        release(&map, 0..200_000);
        assert!(map.iter().all(|byte| *byte == 7));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn refuses_folders() {
        assert!(map_file(&std::env::temp_dir()).is_err());
    }
}
