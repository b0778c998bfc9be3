//! Masked language modelling (BERT, arXiv 1810.04805, section 3.1) and masked next-token prediction (LLM2Vec,
//! arXiv 2404.05961, section 2.2).
//!
//! A share of the tokens is chosen anew for every batch; most are replaced by the mask token, some by a random token, some
//! stay. The loss asks for the chosen ones: from their own position, or, as decoders are used to, from the one before.
//! Recipes: `bert.toml`, `llm2vec.toml`.

use espalier_data::random::Random;
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Objective, rows, symbols::Symbols};
use crate::{
    Error, Result,
    batch::{Sample, TokenBatch},
};

/// How much is masked, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaskingOptions {
    /// Share of the tokens that are asked for.
    pub probability: f64,
    /// Share of these that the mask token replaces.
    pub masked: f64,
    /// Share of these that a random token replaces; the rest stays.
    pub random: f64,
}

impl Default for MaskingOptions {
    fn default() -> Self {
        Self {
            probability: 0.15,
            masked: 0.8,
            random: 0.1,
        }
    }
}

/// The objective.
#[derive(Debug, Clone)]
pub struct Masked {
    name: &'static str,
    options: MaskingOptions,
    symbols: Symbols,
    mask: u32,
    /// How far before its token a prediction stands: 0 for BERT, 1 for decoders.
    before: usize,
}

impl Masked {
    /// The objective, where the vocabulary has a token to mask with. `before` is 0 to predict a token from its own place,
    /// 1 to predict it from the place before.
    ///
    /// # Errors
    /// When shares make no sense or there is no mask token.
    pub fn new(
        name: &'static str,
        options: MaskingOptions,
        symbols: &Symbols,
        before: usize,
    ) -> Result<Self> {
        let shares = [
            options.probability,
            options.masked,
            options.random,
            options.masked + options.random,
        ];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || options.probability == 0.0 {
            let reason = "shares lie between 0 and 1, `masked` and `random` together too, and something must be asked for";
            return Err(Error::Option {
                key: "objective",
                reason: reason.into(),
            });
        }
        let reason = || {
            format!(
                "`{name}` needs a mask token: set `mask_token` in tokenizer_config.json, or add `<mask>`"
            )
        };
        let mask = symbols.mask.ok_or_else(|| Error::Option {
            key: "objective",
            reason: reason(),
        })?;
        Ok(Self {
            name,
            options,
            symbols: symbols.clone(),
            mask,
            before,
        })
    }

    /// Masks `ids` in place; returns the places that were chosen, with what stood there.
    fn corrupt(&self, ids: &mut [u32], random: &mut Random) -> Vec<(usize, u32)> {
        let mut chosen = Vec::new();
        for (place, id) in ids.iter_mut().enumerate().skip(self.before) {
            if self.symbols.special.contains(id) || !random.chance(self.options.probability) {
                continue;
            }
            chosen.push((place, *id));
            let draw = random.f();
            if draw < self.options.masked {
                *id = self.mask;
            } else if draw < self.options.masked + self.options.random {
                *id = random.below(self.symbols.vocabulary) as u32;
            }
        }
        chosen
    }
}

impl Objective for Masked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&self, model: &LanguageModel, _: &mut [Sample]) -> Result<()> {
        let reason = match (model.spec().bidirectional, model.spec().headless) {
            (false, _) => {
                "needs a model that sees the whole text: an encoder, or a decoder with `bidirectional = true`"
            }
            (true, true) => "needs a model with a head, such as BertForMaskedLM",
            (true, false) => return Ok(()),
        };
        Err(Error::Option {
            key: "objective",
            reason: format!("`{}` {reason}", self.name),
        })
    }

    fn collate(&self, samples: &[&Sample], random: &mut Random) -> Result<Batch> {
        let texts = rows(self.name, samples)?;
        let mut tokens = TokenBatch::new(&texts);
        (tokens.predictors, tokens.targets, tokens.rows) = Default::default();
        // A text is read as a whole, and so does an adapter that looks for its ends.
        tokens.input.prompts = None;
        let time = tokens.input.time();
        for (row, sample) in texts.iter().enumerate() {
            let start = row * time;
            let chosen = self.corrupt(
                &mut tokens.input.ids[start..start + sample.ids.len()],
                random,
            );
            for (place, id) in chosen {
                tokens.predictors.push((start + place - self.before) as u32);
                tokens.targets.push(id);
                tokens.rows.push(row);
            }
        }
        Ok(Batch {
            units: tokens.targets.len() as f64,
            tokens,
            reference: Vec::new(),
        })
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Sample;
    use espalier_data::encode::Example;

    fn objective(before: usize, options: MaskingOptions) -> Masked {
        let symbols = Symbols {
            mask: Some(99),
            special: vec![1],
            vocabulary: 90,
            ..Symbols::default()
        };
        Masked::new("mlm", options, &symbols, before).unwrap()
    }

    #[test]
    fn the_shares_are_those_of_the_paper() {
        let (mut random, mut ids) = (Random::new(3), vec![50; 100_000]);
        let chosen = objective(0, MaskingOptions::default())
            .corrupt(&mut ids, &mut random)
            .len() as f64;
        let share = |wanted: &dyn Fn(&u32) -> bool| {
            ids.iter().filter(|id| wanted(id)).count() as f64 / chosen
        };
        assert!((chosen / 1e5 - 0.15).abs() < 0.005, "{chosen}");
        assert!((share(&|id| *id == 99) - 0.8).abs() < 0.01);
        assert!((share(&|id| *id != 99 && *id != 50) - 0.1).abs() < 0.01);
    }

    #[test]
    fn decoders_predict_from_the_place_before() {
        // Tokens 5 6 7 8 with 7 masked: the one loss term is the prediction at place 1.
        let all = MaskingOptions {
            probability: 1.0,
            masked: 1.0,
            random: 0.0,
        };
        let sample = Sample::example(Example::new(vec![1, 1, 7, 1], vec![true; 4]));
        let batch = objective(1, all)
            .collate(&[&sample], &mut Random::new(1))
            .unwrap();
        assert_eq!(
            (batch.tokens.predictors, batch.tokens.targets),
            (vec![1], vec![7])
        );
        assert_eq!(batch.tokens.input.ids, [1, 1, 99, 1]);
    }

    #[test]
    fn a_vocabulary_without_a_mask_is_refused() {
        assert!(Masked::new("mlm", MaskingOptions::default(), &Symbols::default(), 0).is_err());
        let wrong = MaskingOptions {
            masked: 0.9,
            random: 0.2,
            ..MaskingOptions::default()
        };
        assert!(
            Masked::new(
                "mlm",
                wrong,
                &Symbols {
                    mask: Some(1),
                    ..Symbols::default()
                },
                0
            )
            .is_err()
        );
    }
}
