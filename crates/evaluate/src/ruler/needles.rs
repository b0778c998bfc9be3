//! Needles in haystacks: sentences that give keys their values, hidden in repeated sentences, in essays, or among others of their kind.

use std::sync::LazyLock;

use regex::Regex;

use super::fit::{Draw, Drawn, Search, fitted, numbered, three_times};
use super::python_random::PythonRandom;
use super::sources::Sources;
use super::words::pairs;
use super::{Count, Options, Sample, Task, fill};
use crate::Result;

const TEMPLATE: &str = "Some special magic {type} are hidden within the following text. Make sure to memorize it. I will quiz you about the {type} afterwards.\n{context}\nWhat are all the special magic {type} for {query} mentioned in the provided text?";
const PREFIX: &str = " The special magic {type} for {query} mentioned in the provided text are";
const NEEDLE: &str = "One of the special magic {type} for {key} is: {value}.";

/// A sentence that means nothing, repeated.
pub(super) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// Depths at which needles stand in essays, between 0 and 100.
const DEPTHS: usize = 40;

/// What surrounds the needles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haystack {
    /// One sentence, repeated.
    Noise,
    /// Essays.
    Essay,
    /// Other needles.
    Needles,
}

/// What keys and values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// Numbers of seven digits.
    Numbers,
    /// An adjective and a noun.
    Words,
    /// Identifiers of 36 characters.
    Uuids,
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::Numbers => "numbers",
            Self::Words => "words",
            Self::Uuids => "uuids",
        }
    }

    fn draw(self, random: &mut PythonRandom) -> String {
        match self {
            Self::Numbers => random.range(1_000_000, 9_999_999).to_string(),
            Self::Words => {
                let place = random.below(pairs().count());
                pairs().at(place).unwrap_or_default()
            }
            Self::Uuids => uuid(random.bits_128()),
        }
    }
}

/// A version-4 identifier of these bits, as Python's `uuid.UUID` prints it.
fn uuid(bits: u128) -> String {
    let bits = (bits & !(0xc000u128 << 48)) | (0x8000 << 48);
    let bits = (bits & !(0xf000u128 << 64)) | (4 << 76);
    let digits = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits[part].to_owned());
    parts.join("-")
}

/// What is hidden.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NeedleOptions {
    /// What surrounds the needles.
    pub haystack: Haystack,
    /// What keys are.
    pub key: Text,
    /// What values are.
    pub value: Text,
    /// Keys; at least as many as queries are hidden.
    pub keys: usize,
    /// Values of each key.
    pub values: usize,
    /// Keys that are asked for.
    pub queries: usize,
    /// A fixed depth in percent, of a single needle in essays, in place of one that is drawn.
    pub depth: Option<f64>,
}

struct Needles<'a> {
    options: NeedleOptions,
    random: PythonRandom,
    seed: u64,
    essay: Vec<String>,
    template: &'a [String; 2],
}

pub(super) fn samples(
    task: &Task,
    needle: NeedleOptions,
    options: &Options,
    sources: &Sources,
    count: Count,
) -> Result<Vec<Sample>> {
    let essay = match needle.haystack {
        Haystack::Essay => sources.essay()?,
        _ => Vec::new(),
    };
    let mut generator = Needles {
        options: NeedleOptions {
            keys: needle.keys.max(needle.queries),
            ..needle
        },
        random: PythonRandom::new(options.seed),
        seed: options.seed,
        essay,
        template: &options.template,
    };
    let step = match needle.haystack {
        Haystack::Essay => 500,
        _ if options.length < 4096 => 5,
        _ => 25,
    };
    let search = Search {
        step,
        probe: step,
        largest: three_times,
        extra: 0,
        answer: task.answer_tokens,
        first: 0,
    };
    let drawn = fitted(task, &mut generator, &search, options, count)?;
    numbered(drawn, true, count)
}

impl Needles<'_> {
    fn needle(&self, key: &str, value: &str) -> String {
        let slots = [
            ("type", self.options.value.name()),
            ("key", key),
            ("value", value),
        ];
        fill(NEEDLE, &slots)
    }

    /// Keys with their values.
    fn pairs(&mut self) -> Vec<(String, Vec<String>)> {
        let NeedleOptions {
            key, value, values, ..
        } = self.options;
        let pair = |random: &mut PythonRandom| {
            let key = key.draw(random);
            (key, (0..values).map(|_| value.draw(random)).collect())
        };
        (0..self.options.keys)
            .map(|_| pair(&mut self.random))
            .collect()
    }

    fn context(&mut self, size: usize, needles: &[String]) -> Option<String> {
        if self.options.haystack == Haystack::Essay {
            let text = repeated(&self.essay, size);
            return self.in_sentences(&sentences(&text), needles);
        }
        let mut lines: Vec<String> = match self.options.haystack {
            Haystack::Noise => vec![NOISE.to_owned(); size],
            _ => (0..size).map(|_| self.distractor()).collect(),
        };
        let mut places = self.random.sample(size, needles.len())?;
        places.sort_unstable_by(|a, b| b.cmp(a));
        for (place, needle) in places.into_iter().zip(needles) {
            lines.insert(place, needle.clone());
        }
        Some(lines.join("\n"))
    }

    fn distractor(&mut self) -> String {
        let key = self.options.key.draw(&mut self.random);
        let value = self.options.value.draw(&mut self.random);
        self.needle(&key, &value)
    }

    fn in_sentences(&mut self, sentences: &[&str], needles: &[String]) -> Option<String> {
        let mut places: Vec<usize> = match self.options.depth {
            Some(depth) => vec![at_depth(sentences.len(), depth)],
            None => {
                let drawn = self.random.sample(DEPTHS, needles.len())?;
                let depth =
                    |step: usize| (step as f64 * (100.0 / (DEPTHS - 1) as f64)).round_ties_even();
                drawn
                    .into_iter()
                    .map(|step| at_depth(sentences.len(), depth(step)))
                    .collect()
            }
        };
        places.sort_unstable();
        let mut parts = Vec::with_capacity(2 * needles.len() + 1);
        let mut start = 0;
        for (place, needle) in places.into_iter().zip(needles) {
            parts.push(sentences[start..place].join(" "));
            parts.push(needle.clone());
            start = place;
        }
        parts.push(sentences[start..].join(" "));
        Some(parts.join(" "))
    }
}

fn at_depth(sentences: usize, depth: f64) -> usize {
    (sentences as f64 * (depth / 100.0)) as usize
}

impl Draw for Needles<'_> {
    fn draw(&mut self, size: usize, _: usize) -> Option<Drawn> {
        let pairs = self.pairs();
        let mut needles: Vec<String> = pairs
            .iter()
            .flat_map(|(key, values)| values.iter().map(|value| self.needle(key, value)))
            .collect();
        PythonRandom::new(self.seed).shuffle(&mut needles);
        let context = self.context(size, &needles)?;
        let asked = self.random.sample(pairs.len(), self.options.queries)?;
        let query = listed(asked.iter().map(|place| pairs[*place].0.as_str()));
        let outputs = asked.iter().flat_map(|place| pairs[*place].1.clone());
        let outputs: Vec<String> = outputs.collect();
        let single = self.options.queries * self.options.values == 1;
        let name = self.options.value.name();
        let slots = [
            (
                "type",
                if single {
                    &name[..name.len() - 1]
                } else {
                    name
                },
            ),
            ("context", &context),
            ("query", &query),
        ];
        let filled = |template: &str| match single {
            true => fill(&singular(template), &slots),
            false => fill(template, &slots),
        };
        let [before, after] = self.template;
        Some(Drawn {
            input: format!("{before}{}{after}", filled(TEMPLATE)),
            prefix: filled(PREFIX),
            outputs,
        })
    }
}

/// A template that asks for one value.
fn singular(template: &str) -> String {
    let template = template.replace("Some", "A").replace("are all", "is");
    template.replace("are", "is")
}

/// `a`, or `a, b, and c`.
fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    match words.as_slice() {
        [words @ .., last] if !words.is_empty() => format!("{}, and {last}", words.join(", ")),
        words => words.concat(),
    }
}

/// The first words, from the beginning again where there are fewer.
fn repeated(words: &[String], count: usize) -> String {
    let words = words.iter().cycle().take(count).map(String::as_str);
    words.collect::<Vec<_>>().join(" ")
}

/// Words with a period that end no sentence.
const ABBREVIATIONS: &[&str] = &[
    "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.", "Jr.", "Sr.", "vs.", "etc.", "e.g.", "i.e.",
    "cf.", "Inc.", "Corp.", "Co.", "Ltd.", "No.", "U.S.", "a.m.", "p.m.",
];

/// Sentences: they end with `.`, `?` or `!`, and closing quotes or brackets, before white space; not after an abbreviation or an
/// initial.
///
/// ```
/// use espalier_evaluate::ruler::needles::sentences;
/// assert_eq!(sentences("I met Mr. J. Doe. \"Why?\" he said."), ["I met Mr. J. Doe.", "\"Why?\"", "he said."]);
/// ```
pub fn sentences(text: &str) -> Vec<&str> {
    static END: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r#"[.?!]+["'\)\]\}\u{201d}\u{2019}]*(\s+)"#).ok());
    let text = text.trim();
    let mut sentences = Vec::new();
    let mut start = 0;
    for found in END.iter().flat_map(|end| end.captures_iter(text)) {
        let Some(space) = found.get(1) else { continue };
        let sentence = &text[start..space.start()];
        if goes_on(sentence) {
            continue;
        }
        sentences.push(sentence);
        start = space.end();
    }
    sentences.push(&text[start..]);
    sentences
}

/// Whether the period at the end belongs to the last word.
fn goes_on(sentence: &str) -> bool {
    let last = sentence.rsplit(char::is_whitespace).next();
    let last = last
        .unwrap_or_default()
        .trim_start_matches(['(', '"', '\'']);
    let mut letters = last.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.as_str() == ".";
    ABBREVIATIONS.contains(&last) || initial && last != "I."
}
