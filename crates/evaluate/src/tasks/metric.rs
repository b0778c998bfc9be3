//! Metrics: from a model's answers to the figures of an item, and from these to the task's.
//!
//! Names and conventions are lm-evaluation-harness' where it has them: `acc`, `acc_norm` (by characters), `acc_bytes`,
//! `acc_mutual_info`, `exact_match`, `brier_score`, `perplexity`, `word_perplexity`, `byte_perplexity`, `bits_per_byte`, `bypass`. Beside
//! them `f1` and `rouge1`, `rouge2`, `rougeL` compare words ([`overlap`]), `pass@k` runs programs ([`crate::code`]), and
//! `string_match_all`, `string_match_part` look for the right answers within a text, as RULER does. `bleu`, `chrf` and `ter` are sacrebleu's
//! ([`corpus`]), `mcc` and, of choices, `f1` scikit-learn's ([`classes`]); these are figures of all items together.
//!
//! Left out: metrics in Python.

mod bleu;
mod chrf;
pub mod classes;
pub mod corpus;
mod exact;
pub mod overlap;
mod ter;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Item, Request};
use crate::{Error, Result, code};
use corpus::{COUNTS, Corpus, Counts};
pub use exact::ExactMatch;

/// The metrics that can be named.
pub const METRICS: &[&str] = &[
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_mutual_info",
    "brier_score",
    "likelihood",
    "exact_match",
    "f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "pass@k",
    "string_match_all",
    "string_match_part",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "bypass",
    "bleu",
    "chrf",
    "ter",
    "mcc",
];

/// A function that marks an answer, from 0 to 1.
pub type Checker = Arc<dyn Fn(&Item, &str) -> Result<f64> + Send + Sync>;

/// What is measured of an item.
#[derive(Clone)]
pub enum Measure {
    /// Is the likeliest choice right; of a likelihood, is every token the model's first choice?
    Accuracy,
    /// The same, by likelihood for a character of the choice.
    AccuracyByCharacters,
    /// The same, by likelihood for a byte of the choice.
    AccuracyByBytes,
    /// The same, by what the prompt adds to the choice's likelihood.
    AccuracyByInformation,
    /// Squared distance of the choices' probabilities from the truth.
    Brier,
    /// Log-likelihood of the target.
    LogLikelihood,
    /// Is the answer the right one?
    ExactMatch(ExactMatch),
    /// Words in common with the right answer.
    F1,
    /// Sequences of so many words in common.
    Rouge(usize),
    /// Longest common sequence of words.
    RougeL,
    /// Counts from which a figure of the whole corpus is made.
    Corpus(Corpus),
    /// The right choice and the one that was made.
    Classes,
    /// Does one of `k` programs pass?
    Pass(usize),
    /// Share of the right answers that occur in the text.
    ContainsAll,
    /// Does one of the right answers occur in the text?
    ContainsAny,
    /// Log-likelihood of a whole text over its words.
    ByWords,
    /// Log-likelihood of a whole text over its bytes.
    ByBytes,
    /// A checker of the task's own.
    Checked(Checker),
    /// Nothing; answers are kept.
    Nothing,
}

/// How the task's figure comes of the items'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean.
    Mean,
    /// `exp` of the negative mean.
    Perplexity,
    /// `exp` of the negative quotient of sums.
    WeightedPerplexity,
    /// The negative quotient of sums, in bits.
    BitsPerByte,
    /// A figure of sums of counts.
    Corpus(Corpus),
    /// Matthews' correlation of right and chosen classes.
    Matthews,
    /// F1 of the class 1.
    F1OfOne,
}

/// What is measured, and how it is summed up.
#[derive(Clone)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// What is measured of an item.
    pub measure: Measure,
    /// How the task's figure comes of the items'.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl fmt::Debug for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Metric({}, {:?})", self.name, self.aggregation)
    }
}

impl Metric {
    /// The metric of a name with its usual aggregation; `pass@4` has its number in it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        use Measure as M;
        let measure = match name {
            "acc" => M::Accuracy,
            "acc_norm" => M::AccuracyByCharacters,
            "acc_bytes" => M::AccuracyByBytes,
            "acc_mutual_info" => M::AccuracyByInformation,
            "brier_score" => M::Brier,
            "likelihood" | "perplexity" => M::LogLikelihood,
            "exact_match" => M::ExactMatch(ExactMatch::default()),
            "f1" => M::F1,
            "rouge1" => M::Rouge(1),
            "rouge2" => M::Rouge(2),
            "rougeL" => M::RougeL,
            "string_match_all" => M::ContainsAll,
            "string_match_part" => M::ContainsAny,
            "word_perplexity" => M::ByWords,
            "byte_perplexity" | "bits_per_byte" => M::ByBytes,
            "bypass" => M::Nothing,
            "bleu" => M::Corpus(Corpus::Bleu),
            "chrf" => M::Corpus(Corpus::ChrF),
            "ter" => M::Corpus(Corpus::Ter),
            "mcc" => M::Classes,
            other => match other.strip_prefix("pass@").map(str::parse) {
                Some(Ok(k)) if k > 0 => M::Pass(k),
                _ => return Err(unknown(other)),
            },
        };
        let aggregation = match name {
            "perplexity" => Aggregation::Perplexity,
            "word_perplexity" | "byte_perplexity" => Aggregation::WeightedPerplexity,
            "bits_per_byte" => Aggregation::BitsPerByte,
            "bleu" => Aggregation::Corpus(Corpus::Bleu),
            "chrf" => Aggregation::Corpus(Corpus::ChrF),
            "ter" => Aggregation::Corpus(Corpus::Ter),
            "mcc" => Aggregation::Matthews,
            _ => Aggregation::Mean,
        };
        let lower = [
            "brier_score",
            "perplexity",
            "word_perplexity",
            "byte_perplexity",
            "bits_per_byte",
            "ter",
        ];
        Ok(Self {
            name: name.to_owned(),
            measure,
            aggregation,
            higher_is_better: !lower.contains(&name),
        })
    }

    /// A checker of a task's own, whose marks are averaged.
    pub fn checked(
        name: &str,
        checker: impl Fn(&Item, &str) -> Result<f64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            measure: Measure::Checked(Arc::new(checker)),
            aggregation: Aggregation::Mean,
            higher_is_better: true,
        }
    }

    /// The mark of an item, from what the model said of it; nothing where there is nothing to mark.
    ///
    /// # Errors
    /// When the metric does not fit the request, or a checker fails.
    pub fn mark(&self, item: &Item, answer: &Answer<'_>) -> Result<Option<Score>> {
        let misfit = || {
            Error::task(format!(
                "metric `{}` does not fit the `output_type` of the task",
                self.name
            ))
        };
        if matches!(self.measure, Measure::Nothing) {
            return Ok(None);
        }
        let score = match (&item.request, answer) {
            (Request::Likelihood { .. }, Answer::Likelihoods([found])) => match self.measure {
                Measure::Accuracy => Score::of(f64::from(u8::from(found.first_choice))),
                Measure::LogLikelihood => Score::of(found.log_probability),
                _ => return Err(misfit()),
            },
            (Request::Rolling { words, bytes, .. }, Answer::Likelihoods([found])) => {
                let weight = match self.measure {
                    Measure::ByWords => *words,
                    Measure::ByBytes => *bytes,
                    _ => return Err(misfit()),
                };
                Score {
                    weight: weight as f64,
                    ..Score::of(found.log_probability)
                }
            }
            (Request::Choice { choices, gold, .. }, Answer::Likelihoods(found))
                if matches!(self.measure, Measure::Classes) =>
            {
                Score::of_classes(gold, found.get(..choices.len()).ok_or_else(misfit)?)
            }
            (Request::Choice { choices, gold, .. }, Answer::Likelihoods(found)) => {
                Score::of(self.of_choices(choices, gold, found).ok_or_else(misfit)?)
            }
            (Request::Generate { gold, .. }, Answer::Texts(texts)) => {
                let text = texts.first().map_or("", String::as_str);
                if let Measure::Corpus(corpus) = self.measure {
                    return Ok(Some(corpus.mark(text, gold)));
                }
                Score::of(self.of_texts(item, gold, texts)?.ok_or_else(misfit)?)
            }
            _ => return Err(misfit()),
        };
        Ok(Some(score))
    }

    fn of_choices(&self, choices: &[String], gold: &[usize], found: &[Likelihood]) -> Option<f64> {
        let count = choices.len();
        let scores: Vec<f64> = found.iter().map(|found| found.log_probability).collect();
        let own = scores.get(..count)?;
        let right = |scores: &[f64]| f64::from(u8::from(gold.contains(&largest(scores))));
        let by = |length: fn(&str) -> usize| {
            let each = own.iter().zip(choices);
            right(
                &each
                    .map(|(score, choice)| score / length(choice) as f64)
                    .collect::<Vec<_>>(),
            )
        };
        Some(match self.measure {
            Measure::Accuracy => right(own),
            Measure::AccuracyByCharacters => by(|choice| choice.chars().count()),
            Measure::AccuracyByBytes => by(str::len),
            Measure::AccuracyByInformation => {
                let alone = scores.get(count..2 * count)?;
                right(
                    &own.iter()
                        .zip(alone)
                        .map(|(own, alone)| own - alone)
                        .collect::<Vec<_>>(),
                )
            }
            Measure::Brier => brier(own, gold),
            Measure::LogLikelihood => *own.get(*gold.first()?)?,
            Measure::ExactMatch(_) => {
                let first = |gold: &usize| found.get(*gold).is_some_and(|found| found.first_choice);
                f64::from(u8::from(gold.iter().any(first)))
            }
            _ => return None,
        })
    }

    fn of_texts(&self, item: &Item, gold: &[String], texts: &[String]) -> Result<Option<f64>> {
        let text = texts.first().map_or("", String::as_str);
        let best =
            |mark: &dyn Fn(&str) -> f64| gold.iter().map(|gold| mark(gold)).fold(0.0, f64::max);
        let within = |gold: &String| text.to_lowercase().contains(&gold.to_lowercase());
        Ok(Some(match &self.measure {
            Measure::ExactMatch(exact) => f64::from(u8::from(exact.any(text, gold)?)),
            Measure::F1 => best(&|gold| overlap::f1(text, gold)),
            Measure::Rouge(n) => best(&|gold| overlap::rouge(text, gold, *n)),
            Measure::RougeL => best(&|gold| overlap::rouge_l(text, gold)),
            Measure::ContainsAny => f64::from(u8::from(gold.iter().any(within))),
            Measure::ContainsAll => {
                gold.iter().filter(|gold| within(gold)).count() as f64 / gold.len().max(1) as f64
            }
            Measure::Pass(k) => code::pass_at(*k, texts, gold)?,
            Measure::Checked(checker) => checker(item, text)?,
            _ => return Ok(None),
        }))
    }

    /// The task's figure; nothing where no item has a mark.
    pub fn aggregate(&self, scores: &[Score]) -> Option<f64> {
        if scores.is_empty() {
            return None;
        }
        let sum: f64 = scores.iter().map(|score| score.value).sum();
        let weight: f64 = scores.iter().map(|score| score.weight).sum();
        let mean = sum / scores.len() as f64;
        Some(match self.aggregation {
            Aggregation::Mean => mean,
            Aggregation::Perplexity => (-mean).exp(),
            Aggregation::WeightedPerplexity => (-sum / weight).exp(),
            Aggregation::BitsPerByte => -sum / weight / std::f64::consts::LN_2,
            Aggregation::Corpus(corpus) => corpus.figure(scores),
            Aggregation::Matthews => classes::matthews(&pairs(scores)),
            Aggregation::F1OfOne => classes::f1_of_one(&pairs(scores)),
        })
    }

    /// Whether the mark of an item says that it is right or wrong.
    pub fn is_verdict(&self) -> bool {
        !matches!(
            self.measure,
            Measure::Brier
                | Measure::LogLikelihood
                | Measure::ByWords
                | Measure::ByBytes
                | Measure::Corpus(_)
                | Measure::Nothing
        )
    }
}

fn unknown(name: &str) -> Error {
    let hint = espalier_data::nearest::suggestion(name, METRICS.iter().copied());
    Error::task(format!(
        "metric `{name}` is not supported{hint}; supported are {}",
        METRICS.join(", ")
    ))
}

/// The mark of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The mark, or a sum of log-likelihoods.
    pub value: f64,
    /// What it is divided by, where sums are: words or bytes.
    pub weight: f64,
    /// What figures of a whole corpus are made of; zeros where there are none.
    pub counts: Counts,
}

impl Score {
    /// A mark that counts as much as any other.
    pub fn of(value: f64) -> Self {
        Self {
            value,
            weight: 1.0,
            counts: [0.0; COUNTS],
        }
    }

    /// Whether the likeliest choice is a right one, and which the first right one and that are.
    fn of_classes(gold: &[usize], found: &[Likelihood]) -> Self {
        let scores: Vec<f64> = found.iter().map(|found| found.log_probability).collect();
        let chosen = largest(&scores);
        let mut score = Self::of(f64::from(u8::from(gold.contains(&chosen))));
        score.counts[0] = gold.first().copied().unwrap_or(0) as f64;
        score.counts[1] = chosen as f64;
        score
    }
}

/// The right class and the chosen one of each mark.
fn pairs(scores: &[Score]) -> Vec<(usize, usize)> {
    let pair = |score: &Score| (score.counts[0] as usize, score.counts[1] as usize);
    scores.iter().map(pair).collect()
}

/// How likely a text is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Sum of the natural log-probabilities of its tokens.
    pub log_probability: f64,
    /// Whether each of its tokens is the model's first choice.
    pub first_choice: bool,
}

/// What a model said of an item.
#[derive(Debug, Clone, Copy)]
pub enum Answer<'a> {
    /// The likelihood of each text that was asked for.
    Likelihoods(&'a [Likelihood]),
    /// The filtered texts.
    Texts(&'a [String]),
}

/// The place of the largest, the first of equals.
fn largest(scores: &[f64]) -> usize {
    let better = |best: usize, at: usize| if scores[at] > scores[best] { at } else { best };
    (0..scores.len()).reduce(better).unwrap_or(0)
}

/// The squared distance of softmax from the first right choice.
fn brier(scores: &[f64], gold: &[usize]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let truth = |at: usize| f64::from(u8::from(gold.first() == Some(&at)));
    let each = weights.iter().enumerate();
    each.map(|(at, weight)| (weight / sum - truth(at)).powi(2))
        .sum()
}

/// Pieces between runs of white space, an empty one at either end included, as Python's `re.split(r"\s+", text)` counts them.
pub fn words(text: &str) -> usize {
    let mut runs = 0;
    let mut within = false;
    for character in text.chars() {
        let space = character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character);
        runs += usize::from(space && !within);
        within = space;
    }
    runs + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::Prompt;
    use serde_json::Value;

    fn choice(choices: &[&str], gold: &[usize]) -> Item {
        Item {
            number: 0,
            doc: Value::Null,
            request: Request::Choice {
                prompt: Prompt::plain("q"),
                contexts: Vec::new(),
                continuations: choices.iter().map(|choice| format!(" {choice}")).collect(),
                choices: choices.iter().map(|choice| (*choice).to_owned()).collect(),
                gold: gold.to_vec(),
                alone: false,
            },
        }
    }

    fn marks(name: &str, item: &Item, scores: &[f64]) -> f64 {
        let likelihood = |score: &f64| Likelihood {
            log_probability: *score,
            first_choice: false,
        };
        let found: Vec<_> = scores.iter().map(likelihood).collect();
        let metric = Metric::named(name).unwrap();
        metric
            .mark(item, &Answer::Likelihoods(&found))
            .unwrap()
            .unwrap()
            .value
    }

    #[test]
    fn length_normalises_by_characters() {
        let item = choice(&["ab", "abcdef"], &[0]);
        assert_eq!(marks("acc", &item, &[-4.0, -5.0]), 1.0);
        assert_eq!(marks("acc_norm", &item, &[-4.0, -5.0]), 0.0);
        let item = choice(&["ä", "ab"], &[0]);
        assert_eq!(marks("acc_norm", &item, &[-3.0, -4.0]), 0.0);
        assert_eq!(marks("acc_bytes", &item, &[-3.0, -4.0]), 1.0);
        assert_eq!(
            marks("acc_mutual_info", &item, &[-3.0, -4.0, -2.0, -9.0]),
            0.0
        );
    }

    #[test]
    fn ties_go_to_the_first_and_any_gold_will_do() {
        assert_eq!(marks("acc", &choice(&["a", "b"], &[1]), &[-1.0, -1.0]), 0.0);
        assert_eq!(
            marks("acc", &choice(&["a", "b"], &[1, 0]), &[-1.0, -1.0]),
            1.0
        );
        let even = marks("brier_score", &choice(&["a", "b"], &[1]), &[-1.0, -1.0]);
        assert!((even - 0.5).abs() < 1e-12);
    }

    #[test]
    fn words_are_counted_as_python_splits() {
        assert_eq!(words("a b  c"), 3);
        assert_eq!(words(" a "), 3);
        assert_eq!(words(""), 1);
    }

    #[test]
    fn sums_come_before_quotients() {
        let scores = [
            Score {
                weight: 2.0,
                ..Score::of(-10.0)
            },
            Score {
                weight: 4.0,
                ..Score::of(-2.0)
            },
        ];
        let figure = |name: &str| Metric::named(name).unwrap().aggregate(&scores).unwrap();
        assert!((figure("word_perplexity") - 2.0_f64.exp()).abs() < 1e-12);
        assert!((figure("bits_per_byte") - 2.0 / std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(Metric::named("acc").unwrap().aggregate(&[]), None);
    }

    #[test]
    fn a_metric_that_does_not_fit_is_an_error() {
        let found = [Likelihood {
            log_probability: -1.0,
            first_choice: true,
        }];
        let item = choice(&["a"], &[0]);
        let metric = Metric::named("rougeL").unwrap();
        let error = metric
            .mark(&item, &Answer::Likelihoods(&found))
            .unwrap_err();
        assert!(
            error.to_string().contains("`rougeL` does not fit"),
            "{error}"
        );
        let error = Metric::named("rouge").unwrap_err().to_string();
        assert!(error.contains("did you mean `rouge"), "{error}");
    }
}
