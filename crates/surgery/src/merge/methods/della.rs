//! DELLA: as DARE, but larger entries are kept more often: within a row, the probability grows linearly with the rank by magnitude, from
//! `density - epsilon` to `density + epsilon`. Then TIES' vote (`della`) or sums (`della_linear`). Deep and others, arXiv 2406.11617.

use super::{
    Base, Method, Operand, Parameter,
    dare::keep_by,
    default, required,
    task_arithmetic::{globals, merge},
};

const OWN: [Parameter; 3] = [
    required("weight"),
    default("density", 1.0),
    default("epsilon", 0.15),
];

/// Drop by rank, then TIES' vote.
pub const DELLA: Method = Method {
    name: "della",
    title: "DELLA",
    source: "https://arxiv.org/abs/2406.11617",
    globals: &globals(true, true),
    own: &OWN,
    base: Base::Required,
    models: (1, usize::MAX),
    merge: |operands| merge(operands, Some(drop_by_rank), true),
};

/// Drop by rank, then sums.
pub const DELLA_LINEAR: Method = Method {
    name: "della_linear",
    title: "Linear DELLA",
    globals: &globals(false, true),
    merge: |operands| merge(operands, Some(drop_by_rank), false),
    ..DELLA
};

fn drop_by_rank(other: &mut Operand, row: usize) -> Result<(), String> {
    let (density, epsilon) = (
        other.values.number("density"),
        other.values.number("epsilon"),
    );
    if density <= 0.0 {
        other.numbers.fill(0.0);
        return Ok(());
    }
    if density + epsilon >= 1.0 || density - epsilon <= 0.0 {
        return Err(format!(
            "`epsilon`: {density} plus and minus {epsilon} must lie between 0 and 1; choose it smaller"
        ));
    }
    let chances = chances(&other.numbers, row, density, epsilon);
    keep_by(other, |place| f64::from(chances[place]));
    Ok(())
}

/// The probability of every number to stay.
fn chances(numbers: &[f32], row: usize, density: f64, epsilon: f64) -> Vec<f32> {
    use rayon::prelude::*;
    let mut chances = vec![0.0; numbers.len()];
    let rows = chances.par_chunks_mut(row).zip(numbers.par_chunks(row));
    rows.for_each(|(chances, numbers)| {
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by(|a, b| numbers[*a].abs().total_cmp(&numbers[*b].abs()));
        let last = (order.len() - 1).max(1) as f64;
        for (rank, place) in order.into_iter().enumerate() {
            chances[place] = (density - epsilon + 2.0 * epsilon * rank as f64 / last) as f32;
        }
    });
    chances
}

#[cfg(test)]
mod tests {
    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn chances_grow_with_the_rank() {
        near(
            &chances(&[0.1, -3.0, 2.0, 5.0, 1.0, 0.0], 3, 0.5, 0.2),
            &[0.3, 0.7, 0.5, 0.7, 0.5, 0.3],
        );
    }

    #[test]
    fn the_larger_half_stays_more_often() {
        let base = vec![0.0; 100_000];
        let model: Vec<f32> = (0..base.len()).map(|i| 1.0 + (i % 100) as f32).collect();
        let given = [("weight", 1.0), ("density", 0.5), ("epsilon", 0.4)];
        for method in [&DELLA, &DELLA_LINEAR] {
            let keys = [("rescale", 0.0)];
            let found = merged(method, Some(&base), &[(&model, &given)], &keys, Some(100)).unwrap();
            let kept = |large: bool| {
                let halves = found
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| (i % 100 >= 50) == large);
                halves.filter(|(_, number)| **number != 0.0).count() as f64 / 5e4
            };
            assert!((kept(true) - 0.7).abs() < 0.01 && (kept(false) - 0.3).abs() < 0.01);
        }
        let wide = [("weight", 1.0), ("density", 0.5), ("epsilon", 0.5)];
        assert!(merged(&DELLA, Some(&base), &[(&model, &wide)], &[], None).is_err());
    }
}
