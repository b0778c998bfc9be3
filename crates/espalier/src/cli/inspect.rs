//! `espalier inspect`: what a model is and what it needs. Weights that stay as their file holds them are mapped and not read.

pub(super) mod describe;
mod diagram;
mod weights;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{record::Message, template::Conversation, tokenizer::Tokenizer};
use espalier_models::{
    adapter::{self, Adapter},
    folder::{self, Description},
    spec::ModelSpec,
};
use serde_json::{Value, json};

use self::weights::Weights;
use super::Context;
use crate::{Error, Result, model_path, units};

/// The rank for which the memory of low-rank tuning is told.
const RANK: u64 = 16;

/// Show what a model is and the memory that it needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier inspect MODEL
  espalier inspect runs/quickstart --json")]
pub struct InspectArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
}

/// What the files of a model say.
struct Inspected {
    folder: PathBuf,
    base: PathBuf,
    adapter: Option<Adapter>,
    architecture: &'static str,
    spec: ModelSpec,
    dtype: String,
    file_bytes: u64,
    weights: Weights,
    tokenizer: Option<Tokenizer>,
}

/// Bytes that the model takes: loaded as it is, trained in f32; activations are not counted.
struct Memory {
    load: u64,
    cache_per_token: u64,
    state: u64,
    train: u64,
    tune: u64,
}

/// Reads the files and prints.
///
/// # Errors
/// When there is no model, or its files are damaged.
pub fn run(args: &InspectArgs, context: &Context) -> Result<()> {
    let inspected = Inspected::read(&model_path::resolve_model(&args.model)?)?;
    match context.json {
        true => context.terminal.json(&inspected.json()?),
        false => inspected.print(context),
    }
}

impl Inspected {
    fn read(folder: &Path) -> Result<Self> {
        let is_adapter = folder.join(adapter::CONFIGURATION).is_file();
        let adapter = is_adapter.then(|| Adapter::read(folder)).transpose()?;
        let base = match &adapter {
            Some(adapter) => adapter::base_folder(folder, adapter)?,
            None => folder.to_path_buf(),
        };
        let Description {
            family,
            spec,
            checkpoint,
            ..
        } = Description::read(&base)?;
        let home = model_path::tokenizer_folder(folder, &base);
        let tokenizer = Tokenizer::file_in(&home)
            .map(|_| Tokenizer::load(&home))
            .transpose()?;
        Ok(Self {
            folder: folder.to_path_buf(),
            base,
            adapter,
            architecture: family.architecture,
            spec,
            dtype: checkpoint.format_name(),
            file_bytes: checkpoint.total_bytes(),
            weights: Weights::of(&folder::load(folder, &Device::flex())?.model),
            tokenizer,
        })
    }

    fn print(&self, context: &Context) -> Result<()> {
        let (spec, memory) = (&self.spec, self.memory());
        let mut facts = vec![("model", self.folder.display().to_string())];
        if let Some(adapter) = &self.adapter {
            facts.push(("adapter", adapter.describe()));
            facts.push(("base model", self.base.display().to_string()));
        }
        facts.push(("family", format!("{} ({})", spec.family, self.architecture)));
        facts.push(("sizes", describe::sizes(spec)));
        facts.push(("parameters", describe::parameters(spec)));
        facts.push((
            "in the file",
            format!("{} in {}", units::bytes(self.file_bytes), self.dtype),
        ));
        facts.push(("when loaded", self.weights.describe()));
        facts.push(("memory to run", memory.to_run(spec)));
        facts.push((
            "to train",
            format!(
                "{}, all weights with AdamW, and activations",
                units::bytes(memory.train)
            ),
        ));
        facts.push((
            "to tune",
            format!(
                "{}, LoRA of rank {RANK}, and activations",
                units::bytes(memory.tune)
            ),
        ));
        facts.extend(self.tokenizer_facts());
        context.terminal.facts(&facts)?;
        context
            .terminal
            .line(&context.terminal.faint("architecture"))?;
        context
            .terminal
            .line(&indented(&diagram::lines(spec).join("\n")))?;
        if let Some(example) = self.example() {
            context.terminal.line(
                &context
                    .terminal
                    .faint("chat template, as a conversation looks to the model"),
            )?;
            context
                .terminal
                .foreign(&indented(&example.unwrap_or_else(|reason| reason)))?;
        }
        Ok(())
    }

    fn tokenizer_facts(&self) -> Vec<(&'static str, String)> {
        let Some(tokenizer) = &self.tokenizer else {
            return vec![("tokenizer", "none in the folder".into())];
        };
        let special: Vec<String> = tokenizer
            .special()
            .named()
            .map(|(role, token)| format!("{} {token}", role.trim_end_matches("_token")))
            .collect();
        let template = match tokenizer.template() {
            Some(template) if template.marks_generation() => {
                "yes; it marks what the assistant says"
            }
            Some(_) => "yes",
            None => "none: the model completes text",
        };
        vec![
            (
                "tokenizer",
                format!("{} tokens", tokenizer.vocabulary_size()),
            ),
            (
                "special tokens",
                if special.is_empty() {
                    "none named".into()
                } else {
                    special.join(", ")
                },
            ),
            ("chat template", template.into()),
        ]
    }

    /// A conversation of two turns in the chat template, or why the template refuses it.
    fn example(&self) -> Option<Result<String, String>> {
        let tokenizer = self.tokenizer.as_ref()?;
        let messages = [
            Message::user("Hello"),
            Message::assistant("Hi!"),
            Message::user("How are you?"),
        ];
        let conversation = Conversation {
            add_generation_prompt: true,
            ..Conversation::new(&messages, tokenizer.special())
        };
        let rendered = tokenizer.template()?.render(&conversation);
        Some(
            rendered
                .map(|rendered| rendered.text)
                .map_err(|error| error.to_string()),
        )
    }

    fn memory(&self) -> Memory {
        let (spec, load) = (&self.spec, self.weights.bytes());
        let trained = spec.parameter_count().saturating_mul(4);
        Memory {
            load,
            cache_per_token: spec.cache_per_token(),
            state: spec.state_size(),
            // Weights, gradients and AdamW's two moments.
            train: trained.saturating_mul(4),
            tune: load.saturating_add(describe::low_rank_parameters(spec, RANK).saturating_mul(16)),
        }
    }

    fn json(&self) -> Result<Value> {
        let memory = self.memory();
        let spec =
            serde_json::to_value(&self.spec).map_err(|error| Error::Work(error.to_string()))?;
        let tokenizer = self.tokenizer.as_ref().map(|tokenizer| {
            let special: serde_json::Map<String, Value> =
                tokenizer.special().named().map(|(role, token)| (role.to_string(), token.into())).collect();
            json!({"vocabulary": tokenizer.vocabulary_size(), "special": special, "template": tokenizer.template().is_some()})
        });
        Ok(json!({
            "model": self.folder.to_string_lossy(), "base": self.base.to_string_lossy(), "adapter": self.adapter.as_ref().map(Adapter::describe),
            "family": self.spec.family, "architecture": self.architecture, "spec": spec,
            "parameters": self.spec.parameter_count(), "embedding_parameters": describe::embedding(&self.spec),
            "block_parameters": describe::per_block(&self.spec), "dtype": self.dtype, "file_bytes": self.file_bytes,
            "weights": self.weights.json(),
            "memory": {
                "load_bytes": memory.load, "kinds": self.weights.kinds_json(), "cache_bytes_per_token": memory.cache_per_token,
                "state_bytes": memory.state,
                "train_bytes": memory.train, "tune_bytes": memory.tune, "tune_rank": RANK,
            },
            "tokenizer": tokenizer, "chat_example": self.example().and_then(Result::ok),
        }))
    }
}

impl Memory {
    fn to_run(&self, spec: &ModelSpec) -> String {
        let [load, token, state] = [self.load, self.cache_per_token, self.state].map(units::bytes);
        let whole = units::bytes(self.cache_per_token.saturating_mul(spec.context as u64));
        let keys = format!(
            "{token} for each token of context ({whole} for {})",
            spec.context
        );
        match (self.state, self.cache_per_token) {
            (0, _) => format!("{load} of weights, and {keys}"),
            (_, 0) => format!("{load} of weights, and {state} for a sequence, however long it is"),
            _ => format!("{load} of weights, {state} for a sequence, and {keys}"),
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
