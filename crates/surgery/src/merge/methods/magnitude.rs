//! Which numbers of a tensor are the largest: exact ranks by magnitude in two passes and no copy.
//!
//! Bits of positive floats are ordered as the floats are. A histogram of their upper halves, and one of the lower halves within the bucket
//! that the rank falls into, give the number of any rank.

use std::ops::Range;

use rayon::prelude::*;

use super::PIECE;

/// Values of half a float's bits.
const HALF: usize = 1 << 16;

fn bits(number: f32) -> u32 {
    number.abs().to_bits()
}

/// Sets all numbers to zero but those whose rank by magnitude, ascending from 0, is in `kept`. Of equal magnitudes the earlier have lower
/// ranks.
pub fn keep_ranks(numbers: &mut [f32], kept: Range<usize>) {
    if kept.is_empty() {
        numbers.fill(0.0);
        return;
    }
    let (low, below_low) = of_rank(numbers, kept.start);
    let (high, below_high) = of_rank(numbers, kept.end - 1);
    let (mut seen_low, mut seen_high) = (below_low, below_high);
    for number in numbers.iter_mut() {
        let magnitude = bits(*number);
        let mut stays = (low..=high).contains(&magnitude);
        if magnitude == low {
            stays &= seen_low >= kept.start;
            seen_low += 1;
        }
        if magnitude == high {
            stays &= seen_high < kept.end;
            seen_high += 1;
        }
        if !stays {
            *number = 0.0;
        }
    }
}

/// The bits of the number of this rank, and how many are smaller.
fn of_rank(numbers: &[f32], rank: usize) -> (u32, usize) {
    let upper = histogram(numbers, |bits| Some((bits >> 16) as usize));
    let (bucket, below) = bucket_of(&upper, rank);
    let lower = histogram(numbers, |bits| {
        ((bits >> 16) as usize == bucket).then_some(bits as usize % HALF)
    });
    let (rest, within) = bucket_of(&lower, rank - below);
    ((bucket << 16 | rest) as u32, below + within)
}

/// The bucket that a rank falls into, and how many lie in those before it.
fn bucket_of(histogram: &[usize], rank: usize) -> (usize, usize) {
    let mut below = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        if below + count > rank {
            return (bucket, below);
        }
        below += count;
    }
    (HALF - 1, below)
}

fn histogram(numbers: &[f32], bucket: impl Fn(u32) -> Option<usize> + Sync) -> Vec<usize> {
    let count = |mut counts: Vec<usize>, numbers: &[f32]| {
        for place in numbers.iter().filter_map(|number| bucket(bits(*number))) {
            counts[place] += 1;
        }
        counts
    };
    // Pieces as large as keep the histograms' own cost small.
    let pieces = numbers.par_chunks(16 * PIECE);
    pieces.fold(|| vec![0; HALF], count).reduce(
        || vec![0; HALF],
        |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_sorting_has_it() {
        let mut random = espalier_data::random::Random::new(3);
        for count in [1, 2, 7, 100, 1000] {
            let numbers: Vec<f32> = (0..count)
                .map(|_| (random.normal() * 8.0).round() as f32 / 4.0)
                .collect();
            let mut order: Vec<usize> = (0..count).collect();
            order.sort_by_key(|place| bits(numbers[*place]));
            for _ in 0..20 {
                let (a, b) = (random.below(count + 1), random.below(count + 1));
                let kept = a.min(b)..a.max(b);
                let mut expected = vec![0.0; count];
                for place in &order[kept.clone()] {
                    expected[*place] = numbers[*place];
                }
                let mut found = numbers.clone();
                keep_ranks(&mut found, kept);
                assert_eq!(found, expected);
            }
        }
    }
}
