//! Task arithmetic: `b + lambda sum w_m t_m` with the task vectors `t_m = x_m - b`. Ilharco and others, arXiv 2212.04089.
//!
//! TIES, DARE, DELLA and Breadcrumbs are this with two steps between: a mask on every task vector, and a vote on every entry's sign. With
//! the vote, `u_m = w_m t_m` counts where its sign is that of `sum u_m` (that of plus where this is zero), and `sum w_m` where it counts.

use super::{Base, Method, Operand, Operands, Values, default, for_each, required, sum};

/// The parameters that all of the kin have, with the usual values of two.
pub(super) const fn globals(normalize: bool, rescale: bool) -> [super::Parameter; 4] {
    [
        // Says in which type masks are kept, which changes memory elsewhere and no number.
        default("int8_mask", 0.0),
        default("normalize", if normalize { 1.0 } else { 0.0 }),
        default("rescale", if rescale { 1.0 } else { 0.0 }),
        default("lambda", 1.0),
    ]
}

/// Sums of task vectors.
pub const TASK_ARITHMETIC: Method = Method {
    name: "task_arithmetic",
    title: "Task Arithmetic",
    source: "https://arxiv.org/abs/2212.04089",
    globals: &globals(false, false),
    own: &[required("weight"), default("density", 1.0)],
    base: Base::Required,
    models: (1, usize::MAX),
    merge: |operands| merge(operands, None, false),
};

/// Masks a task vector of rows of this length.
pub(super) type Mask = fn(&mut Operand, usize) -> Result<(), String>;

/// The sums with a mask, and with a vote where `vote` is set.
pub(super) fn merge(
    operands: Operands,
    mask: Option<Mask>,
    vote: bool,
) -> Result<Vec<f32>, String> {
    let row = operands.row();
    let (base, mut others, values) = operands.split_from_base()?;
    let mut merged = base.numbers;
    for other in &mut others {
        for_each(&mut other.numbers, |i, number| *number -= merged[i]);
        if let Some(mask) = mask {
            masked(other, mask, row, values.flag("rescale"))?;
        }
    }
    if others.is_empty() {
        return Ok(merged);
    }
    let models: Vec<(f32, &[f32])> = others
        .iter()
        .map(|other| {
            (
                other.values.number("weight") as f32,
                other.numbers.as_slice(),
            )
        })
        .collect();
    mix(&mut merged, &models, vote, &values);
    Ok(merged)
}

/// Adds the mix of the task vectors to the base.
fn mix(base: &mut [f32], models: &[(f32, &[f32])], vote: bool, values: &Values) {
    let (normalize, lambda) = (values.flag("normalize"), values.number("lambda") as f32);
    let total: f32 = models.iter().map(|(weight, _)| weight).sum();
    let total = if total.abs() < 1e-8 { 1.0 } else { total };
    for_each(base, |i, number| {
        let terms = || {
            models
                .iter()
                .map(|(weight, vector)| (*weight, weight * vector[i]))
        };
        let mut mixed: f32 = terms().map(|(_, term)| term).sum();
        let mut divisor = total;
        if vote {
            let plus = mixed >= 0.0;
            (mixed, divisor) = (0.0, 0.0);
            for (weight, term) in terms() {
                if if plus { term > 0.0 } else { term < 0.0 } {
                    mixed += term;
                    divisor += weight;
                }
            }
            if divisor == 0.0 {
                divisor = 1.0;
            }
        }
        if normalize {
            mixed /= divisor;
        }
        *number += lambda * mixed;
    });
}

/// Masks a task vector where its density is below one; with `rescale` its sum of magnitudes stays what it was.
fn masked(other: &mut Operand, mask: Mask, row: usize, rescale: bool) -> Result<(), String> {
    let density = other.values.number("density");
    if density >= 1.0 {
        return Ok(());
    }
    if density.is_nan() || density < 0.0 {
        return Err(format!("`density`: {density} is below 0"));
    }
    let magnitude = |numbers: &[f32]| sum(numbers.len(), |i| f64::from(numbers[i].abs()));
    let before = if rescale {
        magnitude(&other.numbers)
    } else {
        0.0
    };
    mask(other, row)?;
    if rescale {
        let after = magnitude(&other.numbers);
        if before >= 1e-7 && after >= 1e-7 {
            let factor = (before / after) as f32;
            for_each(&mut other.numbers, |_, number| *number *= factor);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FIRST, Given, ONES, SECOND, merged, near};
    use super::*;

    #[test]
    fn worked_values() {
        let models: [Given<'_>; 2] = [(&FIRST, &[("weight", 1.0)]), (&SECOND, &[("weight", 0.5)])];
        let sums = merged(&TASK_ARITHMETIC, Some(&ONES), &models, &[], None).unwrap();
        near(&sums, &[1.7, 1.0, 1.075, 1.15, 0.85, 1.15]);
        let keys = [("normalize", 1.0), ("lambda", 3.0)];
        let means = merged(&TASK_ARITHMETIC, Some(&ONES), &models, &keys, None).unwrap();
        near(&means, &[2.4, 1.0, 1.15, 1.3, 0.7, 1.3]);
        near(
            &merged(&TASK_ARITHMETIC, Some(&ONES), &[], &[], None).unwrap(),
            &[1.0; 6],
        );
    }
}
