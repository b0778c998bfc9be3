//! Frequent words: made-up words whose frequencies fall by Zipf's law; the most frequent one is dots, the next three are asked for.

use super::fit::{Drawn, numbered, too_short};
use super::python_random::PythonRandom;
use super::{Count, Options, Sample, Task, fill};
use crate::Result;

const TEMPLATE: &str = "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?";
const PREFIX: &str =
    " Answer: According to the coded text above, the three most frequently appeared words are:";

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// Letters of a word.
const WORD: usize = 6;

/// Words that are asked for.
const ASKED: usize = 3;

/// Tokens for each word of the vocabulary.
const TOKENS_A_WORD: usize = 50;

/// Riemann's zeta function, by the first terms and what Euler and Maclaurin say of the rest; to 1e-15 for `s` of 1.5 and more.
fn zeta(s: f64) -> f64 {
    const TERMS: i32 = 20;
    let first: f64 = (1..TERMS).rev().map(|k| f64::from(k).powf(-s)).sum();
    let n = f64::from(TERMS);
    // B_2/2!, B_4/4!, ... with the rising powers of `s`.
    let corrections = [
        (1.0 / 12.0, 1),
        (-1.0 / 720.0, 3),
        (1.0 / 30_240.0, 5),
        (-1.0 / 1_209_600.0, 7),
    ];
    let rising = |count: i32| (0..count).map(|k| s + f64::from(k)).product::<f64>();
    let rest: f64 = corrections
        .iter()
        .map(|(factor, order)| factor * rising(*order) * n.powf(-s - f64::from(*order)))
        .sum();
    first + n.powf(1.0 - s) / (s - 1.0) + 0.5 * n.powf(-s) + rest
}

/// How often each rank occurs in a text of about `words` words.
fn frequencies(words: usize, vocabulary: usize, alpha: f64) -> Vec<usize> {
    let zeta = match alpha == 2.0 {
        // Exactly the number that SciPy has.
        true => std::f64::consts::PI.powi(2) / 6.0,
        false => zeta(alpha),
    };
    (1..=vocabulary)
        .map(|rank| (words as f64 * (rank as f64).powf(-alpha) / zeta) as usize)
        .collect()
}

struct CodedText<'a> {
    alpha: f64,
    seed: u64,
    vocabulary: Vec<String>,
    template: &'a [String; 2],
}

impl CodedText<'_> {
    fn with_words(&self, words: usize) -> Drawn {
        let counts = frequencies(words, self.vocabulary.len(), self.alpha);
        let repeated = self.vocabulary.iter().zip(counts);
        let mut text: Vec<&str> = repeated
            .flat_map(|(word, count)| std::iter::repeat_n(word.as_str(), count))
            .collect();
        PythonRandom::new(self.seed).shuffle(&mut text);
        let [before, after] = self.template;
        let body = fill(TEMPLATE, &[("context", &text.join(" "))]);
        Drawn {
            input: format!("{before}{body}{after}"),
            prefix: PREFIX.to_owned(),
            outputs: self.vocabulary[1..=ASKED].to_vec(),
        }
    }
}

/// Different words, sorted, then shuffled by the seed; the first is dots.
fn vocabulary(size: usize, random: &mut PythonRandom, seed: u64) -> Vec<String> {
    let mut words = std::collections::BTreeSet::new();
    while words.len() < size {
        words.insert(random.letters(LETTERS, WORD));
    }
    let mut words: Vec<String> = words.into_iter().collect();
    PythonRandom::new(seed).shuffle(&mut words);
    words[0] = "...".to_owned();
    words
}

pub(super) fn samples(
    task: &Task,
    alpha: f64,
    options: &Options,
    count: Count,
) -> Result<Vec<Sample>> {
    let most = options.length.saturating_sub(task.answer_tokens);
    let size = most / TOKENS_A_WORD;
    let step = most / 32;
    if size <= ASKED || step == 0 {
        return Err(too_short(task, options.length));
    }
    let mut random = PythonRandom::new(options.seed);
    let mut next = || CodedText {
        alpha,
        seed: options.seed,
        vocabulary: vocabulary(size, &mut random, options.seed),
        template: &options.template,
    };
    let tokens = |drawn: &Drawn| count(&format!("{}{}", drawn.input, drawn.prefix));
    let text = next();
    let mut words = most / WORD;
    while tokens(&text.with_words(words))? < most {
        words += step;
    }
    words = words.saturating_sub(step);
    let mut samples = Vec::with_capacity(options.samples);
    for _ in 0..options.samples {
        let text = next();
        let mut drawn = text.with_words(words);
        // What is drawn later fits too: the number of words stays what it has become for this text alone.
        let mut fewer = words;
        while tokens(&drawn)? > most {
            fewer = fewer
                .checked_sub(step)
                .filter(|fewer| *fewer > 0)
                .ok_or_else(|| too_short(task, options.length))?;
            drawn = text.with_words(fewer);
        }
        let length = tokens(&drawn)? + task.answer_tokens;
        samples.push((drawn, length));
    }
    numbered(samples, false, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_by_zipfs_law() {
        assert_eq!(frequencies(1000, 4, 2.0), [607, 151, 67, 37]);
        for (s, value) in [
            (2.0, 1.644_934_066_848_226_4),
            (3.0, 1.202_056_903_159_594_2),
            (1.5, 2.612_375_348_685_488),
        ] {
            assert!((zeta(s) - value).abs() < 2e-15, "{s}: {}", zeta(s));
        }
    }
}
