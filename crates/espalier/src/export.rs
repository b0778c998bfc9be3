//! A model written in another form: a folder in Hugging Face form, a GGUF file, or a file of PyTorch; and how far two forms are apart.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::tokenizer::Tokenizer;
use espalier_evaluate::divergence::{Divergence, divergence, first_difference};
use espalier_models::{
    checkpoint::{
        Dtype,
        gguf::{self, Importance, Mixture},
        state_dictionary,
    },
    folder::{self, LoadedModel},
    layers::input_statistics,
    layout::stored_tensors,
    model::{Input, LanguageModel},
};
use serde_json::{Value, json};

use crate::{Error, Result, model_path};

/// Tokens of a window in which texts are read.
pub const WINDOW: usize = 512;
/// Tokens that are read of a text where nobody says how many.
pub const TOKENS: usize = 4096;
/// Tokens that are generated to see where continuations part.
const CONTINUATION: usize = 64;
/// Tokens of the prompt of that.
const PROMPT: usize = 16;

/// What is read where no text is given.
const TEXT: &str = include_str!("export/text.txt");

/// A model with its tokenizer, where it has one.
pub struct Source {
    /// The model, adapters merged.
    pub loaded: LoadedModel,
    /// Its tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// What was opened.
    pub path: PathBuf,
}

impl Source {
    /// Opens what `path` means, as a model that can be written.
    ///
    /// # Errors
    /// When it is no model, an adapter cannot be merged, or a tokenizer is damaged.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let folder = model_path::resolve_model(path)?;
        let mut loaded = model_path::load_model(&folder, device)?;
        loaded.model.merge_what_can_be();
        let home = model_path::tokenizer_folder(&folder, &loaded.base);
        let tokenizer = Tokenizer::file_in(&home)
            .map(|_| Tokenizer::load(&home))
            .transpose()?;
        Ok(Self {
            loaded,
            tokenizer,
            path: path.to_path_buf(),
        })
    }

    /// The ids of a text, at most so many; of the built-in text where none is given, and of numbers in a row where there is no tokenizer.
    ///
    /// # Errors
    /// When the file cannot be read, or is empty.
    pub fn ids(&self, text: Option<&Path>, most: usize) -> Result<Vec<u32>> {
        let Some(tokenizer) = &self.tokenizer else {
            if let Some(text) = text {
                return Err(Error::Usage(format!(
                    "{}: the model has no tokenizer to read the text with",
                    text.display()
                )));
            }
            let vocabulary = self.loaded.model.spec().vocabulary.max(1) as u32;
            return Ok((0..most.min(256) as u32)
                .map(|i| i.wrapping_mul(7919) % vocabulary)
                .collect());
        };
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::file(path));
        let text = text.map_or_else(|| Ok(TEXT.to_owned()), read)?;
        let cut: String = text.chars().take(most.saturating_mul(16)).collect();
        let mut ids = tokenizer.encode_ids(&cut, true)?;
        ids.truncate(most);
        match ids.len() {
            0 | 1 => Err(Error::usage(
                "the text has fewer than two tokens; give a longer one",
            )),
            _ => Ok(ids),
        }
    }
}

/// Writes a GGUF file and gives its size.
///
/// # Errors
/// When the model or its tokenizer cannot be said in one, or the disk is full.
pub fn write_gguf(
    source: &Source,
    path: &Path,
    mixture: Mixture,
    importance: &Importance,
) -> Result<u64> {
    let model = &source.loaded.model;
    let tokenizer = match &source.tokenizer {
        Some(tokenizer) => tokenizer.to_gguf(model.spec().vocabulary)?,
        None => gguf::no_tokenizer(model.spec()),
    };
    let name = source
        .path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    Ok(gguf::write(
        model, tokenizer, &name, path, mixture, importance,
    )?)
}

/// Writes a folder in Hugging Face form, in files of at most so many bytes.
///
/// # Errors
/// When the disk is full.
pub fn write_folder(source: &Source, folder: &Path, dtype: Dtype, shard: u64) -> Result<()> {
    let LoadedModel {
        model,
        config,
        generation,
        ..
    } = &source.loaded;
    folder::save_sharded(model, folder, Some(config), generation, dtype, shard)?;
    if let Some(tokenizer) = &source.tokenizer {
        tokenizer.save(folder)?;
    }
    Ok(())
}

/// Writes the weights alone as PyTorch does.
///
/// # Errors
/// When they take more than four gigabytes, or the disk is full.
pub fn write_pth(source: &Source, path: &Path) -> Result<()> {
    let model = &source.loaded.model;
    let tensors: Vec<_> = stored_tensors(model, source.loaded.family()?)
        .iter()
        .map(|tensor| {
            let values = tensor.assemble(&|parameter| parameter.flat());
            (tensor.name.clone(), tensor.shape.clone(), values)
        })
        .collect();
    let bytes = state_dictionary(&tensors)?;
    espalier_data::disk::write_whole(path, &bytes).map_err(Error::file(path))
}

/// How large the inputs of the model's linear maps are on these tokens.
///
/// # Errors
/// When a token is outside the vocabulary.
pub fn importance(model: &LanguageModel, ids: &[u32]) -> Result<Importance> {
    let read = || -> Result<()> {
        for window in ids.chunks(WINDOW) {
            model.hidden(&Input::rows(&[window.to_vec()])?, None)?;
        }
        Ok(())
    };
    let (result, importance) = input_statistics::recorded(read);
    result.map(|()| importance)
}

/// How far apart two forms of a model are.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// Over the tokens of a text.
    pub divergence: Divergence,
    /// Tokens of a greedy continuation that are the same before the first that is not; nothing where all are.
    pub parted: Option<usize>,
}

impl Verdict {
    /// Compares two models on these tokens.
    ///
    /// # Errors
    /// When they have different vocabularies, or do not generate.
    pub fn of(first: &LanguageModel, second: &LanguageModel, ids: &[u32]) -> Result<Self> {
        let prompt = &ids[..ids.len().min(PROMPT)];
        Ok(Self {
            divergence: divergence(first, second, &[ids.to_vec()], WINDOW)?,
            parted: first_difference(first, second, prompt, CONTINUATION)?,
        })
    }

    /// As lines for people.
    pub fn lines(&self, names: [&str; 2]) -> String {
        let Divergence {
            tokens,
            largest_gap,
            mean_kl,
            agreement,
            first_perplexity,
            second_perplexity,
        } = self.divergence;
        let parted = match self.parted {
            None => format!("the same for {CONTINUATION} tokens"),
            Some(same) => format!("part after {same} of {CONTINUATION} tokens"),
        };
        let change = 100.0 * (second_perplexity / first_perplexity - 1.0);
        format!(
            "tokens compared        {tokens}\nlargest gap of logits  {largest_gap:.3e}\nmean KL                {mean_kl:.3e} nats\nsame likeliest token   {:.2} %\nperplexity             {first_perplexity:.4} ({}), {second_perplexity:.4} ({}), {change:+.3} %\ngreedy continuations   {parted}",
            100.0 * agreement,
            names[0],
            names[1],
        )
    }

    /// For machines.
    pub fn json(&self) -> Value {
        json!({ "divergence": self.divergence, "continuation": CONTINUATION, "same_greedy_tokens": self.parted.unwrap_or(CONTINUATION) })
    }
}
