//! N-gram baselines: what counting alone can predict, beside which a model's perplexity means something.
//!
//! Interpolated modified Kneser-Ney (Chen & Goodman 1999, "An empirical study of smoothing techniques for language
//! modeling", section 3): counts are discounted by one of three amounts, the mass taken goes to the next shorter
//! context, whose counts are the numbers of different left neighbours, and the shortest interpolates with the uniform
//! distribution over the vocabulary. So every context has a proper distribution in which no token has probability zero.
//!
//! Contexts at the start of a document are filled up with a start mark, and only the positions that are scored are
//! counted: the first token of a document has nothing before it and is neither.
//!
//! Left out: pruning and files; the model lives for one evaluation.

use std::collections::HashMap;

use crate::perplexity::Perplexity;

/// The highest order: so many tokens fit into one packed key.
pub const MAX_ORDER: usize = 5;

/// Bits of one token in a packed key; the newest token has the lowest bits.
const TOKEN_BITS: u32 = 25;

/// Stands before the first token of a document; no token has this id.
const START: u32 = (1 << TOKEN_BITS) - 1;

/// Tokens in one key, packed oldest to newest.
type Key = u128;

/// An n-gram model over token ids.
///
/// ```
/// use espalier_evaluate::ngram::NgramModel;
/// let documents = [vec![0, 1, 2, 1, 2, 1, 2]];
/// let model = NgramModel::train(2, 4, documents.iter().map(Vec::as_slice));
/// assert!(model.log_probability(&[1], 2) > model.log_probability(&[1], 3));
/// let total: f64 = (0..4).map(|token| model.log_probability(&[1], token).exp()).sum();
/// assert!((total - 1.0).abs() < 1e-12);
/// ```
pub struct NgramModel {
    vocabulary: usize,
    /// Statistics of each length of n-gram, from 1.
    levels: Vec<Level>,
}

/// The n-grams of one length.
struct Level {
    grams: HashMap<Key, u32>,
    contexts: HashMap<Key, Context>,
    discounts: [f64; 3],
}

/// The counts of the continuations of one context.
#[derive(Default)]
struct Context {
    /// Sum of the counts of all continuations.
    total: f64,
    /// The mass that discounting takes from them, as a share of the total.
    backoff: f64,
}

impl NgramModel {
    /// Counts the documents' n-grams. `order` is the length of the longest n-gram, held between 1 and [`MAX_ORDER`];
    /// ids go from 0 to `vocabulary` (not included), which grows where the documents hold a larger one.
    pub fn train<'a>(
        order: usize,
        vocabulary: usize,
        documents: impl Iterator<Item = &'a [u32]>,
    ) -> Self {
        let order = order.clamp(1, MAX_ORDER);
        let mut vocabulary = vocabulary.max(1);
        let mut grams: Vec<Key> = Vec::new();
        for document in documents {
            let largest = document.iter().copied().max().unwrap_or(0) as usize;
            vocabulary = vocabulary.max(largest + 1);
            grams.extend(
                (1..document.len())
                    .map(|position| gram(order, &document[..position], document[position])),
            );
        }
        Self {
            vocabulary,
            levels: levels(order, grams),
        }
    }

    /// Natural logarithm of the probability of `token` after `context`, the whole document so far (only its end is
    /// looked at). Negative infinity for an id outside the vocabulary.
    pub fn log_probability(&self, context: &[u32], token: u32) -> f64 {
        if token as usize >= self.vocabulary {
            return f64::NEG_INFINITY;
        }
        let key = gram(self.levels.len(), context, token);
        let uniform = 1.0 / self.vocabulary as f64;
        let interpolate = |shorter, (index, level): (usize, &Level)| {
            level.probability(suffix(key, index + 1), shorter)
        };
        self.levels
            .iter()
            .enumerate()
            .fold(uniform, interpolate)
            .ln()
    }

    /// Scores every token of the documents but each first one, as a neural model does.
    pub fn perplexity<'a>(&self, documents: impl Iterator<Item = &'a [u32]>) -> Perplexity {
        let mut sum = Perplexity::default();
        for document in documents {
            for position in 1..document.len() {
                sum.log_probability +=
                    self.log_probability(&document[..position], document[position]);
                sum.tokens += 1;
            }
        }
        sum
    }
}

impl Level {
    /// The statistics of n-grams sorted by key, each with its count.
    fn new(counted: &[(Key, u32)]) -> Self {
        let discounts = discounts(counted);
        let mut contexts: HashMap<Key, Context> = HashMap::new();
        for &(key, count) in counted {
            let context = contexts.entry(key >> TOKEN_BITS).or_default();
            context.total += f64::from(count);
            context.backoff += discount(&discounts, count);
        }
        contexts
            .values_mut()
            .for_each(|context| context.backoff /= context.total);
        Self {
            grams: counted.iter().copied().collect(),
            contexts,
            discounts,
        }
    }

    /// The probability of the gram's last token, given its probability after the next shorter context.
    fn probability(&self, gram: Key, shorter: f64) -> f64 {
        let Some(context) = self.contexts.get(&(gram >> TOKEN_BITS)) else {
            return shorter;
        };
        let count = self.grams.get(&gram).copied().unwrap_or(0);
        (f64::from(count) - discount(&self.discounts, count)) / context.total
            + context.backoff * shorter
    }
}

/// All levels, from length 1: the longest has the occurrences, each shorter one counts the different grams that end in
/// its own, which is the number of different left neighbours.
fn levels(order: usize, mut grams: Vec<Key>) -> Vec<Level> {
    let mut levels = Vec::new();
    for length in (1..=order).rev() {
        grams.iter_mut().for_each(|key| *key = suffix(*key, length));
        let counted = count_sorted(&mut grams);
        levels.push(Level::new(&counted));
        grams = counted.into_iter().map(|(key, _)| key).collect();
    }
    levels.reverse();
    levels
}

/// Sorts the keys, and gives each different one with its count.
fn count_sorted(keys: &mut [Key]) -> Vec<(Key, u32)> {
    keys.sort_unstable();
    let runs = keys.chunk_by(|a, b| a == b);
    runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX)))
        .collect()
}

/// Discounts for the counts 1, 2, and 3 or more, estimated from the numbers of n-grams that occur 1 to 4 times
/// (equation 26 of the paper); 0.5, 1 and 1.5 where there are too few to estimate from.
fn discounts(counted: &[(Key, u32)]) -> [f64; 3] {
    let mut with_count = [0.0f64; 5];
    counted
        .iter()
        .filter(|(_, count)| *count <= 4)
        .for_each(|(_, count)| with_count[*count as usize] += 1.0);
    let [_, n1, n2, n3, n4] = with_count;
    let y = n1 / (n1 + 2.0 * n2);
    let estimate = [
        1.0 - 2.0 * y * n2 / n1,
        2.0 - 3.0 * y * n3 / n2,
        3.0 - 4.0 * y * n4 / n3,
    ];
    let sound = n4 > 0.0
        && estimate
            .iter()
            .all(|discount| discount.is_finite() && *discount > 0.0);
    if sound { estimate } else { [0.5, 1.0, 1.5] }
}

fn discount(discounts: &[f64; 3], count: u32) -> f64 {
    if count == 0 {
        0.0
    } else {
        discounts[count.min(3) as usize - 1]
    }
}

/// The n-gram of the context's end and a token, filled up with start marks.
fn gram(order: usize, context: &[u32], token: u32) -> Key {
    let missing = (order - 1).saturating_sub(context.len());
    let end = &context[context.len().saturating_sub(order - 1)..];
    let tokens = std::iter::repeat_n(START, missing)
        .chain(end.iter().chain([&token]).map(|id| (*id).min(START - 1)));
    tokens.fold(0, |key, token| key << TOKEN_BITS | Key::from(token))
}

/// The last `length` tokens of a key.
fn suffix(key: Key, length: usize) -> Key {
    key & ((1 << (TOKEN_BITS as usize * length)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deterministic stream of numbers below `bound` (a linear congruential generator's high bits).
    fn random(seed: u64, bound: u32) -> impl Iterator<Item = u32> {
        let step = |state: &u64| {
            Some(
                state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407),
            )
        };
        std::iter::successors(Some(seed + 1), step)
            .skip(5)
            .map(move |state| ((state >> 33) as u32) % bound)
    }

    /// Documents in which a token depends on the one before it, four times in five.
    fn documents(count: usize, length: usize, vocabulary: u32) -> Vec<Vec<u32>> {
        let document = |index: usize| {
            let mut numbers = random(index as u64, 5 * vocabulary);
            let first = numbers.next().unwrap() % vocabulary;
            let next = |last: &u32| {
                let number = numbers.next().unwrap();
                Some(if number.is_multiple_of(5) {
                    number / 5
                } else {
                    (last * 7 + 1) % vocabulary
                })
            };
            std::iter::successors(Some(first), next)
                .take(length)
                .collect()
        };
        (0..count).map(document).collect()
    }

    fn train(order: usize, vocabulary: usize, documents: &[Vec<u32>]) -> NgramModel {
        NgramModel::train(order, vocabulary, documents.iter().map(Vec::as_slice))
    }

    fn perplexity(model: &NgramModel, documents: &[Vec<u32>]) -> f64 {
        model
            .perplexity(documents.iter().map(Vec::as_slice))
            .per_token()
    }

    #[test]
    fn every_context_has_a_proper_distribution() {
        let documents = documents(20, 50, 23);
        for order in 1..=MAX_ORDER {
            let model = train(order, 30, &documents);
            for seed in 0..50 {
                let context: Vec<u32> = random(seed, 30).take(seed as usize % 8).collect();
                let total: f64 = (0..30)
                    .map(|token| model.log_probability(&context, token).exp())
                    .sum();
                assert!(
                    (total - 1.0).abs() < 1e-10,
                    "order {order}, context {context:?}: {total}"
                );
                assert!((0..30).all(|token| model.log_probability(&context, token).is_finite()));
            }
        }
    }

    #[test]
    fn a_hand_computed_bigram() {
        // Bigrams of 0 1 0 1 0 2: (0,1) twice, (1,0) twice, (0,2) once. n1 = 1, n2 = 2, n3 = 0, so the discounts are
        // the fixed ones. Continuations: 1 after {0}, 0 after {1}, 2 after {0}: three counts of 1, total 3.
        // p1(1) = (1 - 0.5)/3 + 1.5/3 · 1/4 = 7/24;  p(1 | 0) = (2 - 1)/3 + (1 + 0.5)/3 · 7/24 = 23/48.
        let model = train(2, 4, &[vec![0, 1, 0, 1, 0, 2]]);
        assert!((model.log_probability(&[0], 1).exp() - 23.0 / 48.0).abs() < 1e-12);
        // p1(3) = 1.5/3 · 1/4 = 1/8;  p(3 | 3) = p1(3): the context was never seen.
        assert!((model.log_probability(&[3], 3).exp() - 1.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn discounts_follow_the_paper() {
        let counts = [(1, 8), (2, 4), (3, 2), (4, 1), (9, 3)];
        let counted: Vec<(Key, u32)> = counts
            .iter()
            .flat_map(|&(count, times)| vec![(0, count); times])
            .collect();
        // Y = 8 / 16 = 1/2: D1 = 1 - 2·½·4/8, D2 = 2 - 3·½·2/4, D3 = 3 - 4·½·1/2.
        assert_eq!(discounts(&counted), [0.5, 1.25, 2.0]);
        assert_eq!(discounts(&[]), [0.5, 1.0, 1.5]);
    }

    #[test]
    fn longer_contexts_help_where_there_is_structure() {
        let (seen, unseen) = (
            documents(200, 60, 50),
            documents(220, 60, 50).split_off(200),
        );
        let [unigram, bigram, trigram] =
            [1, 2, 3].map(|order| perplexity(&train(order, 50, &seen), &unseen));
        assert!(
            unigram > 30.0 && bigram < 6.0 && trigram < 8.0,
            "{unigram} {bigram} {trigram}"
        );
    }

    #[test]
    fn the_start_of_a_document_is_a_context() {
        let documents = [
            vec![9, 1, 2, 3, 1, 4],
            vec![9, 1, 2, 5, 1, 4],
            vec![9, 1, 3, 5, 1, 4],
        ];
        let model = train(3, 10, &documents);
        assert!(model.log_probability(&[9], 1).exp() > 0.5);
        assert!(model.log_probability(&[9], 4).exp() < 0.2);
    }

    #[test]
    fn first_tokens_are_not_scored_and_edges_hold() {
        let model = train(3, 4, &[vec![], vec![1], vec![2, 3]]);
        let score = model.perplexity([&[][..], &[1], &[2, 3], &[1, 2, 3]].into_iter());
        assert_eq!(score.tokens, 3);
        assert!(score.log_probability.is_finite());
        let empty = train(2, 8, &[]);
        assert!((empty.log_probability(&[1], 5).exp() - 0.125).abs() < 1e-12);
        assert_eq!(empty.log_probability(&[], 8), f64::NEG_INFINITY);
        assert!(
            train(99, 0, &[vec![7, u32::MAX]])
                .log_probability(&[7], 3)
                .is_finite()
        );
    }

    #[test]
    fn a_million_tokens_take_seconds_at_most() {
        let documents = documents(1000, 1000, 5000);
        let start = std::time::Instant::now();
        let value = perplexity(&train(3, 5000, &documents), &documents);
        let seconds = start.elapsed().as_secs_f64();
        println!("{value:.1} in {seconds:.2} s");
        assert!(value < 100.0 && seconds < 30.0, "{value} in {seconds} s");
    }
}
