//! Tables: for the page, and as aligned text for the terminal.
//!
//! Columns of numbers are set to the right in both. Left out: the width of characters that fill two columns of a
//! terminal, or none; each counts as one.

use super::{element, escape};

/// Rows and columns of text.
///
/// ```
/// use espalier_evaluate::report::Table;
/// let row = |task: &str, score: &str| vec![task.to_string(), score.to_string()];
/// let table = Table { columns: row("task", "accuracy"), rows: vec![row("sort", "95.2 %")], ..Table::default() };
/// assert_eq!(
///     table.text(),
///     "┌──────┬──────────┐\n│ task │ accuracy │\n├──────┼──────────┤\n│ sort │   95.2 % │\n└──────┴──────────┘\n"
/// );
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// The heading; may be empty.
    pub title: String,
    /// A remark below; may be empty.
    pub note: String,
    /// The heads of the columns.
    pub columns: Vec<String>,
    /// The cells; a row that is short ends in empty cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The table for a terminal, drawn with Unicode box lines; title above, note below.
    pub fn text(&self) -> String {
        let columns: Vec<Column> = (0..self.width()).map(|index| self.column(index)).collect();
        let rule = |left: &str, middle: &str, right: &str| {
            let lines: Vec<String> = columns
                .iter()
                .map(|column| "─".repeat(column.width + 2))
                .collect();
            format!("{left}{}{right}\n", lines.join(middle))
        };
        let head = line(&columns, &self.columns);
        let rows: String = self.rows.iter().map(|row| line(&columns, row)).collect();
        let grid = format!(
            "{}{head}{}{rows}{}",
            rule("┌", "┬", "┐"),
            rule("├", "┼", "┤"),
            rule("└", "┴", "┘")
        );
        let with_break = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                format!("{text}\n")
            }
        };
        format!(
            "{}{grid}{}",
            with_break(&self.title),
            with_break(&self.note)
        )
    }

    /// The table as a section of the page.
    pub(super) fn html(&self) -> String {
        let numeric: Vec<bool> = (0..self.width())
            .map(|index| self.column(index).numeric)
            .collect();
        let row = |tag: &str, cells: &[String]| {
            let cell = |(index, numeric): (usize, &bool)| {
                let class = if *numeric { " class=\"number\"" } else { "" };
                format!(
                    "<{tag}{class}>{}</{tag}>",
                    escape(cells.get(index).map_or("", String::as_str))
                )
            };
            format!(
                "<tr>{}</tr>\n",
                numeric.iter().enumerate().map(cell).collect::<String>()
            )
        };
        format!(
            "<section>\n{}<div class=\"scroll\">\n<table>\n<thead>\n{}</thead>\n<tbody>\n{}</tbody>\n</table>\n</div>\n{}</section>\n",
            element("h2", "", &self.title),
            row("th", &self.columns),
            self.rows
                .iter()
                .map(|cells| row("td", cells))
                .collect::<String>(),
            element("p", "note", &self.note),
        )
    }

    /// The number of columns: of the longest row, where one is longer than the heads.
    fn width(&self) -> usize {
        self.rows
            .iter()
            .map(Vec::len)
            .max()
            .unwrap_or(0)
            .max(self.columns.len())
    }

    fn column(&self, index: usize) -> Column {
        let cells = || self.rows.iter().filter_map(|row| row.get(index));
        let width = cells()
            .chain(self.columns.get(index))
            .map(|cell| flat(cell).chars().count())
            .max()
            .unwrap_or(0);
        let filled = || cells().filter(|cell| !cell.trim().is_empty());
        Column {
            width,
            numeric: filled().next().is_some() && filled().all(|cell| is_number(cell)),
        }
    }
}

/// Alignment of a column.
struct Column {
    width: usize,
    numeric: bool,
}

fn line(columns: &[Column], cells: &[String]) -> String {
    let cell = |(index, column): (usize, &Column)| {
        let (text, width) = (
            flat(cells.get(index).map_or("", String::as_str)),
            column.width,
        );
        if column.numeric {
            format!(" {text:>width$} ")
        } else {
            format!(" {text:<width$} ")
        }
    };
    format!(
        "│{}│\n",
        columns
            .iter()
            .enumerate()
            .map(cell)
            .collect::<Vec<_>>()
            .join("│")
    )
}

/// A cell on one line; an escape sequence in it must not reach the terminal.
fn flat(cell: &str) -> String {
    cell.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// Whether a cell begins with a number (what follows is its unit or its interval) or says that there is none.
fn is_number(cell: &str) -> bool {
    let digits = cell
        .trim()
        .trim_start_matches(['+', '-', '−', '~', '±', '$', '<', '>', '.', ' ']);
    let unit = digits.trim_start_matches(|c: char| c.is_ascii_digit() || ".,".contains(c));
    let letters = unit.chars().filter(|c| c.is_alphabetic()).count();
    let is_unit = letters <= 4 && !unit.trim_start().starts_with(|c: char| c.is_ascii_digit());
    digits.is_empty()
        || digits.starts_with(|c: char| c.is_ascii_digit()) && is_unit
        || ["–", "—", "NaN"].contains(&digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], rows: &[&[&str]]) -> Table {
        let own = |cells: &[&str]| {
            cells
                .iter()
                .map(|cell| cell.to_string())
                .collect::<Vec<_>>()
        };
        Table {
            columns: own(columns),
            rows: rows.iter().map(|row| own(row)).collect(),
            ..Table::default()
        }
    }

    #[test]
    fn text_is_aligned() {
        let mut table = table(
            &["task", "before", "é"],
            &[&["sort", "9.5 %", "x"], &["recall", "83.4 % (79.9-86.4)"]],
        );
        table.title = "Accuracy".into();
        table.note = "500 items each.".into();
        let expected = "Accuracy\n\
            ┌────────┬────────────────────┬───┐\n\
            │ task   │             before │ é │\n\
            ├────────┼────────────────────┼───┤\n\
            │ sort   │              9.5 % │ x │\n\
            │ recall │ 83.4 % (79.9-86.4) │   │\n\
            └────────┴────────────────────┴───┘\n\
            500 items each.\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn odd_tables_stand() {
        assert_eq!(table(&[], &[]).text(), "┌┐\n││\n├┤\n└┘\n");
        let ragged = table(&["a"], &[&["1", "two\nlines\u{1b}[0m"], &[]]).text();
        assert!(
            ragged
                .lines()
                .all(|line| line.chars().count() == ragged.lines().next().unwrap().chars().count())
        );
        assert!(!ragged.contains('\u{1b}') && ragged.lines().count() == 6);
    }

    #[test]
    fn columns_of_numbers_are_known() {
        for number in [
            "12",
            "-1.5e-3",
            "83.4 % (79.9-86.4)",
            "1,024",
            "−3",
            "–",
            "3.2 MiB",
            "+0.4",
        ] {
            assert!(is_number(number), "{number}");
        }
        for text in ["two", "8 queens problem", "v2", "2 of the best", "17 37 39"] {
            assert!(!is_number(text), "{text}");
        }
        let html = table(&["n", "name"], &[&["1", "a"]]).html();
        assert!(
            html.contains("<th class=\"number\">n</th><th>name</th>"),
            "{html}"
        );
    }
}
