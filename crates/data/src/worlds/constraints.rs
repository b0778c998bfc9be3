//! Checkable constraints on an answer, with the names and arguments of IFEval (2311.07911).
//!
//! Words and sentences are counted by simple patterns, not by IFEval's trained splitter, so counts can differ from its
//! reference scorer in text with abbreviations. Only the constraints that the worlds use are here.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Item;

/// How a count is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// `>=`.
    #[serde(rename = "at least")]
    AtLeast,
    /// `<`.
    #[serde(rename = "less than")]
    LessThan,
}

impl Relation {
    fn holds(self, count: usize, bound: usize) -> bool {
        match self {
            Self::AtLeast => count >= bound,
            Self::LessThan => count < bound,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::AtLeast => "at least",
            Self::LessThan => "less than",
        }
    }
}

/// A constraint that a program can check.
///
/// ```
/// use espalier_data::worlds::constraints::Constraint;
/// let constraint = Constraint::EndPhrase { end_phrase: "The end.".into() };
/// assert_eq!(constraint.instruction(), "End with the phrase The end.");
/// assert!(constraint.holds("\"It rained. THE END.\""));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "id", content = "kwargs")]
pub enum Constraint {
    /// Number of words.
    #[serde(rename = "length_constraints:number_words")]
    Words {
        /// How to compare.
        relation: Relation,
        /// The bound.
        num_words: usize,
    },
    /// Number of sentences.
    #[serde(rename = "length_constraints:number_sentences")]
    Sentences {
        /// How to compare.
        relation: Relation,
        /// The bound.
        num_sentences: usize,
    },
    /// All of these words.
    #[serde(rename = "keywords:existence")]
    Existence {
        /// The words.
        keywords: Vec<String>,
    },
    /// None of these words.
    #[serde(rename = "keywords:forbidden_words")]
    Forbidden {
        /// The words.
        forbidden_words: Vec<String>,
    },
    /// No comma anywhere.
    #[serde(rename = "punctuation:no_comma")]
    NoComma {},
    /// A phrase at the end, whatever its case and closing quotes.
    #[serde(rename = "startend:end_checker")]
    EndPhrase {
        /// The phrase.
        end_phrase: String,
    },
    /// Exactly so many lines that start with `* `.
    #[serde(rename = "detectable_format:number_bullet_lists")]
    Bullets {
        /// How many.
        num_bullets: usize,
    },
    /// Double quotes around the whole.
    #[serde(rename = "startend:quotation")]
    Quotation {},
    /// No upper-case letter.
    #[serde(rename = "change_case:english_lowercase")]
    Lowercase {},
    /// No lower-case letter.
    #[serde(rename = "change_case:english_capital")]
    Uppercase {},
}

impl Constraint {
    /// The sentence that asks for it.
    pub fn instruction(&self) -> String {
        match self {
            Self::Words {
                relation,
                num_words,
            } => format!("Use {} {num_words} words.", relation.words()),
            Self::Sentences {
                relation,
                num_sentences,
            } => {
                format!("Write {} {num_sentences} sentences.", relation.words())
            }
            Self::Existence { keywords } if keywords.len() == 1 => {
                format!("Include the word {}.", keywords[0])
            }
            Self::Existence { keywords } => {
                format!("Include the words {}.", keywords.join(" and "))
            }
            Self::Forbidden { forbidden_words } => {
                format!("Do not use the words {}.", forbidden_words.join(" and "))
            }
            Self::NoComma {} => "Do not use any commas.".into(),
            Self::EndPhrase { end_phrase } => format!("End with the phrase {end_phrase}"),
            Self::Bullets { num_bullets } => {
                format!("Use exactly {num_bullets} bullet points that start with * .")
            }
            Self::Quotation {} => "Wrap the whole answer in double quotes.".into(),
            Self::Lowercase {} => "Use only lowercase letters.".into(),
            Self::Uppercase {} => "Use only capital letters.".into(),
        }
    }

    /// Whether the text satisfies it. Empty text satisfies nothing.
    pub fn holds(&self, text: &str) -> bool {
        !text.trim().is_empty()
            && match self {
                Self::Words {
                    relation,
                    num_words,
                } => relation.holds(words(text).count(), *num_words),
                Self::Sentences {
                    relation,
                    num_sentences,
                } => relation.holds(count_sentences(text), *num_sentences),
                Self::Existence { keywords } => keywords.iter().all(|word| has_word(text, word)),
                Self::Forbidden { forbidden_words } => {
                    !forbidden_words.iter().any(|word| has_word(text, word))
                }
                Self::NoComma {} => !text.contains(','),
                Self::EndPhrase { end_phrase } => ends_with(text, end_phrase),
                Self::Bullets { num_bullets } => count_bullets(text) == *num_bullets,
                Self::Quotation {} => {
                    text.trim().len() > 1
                        && text.trim().starts_with('"')
                        && text.trim().ends_with('"')
                }
                Self::Lowercase {} => text == text.to_lowercase(),
                Self::Uppercase {} => text == text.to_uppercase(),
            }
    }

    /// IFEval's name, such as `punctuation:no_comma`.
    pub fn id(&self) -> String {
        self.part("id").as_str().unwrap_or_default().to_string()
    }

    /// IFEval's arguments.
    pub fn kwargs(&self) -> Value {
        self.part("kwargs")
    }

    fn part(&self, name: &str) -> Value {
        serde_json::to_value(self)
            .map(|mut value| value[name].take())
            .unwrap_or_default()
    }
}

/// Words: runs of ASCII letters, digits and apostrophes.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '\'')
        .filter(|word| !word.is_empty())
}

/// Whether `word` occurs as a whole word, in any case.
pub fn has_word(text: &str, word: &str) -> bool {
    words(text).any(|other| other.eq_ignore_ascii_case(word))
}

/// Sentence ends: `.`, `!` or `?` before white space, a double quote or the end.
pub fn count_sentences(text: &str) -> usize {
    let ends = text
        .char_indices()
        .filter(|(_, letter)| matches!(letter, '.' | '!' | '?'));
    ends.filter(|(at, _)| {
        text[at + 1..]
            .chars()
            .next()
            .is_none_or(|next| next.is_whitespace() || next == '"')
    })
    .count()
}

fn count_bullets(text: &str) -> usize {
    text.lines()
        .filter(|line| line.trim_start().starts_with("* "))
        .count()
}

fn ends_with(text: &str, phrase: &str) -> bool {
    text.trim()
        .trim_matches('"')
        .to_lowercase()
        .ends_with(&phrase.to_lowercase())
}

/// The two fields of a record that carry its constraints.
pub(super) fn to_fields(constraints: &[Constraint]) -> Map<String, Value> {
    let ids: Vec<String> = constraints.iter().map(Constraint::id).collect();
    let kwargs: Vec<Value> = constraints.iter().map(Constraint::kwargs).collect();
    Map::from_iter([
        ("instruction_id_list".to_string(), json!(ids)),
        ("kwargs".to_string(), json!(kwargs)),
    ])
}

/// The constraints of an item, from its `instruction_id_list` and `kwargs`; unknown ones are left out.
pub fn of(item: &Item) -> Vec<Constraint> {
    let list = |name| {
        item.fields
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let pairs = list("instruction_id_list").zip(list("kwargs"));
    pairs
        .filter_map(|(id, kwargs)| serde_json::from_value(json!({"id": id, "kwargs": kwargs})).ok())
        .collect()
}

/// Which constraints the output satisfies as it stands.
pub fn strict(constraints: &[Constraint], output: &str) -> Vec<bool> {
    constraints
        .iter()
        .map(|constraint| constraint.holds(output))
        .collect()
}

/// Which constraints any of eight variants satisfies: without the first line, the last line or both, each with and without
/// asterisks. Forgives "Sure, here it is:" and bold type.
pub fn loose(constraints: &[Constraint], output: &str) -> Vec<bool> {
    let lines: Vec<&str> = output.split('\n').collect();
    let cut = |from: usize, to: usize| {
        lines
            .get(from..to.max(from))
            .unwrap_or_default()
            .join("\n")
            .trim()
            .to_string()
    };
    let count = lines.len();
    let mut variants = vec![
        output.to_string(),
        cut(1, count),
        cut(0, count - 1),
        cut(1, count - 1),
    ];
    variants.extend(
        variants
            .clone()
            .iter()
            .map(|variant| variant.replace('*', "")),
    );
    constraints
        .iter()
        .map(|constraint| variants.iter().any(|variant| constraint.holds(variant)))
        .collect()
}

/// Shares of prompts and of single instructions that were followed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accuracy {
    /// Share of answers that satisfy all their constraints.
    pub prompt: f64,
    /// Share of constraints that are satisfied.
    pub instruction: f64,
}

/// Accuracy over the results of [`strict`] or [`loose`], one list an answer.
pub fn accuracy(results: &[Vec<bool>]) -> Accuracy {
    let prompts = results
        .iter()
        .filter(|result| result.iter().all(|held| *held))
        .count();
    let instructions = results.iter().flatten().filter(|held| **held).count();
    let share = |count: usize, total: usize| count as f64 / total.max(1) as f64;
    Accuracy {
        prompt: share(prompts, results.len()),
        instruction: share(instructions, results.iter().map(Vec::len).sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        assert_eq!(words("\"Don't stop,\" he said. 42!").count(), 5);
        assert_eq!(count_sentences("It is 3.5 m. \"Go!\" Yes? no."), 4);
        assert_eq!(count_bullets("* a\n  * b\n*c\n- d"), 2);
    }

    #[test]
    fn each_checker_can_fail() {
        let holds = |constraint: &Constraint, yes: &str, no: &str| {
            assert!(constraint.holds(yes), "{constraint:?} {yes}");
            assert!(!constraint.holds(no), "{constraint:?} {no}");
            assert!(!constraint.holds(" \n"), "{constraint:?} on nothing");
        };
        holds(
            &Constraint::Words {
                relation: Relation::AtLeast,
                num_words: 2,
            },
            "a b",
            "a",
        );
        holds(
            &Constraint::Words {
                relation: Relation::LessThan,
                num_words: 2,
            },
            "a",
            "a b",
        );
        holds(
            &Constraint::Sentences {
                relation: Relation::AtLeast,
                num_sentences: 2,
            },
            "a. b.",
            "a. b",
        );
        holds(
            &Constraint::Existence {
                keywords: vec!["box".into()],
            },
            "A BOX.",
            "boxes",
        );
        holds(
            &Constraint::Forbidden {
                forbidden_words: vec!["box".into()],
            },
            "boxes",
            "a Box",
        );
        holds(&Constraint::NoComma {}, "a b", "a, b");
        holds(
            &Constraint::EndPhrase {
                end_phrase: "The end.".into(),
            },
            "a. the end.\"",
            "The end. a",
        );
        holds(&Constraint::Bullets { num_bullets: 1 }, "* a", "a");
        holds(&Constraint::Quotation {}, " \"a\" ", "\"");
        holds(&Constraint::Lowercase {}, "a 1", "A 1");
        holds(&Constraint::Uppercase {}, "A 1", "a 1");
    }

    #[test]
    fn loose_forgives_an_opening_line_and_asterisks() {
        let constraints = [Constraint::Lowercase {}, Constraint::Quotation {}];
        assert_eq!(strict(&constraints, "Sure:\n\"yes\""), [false, false]);
        assert_eq!(loose(&constraints, "Sure:\n\"yes\""), [true, true]);
        assert_eq!(loose(&constraints, "*\"yes\"*"), [true, true]);
        assert_eq!(loose(&constraints, ""), [false, false]);
        assert_eq!(loose(&constraints, "Yes"), [false, false]);
    }

    #[test]
    fn accuracy_by_prompt_and_by_instruction() {
        let accuracy = accuracy(&[vec![true, true], vec![true, false]]);
        assert_eq!((accuracy.prompt, accuracy.instruction), (0.5, 0.75));
    }

    #[test]
    fn the_form_of_ifeval() {
        let constraint = Constraint::Words {
            relation: Relation::LessThan,
            num_words: 9,
        };
        assert_eq!(constraint.id(), "length_constraints:number_words");
        assert_eq!(
            constraint.kwargs(),
            json!({"relation": "less than", "num_words": 9})
        );
        assert_eq!(Constraint::NoComma {}.kwargs(), json!({}));
    }
}
