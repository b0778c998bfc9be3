//! Losses of the scaled scores of both answers, each by itself: `a` and `b` are times `beta` here.

use burn::tensor::{
    Tensor,
    activation::{log_sigmoid, sigmoid},
};

/// `-ls(a) - ls(-a) / 2 - ls(-b) / 2`.
pub fn nca(a: Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    -log_sigmoid(a.clone()) - log_sigmoid(-a) * 0.5 - log_sigmoid(-b) * 0.5
}

/// `-ls(a - d) - ls(d - b)`.
pub fn bco(a: Tensor<1>, b: Tensor<1>, d: f64) -> Tensor<1> {
    -log_sigmoid(a - d) - log_sigmoid(-b + d)
}

/// `(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2`, of scores that are not scaled.
pub fn sppo(a: Tensor<1>, b: Tensor<1>, beta: f64) -> Tensor<1> {
    (a - 0.5 / beta).powi_scalar(2) + (b + 0.5 / beta).powi_scalar(2)
}

/// `1 - sigmoid(a) + sigmoid(b)`.
pub fn apo_zero(a: Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    sigmoid(-a) + sigmoid(b)
}

/// `sigmoid(a) + 1 - sigmoid(x)`, `x` the scaled difference.
pub fn apo_down(a: Tensor<1>, x: Tensor<1>) -> Tensor<1> {
    sigmoid(a) + sigmoid(-x)
}

/// The mean of all rewards so far, for [`bco`]'s `d`: a sum and a count, so that it is the same after a resume.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunningMean {
    sum: f64,
    count: f64,
}

impl RunningMean {
    /// The mean; 0 before the first value.
    pub fn value(self) -> f64 {
        self.sum / self.count.max(1.0)
    }

    /// With further values.
    #[must_use]
    pub fn with(self, values: &[f32]) -> Self {
        Self {
            sum: self.sum + values.iter().copied().map(f64::from).sum::<f64>(),
            count: self.count + values.len() as f64,
        }
    }

    /// The bits of sum and count, which JSON keeps exactly.
    pub fn to_bits(self) -> [u64; 2] {
        [self.sum, self.count].map(f64::to_bits)
    }

    /// The mean of which these are the bits.
    pub fn from_bits(bits: [u64; 2]) -> Self {
        let [sum, count] = bits.map(f64::from_bits);
        Self { sum, count }
    }
}
