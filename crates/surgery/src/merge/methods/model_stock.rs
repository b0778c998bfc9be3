//! Model Stock: between the base and the models' mean, nearer to the mean the better their differences agree: with `c` the mean cosine of
//! pairs of the `N` differences, `t = N c / (1 + (N - 1) c)` and `t mean(x) + (1 - t) b`. Jang and others, arXiv 2403.19522.

use super::{Base, Method, Operands, default, for_each, norm};

/// Interpolation by the angle between differences.
pub const MODEL_STOCK: Method = Method {
    name: "model_stock",
    title: "Model Stock",
    source: "https://arxiv.org/abs/2403.19522",
    globals: &[default("filter_wise", 0.0)],
    own: &[],
    base: Base::Required,
    models: (2, usize::MAX),
    merge,
};

fn merge(operands: Operands) -> Result<Vec<f32>, String> {
    let row = operands.row();
    let (base, others, values) = operands.split_from_base()?;
    let (mut merged, count) = (base.numbers, others.len());
    let length = match values.flag("filter_wise") {
        true => row,
        false => merged.len().max(1),
    };
    for (place, base) in merged.chunks_mut(length).enumerate() {
        let part = place * length..place * length + base.len();
        let models: Vec<&[f32]> = others.iter().map(|o| &o.numbers[part.clone()]).collect();
        let cosine = mean_cosine(base, &models);
        let t = count as f64 * cosine / (1.0 + (count as f64 - 1.0) * cosine);
        for_each(base, |i, number| {
            let mean = models.iter().map(|model| f64::from(model[i])).sum::<f64>() / count as f64;
            *number = (t * mean + (1.0 - t) * f64::from(*number)) as f32;
        });
    }
    Ok(merged)
}

/// The mean cosine over pairs of differences from the base.
fn mean_cosine(base: &[f32], models: &[&[f32]]) -> f64 {
    let difference = |model: &[f32]| -> Vec<f32> {
        model
            .iter()
            .zip(base)
            .map(|(model, base)| model - base)
            .collect()
    };
    let (mut total, mut pairs) = (0.0, 0);
    for (i, model) in models.iter().enumerate() {
        let first = difference(model);
        for other in &models[i + 1..] {
            let second = difference(other);
            let lengths = (norm(&first) * norm(&second)).max(1e-6);
            total += (super::dot(&first, &second) / lengths).clamp(-1.0, 1.0);
            pairs += 1;
        }
    }
    total / f64::from(pairs)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Given, merged, near};
    use super::*;

    #[test]
    fn worked_values() {
        let models: [Given<'_>; 2] = [(&[1.0, 1.0, 0.0], &[]), (&[1.0, 0.0, 1.0], &[])];
        let found = merged(&MODEL_STOCK, Some(&[0.0; 3]), &models, &[], None).unwrap();
        near(&found, &[2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
        let models: [Given<'_>; 2] = [
            (&[1.0, 1.0, 0.0, 1.0, 0.0, 0.0], &[]),
            (&[1.0, 0.0, 1.0, 1.0, 0.0, 0.0], &[]),
        ];
        let rows = merged(
            &MODEL_STOCK,
            Some(&[0.0; 6]),
            &models,
            &[("filter_wise", 1.0)],
            Some(3),
        );
        near(
            &rows.unwrap(),
            &[2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0, 0.0, 0.0],
        );
    }
}
