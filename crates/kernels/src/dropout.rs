//! Dropout (Srivastava et al. 2014): elements are zeroed at random, the others scaled so that the mean stays.
//!
//! Whether an element stays is a function of the seed and of its place, so nothing is kept for the backward and a run that
//! is repeated or resumed drops the same ones.

use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::{
    fused::{self, FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
};

/// The share of elements that is dropped, and the seed of the choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of the elements that are zeroed, below 1.
    pub probability: f64,
    /// Seed of the choice of elements.
    pub seed: u64,
}

impl Dropout {
    /// The same share with other choices, for another place in a model.
    pub fn of(self, place: u64) -> Self {
        Self {
            seed: mixed(self.seed ^ mixed(place.wrapping_add(1))),
            ..self
        }
    }

    /// `x` with elements dropped, elementwise.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use espalier_kernels::dropout::Dropout;
    /// let ones = Tensor::<1>::ones([1000], &Device::flex());
    /// let kept = Dropout { probability: 0.25, seed: 1 }.forward(ones).into_data().try_into_vec::<f32>().unwrap();
    /// assert!(kept.iter().all(|x| *x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
    /// ```
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        if fused::on_host(&x) {
            return fused::one(x, Operator(self));
        }
        let factors: Vec<f32> = (0..x.shape().num_elements())
            .map(|i| self.factor(i))
            .collect();
        let factors =
            Tensor::<D>::from_data(TensorData::new(factors, x.dims()), &x.device().inner());
        x * factors
    }

    /// The factor of element `i`: zero, or the scale of the kept ones.
    fn factor(self, i: usize) -> f32 {
        let drawn = (mixed(self.seed.wrapping_add(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        if drawn < self.probability {
            0.0
        } else {
            (1.0 / (1.0 - self.probability)) as f32
        }
    }
}

/// SplitMix64's finaliser, after a step.
fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug)]
struct Operator(Dropout);

/// Elements that one task takes.
const CHUNK: usize = 1 << 13;

impl Operator {
    fn apply(&self, x: &FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [y] = fresh([(slice(&x).len(), CHUNK)], |i, [y]| {
            for (j, (y, x)) in y.iter_mut().zip(chunk(slice(&x), CHUNK, i)).enumerate() {
                *y = x * self.0.factor(i * CHUNK + j);
            }
        });
        tensor(y, &dimensions(&x))
    }
}

impl FusedOperator<1> for Operator {
    fn forward(&self, [x]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        (self.apply(x), Vec::new())
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [Some(self.apply(&given.gradient))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn values(x: Tensor<1>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn the_share_and_the_mean_are_kept_and_the_gradient_drops_the_same() {
        let dropout = Dropout {
            probability: 0.3,
            seed: 7,
        };
        let x = Tensor::<1>::ones([100_000], &Device::flex())
            .autodiff()
            .require_grad();
        let y = dropout.forward(x.clone());
        let gradients = y.clone().sum().backward();
        let y = values(y.inner());
        assert_eq!(values(x.grad(&gradients).unwrap()), y);
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / y.len() as f64;
        let mean = y.iter().map(|y| f64::from(*y)).sum::<f64>() / y.len() as f64;
        assert!(
            (dropped - 0.3).abs() < 0.01 && (mean - 1.0).abs() < 0.01,
            "{dropped} {mean}"
        );
    }

    #[test]
    fn places_and_seeds_drop_differently() {
        let ones = || Tensor::<1>::ones([64], &Device::flex());
        let dropout = Dropout {
            probability: 0.5,
            seed: 1,
        };
        let drawn = [
            dropout,
            dropout.of(0),
            dropout.of(1),
            Dropout { seed: 2, ..dropout },
        ]
        .map(|d| values(d.forward(ones())));
        for (i, a) in drawn.iter().enumerate() {
            assert!(drawn[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(values(dropout.forward(ones())), drawn[0]);
    }
}
