//! Causal convolution with kernels as long as the sequence, by fast Fourier transforms: for kernels without a
//! recurrence of a few numbers of state.

mod cpu;
mod fourier;
mod reference;

use burn::tensor::Tensor;

use crate::fused;

/// `y_t = sum_{j <= t} k_j x_{t-j}` for each channel, in `O(time log time)`.
///
/// `x`: `[batch, time, width]`; `kernel`: `[width, length]`, one for each channel, or `[1, length]`, one for all of them; what
/// is longer than the sequence is not read. Returns the shape of `x`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::long_convolution::long_convolution;
/// let x = Tensor::<3>::from_floats([[[1.0], [2.0], [0.0]]], &Device::flex());
/// let y = long_convolution(x, Tensor::from_floats([[1.0, 0.5]], &Device::flex()));
/// let y = y.into_data().try_to_vec::<f32>().unwrap();
/// assert!(y.iter().zip([1.0, 2.5, 1.0]).all(|(y, expected)| (y - expected).abs() < 1e-6));
/// ```
pub fn long_convolution(x: Tensor<3>, kernel: Tensor<2>) -> Tensor<3> {
    match fused::on_host(&x) {
        true => fused::two(x, kernel, cpu::LongConvolution),
        false => reference::long_convolution(x, kernel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recurrent::testing::check, testing::agree};
    use proptest::prelude::*;

    /// In f64.
    fn definition([batch, time, width, kernels]: [usize; 4], inputs: &[Vec<f64>]) -> Vec<f64> {
        let length = inputs[1].len() / kernels;
        let mut y = vec![0.0; batch * time * width];
        for (i, y) in y.iter_mut().enumerate() {
            let (t, c) = (i / width % time, i % width);
            let kernel = &inputs[1][c % kernels * length..][..length];
            *y = (0..=t.min(length - 1))
                .map(|j| kernel[j] * inputs[0][i - j * width])
                .sum();
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..4, time in 1usize..70, width in 1usize..40, length in 1usize..80,
            shared: bool) {
            let kernels = if shared { 1 } else { width };
            agree(&[&[batch, time, width], &[kernels, length]], 1e-5,
                |t| long_convolution(t[0].get(), t[1].get()).reshape([-1]),
                |t| reference::long_convolution(t[0].get(), t[1].get()).reshape([-1]));
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..12, width in 1usize..4, length in 1usize..12, shared: bool) {
            let kernels = if shared { 1 } else { width };
            check(&[&[2, time, width], &[kernels, length]],
                |t| long_convolution(t[0].get(), t[1].get()).reshape([-1]),
                |inputs| definition([2, time, width, kernels], inputs));
        }
    }
}
