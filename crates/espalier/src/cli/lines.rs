//! Texts of the command line, and of a file with one a line as `--file` takes it.

use std::fs;
use std::path::{Path, PathBuf};

use espalier_data::readers::is_utf_16;

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
/// When the file cannot be read, or is not UTF-8.
fn read(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).map_err(Error::file(path))?;
    let not_text = |reason: String| Error::work(format!("{}: {reason}", path.display()));
    if is_utf_16(&bytes) {
        return Err(not_text("the file is UTF-16; save it as UTF-8".into()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        not_text(format!("line {line} is not UTF-8; save the file as UTF-8"))
    })?;
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

    #[test]
    fn other_encodings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts");
        let said = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path).unwrap_err().to_string()
        };
        for bytes in [&b"\xff\xfea\0"[..], b"a\0b\0"] {
            assert!(said(bytes).ends_with("the file is UTF-16; save it as UTF-8"));
        }
        assert!(said(b"one\ntw\xe9\n").contains("line 2 is not UTF-8"));
    }
}
