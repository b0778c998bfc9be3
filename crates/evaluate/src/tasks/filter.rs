//! Filters: from what a model wrote to the answer that is compared.
//!
//! Names and conventions are those of lm-evaluation-harness; expressions are Python's, as far as `fancy-regex` reads them.
//! Left out: `regex_pos`, `format_span` and filters in Python.

use std::collections::BTreeMap;

use fancy_regex::{Captures, Regex};
use serde_json::{Map, Value};

use super::functions::CustomFilter;
use crate::{Error, Result};

/// The filters that can be named.
pub const FILTERS: &[&str] = &[
    "regex",
    "multi_choice_regex",
    "remove_whitespace",
    "lowercase",
    "uppercase",
    "map",
    "take_first",
    "take_first_k",
    "majority_vote",
    "custom",
];

/// Filters that are applied one after the other.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Its name, which stands behind the metric's in results (`exact_match,strict-match`).
    pub name: String,
    /// The filters, in order.
    pub steps: Vec<Filter>,
}

impl Pipeline {
    /// The usual one: the first answer as it is.
    pub fn none() -> Self {
        Self {
            name: "none".into(),
            steps: vec![Filter::TakeFirst],
        }
    }

    /// The answers to an item, filtered.
    ///
    /// # Errors
    /// When an expression gives up on a text.
    pub fn apply(&self, answers: &[String], doc: &Value) -> Result<Vec<String>> {
        let start = answers.to_vec();
        self.steps
            .iter()
            .try_fold(start, |answers, step| step.apply(answers, doc))
    }
}

/// One filter.
#[derive(Debug, Clone)]
pub enum Filter {
    /// The part of the answer that an expression finds.
    Regex(Extract),
    /// A letter in parentheses: what an expression finds, or a choice of the record, or a letter behind a colon.
    MultiChoiceRegex(Extract, Ignored),
    /// White space at both ends goes.
    RemoveWhitespace,
    /// Small letters.
    Lowercase,
    /// Capital letters.
    Uppercase,
    /// One answer for another.
    Map {
        /// What stands for what.
        mapping: BTreeMap<String, String>,
        /// What stands for all else.
        default: String,
    },
    /// The first answer alone.
    TakeFirst,
    /// The first answers.
    TakeFirstK(usize),
    /// The most frequent answer, of equals the first.
    MajorityVote,
    /// A known one in Python.
    Custom(CustomFilter),
}

/// What an expression finds.
#[derive(Debug, Clone)]
pub struct Extract {
    pattern: Regex,
    /// Which of all matches, from the end where negative.
    select: i64,
    /// What stands for no match.
    fallback: String,
}

/// What is ignored when choices are looked for.
#[derive(Debug, Clone, Default)]
pub struct Ignored {
    case: bool,
    punctuation: bool,
    patterns: Vec<Regex>,
}

impl Filter {
    /// The filter that an entry of a `filter_list` describes, in a task's folder.
    ///
    /// # Errors
    /// When it is unknown or an option makes no sense.
    pub fn parse(entry: &Map<String, Value>, folder: &str) -> Result<Self> {
        let mut options = Options::new(entry)?;
        let filter = match options.name.as_str() {
            "regex" => Self::Regex(options.extract()?),
            "multi_choice_regex" => {
                let extract = options.extract()?;
                Self::MultiChoiceRegex(extract, options.ignored()?)
            }
            "remove_whitespace" => Self::RemoveWhitespace,
            "lowercase" => Self::Lowercase,
            "uppercase" => Self::Uppercase,
            "map" => options.map()?,
            "take_first" => Self::TakeFirst,
            "take_first_k" => Self::TakeFirstK(options.count()?),
            "majority_vote" => Self::MajorityVote,
            "custom" => Self::Custom(CustomFilter::named(
                folder,
                &options.text("filter_fn", "")?,
            )?),
            other => {
                let hint = espalier_data::nearest::suggestion(other, FILTERS.iter().copied());
                return Err(Error::task(format!(
                    "filter `{other}` is not supported{hint}; supported are {}",
                    FILTERS.join(", ")
                )));
            }
        };
        options.refuse_rest()?;
        Ok(filter)
    }

    fn apply(&self, answers: Vec<String>, doc: &Value) -> Result<Vec<String>> {
        let each = |change: &dyn Fn(&str) -> Result<String>| {
            answers.iter().map(|answer| change(answer)).collect()
        };
        match self {
            Self::Regex(extract) => each(&|answer| {
                let found = extract.find(&extract.pattern, answer)?;
                Ok(found.unwrap_or_else(|| extract.fallback.clone()))
            }),
            Self::MultiChoiceRegex(extract, ignored) => {
                let letters = Letters::of(doc, ignored)?;
                each(&|answer| letters.find(extract, ignored, answer))
            }
            Self::RemoveWhitespace => each(&|answer| Ok(answer.trim().to_owned())),
            Self::Lowercase => each(&|answer| Ok(answer.to_lowercase())),
            Self::Uppercase => each(&|answer| Ok(answer.to_uppercase())),
            Self::Map { mapping, default } => {
                each(&|answer| Ok(mapping.get(answer).unwrap_or(default).clone()))
            }
            Self::TakeFirst => Ok(answers.into_iter().take(1).collect()),
            Self::TakeFirstK(count) => Ok(answers.into_iter().take(*count).collect()),
            Self::MajorityVote => Ok(majority(&answers).into_iter().collect()),
            Self::Custom(custom) => each(&|answer| custom.apply(answer, doc)),
        }
    }
}

fn majority(answers: &[String]) -> Option<String> {
    let count = |answer: &String| answers.iter().filter(|other| *other == answer).count();
    // The last of the largest is the first in reverse.
    let most = answers.iter().rev().max_by_key(|answer| count(answer));
    most.cloned()
}

impl Extract {
    /// The selected one of all matches of a pattern; its first group that holds something, where it has groups.
    fn find(&self, pattern: &Regex, text: &str) -> Result<Option<String>> {
        let mut matches = Vec::new();
        for captures in pattern.captures_iter(text) {
            matches.push(groups(&captures.map_err(|error| gave_up(pattern, &error))?));
        }
        let place = match self.select < 0 {
            true => matches.len() as i64 + self.select,
            false => self.select,
        };
        let found = usize::try_from(place)
            .ok()
            .and_then(|place| matches.get(place));
        match found {
            None => Ok(None),
            Some(None) => Ok(Some(self.fallback.clone())),
            Some(Some(text)) => Ok(Some(text.trim().to_owned())),
        }
    }
}

/// What Python's `findall` gives for a match, of several groups the first that holds something.
fn groups(captures: &Captures) -> Option<String> {
    let group = |number| captures.get(number).map_or("", |found| found.as_str());
    match captures.len() {
        1 => Some(group(0).to_owned()),
        2 => Some(group(1).to_owned()),
        count => (1..count)
            .map(group)
            .find(|text| !text.is_empty())
            .map(str::to_owned),
    }
}

fn gave_up(pattern: &Regex, error: &fancy_regex::Error) -> Error {
    Error::task(format!(
        "the expression `{}` gave up: {error}",
        pattern.as_str()
    ))
}

/// A Python expression.
///
/// # Errors
/// When it cannot be read.
pub fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| Error::task(format!("expression `{pattern}`: {error}")))
}

/// The choices of a record, and the letters that stand for them.
struct Letters {
    choices: Vec<(String, String)>,
    any: Regex,
    behind_colon: Regex,
}

impl Letters {
    fn of(doc: &Value, ignored: &Ignored) -> Result<Self> {
        let choices = doc
            .get("choices")
            .and_then(Value::as_array)
            .ok_or_else(|| {
                Error::task("filter `multi_choice_regex` needs a list `choices` in every record")
            })?;
        let letter = |number: usize| char::from(b'A' + (number % 26) as u8).to_string();
        let named = |(number, choice): (usize, &Value)| {
            let text = super::prompt::plain_text(choice);
            Ok((ignored.strip(text.trim())?, format!("({})", letter(number))))
        };
        let choices: Vec<_> = choices
            .iter()
            .enumerate()
            .map(named)
            .collect::<Result<_>>()?;
        let any: Vec<_> = choices
            .iter()
            .map(|(text, _)| fancy_regex::escape(text))
            .collect();
        let letters: Vec<String> = (0..choices.len()).map(letter).collect();
        Ok(Self {
            any: regex(&any.join("|"))?,
            behind_colon: regex(&format!(r":[\s]*({})", letters.join("|")))?,
            choices,
        })
    }

    fn find(&self, extract: &Extract, ignored: &Ignored, answer: &str) -> Result<String> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(found) = some(extract.find(&extract.pattern, answer)?) {
            return Ok(found);
        }
        if let Some(text) = some(extract.find(&self.any, &ignored.strip(answer)?)?) {
            let letter = self
                .choices
                .iter()
                .rev()
                .find(|(choice, _)| *choice == text);
            return Ok(letter.map_or(text, |(_, letter)| letter.clone()));
        }
        Ok(some(extract.find(&self.behind_colon, answer)?)
            .map_or_else(|| extract.fallback.clone(), |letter| format!("({letter})")))
    }
}

impl Ignored {
    fn strip(&self, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        for pattern in &self.patterns {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.case {
            text = text.to_lowercase();
        }
        if self.punctuation {
            text.retain(|c| c.is_alphanumeric() || c.is_whitespace() || "$+<=>^`|~".contains(c));
        }
        Ok(text)
    }
}

/// The options of a filter, as they are taken.
struct Options<'a> {
    name: String,
    entry: &'a Map<String, Value>,
    taken: Vec<&'static str>,
}

impl<'a> Options<'a> {
    fn new(entry: &'a Map<String, Value>) -> Result<Self> {
        let name = entry.get("function").and_then(Value::as_str);
        let name = name.ok_or_else(|| Error::task("a filter has no `function`"))?;
        Ok(Self {
            name: name.to_owned(),
            entry,
            taken: vec!["function"],
        })
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.taken.push(key);
        self.entry.get(key)
    }

    fn text(&mut self, key: &'static str, usual: &str) -> Result<String> {
        match self.take(key) {
            None => Ok(usual.to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    fn extract(&mut self) -> Result<Extract> {
        let pattern = self.text("regex_pattern", r"#### (\-?[0-9\.\,]+)")?;
        let select = match self.take("group_select") {
            None => 0,
            Some(value) => value
                .as_i64()
                .ok_or_else(|| self.wrong("group_select", value, "a whole number"))?,
        };
        Ok(Extract {
            pattern: regex(&pattern)?,
            select,
            fallback: self.text("fallback", "[invalid]")?,
        })
    }

    fn flag(&mut self, key: &'static str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    fn ignored(&mut self) -> Result<Ignored> {
        let patterns = match self.take("regexes_to_ignore") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => value
                .as_array()
                .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
                .ok_or_else(|| self.wrong("regexes_to_ignore", value, "a list of texts"))?,
        };
        Ok(Ignored {
            case: self.flag("ignore_case")?,
            punctuation: self.flag("ignore_punctuation")?,
            patterns: patterns.into_iter().map(regex).collect::<Result<_>>()?,
        })
    }

    fn map(&mut self) -> Result<Filter> {
        let mapping = match self.take("mapping_dict") {
            Some(Value::Object(map)) => map
                .iter()
                .map(|(key, value)| (key.clone(), super::prompt::plain_text(value)))
                .collect(),
            other => {
                let found = other.unwrap_or(&Value::Null);
                return Err(self.wrong("mapping_dict", found, "a table"));
            }
        };
        let default = self.take("default_value").map(super::prompt::plain_text);
        Ok(Filter::Map {
            mapping,
            default: default.unwrap_or_default(),
        })
    }

    fn count(&mut self) -> Result<usize> {
        let value = self.take("k").unwrap_or(&Value::Null);
        let count = value.as_u64().filter(|count| *count > 0);
        let count = count.and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| self.wrong("k", value, "a number from 1"))
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::task(format!(
            "filter `{}`: `{key}`: {found} is not {expected}",
            self.name
        ))
    }

    fn refuse_rest(&self) -> Result<()> {
        let unknown = self
            .entry
            .keys()
            .find(|key| !self.taken.contains(&key.as_str()));
        match unknown {
            None => Ok(()),
            Some(key) => Err(Error::task(format!(
                "filter `{}` has no option `{key}`{}",
                self.name,
                espalier_data::nearest::suggestion(key, self.taken.iter().copied())
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filtered(entry: Value, answers: &[&str], doc: Value) -> Vec<String> {
        let filter = Filter::parse(entry.as_object().unwrap(), "").unwrap();
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        filter.apply(answers, &doc).unwrap()
    }

    #[test]
    fn numbers_are_extracted_as_gsm8k_does() {
        let strict = json!({"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"});
        let flexible = json!({"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"});
        let answers = ["3 + 4 = 7\n#### 7 and 8", "It is $1,234.", "none"];
        assert_eq!(
            filtered(strict, &answers, json!({})),
            ["7", "[invalid]", "[invalid]"]
        );
        assert_eq!(
            filtered(flexible, &answers, json!({})),
            ["8", "$1,234.", "[invalid]"]
        );
    }

    #[test]
    fn answers_are_chosen_among_several() {
        let vote = json!({"function": "majority_vote"});
        assert_eq!(filtered(vote, &["b", "a", "a", "b"], json!({})), ["b"]);
        let two = json!({"function": "take_first_k", "k": 2});
        assert_eq!(filtered(two, &["c", "a", "b"], json!({})), ["c", "a"]);
    }

    #[test]
    fn letters_are_found_in_three_ways() {
        let filter = json!({"function": "multi_choice_regex", "regex_pattern": "(\\([A-Z]\\))",
            "ignore_case": true, "ignore_punctuation": true, "group_select": 0});
        let doc = json!({"choices": ["Red.", "Blue"]});
        let answers = ["So (B).", "it is BLUE", "Answer: A", "hm"];
        assert_eq!(
            filtered(filter, &answers, doc),
            ["(B)", "(B)", "(A)", "[invalid]"]
        );
    }

    #[test]
    fn what_is_unknown_is_named() {
        for (entry, words) in [
            (json!({"function": "regexp"}), "did you mean `regex`"),
            (
                json!({"function": "regex", "pattern": "a"}),
                "no option `pattern`",
            ),
            (
                json!({"function": "regex", "regex_pattern": "("}),
                "expression `(`",
            ),
            (
                json!({"function": "custom", "filter_fn": "!function utils.other"}),
                "utils.other",
            ),
        ] {
            let error = Filter::parse(entry.as_object().unwrap(), "")
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
