//! Reading data sets in the forms that people have them, one record at a time.
//!
//! A file is never held in memory: jsonl is read by lines, a JSON array element by element, plain text by paragraphs. The
//! form is detected from the keys of the first record or given by name; columns can be renamed. A malformed record is an
//! error with its line, and reading goes on after it. Rows of CSV and Parquet files are records too ([`crate::tables`]), of a CSV file held in
//! memory. Not read: compressed files.
//!
//! | form | keys |
//! |---|---|
//! | `alpaca` | `instruction`, `input`, `output`, `system`, `history`, `tools`; ranking: `chosen`, `rejected` |
//! | `sharegpt` | `conversations` of `{from, value}`, `system`, `tools`; ranking: `chosen`, `rejected` |
//! | `messages` | `messages` of `{role, content}`, `system`, `tools` |
//! | `preference` | `prompt` (or the common start of the two), `chosen`, `rejected`, `margin`, `system`, `tools` |
//! | `completion` | `prompt` and `completion`, or `question` and `answer`, `system`, `tools` |
//! | `labelled` | `text`, `label` (or `labels`): a number, a name, or a list of them |
//! | `tagged` | `tokens` (or `words`), `labels` (or `ner_tags`, `tags`), one for each |
//! | `steps` | `prompt`, `completions`, `labels`: whether each step of an answer is right, `system` |
//! | `prompt` | `prompt` where answers are not wanted, `system`, `tools`, and whatever rewards read |
//! | `text` | `text`, or a `.txt` file |
//!
//! Where verdicts are wanted, a conversation says with `label` or `kto_tag` whether its last answer is a good one. Turns may say whether
//! they are learned (`weight`, `train`, `loss`, ...). Keys that would change what a record means and that nobody reads are errors, and so is
//! a key that stands twice in an object.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::nearest::suggestion;
use crate::record::Record;
use crate::tables::{self, Cells};
use crate::{Error, Result};
use elements::{Element, Elements};
use fields::{Fields, kind};
pub use forms::Form;
use json::Unambiguous;
pub use write::{to_json, write_jsonl};

mod alpaca;
mod elements;
mod fields;
mod forms;
mod json;
mod labels;
mod openai;
mod refused;
mod sharegpt;
mod turns;
mod verdict;
mod write;

/// A data file and how to read it.
///
/// ```
/// use espalier_data::{readers::{read_all, Source}, record::Record};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("data.jsonl");
/// std::fs::write(&path, "{\"question\": \"1 + 1?\", \"answer\": \"2\"}\n")?;
/// let loaded = read_all(&Source::new(&path), false)?;
/// assert!(matches!(&loaded.records[0], Record::Chat { messages, .. } if messages[1].text() == "2"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The file: `.json`, `.jsonl`, `.ndjson`, `.csv`, `.parquet`, `.txt`, `.text` or `.md`.
    pub path: PathBuf,
    /// The form of its records; detected when absent.
    pub form: Option<Form>,
    /// Names of columns: ours to the file's, such as `output` to `response`.
    pub columns: BTreeMap<String, String>,
    /// What is wanted of a record.
    pub wanted: Wanted,
}

/// What is wanted of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever a record says; labels beside texts say nothing.
    #[default]
    Texts,
    /// Preference pairs: a record that has one beside a conversation is read as the pair.
    Pairs,
    /// Answers with a verdict, and pairs, which have one for both answers; records without are errors.
    Verdicts,
    /// Labels of texts, words or steps.
    Labels,
    /// Prompts, whose answers may be missing; other keys are for whoever scores answers.
    Prompts,
}

impl Source {
    /// A file whose form is detected.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            form: None,
            columns: BTreeMap::new(),
            wanted: Wanted::Texts,
        }
    }
}

/// The records of a file, in order.
pub struct Reader {
    path: PathBuf,
    elements: Elements,
    form: Option<Form>,
    columns: BTreeMap<String, String>,
    wanted: Wanted,
    plain: bool,
    failed: bool,
    line: usize,
    /// All that the last record's object says, where prompts are wanted.
    origin: Map<String, Value>,
    /// Columns that are given a name of ours and that no record had so far.
    unseen: BTreeMap<String, String>,
    /// Columns that are not read, by their names, with how they are told of.
    unread: BTreeMap<String, String>,
}

/// A whole data set in memory.
#[derive(Debug)]
pub struct Loaded {
    /// The records, in order; at least one.
    pub records: Vec<Record>,
    /// The line of the file that each record begins at, from 1.
    pub lines: Vec<usize>,
    /// All that each record's object says, under the file's own names, where prompts are wanted; otherwise empty objects.
    pub origins: Vec<Map<String, Value>>,
    /// The malformed records that were left out.
    pub skipped: Vec<Error>,
    /// Columns of the file that say something and are not read, in quotes, with what was probably meant.
    pub unread: Vec<String>,
}

/// The fault of a record, and its line, counted from the record's first.
struct Problem {
    offset: usize,
    reason: String,
}

impl From<String> for Problem {
    fn from(reason: String) -> Self {
        Self { offset: 0, reason }
    }
}

/// Opens a data file.
///
/// # Errors
/// When it cannot be read, its kind is not known, a column name is not one of ours or a plain text is to have columns. Malformed records are errors of the
/// iterator.
pub fn open(source: &Source) -> Result<Reader> {
    check_regular(&source.path)?;
    let plain = is_plain(&source.path)?;
    if plain && source.form.is_some_and(|form| form != Form::Text) {
        let reason = "a plain text file has only the form `text`; the other forms are read from .json and .jsonl";
        return Err(Error::Invalid(format!(
            "{}: {reason}",
            source.path.display()
        )));
    }
    if plain && !source.columns.is_empty() {
        return Err(Error::Invalid(format!(
            "{}: a plain text file has no columns; leave `columns` out",
            source.path.display()
        )));
    }
    source
        .columns
        .keys()
        .try_for_each(|name| forms::check_column(name))?;
    let elements = match tables::is_table(&source.path) {
        true => of_table(source)?,
        false => {
            let file =
                File::open(&source.path).map_err(|error| Error::file(&source.path, error))?;
            let input = without_mark(file).map_err(|error| Error::file(&source.path, error))?;
            elements::split(input, &source.path, plain)?
        }
    };
    Ok(Reader {
        path: source.path.clone(),
        elements,
        form: source.form,
        columns: source.columns.clone(),
        wanted: source.wanted,
        plain,
        failed: false,
        line: 0,
        origin: Map::new(),
        unseen: source.columns.clone(),
        unread: BTreeMap::new(),
    })
}

/// Columns of a CSV file, by our names, that say numbers, true or false; in all others a number is a text.
const SCALARS: [&str; 5] = ["label", "labels", "margin", "weight", "kto_tag"];

/// The rows of a table, each as an element.
fn of_table(source: &Source) -> Result<Elements> {
    let theirs = |ours: &str| {
        source
            .columns
            .get(ours)
            .map_or(ours, String::as_str)
            .to_owned()
    };
    let cells = Cells::Texts(SCALARS.into_iter().map(theirs).collect());
    let rows = tables::rows(&source.path, &cells)?;
    Ok(Box::new(rows.map(|row| {
        let (line, row) = row?;
        let bytes = Value::Object(row).to_string().into_bytes();
        Ok(Element { line, bytes })
    })))
}

/// Reads a whole file.
///
/// # Errors
/// The first malformed record, unless `skip_malformed`; a file that cannot be read; a file without a usable record; a column that is
/// renamed and that no record has.
pub fn read_all(source: &Source, skip_malformed: bool) -> Result<Loaded> {
    let mut loaded = Loaded {
        records: Vec::new(),
        lines: Vec::new(),
        origins: Vec::new(),
        skipped: Vec::new(),
        unread: Vec::new(),
    };
    let mut reader = open(source)?;
    while let Some(record) = reader.next() {
        match record {
            Ok(record) => {
                loaded.records.push(record);
                loaded.lines.push(reader.line);
                loaded.origins.push(std::mem::take(&mut reader.origin));
            }
            Err(error @ Error::Record { .. }) if skip_malformed => loaded.skipped.push(error),
            Err(error) => return Err(error),
        }
    }
    if loaded.records.is_empty() {
        let why = loaded
            .skipped
            .first()
            .map(|first| format!("; the first malformed one: {first}"))
            .unwrap_or_default();
        return Err(Error::Invalid(format!(
            "{}: no records{why}",
            source.path.display()
        )));
    }
    if let Some((ours, theirs)) = reader.unseen.first_key_value() {
        let hint = suggestion(theirs, reader.unread.keys().map(String::as_str));
        return Err(Error::Invalid(format!(
            "{}: `columns.{ours}` names the column `{theirs}`, which no record has{hint}",
            source.path.display()
        )));
    }
    loaded.unread = reader.unread().map(str::to_owned).collect();
    Ok(loaded)
}

/// Refuses pipes and devices: data is read more than once, and what came through them is gone the second time.
fn check_regular(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::file(path, error))?;
    let kind = match () {
        () if metadata.is_file() => return Ok(()),
        () if metadata.is_dir() => "a folder; give a file in it",
        () => "a pipe or a device; data is read more than once, so write it to a file first",
    };
    Err(Error::Invalid(format!("{}: {kind}", path.display())))
}

/// Whether a file is plain text (or JSON), by its ending.
fn is_plain(path: &Path) -> Result<bool> {
    let ending = path
        .extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match ending.as_str() {
        "json" | "jsonl" | "ndjson" | "csv" | "parquet" => Ok(false),
        "txt" | "text" | "md" => Ok(true),
        _ => {
            let reason = format!(
                "cannot read a data file that ends in `{ending}`: expected .jsonl, .json, .csv, .parquet or .txt"
            );
            Err(Error::Invalid(format!("{}: {reason}", path.display())))
        }
    }
}

/// The file from after its UTF-8 byte order mark, if it has one.
fn without_mark(file: File) -> std::io::Result<Box<dyn BufRead + Send>> {
    let mut input = BufReader::new(file);
    let mut head = Vec::new();
    (&mut input).take(4).read_to_end(&mut head)?;
    if is_utf_16(&head) {
        let reason = "the file is UTF-16; save it as UTF-8";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3);
    }
    Ok(Box::new(std::io::Cursor::new(head).chain(input)))
}

/// Whether a text that begins so is UTF-16: by its byte order mark, or by zeros in every other place of the first two characters, as of
/// Latin letters and punctuation.
///
/// ```
/// use espalier_data::readers::is_utf_16;
/// assert!(is_utf_16(b"\xff\xfe{\0") && is_utf_16(b"{\0\"\0") && is_utf_16(b"\0{\0\""));
/// assert!(!is_utf_16(b"{\"te") && !is_utf_16(b""));
/// ```
pub fn is_utf_16(head: &[u8]) -> bool {
    let marked = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    let zeros = head
        .get(..4)
        .map(|head| [head[0], head[1], head[2], head[3]].map(|byte| byte == 0));
    marked
        || matches!(
            zeros,
            Some([false, true, false, true] | [true, false, true, false])
        )
}

impl Reader {
    /// The line of the file at which the last record began, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Columns of the records so far that say something and are not read, in quotes, with what was probably meant.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.values().map(String::as_str)
    }

    /// The form, once it is given or a record has shown it.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    fn read(&mut self, element: &Element) -> Result<Record, Problem> {
        let text = std::str::from_utf8(&element.bytes).map_err(|error| {
            format!(
                "invalid UTF-8 after {} bytes of the record",
                error.valid_up_to()
            )
        })?;
        if self.plain && self.wanted == Wanted::Verdicts {
            return Err("a plain text has no verdicts; give .jsonl"
                .to_string()
                .into());
        }
        if self.plain {
            return Ok(Record::Text {
                text: text.trim_end().to_string(),
            });
        }
        let map = object(text)?;
        if self.wanted == Wanted::Prompts {
            self.origin = map.clone();
        }
        let lacking = self.lacking(&map);
        let read = self.read_object(map);
        Ok(read.map_err(|reason| reason + &lacking)?)
    }

    fn read_object(&mut self, map: Map<String, Value>) -> Result<Record, String> {
        let mut map = self.rename(map);
        let verdict = match self.wanted {
            Wanted::Verdicts => verdict::take(&mut map)?,
            Wanted::Texts | Wanted::Pairs | Wanted::Prompts | Wanted::Labels => None,
        };
        let form = match self.form {
            Some(form) => form,
            None => *self.form.insert(Form::detect(&map, self.wanted)?),
        };
        let fields = Fields::new(form, map);
        let record = form.read(&fields)?;
        // What stands beside a prompt is for whoever scores its answers.
        let told = self.wanted != Wanted::Prompts && form != Form::Prompt;
        let unread = fields.unread().filter(|_| told);
        for (key, _) in unread {
            if !self.unread.contains_key(key) && self.unread.len() < MOST_UNREAD {
                self.unread.insert(key.to_owned(), fields.unread_name(key));
            }
        }
        match self.wanted {
            Wanted::Verdicts => verdict::judged(record, verdict),
            Wanted::Texts | Wanted::Pairs | Wanted::Prompts | Wanted::Labels => Ok(record),
        }
    }

    /// The renamed columns that a record lacks, for the error that it may be.
    fn lacking(&self, map: &Map<String, Value>) -> String {
        let lacks = |(ours, theirs): (&String, &String)| {
            let hint = suggestion(theirs, map.keys().map(String::as_str));
            format!("; `columns.{ours}` names the column `{theirs}`, which it lacks{hint}")
        };
        let columns = self.columns.iter();
        let absent = columns.filter(|(_, theirs)| !map.contains_key(*theirs));
        absent.map(lacks).collect()
    }

    /// Our names for the file's columns. A column that has one of these names itself is not read in place of the one that is named.
    fn rename(&mut self, mut map: Map<String, Value>) -> Map<String, Value> {
        let mut taken = Vec::with_capacity(self.columns.len());
        for (ours, theirs) in &self.columns {
            if let Some(value) = map.shift_remove(theirs) {
                self.unseen.remove(ours);
                taken.push((ours.clone(), value));
            }
        }
        for ours in self.columns.keys() {
            let value = map.shift_remove(ours);
            if value.is_some_and(|value| !fields::says_nothing(&value)) {
                self.unread.insert(ours.clone(), format!("`{ours}`"));
            }
        }
        map.extend(taken);
        map
    }
}

/// The most columns that are remembered as not read.
const MOST_UNREAD: usize = 12;

fn object(text: &str) -> Result<Map<String, Value>, Problem> {
    if text.starts_with('\u{feff}') {
        let reason = "a byte order mark before the record, as where files were joined; take it out";
        return Err(reason.to_string().into());
    }
    match serde_json::from_str(text) {
        Ok(Unambiguous(Value::Object(map))) => Ok(map),
        Ok(Unambiguous(other)) => Err(format!("expected an object, found {}", kind(&other)).into()),
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message);
            // A line is a record in jsonl; JSON that is laid out over several ends too early.
            let hint = match error.is_eof() && !text.contains('\n') {
                true => "; a record is one line, or an element of a list `[...]`",
                false => "",
            };
            let reason = format!("invalid JSON at column {column}: {message}{hint}");
            Err(Problem {
                offset: line.saturating_sub(1),
                reason,
            })
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let element = match self.elements.next()? {
            Ok(element) => element,
            Err(error) => {
                // A file that cannot be read would give the same error for ever.
                self.failed = matches!(error, Error::File { .. });
                return Some(Err(error));
            }
        };
        self.line = element.line;
        Some(
            self.read(&element)
                .map_err(|Problem { offset, reason }| Error::Record {
                    path: self.path.clone(),
                    line: element.line + offset,
                    reason,
                }),
        )
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("path", &self.path)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
