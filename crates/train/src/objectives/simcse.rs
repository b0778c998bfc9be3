//! Unsupervised SimCSE (arXiv 2104.08821, Eq. 4): a text is encoded twice, under different dropout, and its two vectors must
//! find each other among those of the batch.
//!
//! `loss = -log exp(cos(h_i, h'_i) / t) / sum_j exp(cos(h_i, h'_j) / t)`. Dropout falls on what attention and feed-forward
//! layers add; the paper's falls on attention's probabilities as well. Recipe: `llm2vec.toml`.

use std::collections::HashSet;

use burn::tensor::{Int, Tensor, activation::log_softmax};
use espalier_data::{packing::Row, random::Random};
use espalier_kernels::readback::ReadIntegers;
use espalier_models::{model::LanguageModel, pooling::Pooling};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Metric, Objective, PackedRows, registry::Entry, rows, wrong};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
    metrics::MetricDescription,
    options::TrainOptions,
};

/// How texts are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimcseOptions {
    /// Similarities are divided by it.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub temperature: f64,
    /// How hidden states become one vector.
    pub pooling: Pooling,
}

impl Default for SimcseOptions {
    fn default() -> Self {
        Self {
            temperature: 0.05,
            pooling: Pooling::Mean,
        }
    }
}

impl SimcseOptions {
    /// # Errors
    /// When the temperature is not positive.
    fn check(&self) -> Result<()> {
        match self.temperature > 0.0 && self.temperature.is_finite() {
            true => Ok(()),
            false => Err(wrong("`temperature` must be positive")),
        }
    }
}

/// How often a text's two vectors find each other.
const ACCURACY: MetricDescription = MetricDescription::share(
    "accuracy",
    "accuracy",
    "share of the texts that are nearest to their own second encoding",
);

/// The objective's registration.
pub const ENTRY: Entry<SimcseOptions> = Entry::new(
    &[ACCURACY],
    PackedRows::Refused,
    SimcseOptions::check,
    |options, _| Ok(Box::new(Simcse::new(options.clone())?)),
);

/// The objective.
#[derive(Debug, Clone)]
pub struct Simcse {
    options: SimcseOptions,
}

impl Simcse {
    /// The objective.
    ///
    /// # Errors
    /// When the temperature is not positive.
    pub fn new(options: SimcseOptions) -> Result<Self> {
        options.check()?;
        Ok(Self { options })
    }
}

impl Objective for Simcse {
    fn name(&self) -> &'static str {
        "simcse"
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn needs_dropout(&self) -> bool {
        true
    }

    fn needs_head(&self) -> bool {
        false
    }

    /// A text alone finds itself whatever the model does: its loss is 0.
    fn check(&self, _: &LanguageModel, samples: &[Sample], options: &TrainOptions) -> Result<()> {
        let key = match (
            options.batch,
            distinct(&rows(self.name(), &samples.iter().collect::<Vec<_>>())?).len(),
        ) {
            (1, _) => "batch",
            (_, 0 | 1) => "data",
            _ => return Ok(()),
        };
        let reason = "`simcse` tells texts of a batch apart, and there is only one; it needs at least two different ones";
        Err(Error::Option {
            key,
            reason: reason.into(),
        })
    }

    /// All texts once, then all again: dropout falls on other elements of the second half. A text that occurs twice counts
    /// once, as it would else be its own negative.
    fn collate(&self, _: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let texts = distinct(&rows("simcse", samples)?);
        let twice: Vec<&Row> = texts.iter().chain(&texts).copied().collect();
        let tokens = TokenBatch::unasked(&twice);
        Batch::new(tokens, texts.len(), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let hidden = model.encode(&batch.tokens.input)?;
        let pooled = self.options.pooling.pool(hidden, &batch.tokens.real());
        let (sum, right) = contrast(pooled, self.options.temperature);
        let count = batch.units;
        let metrics = vec![Metric {
            name: ACCURACY.name,
            sum: right as f64,
            units: count,
        }];
        Ok(Loss { sum, metrics })
    }
}

/// The texts that differ, each once.
fn distinct<'a>(texts: &[&'a Row]) -> Vec<&'a Row> {
    let mut seen = HashSet::new();
    let mut texts = texts.to_vec();
    texts.retain(|text| seen.insert(&text.ids));
    texts
}

/// Eq. 4 summed over the texts, and how many texts are nearest to themselves; `vectors`: `[2 * texts, width]`, all first
/// encodings, then all second ones.
fn contrast(vectors: Tensor<2>, temperature: f64) -> (Tensor<1>, usize) {
    let count = vectors.dims()[0] / 2;
    let lengths = vectors
        .clone()
        .powi_scalar(2)
        .sum_dim(1)
        .sqrt()
        .clamp_min(1e-12);
    let unit = vectors / lengths;
    let similarities = unit
        .clone()
        .narrow(0, 0, count)
        .matmul(unit.narrow(0, count, count).transpose())
        / temperature;
    let nearest = similarities.clone().inner().argmax(1).integers();
    let right = nearest
        .iter()
        .enumerate()
        .filter(|(i, j)| *i as i64 == **j)
        .count();
    let own = Tensor::<1, Int>::arange(0..count as i64, &similarities.device().inner())
        .reshape([count, 1]);
    let sum = -log_softmax(similarities, 1).gather(1, own).sum();
    (sum, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::encode::Example;
    use espalier_models::{source::Seed, spec::ModelSpec};

    #[test]
    fn a_text_is_never_its_own_negative() {
        let of = |ids: &[u32]| Sample::example(&Example::new(ids.to_vec(), vec![true; ids.len()]));
        let samples = [of(&[5, 6]), of(&[7]), of(&[5, 6]), of(&[5])];
        let spec = ModelSpec::llama(8, 4, 1, 1, 1, 4, 8);
        let model = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let simcse = Simcse::new(SimcseOptions::default()).unwrap();
        let samples: Vec<&Sample> = samples.iter().collect();
        let batch = simcse
            .collate(&model, &samples, &mut Random::new(0))
            .unwrap();
        assert_eq!(batch.units, 3.0);
        let half = [5, 6, 7, 0, 5, 0];
        assert_eq!(batch.tokens.input.ids, [half, half].concat());
    }

    #[test]
    fn worked_examples() {
        let value = |vectors: Tensor<2>| contrast(vectors, 0.05).0.into_scalar::<f32>() / 3.0;
        // The same vector for all texts: every text is as near as every other.
        assert!((value(Tensor::ones([6, 4], &Device::flex())) - 3f32.ln()).abs() < 1e-5);
        // Orthogonal texts: ln(1 + (n - 1) e^-20).
        let eye = Tensor::<2>::eye(3, &Device::flex());
        let loss = value(Tensor::cat(vec![eye.clone(), eye.clone() * 2.0], 0));
        assert!((loss - (2.0 * (-20f32).exp()).ln_1p()).abs() < 1e-6);
        assert_eq!(contrast(Tensor::cat(vec![eye.clone(), eye], 0), 0.05).1, 3);
    }
}
