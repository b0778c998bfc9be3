//! CSV (RFC 4180): names in the first row, then rows of as many cells.

use std::path::Path;

use ::csv::StringRecord;
use serde_json::{Map, Value};

use super::{Cells, Rows};
use crate::{Error, Result};

pub(super) fn rows(path: &Path, cells: &Cells) -> Result<Rows> {
    let (heads, rows) = read(path)?;
    let kinds: Vec<Kind> = heads
        .iter()
        .enumerate()
        .map(|(column, head)| match cells {
            Cells::Numbers => Kind::of(&rows, column),
            Cells::Texts(others) if others.iter().any(|other| other == head) => Kind::Scalar,
            Cells::Texts(_) => Kind::Text,
        })
        .collect();
    let row = move |row: StringRecord| {
        let line = row
            .position()
            .map_or(0, |position| position.line() as usize);
        let cells = heads.iter().zip(row.iter()).zip(&kinds);
        let cells = cells.map(|((head, cell), kind)| (head.to_owned(), kind.value(cell)));
        Ok((line, cells.collect::<Map<String, Value>>()))
    };
    Ok(Box::new(rows.into_iter().map(row)))
}

fn read(path: &Path) -> Result<(StringRecord, Vec<StringRecord>)> {
    let wrong = |error: ::csv::Error| {
        let line = error
            .position()
            .map_or(1, |position| position.line() as usize);
        match error.into_kind() {
            ::csv::ErrorKind::Io(source) => Error::file(path, source),
            ::csv::ErrorKind::Utf8 { .. } => record(path, line, "the text is not UTF-8".into()),
            ::csv::ErrorKind::UnequalLengths {
                expected_len, len, ..
            } => record(
                path,
                line,
                format!(
                    "{len} cells, but the first row names {expected_len} columns; a cell with a comma stands in quotes"
                ),
            ),
            other => record(path, line, format!("{other:?}")),
        }
    };
    let mut reader = ::csv::Reader::from_path(path).map_err(wrong)?;
    let heads = reader.headers().map_err(wrong)?;
    // A byte order mark is no part of the first name.
    let heads: StringRecord = heads
        .iter()
        .map(|head| head.trim_start_matches('\u{feff}'))
        .collect();
    if let Some(twice) =
        (0..heads.len()).find(|at| heads.iter().take(*at).any(|head| head == &heads[*at]))
    {
        return Err(record(
            path,
            1,
            format!("two columns are named `{}`", &heads[twice]),
        ));
    }
    let rows = reader
        .records()
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrong)?;
    Ok((heads, rows))
}

fn record(path: &Path, line: usize, reason: String) -> Error {
    Error::Record {
        path: path.to_owned(),
        line,
        reason,
    }
}

/// What a column holds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Whole,
    Number,
    Text,
    /// A number, true or false where it can be.
    Scalar,
}

impl Kind {
    fn of(rows: &[StringRecord], column: usize) -> Self {
        let cells = || {
            rows.iter()
                .filter_map(|row| row.get(column))
                .filter(|cell| !cell.is_empty())
        };
        if cells().all(|cell| cell.parse::<i64>().is_ok()) {
            Self::Whole
        } else if cells().all(|cell| cell.parse::<f64>().is_ok_and(f64::is_finite)) {
            Self::Number
        } else {
            Self::Text
        }
    }

    fn value(self, cell: &str) -> Value {
        let number = || cell.parse::<f64>().ok().filter(|number| number.is_finite());
        match self {
            Self::Text => cell.into(),
            _ if cell.is_empty() => Value::Null,
            Self::Whole => cell.parse::<i64>().map_or(Value::Null, Value::from),
            Self::Number => number().map_or(Value::Null, Value::from),
            Self::Scalar => match cell.to_ascii_lowercase().as_str() {
                "true" => true.into(),
                "false" => false.into(),
                _ => match (cell.parse::<i64>(), number()) {
                    (Ok(whole), _) => whole.into(),
                    (_, Some(number)) => number.into(),
                    _ => cell.into(),
                },
            },
        }
    }
}
