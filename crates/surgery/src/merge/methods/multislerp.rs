//! Multi-SLERP: the weighted mean of several directions on the sphere, taken in the plane that touches it at their mean direction, at the
//! weighted mean of their lengths. A method of mergekit without a paper: <https://goddard.blog/posts/multislerp-wow-what-a-cool-idea>.

use super::{Base, Method, Operands, default, dot, for_each, norm, required};

/// Mean directions on the sphere.
pub const MULTISLERP: Method = Method {
    name: "multislerp",
    title: "Multi-SLERP",
    source: "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    globals: &[default("normalize_weights", 1.0), default("eps", 1e-8)],
    own: &[required("weight")],
    base: Base::Optional,
    models: (1, usize::MAX),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let (base, mut others, values) = operands.split();
    if others.len() == 1 {
        return Ok(others.remove(0).numbers);
    }
    let eps = values.number("eps");
    let mut weights: Vec<f64> = others.iter().map(|o| o.values.number("weight")).collect();
    if values.flag("normalize_weights") {
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    let mut vectors: Vec<Vec<f32>> = others.into_iter().map(|other| other.numbers).collect();
    if let Some(base) = &base {
        for vector in &mut vectors {
            for_each(vector, |i, number| *number -= base.numbers[i]);
        }
    }
    let mut merged = mean_on_sphere(&vectors, &weights, eps)?;
    if let Some(base) = &base {
        for_each(&mut merged, |i, number| *number += base.numbers[i]);
    }
    Ok(merged)
}

fn mean_on_sphere(vectors: &[Vec<f32>], weights: &[f64], eps: f64) -> Result<Vec<f32>, String> {
    let norms: Vec<f64> = vectors.iter().map(|vector| norm(vector)).collect();
    let shares: Vec<f64> = weights
        .iter()
        .zip(&norms)
        .map(|(w, n)| w / (n + eps))
        .collect();
    let combined = |shares: &[f64]| {
        let mut mix = vec![0.0; vectors[0].len()];
        for_each(&mut mix, |i, number| {
            let terms = vectors.iter().zip(shares);
            *number = terms
                .map(|(vector, share)| share * f64::from(vector[i]))
                .sum::<f64>() as f32;
        });
        mix
    };
    let mut mean = combined(&shares);
    let length = norm(&mean);
    if length < eps {
        return match vectors.len() {
            2 => Ok(combined(weights)),
            _ => Err("the weighted directions cancel each other; use other weights".into()),
        };
    }
    for_each(&mut mean, |_, number| {
        *number = (f64::from(*number) / length) as f32
    });
    // The weighted sum of the unit vectors, less what of it lies along the mean.
    let along: f64 = vectors
        .iter()
        .zip(&shares)
        .map(|(vector, share)| share * dot(vector, &mean))
        .sum();
    let mut tangent = combined(&shares);
    for_each(&mut tangent, |i, number| {
        *number = (f64::from(*number) - along * f64::from(mean[i])) as f32;
    });
    let angle = norm(&tangent) + eps;
    let size: f64 = norms
        .iter()
        .zip(weights)
        .map(|(norm, weight)| norm * weight)
        .sum();
    let (a, b) = (size * angle.cos(), size * angle.sin() / angle);
    for_each(&mut mean, |i, number| {
        *number = (a * f64::from(*number) + b * f64::from(tangent[i])) as f32;
    });
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, merged, near};
    use super::*;

    #[test]
    fn two_equal_shares_meet_in_the_middle() {
        let pair: [Given<'_>; 2] = [
            (&[1.0, 0.0], &[("weight", 1.0)]),
            (&[0.0, 3.0], &[("weight", 1.0)]),
        ];
        let middle = merged(&MULTISLERP, None, &pair, &[], None).unwrap();
        near(&middle, &[2.0f64.sqrt(), 2.0f64.sqrt()]);
        let opposed: [Given<'_>; 2] = [
            (&[1.0, 0.0], &[("weight", 1.0)]),
            (&[-3.0, 0.0], &[("weight", 1.0)]),
        ];
        near(
            &merged(&MULTISLERP, None, &opposed, &[], None).unwrap(),
            &[-1.0, 0.0],
        );
        let from_base = merged(&MULTISLERP, Some(&[1.0, 1.0]), &pair[..1], &[], None).unwrap();
        near(&from_base, &[1.0, 0.0]);
    }
}
