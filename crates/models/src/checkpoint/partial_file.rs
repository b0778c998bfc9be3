//! Files that appear whole or not at all: written beside their name, flushed to the disk, then renamed.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file under a temporary name; dropped without [`PartialFile::finish`] and [`PartialFile::rename`], it is removed.
///
/// ```
/// use espalier_models::checkpoint::partial_file::PartialFile;
/// # let folder = std::env::temp_dir();
/// # let target = folder.join(format!("partial-file-example-{}", std::process::id()));
/// let mut file = PartialFile::create(&target)?;
/// file.write(b"whole")?;
/// file.finish()?;
/// file.rename()?;
/// assert_eq!(std::fs::read(&target).unwrap(), b"whole");
/// # std::fs::remove_file(&target).unwrap();
/// # Ok::<(), espalier_models::error::Error>(())
/// ```
#[derive(Debug)]
pub struct PartialFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl PartialFile {
    /// Starts a file that will be `target`.
    ///
    /// # Errors
    /// When the folder is missing or not writable.
    pub fn create(target: &Path) -> Result<Self> {
        let temporary = temporary_name(target)?;
        let file = File::create(&temporary).map_err(Error::file(&temporary))?;
        let writer = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self {
            target: target.to_path_buf(),
            temporary,
            writer,
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// When the disk is full or gone, or the file was finished already.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let finished = || {
            Error::Invalid(format!(
                "{}: written after it was finished",
                self.target.display()
            ))
        };
        let writer = self.writer.as_mut().ok_or_else(finished)?;
        writer.write_all(bytes).map_err(Error::file(&self.target))
    }

    /// Flushes everything to the disk and closes the file, still under its temporary name.
    ///
    /// # Errors
    /// When the disk is full or gone.
    pub fn finish(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let flushed = writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error);
        flushed
            .and_then(|file| file.sync_all())
            .map_err(Error::file(&self.target))
    }

    /// Gives the file its name, replacing what was there.
    ///
    /// # Errors
    /// When the file cannot be finished or renamed.
    pub fn rename(mut self) -> Result<()> {
        self.finish()?;
        fs::rename(&self.temporary, &self.target).map_err(Error::file(&self.target))
    }
}

impl Drop for PartialFile {
    /// After a rename the temporary name is gone and nothing happens.
    fn drop(&mut self) {
        self.writer = None;
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes `bytes` as the file `target`, whole or not at all.
///
/// # Errors
/// When the folder is missing, not writable or full.
pub fn write_whole(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = PartialFile::create(target)?;
    file.write(bytes)?;
    file.rename()
}

fn temporary_name(target: &Path) -> Result<PathBuf> {
    let missing = || {
        Error::Invalid(format!(
            "`{}` names no file to write; add a file name",
            target.display()
        ))
    };
    let mut name = OsString::from(".");
    name.push(target.file_name().ok_or_else(missing)?);
    name.push(format!(".partial-{}", std::process::id()));
    Ok(target.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = PartialFile::create(&folder.path().join("a")).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        write_whole(&target, b"old").unwrap();
        let mut file = PartialFile::create(&target).unwrap();
        file.write(b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        file.rename().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_without_a_file_or_folder_are_refused() {
        assert!(write_whole(Path::new("/"), b"").is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            write_whole(&folder.path().join("no/file"), b""),
            Err(Error::File { .. })
        ));
    }
}
