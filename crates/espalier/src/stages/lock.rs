//! One process at a time works in a run's folder.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, Write},
    path::Path,
};

use sysinfo::System;

use crate::{Error, Result};

const NAME: &str = ".lock";

/// The right to work in a folder, until it is dropped. The system takes it back from a process that dies, however that happens,
/// so that no lock is ever stale; the file stays, and says who had it last.
#[derive(Debug)]
pub struct Lock {
    /// Locked as long as it is open.
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder that is there.
    ///
    /// # Errors
    /// When another process has it, which the error names, or the file cannot be written.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(&path).map_err(Error::file(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::work(format!(
                    "{}: {} works in this folder already; wait for it, or give another output folder",
                    folder.display(),
                    owner.lines().next().unwrap_or("another process")
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Error::file(&path)(error)),
        }
        let host = System::host_name().unwrap_or_else(|| "an unnamed host".into());
        let owner = format!("process {} on {host}\n", std::process::id());
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(owner.as_bytes()));
        written.map_err(Error::file(&path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        let error = Lock::take(folder.path()).unwrap_err().to_string();
        let owner = format!("process {} on ", std::process::id());
        assert!(
            error.contains(&owner) && error.contains("already"),
            "{error}"
        );
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }
}
