//! Exact match, after what is ignored is gone from both sides (Hugging Face's `evaluate`, `exact_match`).

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::{Error, Result, tasks::filter::regex};

/// Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// What is ignored when answers are compared.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    /// Expressions whose matches are removed.
    patterns: Vec<Regex>,
    case: bool,
    punctuation: bool,
    numbers: bool,
}

impl ExactMatch {
    /// The options of a metric's entry.
    ///
    /// # Errors
    /// When one is unknown or of the wrong type.
    pub fn parse(options: &Map<String, Value>) -> Result<Self> {
        let mut exact = Self::default();
        for (key, value) in options {
            let wrong = |expected: &str| {
                Error::task(format!(
                    "metric `exact_match`: `{key}`: {value} is not {expected}"
                ))
            };
            let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
            match key.as_str() {
                "ignore_case" => exact.case = flag()?,
                "ignore_punctuation" => exact.punctuation = flag()?,
                "ignore_numbers" => exact.numbers = flag()?,
                "regexes_to_ignore" => {
                    let list = value.as_array().ok_or_else(|| wrong("a list of texts"))?;
                    for entry in list {
                        let text = entry.as_str().ok_or_else(|| wrong("a list of texts"))?;
                        exact.patterns.push(regex(text)?);
                    }
                }
                _ => {
                    let known = [
                        "ignore_case",
                        "ignore_punctuation",
                        "ignore_numbers",
                        "regexes_to_ignore",
                    ];
                    let hint = espalier_data::nearest::suggestion(key, known);
                    return Err(Error::task(format!(
                        "metric `exact_match` has no option `{key}`{hint}"
                    )));
                }
            }
        }
        Ok(exact)
    }

    /// Whether an answer is one of the right ones.
    ///
    /// # Errors
    /// When an expression gives up.
    pub fn any(&self, answer: &str, gold: &[String]) -> Result<bool> {
        let answer = self.stripped(answer)?;
        for gold in gold {
            if self.stripped(gold)? == answer {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stripped(&self, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        for pattern in &self.patterns {
            let replaced = pattern.try_replacen(&text, 0, "");
            let replaced = replaced.map_err(|error| {
                Error::task(format!(
                    "the expression `{}` gave up: {error}",
                    pattern.as_str()
                ))
            })?;
            text = replaced.into_owned();
        }
        if self.case {
            text = text.to_lowercase();
        }
        if self.punctuation {
            text.retain(|c| !PUNCTUATION.contains(c));
        }
        if self.numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gsm8k_compares_numbers_alone() {
        let options = json!({"ignore_case": true, "ignore_punctuation": false,
            "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]});
        let exact = ExactMatch::parse(options.as_object().unwrap()).unwrap();
        let gold = ["She has 3.\nThat is all.\n#### 1,234".to_owned()];
        assert!(exact.any("$1234.", &gold).unwrap());
        assert!(!exact.any("1235", &gold).unwrap());
    }

    #[test]
    fn options_are_checked() {
        for (options, words) in [
            (json!({"ignore_cases": true}), "did you mean `ignore_case`"),
            (json!({"ignore_case": 1}), "not true or false"),
            (json!({"regexes_to_ignore": ["("]}), "expression `(`"),
        ] {
            let error = ExactMatch::parse(options.as_object().unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
