//! Loading a TOML document into any serde type, with errors that a person can act on.
//!
//! Every complaint names the file, the line and the column, shows the line with a caret, and offers the nearest valid
//! choice. Command-line overrides (`train.learning_rate=1e-4`) are set in the parsed document before it is read into its
//! type, so that they are checked exactly like the file; a complaint about one names the override instead of a line. Then
//! stages inherit what they do not say themselves.
//!
//! Left out: several errors at once (serde stops at the first), and comments (the document is read, never rewritten).

mod diagnosis;
pub(in crate::recipe) mod inheritance;
mod overrides;

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use diagnosis::Mismatch;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// The largest file that is read, in bytes: far above any document written by hand.
const LARGEST_FILE: u64 = 1 << 20;

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is too large to be a recipe.
    #[error("{}: larger than {LARGEST_FILE} bytes, so not a recipe; is this the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8 text.
    #[error("{}: not text: the byte at offset {offset} is not UTF-8; is this the right file?", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first wrong byte, from 0.
        offset: usize,
    },
    /// The document is malformed, or does not fit its type.
    #[error("{place}: {reason}{excerpt}")]
    Document {
        /// `file:line:column`, or only the file where the place is not known.
        place: String,
        /// What is wrong, what was expected, and the nearest valid choice.
        reason: String,
        /// The line with a caret below it, each on its own line after a line break; may be empty.
        excerpt: String,
    },
    /// An override is malformed, ambiguous, or does not fit the document's type.
    #[error("override `{text}`: {reason}")]
    Override {
        /// The override as it was given.
        text: String,
        /// What is wrong, what was expected, and the nearest valid choice.
        reason: String,
    },
}

/// Reads a TOML file, applies `key=value` overrides in order, and checks the result against `T`.
///
/// # Errors
/// [`RecipeError`] when the file cannot be read, or as for [`parse`].
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T, RecipeError> {
    load_checked(path, overrides, &|_| Ok(()))
}

/// As [`load`], and what `check` finds wrong is told with its place.
///
/// # Errors
/// As [`load`], and when `check` finds something.
pub fn load_checked<T: DeserializeOwned>(
    path: &Path,
    overrides: &[String],
    check: &dyn Fn(&T) -> Result<(), Complaint>,
) -> Result<T, RecipeError> {
    let text = read(path)?;
    parse_checked(&text, &path.display().to_string(), overrides, check)
}

/// What is wrong with a stage, though its keys are known and of the right types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The stage's name; one of a repetition ends in the number of its round.
    pub stage: String,
    /// What is wrong; the first words in backticks are the key that is at fault, where it is one.
    pub reason: String,
}

/// Parses TOML text, applies `key=value` overrides in order, and checks the result against `T`; `name` stands for the
/// text in messages.
///
/// A key is a dotted path (`stage.0.train.learning_rate`), or the end of one (`learning_rate`) that fits one place. A
/// value is TOML (`1e-4`, `true`, `[1, 2]`, `{a = 1}`, `"text"`), or else text as it stands.
///
/// ```
/// use espalier::recipe::document::parse;
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Training {
///     learning_rate: f64,
/// }
///
/// let training: Training = parse("learning_rate = 1e-3", "recipe.toml", &["learning_rate=5e-4".into()]).unwrap();
/// assert_eq!(training.learning_rate, 5e-4);
///
/// let error = parse::<Training>("learning_rte = 1e-3", "recipe.toml", &[]).err().unwrap();
/// assert!(error.to_string().starts_with("recipe.toml:1:1: unknown key `learning_rte`, did you mean `learning_rate`?"));
/// ```
///
/// # Errors
/// [`RecipeError`] when the text is not TOML, a key is unknown or missing, a value has the wrong type, or an override
/// has no single place.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    name: &str,
    overrides: &[String],
) -> Result<T, RecipeError> {
    parse_checked(text, name, overrides, &|_| Ok(()))
}

/// As [`parse`], and what `check` finds wrong is told with its place.
///
/// # Errors
/// As [`parse`], and when `check` finds something.
pub fn parse_checked<T: DeserializeOwned>(
    text: &str,
    name: &str,
    overrides: &[String],
    check: &dyn Fn(&T) -> Result<(), Complaint>,
) -> Result<T, RecipeError> {
    let mut below = vec![false; overrides.len()];
    let mut first: Option<Box<Mismatch>> = None;
    let source = Source {
        text,
        name,
        overrides,
    };
    loop {
        let (index, mismatch) = match source.attempt(&below, check)? {
            Ok(value) => return Ok(value),
            Err(refused) => refused,
        };
        match index {
            // A short key that the stage's own table does not know may be one of its options.
            Some(index) if !below[index] && mismatch.unknown.is_some() => {
                below[index] = true;
                first.get_or_insert(mismatch);
            }
            _ => {
                // The first complaint is the better one where it has a suggestion, or where there are no options at all.
                let no_options = mismatch
                    .unknown
                    .as_ref()
                    .is_some_and(|unknown| unknown.key == "options");
                let suggests =
                    |first: &Mismatch| first.unknown.as_ref().is_some_and(|unknown| unknown.near);
                let better = first.filter(|first| no_options || suggests(first));
                return Err(better.unwrap_or(mismatch).error);
            }
        }
    }
}

/// A value, or why there is none and which override is to blame.
type Attempt<T> = Result<T, (Option<usize>, Box<Mismatch>)>;

/// The document with the place of every value.
type Document<'t> = Spanned<DeValue<'t>>;

/// What was given.
#[derive(Clone, Copy)]
struct Source<'t> {
    text: &'t str,
    name: &'t str,
    overrides: &'t [String],
}

impl<'t> Source<'t> {
    /// Reads the document with its overrides, those marked in `below` one table deeper, in the stage's options.
    fn attempt<T: DeserializeOwned>(
        self,
        below: &[bool],
        check: &dyn Fn(&T) -> Result<(), Complaint>,
    ) -> Result<Attempt<T>, RecipeError> {
        let mut document = self.document(below)?;
        let defaults = inheritance::take_defaults(&mut document);
        if let Some(defaults) = &defaults {
            let probes = inheritance::probes(&document, defaults);
            for (kind, probe) in probes.map_err(|fault| self.refused(fault))? {
                match self.check::<T>(&probe) {
                    // What the defaults leave out, stages say.
                    Err((_, mismatch)) if mismatch.lacks_key_of(&format!("stage.{kind}")) => {}
                    Err(mismatch) => return Ok(Err(mismatch)),
                    Ok(_) => {}
                }
            }
        }
        let inherited = inheritance::apply(&mut document, defaults.as_ref());
        inherited.map_err(|fault| self.refused(fault))?;
        let value = self.check(&document);
        if let Ok(value) = &value {
            check(value).map_err(|complaint| self.complained(&complaint, &document))?;
        }
        Ok(value)
    }

    fn complained(self, complaint: &Complaint, document: &Document<'_>) -> RecipeError {
        diagnosis::complaint(complaint, document, self.text, self.name, self.overrides)
    }

    /// The text as a document, with its overrides.
    fn document(self, below: &[bool]) -> Result<Document<'t>, RecipeError> {
        let root = DeTable::parse(self.text)
            .map_err(|error| diagnosis::syntax(&error, self.text, self.name))?;
        let mut document = Spanned::new(root.span(), DeValue::Table(root.into_inner()));
        for (index, change) in self.overrides.iter().enumerate() {
            let span = override_span(self.text, index);
            overrides::apply(&mut document, change, span, below[index]).map_err(|reason| {
                RecipeError::Override {
                    text: change.clone(),
                    reason,
                }
            })?;
        }
        Ok(document)
    }

    /// Reads the document into its type.
    fn check<T: DeserializeOwned>(self, document: &Document<'_>) -> Attempt<T> {
        let Self {
            text,
            name,
            overrides,
        } = self;
        T::deserialize(ValueDeserializer::from(document.clone())).map_err(|error| {
            let blamed = (0..overrides.len())
                .find(|index| error.span() == Some(override_span(text, *index)));
            let mismatch = diagnosis::mismatch(&error, document, text, name, overrides);
            (blamed, Box::new(mismatch))
        })
    }

    fn refused(self, fault: inheritance::Fault) -> RecipeError {
        diagnosis::fault(fault, self.text, self.name, self.overrides)
    }
}

/// Reads a file that is small enough to be a recipe.
fn read(path: &Path) -> Result<String, RecipeError> {
    let file_error = |source| RecipeError::File {
        path: path.into(),
        source,
    };
    let file = std::fs::File::open(path).map_err(file_error)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(file_error)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(RecipeError::TooLarge { path: path.into() });
    }
    String::from_utf8(bytes).map_err(|error| RecipeError::NotText {
        path: path.into(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// The span that marks values set by an override: one position past the text for each.
fn override_span(text: &str, index: usize) -> Range<usize> {
    let position = text.len() + 1 + index;
    position..position
}

/// The override that a span made by [`override_span`] marks.
fn override_at<'a>(text: &str, span: &Range<usize>, overrides: &'a [String]) -> Option<&'a String> {
    overrides.get(span.start.checked_sub(text.len() + 1)?)
}

#[cfg(test)]
mod tests;
