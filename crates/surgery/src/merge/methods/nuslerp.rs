//! NuSLERP: SLERP with a weight for each of two models, `t = w_2 / (w_1 + w_2)`, of whole tensors, of their rows or of their columns, and on
//! differences from a base where there is one. A method of mergekit without a paper; the formula is that of `slerp.rs`.

use super::{Base, Method, Operand, Operands, default, dot, for_each, norm, required};

/// Weights that nearly cancel are taken as equal.
const CANCELLED: f64 = 1e-6;
/// The shortest length that a vector is divided by.
const SHORT: f64 = 1e-7;
/// Vectors whose sine is below are mixed on a line.
const COLINEAR: f64 = 1e-8;

/// Spherical interpolation by weights.
pub const NUSLERP: Method = Method {
    name: "nuslerp",
    title: "NuSLERP",
    source: "https://github.com/arcee-ai/mergekit",
    globals: &[
        default("nuslerp_row_wise", 0.0),
        default("nuslerp_flatten", 1.0),
    ],
    own: &[required("weight")],
    base: Base::Optional,
    models: (2, 2),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let row = operands.row();
    let (base, mut others, values) = operands.split();
    let weights: Vec<f64> = others.iter().map(|o| o.values.number("weight")).collect();
    let total: f64 = weights.iter().sum();
    let t = match total.abs() < CANCELLED {
        true => 0.5,
        false => weights[1] / total,
    };
    if let Some(base) = &base {
        for other in &mut others {
            for_each(&mut other.numbers, |i, number| *number -= base.numbers[i]);
        }
    }
    let mut merged = interpolated(&others, t, row, &values);
    if let Some(base) = &base {
        for_each(&mut merged, |i, number| *number += base.numbers[i]);
    }
    Ok(merged)
}

fn interpolated(pair: &[Operand], t: f64, row: usize, values: &super::Values) -> Vec<f32> {
    let (a, b) = (&pair[0].numbers, &pair[1].numbers);
    if values.flag("nuslerp_flatten") {
        return between(a, b, t);
    }
    if !values.flag("nuslerp_row_wise") || row == a.len() {
        let rows = a.chunks(row).zip(b.chunks(row));
        return rows.flat_map(|(a, b)| between(a, b, t)).collect();
    }
    // Vectors along the first axis: the columns of a matrix.
    let column = |numbers: &[f32], column: usize| -> Vec<f32> {
        numbers[column..].iter().step_by(row).copied().collect()
    };
    let mut merged = vec![0.0; a.len()];
    for place in 0..row {
        let mixed = between(&column(a, place), &column(b, place), t);
        let places = merged[place..].iter_mut().step_by(row);
        places.zip(mixed).for_each(|(to, from)| *to = from);
    }
    merged
}

/// A point on the arc between two vectors.
fn between(a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
    let lengths = norm(a).max(SHORT) * norm(b).max(SHORT);
    let theta = (dot(a, b) / lengths).clamp(-1.0, 1.0).acos();
    let (x, y) = match theta.sin().abs() < COLINEAR {
        true => (1.0 - t, t),
        false => {
            let on = |share: f64| (share * theta).sin() / theta.sin();
            (on(1.0 - t), on(t))
        }
    };
    let mut merged = a.to_vec();
    for_each(&mut merged, |i, number| {
        *number = (x * f64::from(*number) + y * f64::from(b[i])) as f32;
    });
    merged
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, merged, near};
    use super::*;

    #[test]
    fn weights_make_the_place_on_the_arc() {
        let pair: [Given<'_>; 2] = [
            (&[1.0, 0.0], &[("weight", 3.0)]),
            (&[0.0, 2.0], &[("weight", 1.0)]),
        ];
        let whole = merged(&NUSLERP, None, &pair, &[], None).unwrap();
        near(&whole, &[0.923_879_5, 0.765_366_9]);
        let moved: [Given<'_>; 2] = [
            (&[2.0, 5.0], &[("weight", 3.0)]),
            (&[1.0, 7.0], &[("weight", 1.0)]),
        ];
        let from_base = merged(&NUSLERP, Some(&[1.0, 5.0]), &moved, &[], None).unwrap();
        near(&from_base, &[1.923_879_5, 5.765_366_9]);
    }

    #[test]
    fn rows_and_columns_have_arcs_of_their_own() {
        let pair: [Given<'_>; 2] = [
            (&[1.0, 0.0, 1.0, 0.0], &[("weight", 3.0)]),
            (&[0.0, 2.0, 3.0, 0.0], &[("weight", 1.0)]),
        ];
        let rows = merged(&NUSLERP, None, &pair, &[("nuslerp_flatten", 0.0)], Some(2)).unwrap();
        near(&rows, &[0.923_879_5, 0.765_366_9, 1.5, 0.0]);
        let turned: [Given<'_>; 2] = [
            (&[1.0, 1.0, 0.0, 0.0], &[("weight", 3.0)]),
            (&[0.0, 3.0, 2.0, 0.0], &[("weight", 1.0)]),
        ];
        let keys = [("nuslerp_flatten", 0.0), ("nuslerp_row_wise", 1.0)];
        let columns = merged(&NUSLERP, None, &turned, &keys, Some(2)).unwrap();
        near(&columns, &[0.923_879_5, 1.5, 0.765_366_9, 0.0]);
    }
}
