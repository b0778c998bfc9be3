//! Tests that every recurrence passes: values and gradients agree with a definition in f64, a sequence read in parts agrees with
//! the whole, and no output depends on later inputs or on the number of threads.

use burn::tensor::{Device, Tensor, TensorData};

use crate::{
    parallel,
    testing::{Leaf, evaluate, numbers},
};

/// Numbers in [-1, 1] that depend on `seed` alone.
pub(super) fn tensor<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    Tensor::from_data(
        TensorData::new(numbers(shape.iter().product(), seed), shape),
        &Device::flex(),
    )
}

/// Zeros.
pub(super) fn zeros<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::zeros(shape, &Device::flex())
}

/// The numbers of a tensor.
pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Several outputs in one row.
pub(super) fn both<const A: usize, const B: usize>((a, b): (Tensor<A>, Tensor<B>)) -> Tensor<1> {
    Tensor::cat(vec![a.reshape([-1]), b.reshape([-1])], 0)
}

/// Asserts that the operator's values are those of a definition in f64, and its gradients the definition's central
/// differences.
pub(super) fn check(
    shapes: &[&[usize]],
    operator: impl Fn(&[Leaf]) -> Tensor<1>,
    definition: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let found = evaluate(shapes, &operator);
    let count = |shape: &&[usize]| shape.iter().product::<usize>();
    let input = |(i, shape)| {
        numbers(count(shape), i as u64 + 1)
            .into_iter()
            .map(f64::from)
            .collect()
    };
    let mut inputs: Vec<Vec<f64>> = shapes.iter().enumerate().map(input).collect();
    let expected = definition(&inputs);
    near("the output", &found[0], &expected);
    let direction: Vec<f64> = numbers(expected.len(), 99)
        .into_iter()
        .map(f64::from)
        .collect();
    let loss = |inputs: &[Vec<f64>]| -> f64 {
        definition(inputs)
            .iter()
            .zip(&direction)
            .map(|(a, b)| a * b)
            .sum()
    };
    const STEP: f64 = 1e-5;
    for i in 0..inputs.len() {
        let mut slopes = Vec::new();
        for j in 0..inputs[i].len() {
            let value = inputs[i][j];
            let mut at = |place: f64| {
                inputs[i][j] = place;
                loss(&inputs)
            };
            let slope = (at(value + STEP) - at(value - STEP)) / (2.0 * STEP);
            inputs[i][j] = value;
            slopes.push(slope);
        }
        near(
            &format!("the gradient of input {i}"),
            &found[i + 1],
            &slopes,
        );
    }
}

/// Asserts that two lists of numbers agree to 1e-5 of the largest, or of 1.
fn near(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1f64, |a, b| a.max(b.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*found) - expected).abs() <= 1e-5 * scale,
            "{what}, {i}: {found} against {expected}"
        );
    }
}

/// Asserts that an operator with a state gives the same for a sequence and for its parts, wherever it is cut, that no output
/// depends on a later input, bit by bit, and that neither does any depend on the number of threads.
///
/// The operator is given the sequence `[batch, time, width]`, from which it makes its inputs, and the state.
pub(super) fn check_parts<const S: usize>(
    [batch, time, width]: [usize; 3],
    operator: impl Fn(Tensor<3>, Option<Tensor<S>>) -> (Tensor<3>, Tensor<S>) + Sync,
) {
    let x = tensor([batch, time, width], 1);
    let part =
        |x: &Tensor<3>, steps: std::ops::Range<usize>| x.clone().slice([0..batch, steps, 0..width]);
    let (whole, state) = operator(x.clone(), None);
    let (outputs, states) = (values(whole.clone()), values(state));
    for cut in (1..time).filter(|cut| time < 20 || cut % 7 == 1) {
        let (first, state) = operator(part(&x, 0..cut), None);
        let (second, state) = operator(part(&x, cut..time), Some(state));
        close(&outputs, &values(Tensor::cat(vec![first, second], 1)));
        close(&states, &values(state));
    }
    let noise = tensor([batch, time, width], 2);
    let out = whole.dims()[2];
    for cut in (1..time).filter(|cut| time < 20 || cut % 7 == 1) {
        let changed = Tensor::cat(vec![part(&x, 0..cut), part(&noise, cut..time)], 1);
        let changed = operator(changed, None).0.slice([0..batch, 0..cut, 0..out]);
        assert_eq!(
            values(changed),
            values(whole.clone().slice([0..batch, 0..cut, 0..out])),
            "cut at {cut}"
        );
    }
    // Inside a parallel loop an operator runs on one thread.
    parallel::for_each(2, |_| {
        let (whole, state) = operator(x.clone(), None);
        assert_eq!(
            (values(whole), values(state)),
            (outputs.clone(), states.clone())
        );
    });
    let gradient = || {
        let x = x.clone().autodiff().require_grad();
        let gradients = both(operator(x.clone(), None))
            .powi_scalar(2)
            .sum()
            .backward();
        values(x.grad(&gradients).unwrap())
    };
    let expected = gradient();
    parallel::for_each(2, |_| assert_eq!(gradient(), expected));
}

fn close(expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len());
    let scale = expected.iter().fold(1f32, |a, b| a.max(b.abs()));
    for (expected, found) in expected.iter().zip(found) {
        assert!(
            (expected - found).abs() <= 2e-6 * scale,
            "{found} against {expected}"
        );
    }
}
