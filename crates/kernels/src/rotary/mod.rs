//! Rotary positions (RoFormer, arXiv 2104.09864), in the half layout, pairs `(x_i, x_{i + dim/2})`, or interleaved, pairs
//! `(x_2i, x_{2i + 1})`.

mod cpu;
pub mod reference;

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::fused;

/// Cosines and sines of a batch of positions, shared by all layers that rotate alike.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::rotary::Rotation;
/// let device = Device::flex();
/// let rotation = Rotation::new(&[3], 1, &[1.0, 0.01], 1.0, false);
/// let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
/// let rotated = rotation.apply(x).into_data().try_to_vec::<f32>().unwrap();
/// assert!((rotated[0] - -1.413352).abs() < 1e-5);
/// ```
#[derive(Debug, Clone)]
pub struct Rotation(Arc<Tables>);

/// `cosine`, `sine`: `[batch, time, half]`.
#[derive(Debug)]
struct Tables {
    cosine: Vec<f32>,
    sine: Vec<f32>,
    batch: usize,
    time: usize,
    half: usize,
    interleaved: bool,
}

impl Rotation {
    /// `positions`: `[batch * time]` row by row (or `[time]` for all rows, with `batch` 1); `frequencies`: `[dim / 2]`;
    /// `factor` multiplies both tables;
    /// `interleaved` chooses the layout. Angles are computed in f32, as the reference library does.
    pub fn new(
        positions: &[u32],
        batch: usize,
        frequencies: &[f32],
        factor: f32,
        interleaved: bool,
    ) -> Self {
        Self::by_token(positions, batch, |_| frequencies, factor, interleaved)
    }

    /// As [`Rotation::new`], where each token has frequencies of its own, as texts of different lengths do under dynamic
    /// scaling; `frequencies` gives those of a token by its index in `positions`, all of one length.
    pub fn by_token<'a>(
        positions: &[u32],
        batch: usize,
        frequencies: impl Fn(usize) -> &'a [f32],
        factor: f32,
        interleaved: bool,
    ) -> Self {
        let angles = || {
            let angles = |(i, p): (usize, &u32)| {
                let position = *p as f32;
                frequencies(i).iter().map(move |f| position * f)
            };
            positions.iter().enumerate().flat_map(angles)
        };
        let half = match positions.is_empty() {
            true => 0,
            false => frequencies(0).len(),
        };
        Self(Arc::new(Tables {
            cosine: angles().map(|a| a.cos() * factor).collect(),
            sine: angles().map(|a| a.sin() * factor).collect(),
            batch,
            time: positions.len() / batch.max(1),
            half,
            interleaved,
        }))
    }

    /// Rotates the first `2 * frequencies` channels of `x` `[batch, time, heads, head_dim]`; the rest pass.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        if fused::on_host(&x) {
            return fused::one(x, cpu::Rotate(Arc::clone(&self.0)));
        }
        let (cosine, sine) = self.tensors(&x.device());
        reference::rotate(x, cosine, sine, self.0.interleaved)
    }

    fn tensors(&self, device: &Device) -> (Tensor<4>, Tensor<4>) {
        let shape = [self.0.batch, self.0.time, 1, self.0.half];
        let table = |values: &[f32]| {
            Tensor::from_data(
                TensorData::new(values.to_vec(), shape),
                &device.clone().inner(),
            )
        };
        (table(&self.0.cosine), table(&self.0.sine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use proptest::prelude::*;

    fn rotate_as(interleaved: bool, position: u32, x: [f32; 4]) -> Vec<f32> {
        let rotation = Rotation::new(&[position], 1, &[1.0, 0.01], 1.0, interleaved);
        let x = Tensor::<1>::from_floats(x, &Device::flex()).reshape([1, 1, 1, 4]);
        rotation.apply(x).into_data().try_to_vec().unwrap()
    }

    fn rotate(position: u32, x: [f32; 4]) -> Vec<f32> {
        rotate_as(false, position, x)
    }

    #[test]
    fn worked_example_of_the_interleaved_layout() {
        let expected = [-1.272233, -1.838865, 2.878668, 4.088187];
        for (value, expected) in rotate_as(true, 3, [1.0, 2.0, 3.0, 4.0])
            .iter()
            .zip(expected)
        {
            assert!((value - expected).abs() < 1e-5);
        }
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
        let score = |p, s| {
            rotate(p, query)
                .iter()
                .zip(rotate(s, key))
                .map(|(a, b)| a * b)
                .sum::<f32>()
        };
        assert!((score(2, 9) - score(12, 19)).abs() < 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..4, time in 1usize..9, heads in 1usize..4, half in 1usize..9,
            rest in 0usize..3, shared: bool, interleaved: bool) {
            let rows = if shared { 1 } else { batch };
            let positions: Vec<u32> = (0..rows * time).map(|i| (i * 7 % 23) as u32).collect();
            let frequencies: Vec<f32> = (0..half).map(|i| 0.3f32.powi(i as i32)).collect();
            let rotation = Rotation::new(&positions, rows, &frequencies, 1.3, interleaved);
            let (cosine, sine) = rotation.tensors(&Device::flex());
            agree(&[&[batch, time, heads, 2 * half + rest]], 1e-6, |t| rotation.apply(t[0].get()).reshape([-1]),
                |t| reference::rotate(t[0].get(), cosine.clone(), sine.clone(), interleaved).reshape([-1]));
        }
    }
}
