//! BLEU (Papineni et al. 2002) of a corpus as sacrebleu has it (Post 2018): its tokenizer `13a`, up to four words, zero counts smoothed
//! exponentially, the reference of the closest length. The figure is of sums over all items, not a mean.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::corpus::{COUNTS, Counts};

/// The longest sequences of words.
const ORDER: usize = 4;

/// Spaces around punctuation, in turn; the patterns are constants, and one that did not compile would be left out (tests see to it).
static SPACES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let rules = [
        (r"([\{-\~\[-\` -\&\(-\+\:-\@/])", " $1 "),
        (r"([^0-9])([\.,])", "$1 $2 "),
        (r"([\.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ];
    let compiled = rules
        .into_iter()
        .filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, with)));
    compiled.collect()
});

/// The counts of an answer: its length, the closest reference's, and for each order how many sequences are right and how many there are.
pub fn counts(answer: &str, golds: &[String]) -> Counts {
    let answer = words(answer);
    let golds: Vec<Vec<String>> = golds.iter().map(|gold| words(gold)).collect();
    let distance = |length: &usize| (length.abs_diff(answer.len()), *length);
    let closest = golds.iter().map(Vec::len).min_by_key(distance);
    let mut counts = [0.0; COUNTS];
    counts[0] = answer.len() as f64;
    counts[1] = closest.unwrap_or(0) as f64;
    for order in 1..=ORDER {
        let mut most: HashMap<&[String], usize> = HashMap::new();
        for gold in &golds {
            for (sequence, count) in sequences(gold, order) {
                let known = most.entry(sequence).or_default();
                *known = count.max(*known);
            }
        }
        let own = sequences(&answer, order);
        let right = own
            .iter()
            .map(|(sequence, count)| most.get(sequence).map_or(0, |most| *most.min(count)));
        counts[2 * order] = right.sum::<usize>() as f64;
        counts[2 * order + 1] = own.values().sum::<usize>() as f64;
    }
    counts
}

fn sequences(words: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for sequence in words.windows(order) {
        *counts.entry(sequence).or_default() += 1;
    }
    counts
}

/// The score of summed counts, from 0 to 100.
pub fn score(counts: &Counts) -> f64 {
    let (own, reference) = (counts[0], counts[1]);
    let right = |order: usize| counts[2 * order];
    if (1..=ORDER).all(|order| right(order) == 0.0) {
        return 0.0;
    }
    let brevity = match own < reference {
        true => (1.0 - reference / own).exp(),
        false => 1.0,
    };
    let (mut smooth, mut logarithms) = (1.0, 0.0);
    for order in 1..=ORDER {
        let all = counts[2 * order + 1];
        let precision = match (all == 0.0, right(order) == 0.0) {
            // Answers too short for the order: it counts as nothing.
            (true, _) => return 0.0,
            (_, true) => {
                smooth *= 2.0;
                100.0 / (smooth * all)
            }
            _ => 100.0 * right(order) / all,
        };
        logarithms += precision.ln();
    }
    brevity * (logarithms / ORDER as f64).exp()
}

/// Words as mteval-v13a cuts them.
fn words(text: &str) -> Vec<String> {
    let text = text.trim_end().replace("<skipped>", "");
    let mut text = text.replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (entity, letter) in [
            ("&quot;", "\""),
            ("&amp;", "&"),
            ("&lt;", "<"),
            ("&gt;", ">"),
        ] {
            text = text.replace(entity, letter);
        }
    }
    let mut text = format!(" {text} ");
    for (pattern, with) in SPACES.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_13a_does() {
        assert_eq!(SPACES.len(), 4, "all patterns compile");
        let cut = |text: &str| words(text).join(" ");
        assert_eq!(
            cut("Hello, world! It's 3.5, \"ok\"."),
            "Hello , world ! It's 3.5 , \" ok \" ."
        );
        assert_eq!(cut("10-20 a-b (c) &lt;x&gt;"), "10 - 20 a-b ( c ) < x >");
        assert_eq!(cut("1,000 dogs,cats"), "1,000 dogs , cats");
    }
}
