//! Comparison of an operator with its reference: values and every gradient.

use burn::tensor::{Device, Tensor, TensorData};

/// A tracked input of some shape.
pub(crate) struct Leaf {
    flat: Tensor<1>,
    shape: Vec<usize>,
}

impl Leaf {
    /// The input with its rank.
    pub fn get<const D: usize>(&self) -> Tensor<D> {
        let mut shape = [0; D];
        shape.copy_from_slice(&self.shape);
        self.flat.clone().reshape(shape)
    }
}

/// Numbers in [-1, 1] that depend on `seed` alone.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Values of `function` and its gradients, under a fixed random direction of the output.
pub(crate) fn evaluate(
    shapes: &[&[usize]],
    function: &dyn Fn(&[Leaf]) -> Tensor<1>,
) -> Vec<Vec<f32>> {
    let device = Device::flex();
    let leaf = |(i, shape): (usize, &&[usize])| {
        let count = shape.iter().product();
        let flat = Tensor::<1>::from_data(
            TensorData::new(numbers(count, i as u64 + 1), [count]),
            &device,
        );
        Leaf {
            flat: flat.autodiff().require_grad(),
            shape: shape.to_vec(),
        }
    };
    let leaves: Vec<Leaf> = shapes.iter().enumerate().map(leaf).collect();
    let output = function(&leaves);
    let count = output.dims()[0];
    let direction = Tensor::<1>::from_data(TensorData::new(numbers(count, 99), [count]), &device);
    let values = |tensor: Tensor<1>| tensor.into_data().try_into_vec::<f32>().unwrap();
    let gradients = (output.clone() * direction).sum().backward();
    let mut all = vec![values(output.inner())];
    all.extend(
        leaves
            .iter()
            .map(|leaf| values(leaf.flat.grad(&gradients).unwrap())),
    );
    all
}

/// Asserts that `operator` and `reference` agree on values and on the gradient of every input, to `tolerance` of the
/// largest reference value (or of 1, where that is more).
pub(crate) fn agree(
    shapes: &[&[usize]],
    tolerance: f32,
    operator: impl Fn(&[Leaf]) -> Tensor<1>,
    reference: impl Fn(&[Leaf]) -> Tensor<1>,
) {
    let (found, expected) = (evaluate(shapes, &operator), evaluate(shapes, &reference));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1f32, |a, b| a.max(b.abs()));
        for (f, e) in found.iter().zip(expected) {
            assert!(
                (f - e).abs() <= tolerance * scale,
                "part {i} (0 is the output): {f} against {e}"
            );
        }
    }
}
