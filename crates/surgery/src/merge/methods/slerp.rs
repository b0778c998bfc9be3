//! SLERP: two models along the arc between them. With `u` the vectors over their lengths and `theta = arccos <u_0, u_1>`,
//! `sin((1-t) theta)/sin(theta) v_0 + sin(t theta)/sin(theta) v_1`, on the vectors as they are; a straight line where `|cos theta| > 0.9995`.
//! Shoemake, "Animating rotation with quaternion curves" (1985). At `t = 0` it is the base.

use super::{Base, Method, Operands, dot, for_each, norm, required};

/// Vectors nearer than this to one line are mixed on it.
const COLINEAR: f64 = 0.9995;
/// A vector shorter than this is not divided by its length.
const SHORT: f64 = 1e-8;

/// Spherical interpolation of two models.
pub const SLERP: Method = Method {
    name: "slerp",
    title: "SLERP",
    source: "https://en.wikipedia.org/wiki/Slerp",
    globals: &[required("t")],
    own: &[],
    base: Base::Required,
    models: (1, 1),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let (base, others, values) = operands.split_from_base()?;
    let t = values.number("t");
    let mut merged = base.numbers;
    let other = &others.first().ok_or("there is no second model")?.numbers;
    let length = |norm: f64| if norm > SHORT { norm } else { 1.0 };
    let cosine = dot(&merged, other) / (length(norm(&merged)) * length(norm(other)));
    let (a, b) = if cosine.abs() > COLINEAR {
        (1.0 - t, t)
    } else {
        let theta = cosine.acos();
        let on = |share: f64| (share * theta).sin() / theta.sin();
        (on(1.0 - t), on(t))
    };
    for_each(&mut merged, |i, number| {
        *number = (a * f64::from(*number) + b * f64::from(other[i])) as f32;
    });
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn worked_values() {
        let slerp = |a: &[f32], b: &[f32], t| {
            merged(&SLERP, Some(a), &[(b, &[])], &[("t", t)], None).unwrap()
        };
        near(
            &slerp(&[1.0, 0.0], &[0.0, 2.0], 0.25),
            &[0.923_879_5, 0.765_366_9],
        );
        near(
            &slerp(&[1.0, 0.0], &[0.0, 2.0], 0.5),
            &[FRAC_1_SQRT_2, SQRT_2],
        );
        let third = slerp(&[1.0, 2.0, 3.0], &[3.0, 1.0, -1.0], 0.3);
        near(&third, &[2.091_92, 2.105_653, 2.119_386]);
        near(&slerp(&[1.0, 0.0], &[2.0, 0.0], 0.5), &[1.5, 0.0]);
        near(&slerp(&[0.0, 0.0], &[2.0, 0.0], 0.5), &[SQRT_2, 0.0]);
    }
}
