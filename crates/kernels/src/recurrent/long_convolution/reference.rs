//! The definition in Burn operations.

use burn::tensor::Tensor;

/// The sum over lags; shapes as in [`super::long_convolution`].
pub fn long_convolution(x: Tensor<3>, kernel: Tensor<2>) -> Tensor<3> {
    let ([batch, time, width], [kernels, length]) = (x.dims(), kernel.dims());
    let lag = |j: usize| {
        let factor = kernel
            .clone()
            .slice([0..kernels, j..j + 1])
            .reshape([1, 1, kernels]);
        let earlier = x.clone().slice([0..batch, 0..time - j, 0..width]) * factor;
        match j {
            0 => earlier,
            _ => Tensor::cat(
                vec![
                    Tensor::zeros([batch, j, width], &x.device().inner()),
                    earlier,
                ],
                1,
            ),
        }
    };
    (1..length.min(time))
        .map(lag)
        .fold(lag(0), |sum, term| sum + term)
}
