//! Diagnosis: turning serde's and the parser's terse complaints into a sentence with a place, a caret and a suggestion.
//!
//! Serde hands over its findings as English text only, so the texts of `serde::de::Error` and of the `toml` crate are
//! taken apart here. A text that is not known passes through unchanged: nothing but polish depends on this.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeValue, Error};

use espalier_data::nearest::nearest;

use super::{Complaint, RecipeError, inheritance::Fault, override_at};

/// The longest piece of a line that is shown, in characters.
const WIDEST_EXCERPT: usize = 110;

/// The text is not TOML.
pub(super) fn syntax(error: &Error, text: &str, name: &str) -> RecipeError {
    located(one_line(error.message()), error.span(), text, name)
}

/// A document that does not fit its type.
pub(super) struct Mismatch {
    /// What the user is told.
    pub error: RecipeError,
    /// The key that the type does not have, where that is the fault.
    pub unknown: Option<UnknownKey>,
    /// The table that lacks a key, where that is the fault.
    lacking: Option<String>,
}

impl Mismatch {
    /// Whether all that is wrong is a key that this table lacks.
    pub fn lacks_key_of(&self, table: &str) -> bool {
        self.lacking.as_deref() == Some(table)
    }
}

/// What inheritance found.
pub(super) fn fault(fault: Fault, text: &str, name: &str, overrides: &[String]) -> RecipeError {
    placed(fault.reason, Some(fault.span), text, name, overrides)
}

/// What is wrong with a stage, at the key that is at fault, else at the stage's name.
pub(super) fn complaint(
    complaint: &Complaint,
    document: &Spanned<DeValue<'_>>,
    text: &str,
    name: &str,
    overrides: &[String],
) -> RecipeError {
    let Complaint { stage, reason } = complaint;
    let key = reason.split('`').nth(1).unwrap_or_default();
    let key = key.rsplit('.').next().unwrap_or_default();
    let table = document
        .get_ref()
        .get("stage")
        .and_then(|stages| stage_of(stages, stage));
    let place = |table| {
        let entry = entry_of(table, key).or_else(|| entry_of(table, "name"))?;
        let (key, value) = entry;
        // Of what an override set, the value alone is marked.
        Some(match value.start > text.len() {
            true => value,
            false => key,
        })
    };
    let reason = format!("stage `{stage}`: {reason}");
    placed(reason, table.and_then(place), text, name, overrides)
}

/// The table of a stage by its name; the stages of a repetition are found by their own names.
fn stage_of<'v, 'd>(
    stages: &'v Spanned<DeValue<'d>>,
    name: &str,
) -> Option<&'v Spanned<DeValue<'d>>> {
    let named = |table: &DeValue<'_>, name: &str| {
        table.get("name").and_then(|own| own.get_ref().as_str()) == Some(name)
    };
    let round =
        |(name, number): (&str, &str)| number.parse::<u64>().is_ok().then(|| name.to_owned());
    let of_round = name.rsplit_once('-').and_then(round);
    for stage in stages.get_ref().as_array()? {
        let table = stage.get_ref();
        if named(table, name) {
            return Some(stage);
        }
        let inner = table
            .get("repeat")
            .and_then(|repeat| repeat.get_ref().get("stage"));
        let inner = inner.and_then(|stages| stages.get_ref().as_array());
        let found = inner.into_iter().flatten().find(|stage| {
            of_round
                .as_ref()
                .is_some_and(|name| named(stage.get_ref(), name))
        });
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The places of a key and of its value in a table or below it, the nearest first.
fn entry_of(value: &Spanned<DeValue<'_>>, key: &str) -> Option<(Range<usize>, Range<usize>)> {
    let mut level = vec![value];
    while !level.is_empty() {
        let mut below = Vec::new();
        for value in level {
            match value.get_ref() {
                DeValue::Table(entries) => {
                    for (name, child) in entries {
                        if name.get_ref() == key {
                            return Some((name.span(), child.span()));
                        }
                        below.push(child);
                    }
                }
                DeValue::Array(elements) => below.extend(elements.iter()),
                _ => {}
            }
        }
        level = below;
    }
    None
}

/// A message that names the override which is to blame, or else the place.
fn placed(
    reason: String,
    span: Option<Range<usize>>,
    text: &str,
    name: &str,
    overrides: &[String],
) -> RecipeError {
    let change = span
        .as_ref()
        .and_then(|span| override_at(text, span, overrides));
    match change {
        Some(change) => RecipeError::Override {
            text: change.clone(),
            reason,
        },
        None => located(reason, span, text, name),
    }
}

/// A key that a type does not have.
pub(super) struct UnknownKey {
    /// The key.
    pub key: String,
    /// Whether the type has a key much like it.
    pub near: bool,
}

/// The document does not fit the type.
pub(super) fn mismatch(
    error: &Error,
    document: &Spanned<DeValue<'_>>,
    text: &str,
    name: &str,
    overrides: &[String],
) -> Mismatch {
    let finding = Finding::of(error);
    let unknown = finding.unknown_key();
    let span = finding
        .wrong_key()
        .and_then(|key| key_span(document, key, error.span()?))
        .or(error.span());
    let lacking = match &finding {
        Finding::MissingKey(_, table) => Some(table.clone()),
        _ => None,
    };
    Mismatch {
        error: placed(finding.to_string(), span, text, name, overrides),
        unknown,
        lacking,
    }
}

/// What serde found.
enum Finding {
    /// A key that the type does not have, and those that it has.
    UnknownKey(String, Vec<String>),
    /// A value that is none of an enumeration's, at a key, and those that are.
    UnknownValue(String, String, Vec<String>),
    /// A key that the type requires, and the table that lacks it.
    MissingKey(String, String),
    /// A key, what its value has to be, and what it is.
    WrongType(String, String, String),
    /// Anything else, in its own words, at a key that may be empty.
    Other(String, String),
}

impl Finding {
    fn of(error: &Error) -> Self {
        let (message, path) = (error.message(), key_path(error));
        let key = path.rsplit('.').next().unwrap_or_default().to_string();
        if let Some((wrong, known)) = unknown(message, "field") {
            Self::UnknownKey(wrong, known)
        } else if let Some((wrong, known)) = unexpected_keys(message) {
            Self::UnknownKey(wrong, known)
        } else if let Some((wrong, known)) = unknown(message, "variant") {
            Self::UnknownValue(wrong, key, known)
        } else if let Some(missing) = message
            .strip_prefix("missing field `")
            .and_then(|m| m.strip_suffix('`'))
        {
            Self::MissingKey(missing.into(), path)
        } else if let Some((found, expected)) = wrong_type(message) {
            Self::WrongType(key, expected, found)
        } else {
            Self::Other(one_line(message), key)
        }
    }

    fn unknown_key(&self) -> Option<UnknownKey> {
        match self {
            Self::UnknownKey(key, known) => {
                let near = nearest(key, known.iter().map(String::as_str)).is_some();
                Some(UnknownKey {
                    key: key.clone(),
                    near,
                })
            }
            _ => None,
        }
    }

    /// The key in the document that is at fault, where the fault is a key.
    fn wrong_key(&self) -> Option<&str> {
        match self {
            Self::UnknownKey(key, _) => Some(key),
            _ => None,
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownKey(wrong, known) => write!(
                out,
                "unknown key `{wrong}`{}",
                choices(wrong, known, "keys")
            ),
            Self::UnknownValue(wrong, key, known) if key.is_empty() => {
                write!(
                    out,
                    "unknown value `{wrong}`{}",
                    choices(wrong, known, "values")
                )
            }
            Self::UnknownValue(wrong, key, known) => {
                write!(
                    out,
                    "unknown value `{wrong}` for `{key}`{}",
                    choices(wrong, known, "values")
                )
            }
            Self::MissingKey(key, table) if table.is_empty() => write!(out, "missing key `{key}`"),
            Self::MissingKey(key, table) => write!(out, "missing key `{key}` in `{table}`"),
            Self::WrongType(key, expected, found) if key.is_empty() => {
                write!(out, "expected {expected}, found {found}")
            }
            Self::WrongType(key, expected, found) => {
                write!(out, "`{key}` expects {expected}, found {found}")
            }
            Self::Other(message, key) if key.is_empty() => write!(out, "{message}"),
            Self::Other(message, key) => write!(out, "`{key}`: {message}"),
        }
    }
}

/// The nearest choice and all of them.
fn choices(wrong: &str, known: &[String], kind: &str) -> String {
    if known.is_empty() {
        return format!("; no {kind} are known here");
    }
    let all = known
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ");
    match nearest(wrong, known.iter().map(String::as_str)) {
        Some(near) => format!(", did you mean `{near}`? known {kind}: {all}"),
        None => format!("; known {kind}: {all}"),
    }
}

/// Takes apart serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown(message: &str, kind: &str) -> Option<(String, Vec<String>)> {
    let rest = message
        .strip_prefix("unknown ")?
        .strip_prefix(kind)?
        .strip_prefix(" `")?;
    let (wrong, known) = match rest.rsplit_once("`, expected ") {
        Some(parts) => parts,
        None => (rest.rsplit_once("`, there are no ")?.0, ""),
    };
    Some((
        wrong.into(),
        known
            .split('`')
            .skip(1)
            .step_by(2)
            .map(String::from)
            .collect(),
    ))
}

/// Takes apart the parser's "unexpected keys in table: x, y, available keys: a, b" (variants with named fields).
fn unexpected_keys(message: &str) -> Option<(String, Vec<String>)> {
    let (wrong, known) = message
        .strip_prefix("unexpected keys in table: ")?
        .rsplit_once(", available keys: ")?;
    let words = |list: &str| {
        list.split(", ")
            .filter(|word| !word.is_empty())
            .map(String::from)
            .collect::<Vec<_>>()
    };
    Some((words(wrong).into_iter().next()?, words(known)))
}

/// Takes apart serde's "invalid type: found, expected something" into what was found and what was expected.
fn wrong_type(message: &str) -> Option<(String, String)> {
    if message == "wanted string or table" {
        return Some(("neither".into(), "a text or a table".into()));
    }
    if message.starts_with("wanted exactly 1 element") {
        let found = if message.contains("found 0") {
            "none"
        } else {
            "several"
        };
        return Some((found.into(), "a table with exactly one key".into()));
    }
    let rest = ["type", "value", "length"].iter().find_map(|kind| {
        message
            .strip_prefix("invalid ")
            .and_then(|rest| rest.strip_prefix(kind))
            .and_then(|rest| rest.strip_prefix(": "))
    })?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    Some((
        one_line(&found_words(found)),
        one_line(&expected_words(expected)),
    ))
}

fn expected_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a string" => "a text in quotes".into(),
        "a sequence" => "a list `[...]`".into(),
        "a map" => "a table `{...}`".into(),
        other if other.starts_with("struct ") => "a table `{...}`".into(),
        other => other.into(),
    }
}

fn found_words(found: &str) -> String {
    match found {
        "map" => "a table".into(),
        "sequence" => "a list".into(),
        other => ["string ", "integer ", "floating point ", "boolean "]
            .iter()
            .find_map(|kind| other.strip_prefix(kind))
            .map_or_else(
                || other.into(),
                |value| match value
                    .strip_suffix(" as i128")
                    .or(value.strip_suffix(" as u128"))
                {
                    Some(large) => format!("{large}, which is too large"),
                    None => format!("`{}`", value.trim_matches('`')),
                },
            ),
    }
}

/// The dotted keys down to the fault; the library tells them only as the last line of its own message.
fn key_path(error: &Error) -> String {
    let full = error.to_string();
    let after = full
        .rfind("\nin `")
        .map_or("", |start| &full[start + "\nin `".len()..]);
    after.trim_end().trim_end_matches('`').to_string()
}

/// The place of a key in the table at `table`; serde knows only the table where it buffers a tagged enumeration.
fn key_span(value: &Spanned<DeValue<'_>>, key: &str, table: Range<usize>) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(entries) => {
            let own = || {
                entries
                    .iter()
                    .map(|(name, _)| name)
                    .find(|name| name.get_ref() == key)
            };
            let here = (value.span() == table).then(own).flatten();
            here.map(Spanned::span).or_else(|| {
                entries
                    .iter()
                    .find_map(|(_, child)| key_span(child, key, table.clone()))
            })
        }
        DeValue::Array(elements) => elements
            .iter()
            .find_map(|child| key_span(child, key, table.clone())),
        _ => None,
    }
}

/// A message with the place and the line of a span in the text.
fn located(reason: String, span: Option<Range<usize>>, text: &str, name: &str) -> RecipeError {
    let Some((span, before)) =
        span.and_then(|span| text.get(..span.start).map(|before| (span, before)))
    else {
        return RecipeError::Document {
            place: name.into(),
            reason,
            excerpt: String::new(),
        };
    };
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let (line, column) = (
        before.matches('\n').count() + 1,
        before[start..].chars().count(),
    );
    let source = text[start..].lines().next().unwrap_or_default();
    let width = text.get(span).map_or(1, |faulty| {
        faulty.lines().next().unwrap_or_default().chars().count()
    });
    RecipeError::Document {
        place: format!("{name}:{line}:{}", column + 1),
        reason,
        excerpt: excerpt(source, line, column, width),
    }
}

/// The line and, below, carets under the fault; of a long line only the part around it.
fn excerpt(source: &str, line: usize, column: usize, width: usize) -> String {
    let skipped = if source.chars().count() > WIDEST_EXCERPT {
        column.saturating_sub(WIDEST_EXCERPT / 3)
    } else {
        0
    };
    let shown: String = source
        .chars()
        .skip(skipped)
        .take(WIDEST_EXCERPT)
        .map(printable)
        .collect();
    if shown.trim().is_empty() {
        return String::new();
    }
    let (indent, number) = (column - skipped, line.to_string());
    let carets = "^".repeat(
        width
            .min(shown.chars().count().saturating_sub(indent))
            .max(1),
    );
    let gutter = " ".repeat(number.len());
    format!(
        "\n  {number} | {}\n  {gutter} | {}{carets}",
        shown.trim_end(),
        " ".repeat(indent)
    )
}

/// One column on the terminal for each character, so that the carets stand below the fault.
fn printable(character: char) -> char {
    if character.is_control() {
        ' '
    } else {
        character
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
