//! Words that an answer and the right one have in common: F1 (Rajpurkar et al. 2016, SQuAD's script) and ROUGE (Lin 2004), F-measures as
//! `rouge-score` computes them without stemming.

use std::collections::HashMap;

/// SQuAD's F1: small letters, without punctuation and articles.
///
/// ```
/// use espalier_evaluate::tasks::metric::overlap::f1;
/// assert_eq!(f1("The red fox!", "a red dog"), 0.5);
/// ```
pub fn f1(answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (plain_words(answer), plain_words(gold));
    if answer.is_empty() || gold.is_empty() {
        return f64::from(u8::from(answer == gold));
    }
    let common = common(&counts(answer.iter()), &counts(gold.iter()));
    measure(common, answer.len(), gold.len())
}

/// ROUGE-N: sequences of `n` words.
///
/// ```
/// use espalier_evaluate::tasks::metric::overlap::rouge;
/// assert!((rouge("the cat sat", "the cat ran", 1) - 2.0 / 3.0).abs() < 1e-12);
/// assert_eq!(rouge("the cat sat", "the cat ran", 2), 0.5);
/// ```
pub fn rouge(answer: &str, gold: &str, n: usize) -> f64 {
    let (answer, gold) = (rouge_words(answer), rouge_words(gold));
    let (answer, gold): (Vec<_>, Vec<_>) = (
        answer.windows(n.max(1)).collect(),
        gold.windows(n.max(1)).collect(),
    );
    let common = common(&counts(answer.iter()), &counts(gold.iter()));
    measure(common, answer.len(), gold.len())
}

/// ROUGE-L: the longest common sequence of words, which others may interrupt.
///
/// ```
/// use espalier_evaluate::tasks::metric::overlap::rouge_l;
/// assert_eq!(rouge_l("police killed the gunman", "police kill the gunman"), 0.75);
/// ```
pub fn rouge_l(answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (rouge_words(answer), rouge_words(gold));
    let mut row = vec![0; gold.len() + 1];
    for word in &answer {
        let mut diagonal = 0;
        for (at, other) in gold.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    measure(row[gold.len()], answer.len(), gold.len())
}

fn measure(common: usize, answer: usize, gold: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / answer as f64, common as f64 / gold as f64);
    2.0 * precision * recall / (precision + recall)
}

fn counts<T: std::hash::Hash + Eq>(words: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

fn common<T: std::hash::Hash + Eq>(one: &HashMap<T, usize>, other: &HashMap<T, usize>) -> usize {
    let shared = |(word, count): (&T, &usize)| (*count).min(other.get(word).copied().unwrap_or(0));
    one.iter().map(shared).sum()
}

fn plain_words(text: &str) -> Vec<String> {
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    let article = |word: &&str| !["a", "an", "the"].contains(word);
    text.split_whitespace()
        .filter(article)
        .map(str::to_owned)
        .collect()
}

fn rouge_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}
