//! Texts of the command line, and of a file with one a line as `--file` takes it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Texts in order, with where each was given.
#[derive(Debug)]
pub struct Texts {
    /// Those of the command line, then those of the file.
    pub all: Vec<String>,
    arguments: usize,
    file: Option<PathBuf>,
}

impl Texts {
    /// The arguments, and the lines of the file where there is one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn gather(arguments: &[String], file: Option<&Path>) -> Result<Self> {
        let mut all = arguments.to_vec();
        if let Some(path) = file {
            all.extend(read(path)?);
        }
        Ok(Self {
            all,
            arguments: arguments.len(),
            file: file.map(Path::to_owned),
        })
    }

    /// Where a text was given, for a message about it: `texts.txt:3`, or the number of the argument.
    pub fn place(&self, index: usize) -> String {
        match &self.file {
            Some(path) if index >= self.arguments => {
                format!("{}:{}", path.display(), index - self.arguments + 1)
            }
            _ => format!("argument {} of {}", index + 1, self.arguments),
        }
    }
}

/// The lines of a file, blank ones too, so that the n-th result is the n-th line's. A byte order mark at the start is no text.
///
/// # Errors
/// When the file cannot be read.
fn read(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(Error::file(path))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_text_and_a_byte_order_mark_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts");
        fs::write(&path, "\u{feff}one\r\n\n  \ntwo\u{feff}\n").unwrap();
        assert_eq!(read(&path).unwrap(), ["one", "", "  ", "two\u{feff}"]);
        let texts = Texts::gather(&["zero".into()], Some(&path)).unwrap();
        assert_eq!(texts.all[2], "");
        assert_eq!(texts.place(2), format!("{}:2", path.display()));
        assert_eq!(texts.place(0), "argument 1 of 1");
    }
}
