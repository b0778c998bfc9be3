//! chrF (Popović 2015) of a corpus as sacrebleu has it: F2 of up to six characters without white space, averaged over the orders that both
//! texts have. Of several references, the one counts that is closest by itself.

use std::collections::HashMap;

use super::corpus::{COUNTS, Counts};

/// The longest sequences of characters.
const ORDER: usize = 6;

/// How much more recall counts than precision.
const BETA: f64 = 2.0;

/// For each order: the answer's sequences, the reference's, those in common.
pub fn counts(answer: &str, golds: &[String]) -> Counts {
    let of = |gold: &String| against(answer, gold);
    let better = |best: Counts, other: Counts| match score(&other) > score(&best) {
        true => other,
        false => best,
    };
    golds.iter().map(of).reduce(better).unwrap_or([0.0; COUNTS])
}

fn against(answer: &str, gold: &str) -> Counts {
    let [answer, gold] = [answer, gold].map(|text| {
        let visible = text.chars().filter(|letter| !letter.is_whitespace());
        visible.collect::<Vec<char>>()
    });
    let mut counts = [0.0; COUNTS];
    for order in 1..=ORDER {
        let (own, theirs) = (sequences(&answer, order), sequences(&gold, order));
        let common = own
            .iter()
            .map(|(sequence, count)| theirs.get(sequence).map_or(0, |other| *other.min(count)));
        let place = 3 * (order - 1);
        // Without a reference's sequences the answer's do not count against it.
        let total = |all: &HashMap<&[char], usize>| all.values().sum::<usize>() as f64;
        counts[place] = if theirs.is_empty() { 0.0 } else { total(&own) };
        counts[place + 1] = total(&theirs);
        counts[place + 2] = common.sum::<usize>() as f64;
    }
    counts
}

fn sequences(letters: &[char], order: usize) -> HashMap<&[char], usize> {
    let mut counts = HashMap::new();
    for sequence in letters.windows(order) {
        *counts.entry(sequence).or_default() += 1;
    }
    counts
}

/// The score of summed counts, from 0 to 100.
pub fn score(counts: &Counts) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in 0..ORDER {
        let [own, theirs, common] = [0, 1, 2].map(|part| counts[3 * order + part]);
        if own > 0.0 && theirs > 0.0 {
            precision += common / own;
            recall += common / theirs;
            orders += 1.0;
        }
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall, factor) = (precision / orders, recall / orders, BETA * BETA);
    100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
}
