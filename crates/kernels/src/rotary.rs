//! Rotary positions (RoFormer, arXiv 2104.09864) in the half layout: pairs `(x_i, x_{i + dim/2})`.

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of a batch of positions, shared by all layers that rotate alike.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::rotary::Rotation;
/// let device = Device::flex();
/// let rotation = Rotation::new(&[3], 1, &[1.0, 0.01], 1.0, &device);
/// let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
/// let rotated = rotation.apply(x).into_data().try_to_vec::<f32>().unwrap();
/// assert!((rotated[0] - -1.413352).abs() < 1e-5);
/// ```
#[derive(Debug, Clone)]
pub struct Rotation {
    cosine: Tensor<4>,
    sine: Tensor<4>,
}

impl Rotation {
    /// `positions`: `[batch * time]` row by row (or `[time]` for all rows, with `batch` 1); `frequencies`: `[dim / 2]`;
    /// `factor` multiplies both tables. Angles are computed in f32, as the reference library does.
    pub fn new(positions: &[u32], batch: usize, frequencies: &[f32], factor: f32, device: &Device) -> Self {
        let time = positions.len() / batch.max(1);
        let angles = || positions.iter().flat_map(|p| frequencies.iter().map(move |f| *p as f32 * f));
        let table =
            |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [batch, 1, time, frequencies.len()]), device);
        Self {
            cosine: table(angles().map(|a| a.cos() * factor).collect()),
            sine: table(angles().map(|a| a.sin() * factor).collect()),
        }
    }

    /// Rotates the first `2 * frequencies` channels of `x` `[batch, heads, time, head_dim]`; the rest pass.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., width] = x.dims();
        let half = self.cosine.dims()[3];
        let low = x.clone().narrow(3, 0, half);
        let high = x.clone().narrow(3, half, half);
        let rotated_low = low.clone() * self.cosine.clone() - high.clone() * self.sine.clone();
        let rotated_high = high * self.cosine.clone() + low * self.sine.clone();
        let mut parts = vec![rotated_low, rotated_high];
        if width > 2 * half {
            parts.push(x.narrow(3, 2 * half, width - 2 * half));
        }
        Tensor::cat(parts, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotate(position: u32, x: [f32; 4]) -> Vec<f32> {
        let device = Device::flex();
        let rotation = Rotation::new(&[position], 1, &[1.0, 0.01], 1.0, &device);
        rotation.apply(Tensor::<1>::from_floats(x, &device).reshape([1, 1, 1, 4])).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn worked_example_of_the_half_layout() {
        let expected = [-1.413352, 1.879118, -2.828857, 4.058191];
        for (value, expected) in rotate(3, [1.0, 2.0, 3.0, 4.0]).iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5);
        }
        assert_eq!(rotate(0, [1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let (query, key) = ([0.3, -1.0, 0.7, 0.2], [1.1, 0.4, -0.6, 0.9]);
        let score = |p, s| rotate(p, query).iter().zip(rotate(s, key)).map(|(a, b)| a * b).sum::<f32>();
        assert!((score(2, 9) - score(12, 19)).abs() < 1e-5);
    }

    #[test]
    fn channels_beyond_the_rotary_width_pass() {
        let device = Device::flex();
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 5.0, 6.0]]]], &device);
        let output = Rotation::new(&[7], 1, &[1.0], 1.0, &device).apply(x).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(&output[2..], &[5.0, 6.0]);
    }
}
