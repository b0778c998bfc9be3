//! DARE: every entry of a task vector stays with probability `density`, and what stays is made larger, so that the vector is the same in
//! expectation; then sums (`dare_linear`), or TIES' vote on signs (`dare_ties`). Yu and others, arXiv 2311.03099.
//!
//! The paper divides by the density; mergekit, which is followed here, keeps the sum of magnitudes, which is the same in expectation.

use rayon::prelude::*;

use espalier_data::random::{Random, mix};

use super::{
    Base, Method, Operand, PIECE, Parameter, default, required,
    task_arithmetic::{globals, merge},
};

const OWN: [Parameter; 2] = [required("weight"), default("density", 1.0)];

/// Random drop, then sums.
pub const DARE_LINEAR: Method = Method {
    name: "dare_linear",
    title: "Linear DARE",
    source: "https://arxiv.org/abs/2311.03099",
    globals: &globals(false, true),
    own: &OWN,
    base: Base::Required,
    models: (1, usize::MAX),
    merge: |operands| merge(operands, Some(drop_some), false),
};

/// Random drop, then TIES' vote.
pub const DARE_TIES: Method = Method {
    name: "dare_ties",
    title: "DARE TIES",
    merge: |operands| merge(operands, Some(drop_some), true),
    ..DARE_LINEAR
};

fn drop_some(other: &mut Operand, _row: usize) -> Result<(), String> {
    let density = other.values.number("density");
    keep_by(other, |_| density);
    Ok(())
}

/// Keeps every number with the probability that `chance` gives for its place. Every piece has a stream of its own, so that the number of
/// threads changes nothing.
pub(super) fn keep_by(other: &mut Operand, chance: impl Fn(usize) -> f64 + Sync) {
    let seed = other.seed;
    let pieces = other.numbers.par_chunks_mut(PIECE).enumerate();
    pieces.for_each(|(piece, numbers)| {
        let mut random = Random::new(mix(seed.wrapping_add(piece as u64)));
        for (place, number) in numbers.iter_mut().enumerate() {
            if !random.chance(chance(piece * PIECE + place)) {
                *number = 0.0;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::merged;
    use super::*;

    #[test]
    fn the_share_that_stays_and_the_sum_are_as_asked() {
        let base = vec![0.0; 200_000];
        let model: Vec<f32> = (0..base.len()).map(|i| 1.0 + (i % 7) as f32).collect();
        let given = [("weight", 1.0), ("density", 0.3)];
        for method in [&DARE_LINEAR, &DARE_TIES] {
            let found = merged(method, Some(&base), &[(&model, &given)], &[], None).unwrap();
            let kept = found.iter().filter(|number| **number != 0.0).count();
            assert!((kept as f64 / 2e5 - 0.3).abs() < 0.005, "{kept}");
            let (before, after): (f32, f32) = (model.iter().sum(), found.iter().sum());
            assert!((before / after - 1.0).abs() < 1e-3);
            let plain = merged(
                method,
                Some(&base),
                &[(&model, &given)],
                &[("rescale", 0.0)],
                None,
            );
            let pairs: Vec<_> = plain.unwrap().into_iter().zip(model.clone()).collect();
            assert!(pairs.iter().all(|(kept, was)| *kept == 0.0 || kept == was));
            // The same draw again, and not for the next seed.
            assert_eq!(
                found,
                merged(method, Some(&base), &[(&model, &given)], &[], None).unwrap()
            );
        }
    }
}
