//! Files that appear whole or not at all: written beside their name, flushed to the disk, then renamed.

use super::{
    fault::{self, FaultyFile},
    remove_file, rename,
};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// Between a file's name and the number of the process that writes it.
const ENDING: &str = ".partial-";

/// A file under a temporary name; dropped without [`PartialFile::rename`], it is removed.
///
/// A symbolic link is followed: the file that it names is replaced, and it stays. What is no regular file, such as a pipe or a
/// device, is written directly.
///
/// ```
/// use espalier_data::disk::PartialFile;
/// # let folder = tempfile::tempdir()?;
/// # let target = folder.path().join("file");
/// let mut file = PartialFile::create(&target)?;
/// file.write(b"whole")?;
/// assert!(!target.exists());
/// file.rename()?;
/// assert_eq!(std::fs::read(&target)?, b"whole");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct PartialFile {
    target: PathBuf,
    /// The temporary name; nothing where the target is written directly.
    temporary: Option<PathBuf>,
    writer: Option<BufWriter<FaultyFile>>,
}

impl PartialFile {
    /// Starts a file that will be `target`.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or the name is that of a folder.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = followed(target)?;
        let (temporary, file) = match fs::metadata(&target) {
            Ok(found) if found.is_dir() => return Err(ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => (None, File::options().write(true).open(&target)?),
            _ => {
                let temporary = temporary_name(&target)?;
                fault::point()?;
                let file = File::create(&temporary)?;
                (Some(temporary), file)
            }
        };
        let writer = BufWriter::with_capacity(1 << 20, FaultyFile(file));
        Ok(Self {
            target,
            temporary,
            writer: Some(writer),
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// When the disk is full or gone, or the file was finished already.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.writer {
            Some(writer) => writer.write_all(bytes),
            None => Err(io::Error::other("written after it was finished")),
        }
    }

    /// Flushes everything to the disk and closes the file, still under its temporary name.
    ///
    /// # Errors
    /// When the disk is full or gone.
    pub fn finish(&mut self) -> io::Result<()> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        // `into_parts` of an unfinished writer would lose its bytes: flushing comes first, and an error drops them for good.
        let file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        match self.temporary {
            Some(_) => file.0.sync_all(),
            None => Ok(()),
        }
    }

    /// Gives the file its name, replacing what was there.
    ///
    /// # Errors
    /// When the file cannot be finished or renamed.
    pub fn rename(mut self) -> io::Result<()> {
        self.finish()?;
        match &self.temporary {
            Some(temporary) => rename(temporary, &self.target),
            None => Ok(()),
        }
    }
}

impl Drop for PartialFile {
    /// After a rename the temporary name is gone and nothing happens.
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // What is still in memory is not wanted any more.
            drop(writer.into_parts());
        }
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Writes `bytes` as the file `target`, whole or not at all.
///
/// # Errors
/// When the folder is missing, not writable or full.
pub fn write_whole(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = PartialFile::create(target)?;
    file.write(bytes)?;
    file.rename()
}

/// Removes what processes that were killed left half-written in a folder and those below it. No other process may write there.
///
/// # Errors
/// When a folder cannot be read or a file not be removed.
pub fn clear_partial_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            clear_partial_files(&entry.path())?;
        } else if is_temporary(&entry.file_name().to_string_lossy()) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// The file to which symbolic links lead, whether it is there or not.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    // As many links as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("its symbolic links lead in a circle"))
}

fn temporary_name(target: &Path) -> io::Result<PathBuf> {
    let file_name = target.file_name().ok_or_else(|| {
        io::Error::new(
            ErrorKind::InvalidInput,
            "names no file to write; add a file name",
        )
    })?;
    let mut name = OsString::from(".");
    name.push(file_name);
    name.push(format!("{ENDING}{}", std::process::id()));
    Ok(target.with_file_name(name))
}

fn is_temporary(name: &str) -> bool {
    let process = name.rsplit_once(ENDING).map(|(_, process)| process);
    name.starts_with('.') && process.is_some_and(|process| process.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = PartialFile::create(&folder.path().join("a")).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(files(folder.path()), 1);
        drop(file);
        assert_eq!(files(folder.path()), 0);
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
        assert_eq!(files(folder.path()), 1);
    }

    #[test]
    fn names_without_a_file_or_folder_are_refused() {
        assert!(write_whole(Path::new("/"), b"").is_err());
        assert!(write_whole(Path::new(""), b"").is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(write_whole(folder.path(), b"").is_err());
        let missing = write_whole(&folder.path().join("no/file"), b"");
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_they_name_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let [link, second, file] = ["link", "second", "file"].map(|name| folder.path().join(name));
        symlink("second", &link).unwrap();
        symlink(&file, &second).unwrap();
        for text in ["new", "newer"] {
            write_whole(&link, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        assert!(link.is_symlink() && second.is_symlink());
        assert_eq!(files(folder.path()), 3);
        symlink("circle", folder.path().join("circle")).unwrap();
        let error = write_whole(&folder.path().join("circle"), b"").unwrap_err();
        assert!(error.to_string().contains("circle"));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_directly() {
        write_whole(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn what_dead_processes_left_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).unwrap();
        for name in [".a.partial-12", ".partial-notes", "b.partial-12"] {
            fs::write(inside.join(name), "").unwrap();
        }
        clear_partial_files(folder.path()).unwrap();
        assert_eq!(files(&inside), 2);
        assert!(!inside.join(".a.partial-12").exists());
    }
}
