//! Models in the form of sentence-transformers: `modules.json` says what follows the transformer (pooling, linear maps, norms),
//! `sentence_bert_config.json` how much of a text is read, `config_sentence_transformers.json` what is put before texts.
//!
//! Source: sentence-transformers 6 (`base/modules`, `sentence_transformer/modules`). Left out: modules that no text embedder of today has
//! (convolutions, LSTMs, bags of words, routers), images, and prompts as chat messages.

mod dense;
mod folder;
mod pooling;

use std::collections::BTreeMap;

use espalier_data::tokenizer::Tokenizer;
use espalier_kernels::readback::ReadFloats;
use espalier_models::model::{Input, LanguageModel};

use crate::{
    Error, Result,
    embed::{check_tokens, normalised},
};
use dense::{Dense, Norm};
pub use pooling::{Mode, SentencePooling};

/// What follows the transformer.
#[derive(Debug, Clone)]
enum Module {
    /// A linear map.
    Dense(Dense),
    /// A layer norm.
    Norm(Norm),
    /// The vector becomes as long as one.
    Normalize,
}

/// What a folder of sentence-transformers says besides the transformer itself.
#[derive(Debug, Clone)]
pub struct SentenceTransformer {
    /// How tokens become one vector.
    pub pooling: SentencePooling,
    modules: Vec<Module>,
    /// Most tokens of a text, special ones counted.
    pub max_length: Option<usize>,
    /// Texts are written in small letters first.
    lower_case: bool,
    /// What may be put before a text, by name.
    pub prompts: BTreeMap<String, String>,
    /// The first numbers of a vector that are kept, all where absent.
    truncated: Option<usize>,
    /// The name of what is put before a text when nothing else is asked for.
    pub default_prompt: Option<String>,
}

/// The vector of a text and the number of tokens that were read of it.
pub type Embedded = (Vec<f32>, usize);

impl SentenceTransformer {
    /// The text before every text: a prompt by its name, or the default one.
    ///
    /// # Errors
    /// When there is no prompt of that name.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else {
            return Ok("");
        };
        self.prompts.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
            Error::SentenceTransformer(format!(
                "no prompt is called `{name}`; there are {}",
                known.join(", ")
            ))
        })
    }

    /// The same without what makes vectors as long as one.
    #[must_use]
    pub fn without_normalize(mut self) -> Self {
        self.modules
            .retain(|module| !matches!(module, Module::Normalize));
        self
    }

    /// The vectors of texts behind a prompt, `batch` texts at a time.
    ///
    /// # Errors
    /// When a text has no tokens or more than the model can read.
    pub fn embed(
        &self,
        model: &LanguageModel,
        tokenizer: &Tokenizer,
        texts: &[String],
        prompt: &str,
        batch: usize,
    ) -> Result<Vec<Embedded>> {
        let lowercasing = self
            .lower_case
            .then(|| tokenizer.lowercasing())
            .transpose()?;
        let tokenizer = lowercasing.as_ref().unwrap_or(tokenizer);
        let prompt_length = self.prompt_length(tokenizer, prompt)?;
        let encode = |text: &String| {
            Ok(tokenizer.encode_within(&format!("{prompt}{text}"), self.longest())?)
        };
        let rows = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        check_tokens(&rows)?;
        let width = model.spec().hidden_width();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| rows[*row].len());
        let mut embedded = vec![Embedded::default(); rows.len()];
        for chunk in order.chunks(batch.max(1)) {
            let input = Input::padded(
                &chunk
                    .iter()
                    .map(|row| rows[*row].clone())
                    .collect::<Vec<_>>(),
            );
            let hidden = model.encode(&input)?.floats();
            for (row, hidden) in chunk.iter().zip(hidden.chunks(input.time() * width)) {
                let length = rows[*row].len();
                let pooled = self
                    .pooling
                    .pool(&hidden[..length * width], width, prompt_length);
                embedded[*row] = (self.behind(pooled), length);
            }
        }
        Ok(embedded)
    }

    fn longest(&self) -> usize {
        self.max_length.unwrap_or(usize::MAX)
    }

    /// The tokens of the prompt alone, without the mark at its end.
    fn prompt_length(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let ids = tokenizer.encode_within(prompt, self.longest())?;
        let closed = ids.last().is_some_and(|id| tokenizer.is_special(*id));
        Ok(ids.len() - usize::from(closed))
    }

    /// What the modules behind the pooling make of a vector.
    fn behind(&self, pooled: Vec<f32>) -> Vec<f32> {
        let modules = self.modules.iter();
        let mut vector = modules.fold(pooled, |vector, module| match module {
            Module::Dense(dense) => dense.apply(&vector),
            Module::Norm(norm) => norm.apply(&vector),
            Module::Normalize => normalised(&vector),
        });
        vector.truncate(self.truncated.unwrap_or(usize::MAX));
        vector
    }
}
