//! Functions in Python that task files of lm-evaluation-harness name (`!function module.name`), as far as they are known here: by the
//! folder of the file and their name. All others are refused by name; nothing of Python is run.

use std::sync::LazyLock;

use fancy_regex::Regex;
use serde_json::{Value, json};

use super::prompt::plain_text;
use crate::{Error, Result};

/// What stands before the name of a function where a task file has one.
pub const MARK: &str = "!function ";

/// The name of a function, where a value is one.
pub fn name(value: &Value) -> Option<&str> {
    value.as_str()?.strip_prefix(MARK)
}

/// A function that changes the records of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeDocs {
    /// HellaSwag's: a query of label and contexts, endings without marks of their source.
    Hellaswag,
}

impl ChangeDocs {
    /// The function of a name in a task's folder.
    ///
    /// # Errors
    /// When it is not known.
    pub fn named(folder: &str, name: &str) -> Result<Self> {
        match (folder, name) {
            ("hellaswag", "utils.process_docs") => Ok(Self::Hellaswag),
            _ => Err(unknown("process_docs", folder, name)),
        }
    }

    /// The changed record.
    pub fn apply(self, mut doc: Value) -> Value {
        let text = |key: &str| doc.get(key).map(plain_text).unwrap_or_default();
        let query = hellaswag(&format!(
            "{}: {} {}",
            text("activity_label"),
            text("ctx_a"),
            capitalised(&text("ctx_b"))
        ));
        let endings = doc.get("endings").and_then(Value::as_array);
        let choices: Vec<String> = endings
            .into_iter()
            .flatten()
            .map(|ending| hellaswag(&plain_text(ending)))
            .collect();
        let gold = text("label").trim().parse::<i64>().ok();
        if let Some(map) = doc.as_object_mut() {
            map.insert("query".into(), query.into());
            map.insert("choices".into(), json!(choices));
            map.insert("gold".into(), json!(gold));
        }
        doc
    }
}

/// Python's `capitalize`.
fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    first + &characters.as_str().to_lowercase()
}

#[allow(clippy::unwrap_used, reason = "a constant, which the test reads")]
static BRACKETS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").unwrap());

fn hellaswag(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    BRACKETS.replace_all(&text, "").replace("  ", " ")
}

/// A function that makes a text of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakeText {
    /// WikiText's: words and punctuation as they were before they were taken apart.
    Wikitext,
    /// Winogrande's: the number of the right option.
    WinograndeNumber,
    /// Winogrande's: the sentence behind its gap.
    WinograndeRest,
    /// Winogrande's: the sentence up to its gap with each option in it.
    WinograndeOptions,
}

impl MakeText {
    /// The function of a name in a task's folder.
    ///
    /// # Errors
    /// When it is not known.
    pub fn named(key: &str, folder: &str, name: &str) -> Result<Self> {
        match (folder, name) {
            ("wikitext", "preprocess_wikitext.wikitext_detokenizer") => Ok(Self::Wikitext),
            ("winogrande", "preprocess_winogrande.doc_to_text") => Ok(Self::WinograndeNumber),
            ("winogrande", "preprocess_winogrande.doc_to_target") => Ok(Self::WinograndeRest),
            ("winogrande", "preprocess_winogrande.doc_to_choice") => Ok(Self::WinograndeOptions),
            _ => Err(unknown(key, folder, name)),
        }
    }

    /// The text, or what else takes its place; nothing where the record has not what it is made of.
    pub fn apply(self, doc: &Value) -> Value {
        let text = |key: &str| doc.get(key).map(plain_text).unwrap_or_default();
        let sentence = text("sentence");
        let gap = sentence.split_once('_');
        match (self, gap) {
            (Self::Wikitext, _) => wikitext(&text("page")).into(),
            (Self::WinograndeNumber, _) => match text("answer").as_str() {
                "1" => 0.into(),
                "2" => 1.into(),
                _ => Value::Null,
            },
            (Self::WinograndeRest, Some((_, rest))) => rest.trim().into(),
            (Self::WinograndeOptions, Some((before, _))) => {
                let options = ["option1", "option2"].map(|key| format!("{before}{}", text(key)));
                json!(options)
            }
            (_, None) => Value::Null,
        }
    }
}

/// The steps of the harness' detokenizer, in its order.
fn wikitext(page: &str) -> String {
    let replaced = |text: String, pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .fold(text, |text, (from, to)| text.replace(from, to))
    };
    let between = |text: String, pattern: &str, to: &str| match Regex::new(pattern) {
        Ok(regex) => regex.replace_all(&text, to).into_owned(),
        Err(_) => text,
    };
    let mut text = replaced(page.to_owned(), &[("s '", "s'")]);
    text = between(text, "/' [0-9]/", r"/'[0-9]/");
    text = replaced(
        text,
        &[
            (" @-@ ", "-"),
            (" @,@ ", ","),
            (" @.@ ", "."),
            (" : ", ": "),
            (" ; ", "; "),
            (" . ", ". "),
            (" ! ", "! "),
            (" ? ", "? "),
            (" , ", ", "),
        ],
    );
    for (pattern, to) in [
        (r"\(\s*([^\)]*?)\s*\)", "($1)"),
        (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
        (r"{\s*([^}]*?)\s*}", "{$1}"),
        (r#""\s*([^"]*?)\s*""#, "\"$1\""),
        (r"'\s*([^']*?)\s*'", "'$1'"),
    ] {
        text = between(text, pattern, to);
    }
    replaced(
        text,
        &[
            ("= = = =", "===="),
            ("= = =", "==="),
            ("= =", "=="),
            (" \u{b0} ", "\u{b0}"),
            (" \n", "\n"),
            ("\n ", "\n"),
            (" N ", " 1 "),
            (" 's", "'s"),
        ],
    )
}

/// Whether `process_results` of a task is known: WikiText's, which counts words and bytes of the page as it stands in the data.
///
/// # Errors
/// When it is not known.
pub fn counts_original(folder: &str, name: &str) -> Result<bool> {
    match (folder, name) {
        ("wikitext", "preprocess_wikitext.process_results") => Ok(true),
        _ => Err(unknown("process_results", folder, name)),
    }
}

/// A filter in Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustomFilter {
    /// HumanEval's: the program is the prompt and what was written behind it.
    Program,
}

impl CustomFilter {
    /// The filter of a function's name in a task's folder.
    ///
    /// # Errors
    /// When it is not known.
    pub fn named(folder: &str, value: &str) -> Result<Self> {
        let name = value.strip_prefix(MARK).unwrap_or(value);
        match (folder, name) {
            ("humaneval", "utils.build_predictions") => Ok(Self::Program),
            _ => Err(unknown("filter_fn", folder, name)),
        }
    }

    pub(super) fn apply(self, answer: &str, doc: &Value) -> Result<String> {
        let prompt = doc.get("prompt").and_then(Value::as_str);
        let prompt = prompt.ok_or_else(|| {
            Error::task("filter `utils.build_predictions` needs a text `prompt` in every record")
        })?;
        Ok(format!("{prompt}{answer}"))
    }
}

/// Whether a metric in Python is known: HumanEval's `pass_at_k`.
///
/// # Errors
/// When it is not.
pub fn runs_programs(folder: &str, name: &str) -> Result<bool> {
    match (folder, name) {
        ("humaneval", "utils.pass_at_k") => Ok(true),
        _ => Err(unknown("metric", folder, name)),
    }
}

/// An unknown function.
pub fn unknown(key: &str, folder: &str, name: &str) -> Error {
    let place = if folder.is_empty() {
        String::new()
    } else {
        format!(" of `{folder}`")
    };
    Error::task(format!(
        "`{key}: !function {name}`{place} is a function in Python, which is not run; write what it does as a template, or prepare the data with it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_is_prepared_as_the_harness_does() {
        let doc = json!({"activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
            "endings": ["is using [step] wrap [title] to  wrap.", "x"], "label": "1"});
        let doc = ChangeDocs::Hellaswag.apply(doc);
        assert_eq!(
            doc["query"],
            "Roof shingle removal: A man is sitting on a roof. He"
        );
        assert_eq!(doc["choices"][0], "is using wrap. to wrap.");
        assert_eq!(doc["gold"], 1);
    }

    #[test]
    fn wikitext_is_put_together() {
        let page = " = Robert = \n He was ( born ) in 1 @,@ 000 , \" there \" . \n It 's";
        assert_eq!(
            wikitext(page),
            " = Robert =\nHe was (born) in 1,000, \"there\".\nIt's"
        );
    }

    #[test]
    fn others_are_refused_by_name() {
        let error = ChangeDocs::named("mmlu", "utils.process_docs")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("utils.process_docs") && error.contains("mmlu"),
            "{error}"
        );
    }
}
