//! The linear map `y = x W^T + b`, with its weight in the checkpoints' layout `[out, in]`.

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::host;

/// `x W^T + b`.
///
/// `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`; returns `[.., out]`, accumulated in f32.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::linear::linear;
/// let device = Device::flex();
/// let weight = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
/// let y = linear(Tensor::<2>::from_floats([[1.0, 1.0]], &device), weight, None);
/// assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [3.0, 7.0, 11.0]);
/// ```
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    if !host::on_host(&x) {
        return reference::linear(x, weight, bias);
    }
    match bias {
        Some(bias) => host::three(x, weight, bias, cpu::Linear),
        None => host::two(x, weight, cpu::Linear),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..50) {
            let shapes: [&[usize]; 3] = [&[2, rows, inputs], &[outputs, inputs], &[outputs]];
            agree(&shapes, 1e-5, |t| linear(t[0].get::<3>(), t[1].get(), Some(t[2].get())).reshape([-1]),
                |t| reference::linear(t[0].get::<3>(), t[1].get(), Some(t[2].get())).reshape([-1]));
            agree(&shapes[..2], 1e-5, |t| linear(t[0].get::<3>(), t[1].get(), None).reshape([-1]),
                |t| reference::linear(t[0].get::<3>(), t[1].get(), None).reshape([-1]));
        }
    }
}
