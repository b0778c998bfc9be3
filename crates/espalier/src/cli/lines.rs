//! A file of texts, one a line, as `--file` takes it.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// The lines of a file, blank ones too, so that the n-th result is the n-th line's. A byte order mark at the start is no text.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<String>> {
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
    }
}
