//! Changes to the disk. All of them pass here, so that a test can let any one fail (see `fault.rs`).

mod fault;
mod partial_file;

use fault::FaultyFile;
pub use partial_file::{PartialFile, clear_partial_files, write_whole};

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    path::Path,
};

/// Makes a folder and those above it; one that is there stays as it is.
///
/// # Errors
/// When the disk is full, or something else has the name.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fault::point()?;
    fs::create_dir_all(path)
}

/// Gives a file or folder another name, in the place of a file that has it.
///
/// # Errors
/// When the disk fails or forbids it.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fault::point()?;
    fs::rename(from, to)
}

/// Removes a file, if it is there.
///
/// # Errors
/// When the disk fails or forbids it.
pub fn remove_file(path: &Path) -> io::Result<()> {
    fault::point()?;
    missing_is_fine(fs::remove_file(path))
}

/// Removes a folder with all that is in it, or the file or link that has its name, if there is one.
///
/// # Errors
/// When the disk fails or forbids it; part of it may be gone then.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    fault::point()?;
    missing_is_fine(match metadata.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    })
}

fn missing_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that grows line by line.
///
/// ```
/// use espalier_data::disk::Log;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("log");
/// let mut log = Log::open(&path)?;
/// log.append(b"one\n")?;
/// log.append(b"two\n")?;
/// log.cut(4)?;
/// assert_eq!(std::fs::read(&path)?, b"one\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Log(FaultyFile);

impl Log {
    /// Opens the file, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        fault::point()?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(FaultyFile(file)))
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.0.metadata()?.len())
    }

    /// Takes away what lies behind the first `bytes`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn cut(&self, bytes: u64) -> io::Result<()> {
        if self.bytes()? <= bytes {
            return Ok(());
        }
        fault::point()?;
        self.0.0.set_len(bytes)
    }

    /// Lets the disk have all of it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        fault::point()?;
        self.0.0.sync_data()
    }

    /// Adds `bytes` at the end.
    ///
    /// # Errors
    /// When the disk is full; part of them may be written then.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
}
