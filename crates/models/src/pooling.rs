//! One vector for a text: pooling of hidden states (Sentence-BERT, arXiv 1908.10084; LLM2Vec, arXiv 2404.05961).

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How the hidden states of a text become one vector.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over its tokens.
    #[default]
    Mean,
    /// The mean with weights 1, 2, 3, ...: later tokens have seen more.
    WeightedMean,
    /// The first token (BERT's `[CLS]`).
    First,
    /// The last token.
    Last,
}

impl std::str::FromStr for Pooling {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "mean" => Ok(Self::Mean),
            "weighted_mean" => Ok(Self::WeightedMean),
            "first" | "cls" => Ok(Self::First),
            "last" | "last_token" | "eos_token" => Ok(Self::Last),
            _ => Err(format!(
                "unknown pooling `{name}`; known are mean, weighted_mean, first and last"
            )),
        }
    }
}

impl Pooling {
    /// Pools `hidden` `[batch, time, width]` over the tokens that `real` `[batch * time]` marks: `[batch, width]`. A row
    /// without tokens gives zeros.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use espalier_models::pooling::Pooling;
    /// let hidden = Tensor::<3>::from_floats([[[1.0], [3.0], [9.0]]], &Device::flex());
    /// let pooled = Pooling::Mean.pool(hidden, &[true, true, false]);
    /// assert_eq!(pooled.into_scalar::<f32>(), 2.0);
    /// ```
    pub fn pool(self, hidden: Tensor<3>, real: &[bool]) -> Tensor<2> {
        let [batch, time, width] = hidden.dims();
        let weights: Vec<f32> = real
            .chunks(time.max(1))
            .flat_map(|row| self.weights(row))
            .collect();
        let device: Device = hidden.device().inner();
        let weights = Tensor::<3>::from_data(TensorData::new(weights, [batch, time, 1]), &device);
        (hidden * weights).sum_dim(1).reshape([batch, width])
    }

    /// Weights that sum to one, of the real tokens alone.
    fn weights(self, real: &[bool]) -> Vec<f32> {
        let places: Vec<usize> = (0..real.len()).filter(|t| real[*t]).collect();
        let mut weights = vec![0.0; real.len()];
        let sum = (places.len() * (places.len() + 1) / 2) as f32;
        for (i, t) in places.iter().enumerate() {
            weights[*t] = match self {
                Self::Mean => 1.0 / places.len() as f32,
                Self::WeightedMean => (i + 1) as f32 / sum,
                Self::First => f32::from(u8::from(i == 0)),
                Self::Last => f32::from(u8::from(i + 1 == places.len())),
            };
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tokens_count() {
        let hidden = || {
            Tensor::<3>::from_floats(
                [[[100.0], [1.0], [4.0]], [[2.0], [5.0], [100.0]]],
                &Device::flex(),
            )
        };
        let real = [false, true, true, true, true, false];
        let pooled = |pooling: Pooling| {
            pooling
                .pool(hidden(), &real)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap()
        };
        assert_eq!(pooled(Pooling::Mean), [2.5, 3.5]);
        assert_eq!(pooled(Pooling::WeightedMean), [3.0, 4.0]);
        assert_eq!(pooled(Pooling::First), [1.0, 2.0]);
        assert_eq!(pooled(Pooling::Last), [4.0, 5.0]);
    }
}
