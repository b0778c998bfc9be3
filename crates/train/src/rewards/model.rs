//! The reward of a reward model: the one score of a classifier of texts, read at the last token of the conversation with its answer.
//!
//! The conversation is rendered by the reward model's own chat template and read by its own tokenizer, as when it was trained. A base
//! model that is mapped from the same file as the policy's takes no memory of its own.

use std::path::Path;

use burn::tensor::Device;
use espalier_data::{
    encode::{Encoded, Encoder},
    record::{Message, Record},
    tokenizer::Tokenizer,
};
use espalier_engine::score::rewards;
use espalier_models::{folder, model::LanguageModel, spec::Subject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Read, Reward, Source, failed};
use crate::{Error, Result};

/// The options of a reward model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// Its folder, or the name of an earlier stage: a `...ForSequenceClassification` with one label, or an adapter on one.
    pub path: String,
}

impl Source for ModelOptions {
    fn check(&self) -> Result<()> {
        match self.path.is_empty() {
            true => Err(Error::Option {
                key: "path",
                reason: "names no reward model".into(),
            }),
            false => Ok(()),
        }
    }

    fn reads(&mut self) -> Vec<Read<'_>> {
        vec![Read::Model(&mut self.path)]
    }

    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(ModelReward::load(self, device)?))
    }
}

/// Texts that are scored at once.
const BATCH: usize = 64;

/// A reward model.
#[derive(Debug)]
pub struct ModelReward {
    model: LanguageModel,
    tokenizer: Tokenizer,
}

impl ModelReward {
    /// Loads the model.
    ///
    /// # Errors
    /// When it cannot be loaded, or gives no one score of a text.
    pub fn load(options: &ModelOptions, device: &Device) -> Result<Self> {
        options.check()?;
        let (model, tokenizer) = opened(&options.path, device)?;
        if !scores_texts(&model) {
            let reason = "is no reward model; one has `\"architectures\": [\"...ForSequenceClassification\"]` and one label in its config.json, as `objective = \"reward\"` leaves it";
            return Err(failed("model", format!("{}: {reason}", options.path)));
        }
        Ok(Self { model, tokenizer })
    }

    /// The tokens of a conversation with its answer.
    fn text(&self, asked: &Asked<'_>) -> Result<Vec<u32>> {
        let answer = [Message::assistant(asked.answer)];
        let record = Record::Chat {
            messages: [asked.messages, &answer].concat(),
            tools: None,
        };
        match Encoder::new(self.tokenizer.clone(), usize::MAX).encode(&record)? {
            Encoded::Example(example) => Ok(example.ids),
            _ => {
                let reason = "its chat template leaves nothing of the answer";
                Err(failed("model", reason))
            }
        }
    }
}

impl Reward for ModelReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let texts = answers.iter().map(|asked| self.text(asked));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let scores = rewards(&self.model, &texts, BATCH)?;
        Ok(scores.into_iter().map(Some).collect())
    }
}

/// Whether a model gives a text one score.
fn scores_texts(model: &LanguageModel) -> bool {
    model.spec().classifier.is_some_and(|classifier| {
        classifier.labels == 1 && matches!(classifier.subject, Subject::Texts(_))
    })
}

/// A model folder outside autodiff, adapters merged where they can be, with its tokenizer.
///
/// # Errors
/// When a file is missing or damaged.
pub(super) fn opened(path: &str, device: &Device) -> Result<(LanguageModel, Tokenizer)> {
    let path = Path::new(path);
    let mut loaded = folder::load(path, device)?;
    loaded.model.merge_what_can_be();
    let home = match Tokenizer::file_in(path) {
        Some(_) => path,
        None => loaded.base.as_path(),
    };
    Ok((loaded.model.frozen(), Tokenizer::load(home)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::{
        template::{ChatTemplate, PLAIN},
        tokenizer::BpeOptions,
    };
    use espalier_kernels::readback::ReadFloats;
    use espalier_models::{
        model::Input,
        pooling::Pooling,
        source::Seed,
        spec::{ClassifierSpec, ModelSpec, Problem},
    };
    use serde_json::Value;

    fn reward() -> ModelReward {
        let bytes = BpeOptions {
            vocabulary: 259,
            ..BpeOptions::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &bytes).unwrap();
        let spec = ModelSpec {
            headless: true,
            initializer_range: 0.3,
            classifier: Some(ClassifierSpec {
                labels: 1,
                subject: Subject::Texts(Pooling::Last),
                dense: None,
                bias: false,
                problem: Problem::Regression,
            }),
            ..ModelSpec::llama(tokenizer.vocabulary_size(), 16, 2, 2, 1, 32, 64)
        };
        ModelReward {
            model: LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap(),
            tokenizer: tokenizer.with_template(ChatTemplate::new(PLAIN).unwrap()),
        }
    }

    #[test]
    fn a_conversation_is_scored_at_its_last_token_whatever_stands_beside_it() {
        let mut reward = reward();
        assert!(scores_texts(&reward.model));
        let messages = [Message::user("1+1=")];
        let asked = |answer: &'static str| Asked {
            messages: &messages,
            answer,
            tokens: 1,
            record: &Value::Null,
        };
        let answers = [asked("2"), asked("a longer answer"), asked("3")];
        let together = reward.score(&answers).unwrap();
        for (answer, score) in answers.iter().zip(&together) {
            let alone = reward.score(&[*answer]).unwrap()[0].unwrap();
            assert!((alone - score.unwrap()).abs() < 1e-5, "{together:?}");
            let text = reward.text(answer).unwrap();
            let input = Input::rows(&[text]).unwrap();
            let hidden = reward.model.hidden(&input, None).unwrap();
            let plain = reward.model.class_scores(hidden, &input).unwrap().floats()[0];
            assert!((f64::from(plain) - alone).abs() < 1e-6);
        }
        assert!((together[0].unwrap() - together[2].unwrap()).abs() > 1e-4);
    }
}
