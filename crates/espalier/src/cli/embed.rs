//! `espalier embed`: texts to vectors.

use std::{fs, path::PathBuf};

use espalier_engine::embed::{embed, normalised};
use espalier_models::pooling::Pooling;
use serde_json::json;

use super::Context;
use crate::{Error, Result, model_path};

/// Texts that are computed together.
const BATCH: usize = 16;

/// Turn texts into vectors: one line of numbers for each text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier embed MODEL 'a first text' 'another one'
  espalier embed MODEL --file texts.txt --pooling last --json > vectors.jsonl")]
pub struct EmbedArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// The texts
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Further texts, one a line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How tokens become one vector: mean, weighted_mean, first or last
    #[arg(long, default_value = "mean")]
    pub pooling: Pooling,
    /// Leave the vectors as long as they are instead of making them as long as one
    #[arg(long)]
    pub raw: bool,
}

/// Embeds every text.
///
/// # Errors
/// When the model cannot be loaded, there are no texts, or one has no tokens.
pub fn run(args: &EmbedArgs, context: &Context) -> Result<()> {
    let mut texts = args.texts.clone();
    if let Some(path) = &args.file {
        let lines = fs::read_to_string(path).map_err(Error::file(path))?;
        texts.extend(
            lines
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(str::to_owned),
        );
    }
    if texts.is_empty() {
        return Err(Error::usage(
            "no text: give one as an argument, or a file with `--file`",
        ));
    }
    let opened = model_path::open_text_model(&args.model, &context.device)?;
    super::say_remarks(&opened.remarks);
    let encode = |text: &String| opened.text.tokenizer.encode_ids(text, true);
    let ids = texts
        .iter()
        .map(encode)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let vectors = embed(&opened.text.model, &ids, args.pooling, BATCH)?;
    for ((text, ids), vector) in texts.iter().zip(&ids).zip(vectors) {
        let vector = if args.raw {
            vector
        } else {
            normalised(&vector)
        };
        if context.json {
            context
                .terminal
                .json(&json!({ "text": text, "tokens": ids.len(), "embedding": vector }))?;
        } else {
            let numbers: Vec<String> = vector.iter().map(|x| format!("{x:.6}")).collect();
            context.terminal.line(&numbers.join(" "))?;
        }
    }
    Ok(())
}
