//! Karcher mean: the point on the sphere whose squared distances from the models' directions are least (Karcher, "Riemannian center of
//! mass", 1977), at their mean length. From `u`, the step is `T = sum a_i theta_i / sin(theta_i) (u_i - cos(theta_i) u)`, and
//! `u <- cos|T| u + sin|T| T / |T|`.

use super::{Base, Method, Operands, default, dot, for_each, norm};

/// Riemannian means of directions.
pub const KARCHER: Method = Method {
    name: "karcher",
    title: "Karcher Mean",
    source: "https://en.wikipedia.org/wiki/Karcher_mean",
    globals: &[default("max_iter", 10.0), default("tol", 1e-5)],
    own: &[],
    base: Base::Plain,
    models: (1, usize::MAX),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let (steps, tol) = (
        operands.values.number("max_iter"),
        operands.values.number("tol"),
    );
    let mut units: Vec<Vec<f32>> = operands
        .inputs
        .into_iter()
        .map(|input| input.numbers)
        .collect();
    if units.len() == 1 {
        return Ok(units.remove(0));
    }
    let count = units[0].len();
    let norms: Vec<f64> = units.iter().map(|vector| norm(vector)).collect();
    let size = norms.iter().sum::<f64>() / norms.len() as f64;
    let mut lengths = norms.iter();
    units.retain(|_| lengths.next().is_some_and(|norm| *norm > tol));
    for (unit, norm) in units
        .iter_mut()
        .zip(norms.iter().filter(|norm| **norm > tol))
    {
        for_each(unit, |_, number| {
            *number = (f64::from(*number) / norm) as f32
        });
    }
    let Some(first) = units.first() else {
        // Zeros, all of them.
        return Ok(vec![0.0; count]);
    };
    let mut point = vec![0.0f32; first.len()];
    let share = 1.0 / units.len() as f64;
    add(&mut point, &units, &vec![share; units.len()], 0.0);
    let length = norm(&point);
    if length < tol {
        point.clone_from(first);
    } else {
        scale(&mut point, 1.0 / length);
    }
    for _ in 0..steps as usize {
        if !step(&mut point, &units, share, tol) {
            break;
        }
    }
    scale(&mut point, size);
    Ok(point)
}

/// One step towards the mean; false where it has arrived.
fn step(point: &mut [f32], units: &[Vec<f32>], share: f64, tol: f64) -> bool {
    let (mut shares, mut own) = (Vec::new(), 0.0);
    for unit in units {
        let cosine = dot(point, unit).clamp(-1.0, 1.0);
        let theta = cosine.acos();
        let weight = match theta < tol {
            true => 0.0,
            false => share * theta / theta.sin(),
        };
        shares.push(weight);
        own -= weight * cosine;
    }
    let mut tangent = point.to_vec();
    add(&mut tangent, units, &shares, own);
    let length = norm(&tangent);
    if length < tol {
        return false;
    }
    let (a, b) = (length.cos(), length.sin() / length);
    for_each(point, |i, number| {
        *number = (a * f64::from(*number) + b * f64::from(tangent[i])) as f32;
    });
    let length = norm(point);
    if length > tol {
        scale(point, 1.0 / length);
    }
    true
}

/// `point <- own point + sum shares_i units_i`.
fn add(point: &mut [f32], units: &[Vec<f32>], shares: &[f64], own: f64) {
    for_each(point, |i, number| {
        let terms = units.iter().zip(shares);
        let mix: f64 = terms.map(|(unit, share)| share * f64::from(unit[i])).sum();
        *number = (own * f64::from(*number) + mix) as f32;
    });
}

fn scale(point: &mut [f32], factor: f64) {
    for_each(point, |_, number| {
        *number = (f64::from(*number) * factor) as f32
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, merged, near};
    use super::*;

    #[test]
    fn the_mean_of_three_axes_is_the_diagonal() {
        let axes: [Given<'_>; 3] = [
            (&[1.0, 0.0, 0.0], &[]),
            (&[0.0, 2.0, 0.0], &[]),
            (&[0.0, 0.0, 3.0], &[]),
        ];
        let mean = merged(&KARCHER, None, &axes, &[], None).unwrap();
        near(&mean, &[2.0 / 3.0f64.sqrt(); 3]);
        // On a circle it is the mean of the angles: 0, 0 and 90 degrees.
        let plane: [Given<'_>; 3] = [(&[1.0, 0.0], &[]), (&[1.0, 0.0], &[]), (&[0.0, 1.0], &[])];
        let mean = merged(
            &KARCHER,
            None,
            &plane,
            &[("tol", 1e-9), ("max_iter", 100.0)],
            None,
        );
        near(&mean.unwrap(), &[0.866_025_4, 0.5]);
    }
}
