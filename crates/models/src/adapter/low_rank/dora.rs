//! DoRA (arXiv 2402.09353): the rows of `V = W + s B A` have their directions, and lengths `m` of their own: `W' = m V / |V|`.
//!
//! `m` starts as the lengths of `W`'s rows, so the model starts unchanged. No gradient passes through `|V|`, as in the paper's section
//! 4.3. Where the adapter drops inputs, all of `V` reads what is left, and the base's own output has none of it.

use burn::tensor::Tensor;
use espalier_kernels::linear::linear;

use super::LowRank;
use crate::{
    adapter::linear_adapter::{LinearPass, LinearWeights},
    parameter::Parameter,
};

/// The lengths of a matrix' rows, `[out]`, outside autodiff. A row of zeros has the smallest number: what it is divided into stays zero.
pub(super) fn lengths(matrix: Tensor<2>) -> Tensor<1> {
    let matrix = matrix.inner();
    let rows = matrix.dims()[0];
    let squares = (matrix.clone() * matrix).sum_dim(1).reshape([rows]);
    squares.sqrt().clamp_min(f32::MIN_POSITIVE)
}

/// `x (W' - W)^T`.
pub(super) fn addition(
    adapter: &LowRank,
    magnitude: &Parameter,
    pass: &LinearPass<'_>,
) -> Tensor<2> {
    let weight = || (pass.weight)().into_tensor(&pass.input.device());
    let directions = weight().inner() + adapter.product();
    let factor = (magnitude.value::<1>() / lengths(directions)).unsqueeze::<2>();
    let Some(dropout) = adapter.dropped else {
        let sum = pass.product.clone() + adapter.through(pass.input.clone(), pass.precision);
        return factor * sum - pass.product.clone();
    };
    let (all, input) = (pass.input.clone(), dropout.forward(pass.input.clone()));
    let product = linear(input.clone(), (pass.weight)(), None, pass.precision);
    let base = adapter.with_start(product, &input, pass.precision);
    let sum = base.clone() + adapter.trained(input, pass.precision);
    adapter.with_start(factor * sum - base, &all, pass.precision)
}

/// `W' - W`.
pub(super) fn merge(
    adapter: &LowRank,
    magnitude: &Parameter,
    base: &LinearWeights,
) -> LinearWeights {
    let weight = base.weight.clone();
    let directions = weight.clone() + adapter.product();
    let factor = magnitude.flat() / lengths(directions.clone());
    LinearWeights {
        weight: directions * factor.unsqueeze_dim::<2>(1) - weight,
        bias: None,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use espalier_kernels::linear::Precision;

    use super::*;
    use crate::{adapter::LinearAdapter, layers::linear::Linear};

    fn parameter(name: &str, shape: &[usize], values: &[f32]) -> Parameter {
        let flat = Tensor::from_floats(values, &Device::flex());
        Parameter::new(name, shape.to_vec(), flat)
    }

    fn adapter() -> LowRank {
        let factors = [
            parameter("a", &[1, 3], &[1.0, 2.0, 0.0]),
            parameter("b", &[2, 1], &[0.5, 1.0]),
        ];
        LowRank {
            magnitude: Some(parameter("m", &[2], &[1.0, 1.0])),
            ..LowRank::new(factors, 2.0)
        }
    }

    fn weight() -> Tensor<2> {
        Tensor::from_floats([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &Device::flex())
    }

    #[test]
    fn merging_gives_the_worked_example() {
        let base = LinearWeights {
            weight: weight(),
            bias: None,
        };
        let directions = weight() + adapter().product();
        let found = lengths(directions).into_data().try_to_vec::<f32>().unwrap();
        for (found, expected) in found.iter().zip([2.828_427, 5.385_165]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        let merged = weight() + adapter().merge(&base).unwrap().weight;
        let half = 0.5f32.sqrt();
        let expected = [[half, half, 0.0], [0.371_391, 0.928_477, 0.0]];
        let expected = Tensor::<2>::from_floats(expected, &Device::flex());
        let gap = (merged.clone() - expected).abs().max().into_scalar::<f32>();
        assert!(gap < 1e-6, "{gap}");
        // Its rows have the lengths that are trained.
        for length in lengths(merged).into_data().try_to_vec::<f32>().unwrap() {
            assert!((length - 1.0).abs() < 1e-6, "{length}");
        }
    }

    /// The definition, with the base's own output of all of the input and everything else of what is left of it.
    #[test]
    fn what_is_dropped_is_missing_from_both_parts_and_not_from_the_base() {
        let device = Device::flex();
        let mut adapter = LowRank {
            dropout: 0.5,
            start: Some([
                parameter("c", &[1, 3], &[0.5, -1.0, 2.0]),
                parameter("d", &[2, 1], &[0.25, -0.5]),
            ]),
            ..adapter()
        };
        let mut linear = Linear::from_weight(
            "layer",
            parameter("w", &[2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            Precision::F32,
        );
        let x = Tensor::<2>::from_floats([[1.0, -1.0, 3.0], [2.0, 5.0, -4.0]], &device);
        for seed in [None, Some(3), Some(4)] {
            adapter.set_dropout(seed);
            let left = match adapter.dropped {
                Some(dropout) => dropout.forward(x.clone()),
                None => x.clone(),
            };
            let start = [[0.25, -0.5, 1.0], [-0.5, 1.0, -2.0]];
            let residual = weight() + Tensor::from_floats(start, &device);
            let update = Tensor::from_floats([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]], &device);
            let directions = residual.clone() + update.clone();
            let factor = lengths(directions).recip().unsqueeze::<2>();
            let through =
                |x: &Tensor<2>, weight: &Tensor<2>| x.clone().matmul(weight.clone().transpose());
            let expected = through(&x, &residual)
                + (factor.clone() - 1.0) * through(&left, &residual)
                + factor * through(&left, &update);
            linear.adapters.attach("default", Box::new(adapter.clone()));
            let gap = (linear.forward(x.clone()) - expected).abs().max();
            assert!(gap.into_scalar::<f32>() < 1e-5, "{seed:?}");
        }
    }

    #[test]
    fn rows_of_zeros_stay_so() {
        let zeros = Tensor::<2>::zeros([2, 3], &Device::flex());
        let found = lengths(zeros).into_data().try_to_vec::<f32>().unwrap();
        assert!(found.iter().all(|length| *length > 0.0 && *length < 1e-30));
    }
}
