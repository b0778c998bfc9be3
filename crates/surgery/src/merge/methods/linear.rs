//! Linear: the weighted mean of the models, `sum w_m x_m / sum w_m`; a model soup. Wortsman and others, arXiv 2203.05482.

use super::{Base, Method, Operands, default, for_each, required};

/// Weighted means.
pub const LINEAR: Method = Method {
    name: "linear",
    title: "Linear",
    source: "https://arxiv.org/abs/2203.05482",
    globals: &[default("normalize", 1.0)],
    own: &[required("weight")],
    base: Base::Plain,
    models: (1, usize::MAX),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let normalize = operands.values.flag("normalize");
    // A base that is not listed has no weight and is none of the models.
    let mut inputs: Vec<_> = operands
        .inputs
        .into_iter()
        .filter_map(|input| Some((input.values.get("weight")? as f32, input.numbers)))
        .collect();
    let total: f32 = inputs.iter().map(|(weight, _)| weight).sum();
    if normalize && total == 0.0 {
        return Err("the weights add up to zero; change them, or set `normalize: false`".into());
    }
    let (first, mut merged) = inputs.swap_remove(0);
    for_each(&mut merged, |i, number| {
        *number *= first;
        for (weight, numbers) in &inputs {
            *number += weight * numbers[i];
        }
        if normalize {
            *number /= total;
        }
    });
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{merged, near};
    use super::*;

    #[test]
    fn weights_are_shares_unless_told_otherwise() {
        let models: [(&[f32], &[_]); 2] = [
            (&[1.0, 4.0], &[("weight", 1.0)]),
            (&[3.0, 0.0], &[("weight", 3.0)]),
        ];
        near(
            &merged(&LINEAR, None, &models, &[], None).unwrap(),
            &[2.5, 1.0],
        );
        let plain = merged(&LINEAR, None, &models, &[("normalize", 0.0)], None).unwrap();
        near(&plain, &[10.0, 4.0]);
        near(
            &merged(&LINEAR, None, &models[..1], &[], None).unwrap(),
            &[1.0, 4.0],
        );
        let opposed: [(&[f32], &[_]); 2] =
            [(&[1.0], &[("weight", 1.0)]), (&[3.0], &[("weight", -1.0)])];
        assert!(merged(&LINEAR, None, &opposed, &[], None).is_err());
    }
}
