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
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    folder,
    model::{Input, LanguageModel},
    spec::Subject,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Reward, failed};
use crate::{Error, Result};

/// The options of a reward model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// Its folder, or the name of an earlier stage: a `...ForSequenceClassification` with one label, or an adapter on one.
    pub path: String,
}

impl ModelOptions {
    /// # Errors
    /// When there is no folder.
    pub(super) fn check(&self) -> Result<()> {
        match self.path.is_empty() {
            true => Err(Error::Option {
                key: "path",
                reason: "names no reward model".into(),
            }),
            false => Ok(()),
        }
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
        let scores_texts = model.spec().classifier.is_some_and(|classifier| {
            classifier.labels == 1 && matches!(classifier.subject, Subject::Texts(_))
        });
        if !scores_texts {
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

    fn scores(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
        let input = Input::padded(texts);
        let hidden = self.model.hidden(&input, None)?;
        Ok(self.model.class_scores(hidden, &input)?.floats())
    }
}

impl Reward for ModelReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let texts = answers.iter().map(|asked| self.text(asked));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let mut all = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(BATCH) {
            let scores = self.scores(chunk)?;
            all.extend(scores.into_iter().map(|score| Some(f64::from(score))));
        }
        Ok(all)
    }
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
