//! Masked language modelling (BERT, arXiv 1810.04805, section 3.1) and masked next-token prediction (LLM2Vec,
//! arXiv 2404.05961, section 2.2).
//!
//! A share of the tokens is chosen anew for every batch; most are replaced by the mask token, some by a random token, some
//! stay. The loss asks for the chosen ones: from their own position, or, as decoders are used to, from the one before.
//! Recipes: `bert.toml`, `llm2vec.toml`.

use espalier_data::{packing::Row, random::Random};
use espalier_models::model::LanguageModel;
use serde::{Deserialize, Serialize};

use super::{
    Batch, Loss, Objective, PackedRows,
    registry::Entry,
    rows,
    symbols::{Symbols, fresh_mask},
    wrong,
};
use crate::{
    Result,
    batch::{Sample, TokenBatch},
    metrics::{ACCURACY, EXACT_MATCH},
    options::TrainOptions,
};

/// How much is masked, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaskingOptions {
    /// Share of the tokens that are asked for.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub probability: f64,
    /// Share of these that the mask token replaces.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub masked: f64,
    /// Share of these that a random token replaces; the rest stays.
    #[schemars(range(min = 0.0, max = 1.0))]
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

impl MaskingOptions {
    /// # Errors
    /// When shares make no sense.
    fn check(&self) -> Result<()> {
        let shares = [
            self.probability,
            self.masked,
            self.random,
            self.masked + self.random,
        ];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || self.probability == 0.0 {
            let reason = "shares lie between 0 and 1, `masked` and `random` together too, and something must be asked for";
            return Err(wrong(reason));
        }
        Ok(())
    }
}

/// Masked language modelling's registration.
pub const MLM: Entry<MaskingOptions> = Entry {
    special_tokens: fresh_mask,
    ..Entry::new(
        &[ACCURACY, EXACT_MATCH],
        PackedRows::Apart,
        MaskingOptions::check,
        |options, symbols| Ok(Box::new(Masked::new("mlm", options.clone(), symbols, 0)?)),
    )
};

/// Masked next-token prediction's registration.
pub const MNTP: Entry<MaskingOptions> = Entry {
    build: |options, symbols| Ok(Box::new(Masked::new("mntp", options.clone(), symbols, 1)?)),
    ..MLM
};

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
        options.check()?;
        let reason = || {
            format!(
                "`{name}` needs a mask token: set `mask_token` in tokenizer_config.json, or add `<mask>`"
            )
        };
        let mask = symbols.mask.ok_or_else(|| wrong(reason()))?;
        Ok(Self {
            name,
            options,
            symbols: symbols.clone(),
            mask,
            before,
        })
    }

    /// Masks `ids` in place, whose `positions` begin anew with every text; returns the places that were chosen, with what
    /// stood there. What has nothing before it in its own text is not predicted from the place before.
    fn corrupt(
        &self,
        ids: &mut [u32],
        positions: &[u32],
        random: &mut Random,
    ) -> Vec<(usize, u32)> {
        let mut chosen = Vec::new();
        for ((place, id), position) in ids.iter_mut().enumerate().zip(positions) {
            if (*position as usize) < self.before {
                continue;
            }
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

impl Masked {
    /// The rows with some of their tokens masked and asked for.
    fn masked(&self, texts: &[&Row], random: &mut Random) -> TokenBatch {
        let mut tokens = TokenBatch::unasked(texts);
        let time = tokens.input.time();
        for (row, text) in texts.iter().enumerate() {
            let start = row * time;
            let ids = &mut tokens.input.ids[start..start + text.ids.len()];
            for (place, id) in self.corrupt(ids, &text.positions, random) {
                tokens.ask(row, start + place - self.before, id);
            }
        }
        tokens
    }
}

impl Objective for Masked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn packed_rows(&self) -> PackedRows {
        MLM.packed_rows
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        let reason = match (model.spec().bidirectional, model.spec().headless) {
            (false, _) => {
                "needs a model that sees the whole text: an encoder, or a decoder with `bidirectional = true`"
            }
            (true, true) => "needs a model with a head, such as BertForMaskedLM",
            (true, false) => return Ok(()),
        };
        Err(wrong(format!("`{}` {reason}", self.name)))
    }

    fn collate(
        &self,
        _: &LanguageModel,
        samples: &[&Sample],
        random: &mut Random,
    ) -> Result<Batch> {
        Batch::of_targets(self.masked(&rows(self.name, samples)?, random), samples)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        batch.tokens.loss(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::{
        encode::Example,
        packing::{Strategy, pack},
    };

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
            .corrupt(&mut ids, &[0; 100_000], &mut random)
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
        let row = Row::from(&Example::new(vec![1, 1, 7, 1], vec![true; 4]));
        let batch = objective(1, all).masked(&[&row], &mut Random::new(1));
        assert_eq!((batch.predictors, batch.targets), (vec![1], vec![7]));
        assert_eq!(batch.input.ids, [1, 1, 99, 1]);
    }

    #[test]
    fn packed_texts_are_asked_for_what_they_are_asked_alone() {
        let all = MaskingOptions {
            probability: 1.0,
            masked: 1.0,
            random: 0.0,
        };
        let texts = [vec![5, 6, 7], vec![8, 9]];
        let alone = texts.clone().map(|ids| {
            let targets = vec![true; ids.len()];
            Row::from(&Example::new(ids, targets))
        });
        let examples = texts.map(|ids| Example::new(ids.clone(), vec![true; ids.len()]));
        let packed = pack(&examples, 5, Strategy::BestFit);
        for (before, expected) in [(0, vec![5, 6, 7, 8, 9]), (1, vec![6, 7, 9])] {
            let objective = objective(before, all.clone());
            let together = objective.masked(&[&packed[0]], &mut Random::new(1));
            let [a, b] = &alone;
            let apart = objective.masked(&[a, b], &mut Random::new(1));
            assert_eq!(together.targets, expected);
            assert_eq!(apart.targets, expected);
            let segments = together.input.segments.unwrap();
            let of_text = |id: &u32| if *id < 8 { 1 } else { 2 };
            let predicted = together.predictors.iter().zip(&expected);
            for (predictor, id) in predicted {
                assert_eq!(segments[*predictor as usize], of_text(id));
            }
        }
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
