//! VaL probing: does a model find what stands at any place of a long context?
//!
//! An and others, "Make Your LLM Fully Utilize the Context" (arXiv 2404.16811). A context is a list of pieces: sentences, of which
//! some words are given and the whole is asked for (looking both ways); functions, of which a line is given and the name is
//! asked for (looking back); entities, of which the identifier is given and the label or description is asked for (looking
//! forward). Every place is asked about, and the figures are the mean over spans of places and the gap between the best and the
//! worst span.
//!
//! Pieces are the authors' files, or made up ([`pieces`]). Questions are in words of our own, for the authors' prompts are not
//! among their files; all places of a span count, where the authors' program leaves the last out.

pub mod pieces;

use espalier_data::random::Random;
use serde_json::{Value, json};

use crate::{Error, Result, ruler::Count};
use pieces::{Piece, Pieces};

/// Tokens that an answer may take; the published number.
pub const ANSWER_TOKENS: usize = 128;

/// The three tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Sentences, from words within.
    Document,
    /// Names of functions, from a line after them.
    Code,
    /// Labels of entities, from the identifier before them.
    Database,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Document, Self::Code, Self::Database];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Document => "document",
            Self::Code => "code",
            Self::Database => "database",
        }
    }

    fn question(self, keyword: &str) -> String {
        match self {
            Self::Document => {
                format!(
                    "Which sentence contains the words \"{keyword}\"? Write the whole sentence."
                )
            }
            Self::Code => {
                format!(
                    "In which function does the line \"{keyword}\" stand? Write the name of the function."
                )
            }
            Self::Database => {
                format!("What are the label and the description of the entity {keyword}?")
            }
        }
    }

    /// The score of an answer, from 0 to 1: the share of the sentence's words, or whether the name, label or description occurs.
    pub fn score(self, answer: &str, expected: &[String]) -> f64 {
        let found = |text: &String| match self {
            Self::Code => answer.contains(text.trim_matches('.')),
            _ => answer
                .to_lowercase()
                .contains(&text.trim_matches('.').to_lowercase()),
        };
        match self {
            Self::Document => expected.first().map_or(0.0, |gold| recall(answer, gold)),
            _ => f64::from(u8::from(expected.iter().any(found))),
        }
    }
}

/// Share of the different words of `gold` that occur in `answer`, whatever their case.
fn recall(answer: &str, gold: &str) -> f64 {
    let words = |text: &str| -> std::collections::HashSet<String> {
        let text = text.to_lowercase();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let (answer, gold) = (words(answer), words(gold));
    gold.intersection(&answer).count() as f64 / gold.len().max(1) as f64
}

/// How prompts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Tokens of prompt and answer together.
    pub length: usize,
    /// Spans into which places are put together; the published number is 16.
    pub spans: usize,
    /// Contexts, of other pieces each; the published number is 4.
    pub sets: usize,
    /// Places of each span and set that are asked about, evenly spread; all where there are fewer.
    pub each: usize,
    /// The seed.
    pub seed: u64,
}

impl Options {
    /// Sixteen spans of four contexts of a length, and one place of each.
    pub fn new(length: usize) -> Self {
        Self {
            length,
            spans: 16,
            sets: 4,
            each: 1,
            seed: 0,
        }
    }
}

/// A question about one place of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// What the answer should say: a sentence, a name, or a label and a description.
    pub expected: Vec<String>,
    /// The piece that is asked about, from 0.
    pub position: usize,
    /// The context's number.
    pub set: usize,
    /// The span of the position.
    pub span: usize,
    /// Tokens of prompt and answer.
    pub length: usize,
}

impl Sample {
    /// The line of a data file, with the authors' names.
    pub fn to_json(&self) -> Value {
        json!({
            "prompt": self.prompt,
            "completion": self.expected,
            "position_id": self.position,
            "set_id": self.set,
            "span": self.span,
            "length": self.length,
        })
    }
}

/// The prompt as the paper trains and asks; a chat template puts its own marks around it.
fn prompt(context: &str, question: &str) -> String {
    format!(
        "Below is a context and an instruction. Based on the information provided in the context, write a response for the instruction.\n\n### Context:\n{context}\n\n### Instruction:\n{question}"
    )
}

/// Questions about every span of several contexts. Pieces whose keyword stands more than once in the context are not asked about.
///
/// ```
/// use espalier_evaluate::val_probe::{Options, Task, pieces::Pieces, samples};
/// let words = |text: &str| Ok(text.split_whitespace().count());
/// let samples = samples(Task::Code, &Options::new(1024), &Pieces::generated(), &words)?;
/// assert!(samples.iter().all(|sample| sample.length <= 1024 && sample.span < 16));
/// # Ok::<(), espalier_evaluate::Error>(())
/// ```
///
/// # Errors
/// When the length holds fewer pieces than there are spans, or the authors' pieces are not there.
pub fn samples(
    task: Task,
    options: &Options,
    pieces: &Pieces,
    count: Count,
) -> Result<Vec<Sample>> {
    let pieces = pieces.of(task)?;
    let mut samples = Vec::new();
    for set in 0..options.sets {
        let mut random = Random::named(&format!("val|{}|{}|{set}", task.name(), options.seed));
        let mut order: Vec<&Piece> = pieces.iter().collect();
        random.shuffle(&mut order);
        let fitting = fitting(task, &order, options, count)?;
        let context: Vec<&str> = order[..fitting]
            .iter()
            .map(|piece| piece.text.as_str())
            .collect();
        let context = context.join(pieces::separator(task));
        for (position, span) in places(fitting, options) {
            let piece = order[position];
            if context.matches(&piece.keyword).count() != 1 {
                continue;
            }
            let prompt = prompt(&context, &task.question(&piece.keyword));
            let length = count(&prompt)? + ANSWER_TOKENS;
            if length <= options.length {
                samples.push(Sample {
                    prompt,
                    expected: piece.expected.clone(),
                    position,
                    set,
                    span,
                    length,
                });
            }
        }
    }
    Ok(samples)
}

/// Places to be asked about, with their spans.
fn places(pieces: usize, options: &Options) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for span in 0..options.spans {
        let (start, end) = (
            span * pieces / options.spans,
            (span + 1) * pieces / options.spans,
        );
        let each = options.each.min(end - start);
        places.extend((0..each).map(|k| (start + (2 * k + 1) * (end - start) / (2 * each), span)));
    }
    places
}

/// How many pieces fit beside any of their questions.
fn fitting(task: Task, pieces: &[&Piece], options: &Options, count: Count) -> Result<usize> {
    let longest = pieces.iter().map(|piece| piece.keyword.as_str());
    let longest = longest
        .max_by_key(|keyword| keyword.len())
        .unwrap_or_default();
    let fits = |number: usize| {
        let context: Vec<&str> = pieces[..number]
            .iter()
            .map(|piece| piece.text.as_str())
            .collect();
        let prompt = prompt(
            &context.join(pieces::separator(task)),
            &task.question(longest),
        );
        Ok::<bool, Error>(count(&prompt)? + ANSWER_TOKENS <= options.length)
    };
    let (mut low, mut high) = (0, pieces.len());
    while low < high {
        let middle = (low + high).div_ceil(2);
        match fits(middle)? {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    if low < options.spans {
        return Err(Error::Val(format!(
            "{}: {low} pieces fit in {} tokens, of which {ANSWER_TOKENS} are the answer's, and there are {} spans; take a greater length or fewer spans",
            task.name(),
            options.length,
            options.spans
        )));
    }
    Ok(low)
}

/// Scores by span, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// The mean of each span over the contexts' means; not a number where nothing was asked.
    pub spans: Vec<f64>,
}

impl Profile {
    /// The profile of scores with their spans and contexts.
    ///
    /// ```
    /// use espalier_evaluate::val_probe::Profile;
    /// let profile = Profile::new(2, &[(0, 0, 1.0), (0, 1, 0.0), (0, 1, 0.0), (1, 0, 1.0)]);
    /// assert_eq!((profile.spans.as_slice(), profile.average(), profile.gap()), (&[0.5, 1.0][..], 0.75, 0.5));
    /// ```
    pub fn new(spans: usize, scores: &[(usize, usize, f64)]) -> Self {
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
        let sets = scores.iter().map(|(_, set, _)| set + 1).max().unwrap_or(0);
        let of = |span: usize, set: usize| -> Vec<f64> {
            let own = scores.iter().filter(|(s, c, _)| (*s, *c) == (span, set));
            own.map(|(_, _, score)| *score).collect()
        };
        let span = |span: usize| {
            let sets = (0..sets).map(|set| of(span, set));
            let means: Vec<f64> = sets
                .filter(|own| !own.is_empty())
                .map(|own| mean(&own))
                .collect();
            mean(&means)
        };
        Self {
            spans: (0..spans).map(span).collect(),
        }
    }

    fn measured(&self) -> impl Iterator<Item = f64> + '_ {
        self.spans.iter().copied().filter(|score| score.is_finite())
    }

    /// The mean over spans.
    pub fn average(&self) -> f64 {
        self.measured().sum::<f64>() / self.measured().count() as f64
    }

    /// The best span minus the worst.
    pub fn gap(&self) -> f64 {
        self.measured().fold(f64::NEG_INFINITY, f64::max)
            - self.measured().fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarter(text: &str) -> Result<usize> {
        Ok(text.len().div_ceil(4))
    }

    #[test]
    fn every_span_is_asked_about_and_its_answer_stands_there() {
        for task in Task::ALL {
            for length in [2048, 16_384] {
                let options = Options::new(length);
                let pieces = Pieces::generated();
                let samples = samples(task, &options, &pieces, &quarter).unwrap();
                let spans: std::collections::HashSet<usize> =
                    samples.iter().map(|sample| sample.span).collect();
                assert_eq!(spans.len(), 16, "{} at {length}", task.name());
                let mut scores = Vec::new();
                for sample in &samples {
                    assert!(sample.length <= length && sample.length + 300 > length);
                    let start = sample.prompt.find("### Context").unwrap();
                    let context =
                        &sample.prompt[start..sample.prompt.rfind("### Instruction").unwrap()];
                    let place = context.find(&sample.expected[0]).unwrap() as f64;
                    let place = place / context.len() as f64 * 16.0 - sample.span as f64;
                    assert!((-1.0..2.0).contains(&place), "{place}");
                    let answer = format!("It is {}", sample.expected[0]);
                    assert_eq!(task.score(&answer, &sample.expected), 1.0);
                    assert!(task.score("nothing of the kind", &sample.expected) < 0.2);
                    scores.push((sample.span, sample.set, 1.0));
                }
                let profile = Profile::new(16, &scores);
                assert_eq!((profile.average(), profile.gap()), (1.0, 0.0));
            }
        }
    }

    #[test]
    fn answers_are_scored_as_published() {
        let expected = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            Task::Document.score("the CAT ran", &expected(&["The cat sat the mat"])),
            0.5
        );
        assert_eq!(Task::Code.score("def Get_x(", &expected(&["get_x"])), 0.0);
        assert_eq!(Task::Code.score("get_x()", &expected(&[".get_x"])), 1.0);
        let entity = expected(&["Oslo.", "capital of Norway"]);
        assert_eq!(Task::Database.score("It is OSLO", &entity), 1.0);
        assert_eq!(Task::Database.score("the Capital of Norway", &entity), 1.0);
        assert_eq!(Task::Database.score("Bergen", &entity), 0.0);
    }

    #[test]
    fn a_length_without_room_is_told() {
        let complaint = samples(
            Task::Code,
            &Options::new(256),
            &Pieces::generated(),
            &quarter,
        );
        let complaint = complaint.unwrap_err().to_string();
        assert!(complaint.contains("take a greater length"), "{complaint}");
        let absent = Pieces::folder(std::path::Path::new("absent"));
        let complaint = absent.of(Task::Code).unwrap_err().to_string();
        assert!(complaint.contains("code_functions.jsonl"), "{complaint}");
    }
}
