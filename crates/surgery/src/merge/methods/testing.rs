//! Operands for tests.

use super::{Default, Method, Operand, Operands, Values};

/// Numbers with the model's parameters.
pub type Given<'a> = (&'a [f32], &'a [(&'static str, f64)]);

/// Merges vectors, or rows of `row`; the base comes first where there is one.
pub fn merged(
    method: &Method,
    base: Option<&[f32]>,
    others: &[Given<'_>],
    globals: &[(&'static str, f64)],
    row: Option<usize>,
) -> Result<Vec<f32>, String> {
    let values = |known: &[super::Parameter], given: &[(&'static str, f64)]| {
        let defaults = known.iter().filter_map(|known| match known.default {
            Default::Value(value) => Some((known.name, value)),
            _ => None,
        });
        Values(defaults.chain(given.iter().copied()).collect())
    };
    let operand = |numbers: &[f32], given: &[(&'static str, f64)], is_base, seed| Operand {
        numbers: numbers.to_vec(),
        values: values(method.own, given),
        is_base,
        seed,
    };
    let base = base.map(|base| operand(base, &[], true, 0));
    let others = others
        .iter()
        .enumerate()
        .map(|(i, (numbers, given))| operand(numbers, given, false, 1 + i as u64));
    let inputs: Vec<Operand> = base.into_iter().chain(others).collect();
    let count = inputs[0].numbers.len();
    let shape = row.map_or(vec![count], |row| vec![count / row, row]);
    (method.merge)(Operands {
        shape,
        inputs,
        values: values(method.globals, globals),
    })
}

/// Asserts that numbers agree to 1e-6.
pub fn near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 1.5e-6,
            "{found} {expected}"
        );
    }
}

/// The base of the worked example, and its two differences.
pub const ONES: [f32; 6] = [1.0; 6];
/// The first model.
pub const FIRST: [f32; 6] = [1.5, 0.7, 1.1, 1.0, 0.8, 1.4];
/// The second model.
pub const SECOND: [f32; 6] = [1.4, 1.6, 0.95, 1.3, 1.1, 0.5];
