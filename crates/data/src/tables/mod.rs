//! Tables: rows of CSV and Parquet files as JSON objects, one column a key.
//!
//! Both are read from the file alone, without an index or a server. CSV is UTF-8 with names in its first row and commas between its cells,
//! which may be quoted; Parquet is what data sets of the hub are kept in.

mod csv;
mod parquet;

use std::path::Path;

use serde_json::{Map, Value};

use crate::Result;

/// A row: where it begins (a line of a CSV file, the number of a row of a Parquet file, from 1), and its cells.
pub type Row = (usize, Map<String, Value>);

/// Rows in order.
pub type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

/// How cells of a CSV file are understood, whose columns have no types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cells {
    /// Columns of numbers alone are numbers, as data frames read them.
    Numbers,
    /// Cells are texts but for those of these columns, which are numbers, true or false where they can be.
    Texts(Vec<String>),
}

/// Whether a file is a table, by its ending.
pub fn is_table(path: &Path) -> bool {
    ending(path).is_some_and(|ending| ["csv", "parquet"].contains(&ending.as_str()))
}

/// The rows of a table.
///
/// ```
/// use espalier_data::tables::{Cells, rows};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("a.csv");
/// std::fs::write(&path, "question,answer\n\"1, or 2?\",2\n")?;
/// let (line, row) = rows(&path, &Cells::Numbers)?.next().ok_or("no row")??;
/// assert_eq!((line, row["question"].as_str(), row["answer"].as_u64()), (2, Some("1, or 2?"), Some(2)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the file cannot be read or is no table; damaged rows are errors of the iterator.
pub fn rows(path: &Path, cells: &Cells) -> Result<Rows> {
    match ending(path).as_deref() {
        Some("parquet") => parquet::rows(path),
        _ => csv::rows(path, cells),
    }
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}
