//! `espalier embed`: texts to vectors.

use std::path::PathBuf;

use espalier_engine::{
    embed::{embed, normalised},
    sentence_transformers::{Embedded, SentenceTransformer},
};
use espalier_models::pooling::Pooling;
use serde_json::json;

use super::{Context, lines::Texts};
use crate::{
    Error, Result,
    model_path::{self, OpenedModel},
    stages::model::beyond_context,
};

/// Texts that are computed together.
const BATCH: usize = 16;

/// Turn texts into vectors: one line of numbers for each text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier embed MODEL 'a first text' 'another one'
  espalier embed MODEL --file texts.txt --pooling last --json > vectors.jsonl
  espalier embed SENTENCE-TRANSFORMER --prompt-name query 'what is a tree?'")]
pub struct EmbedArgs {
    /// A model folder, an adapter folder, or a run's output
    pub model: PathBuf,
    /// The texts
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Further texts, one a line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How tokens become one vector: mean, weighted_mean, first or last. Without it, what the folder's modules.json says, or mean
    #[arg(long)]
    pub pooling: Option<Pooling>,
    /// Put this text before every text, and not the model's default prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_name")]
    pub prompt: Option<String>,
    /// Put the prompt of this name in config_sentence_transformers.json before every text
    #[arg(long, value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// Leave the vectors as long as they are instead of making them as long as one. Where modules.json describes the vectors, its
    /// modules alone decide, and this leaves their Normalize out
    #[arg(long)]
    pub raw: bool,
}

/// Embeds every text.
///
/// # Errors
/// When the model cannot be loaded, there are no texts, or one has no tokens.
pub fn run(args: &EmbedArgs, context: &Context) -> Result<()> {
    let given = Texts::gather(&args.texts, args.file.as_deref())?;
    let texts = &given.all;
    if texts.is_empty() {
        return Err(Error::usage(
            "no text: give one as an argument, or a file with `--file`",
        ));
    }
    let opened = model_path::open_text_model(&args.model, &context.device)?;
    context.terminal.notes(&opened.remarks);
    let vectors = vectors(args, &opened, texts).map_err(|error| match error {
        Error::Engine(espalier_engine::Error::EmptyText { number }) => Error::Work(format!(
            "{}: the text is empty, and this model puts no token of its own around a text, so there is nothing to embed",
            given.place(number - 1)
        )),
        other => other,
    })?;
    let longest = vectors.iter().map(|(_, tokens)| *tokens).max();
    if let Some(remark) = beyond_context(opened.text.model.spec(), longest.unwrap_or(0)) {
        context.terminal.note(&remark);
    }
    for (text, (vector, tokens)) in texts.iter().zip(vectors) {
        if context.json {
            context
                .terminal
                .json(&json!({ "text": text, "tokens": tokens, "embedding": vector }))?;
        } else {
            let numbers: Vec<String> = vector.iter().map(|x| format!("{x:.6}")).collect();
            context.terminal.line(&numbers.join(" "))?;
        }
    }
    Ok(())
}

/// The vectors as `modules.json` describes them, or by `--pooling`.
fn vectors(args: &EmbedArgs, opened: &OpenedModel, texts: &[String]) -> Result<Vec<Embedded>> {
    let (model, tokenizer) = (&opened.text.model, &opened.text.tokenizer);
    let described = match args.pooling {
        None => SentenceTransformer::load(&opened.folder)?.map_or_else(
            || SentenceTransformer::load(&opened.base),
            |own| Ok(Some(own)),
        )?,
        Some(_) => None,
    };
    if let Some(described) = described {
        let prompt = match &args.prompt {
            Some(prompt) => prompt,
            None => described.prompt(args.prompt_name.as_deref())?,
        };
        let form = if args.raw {
            described.clone().without_normalize()
        } else {
            described.clone()
        };
        return Ok(form.embed(model, tokenizer, texts, prompt, BATCH)?);
    }
    if args.prompt_name.is_some() {
        return Err(Error::usage(
            "`--prompt-name` names a prompt of a folder with a modules.json; give the text with `--prompt`",
        ));
    }
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let encode = |text: &String| tokenizer.encode_ids(&format!("{prompt}{text}"), true);
    let ids = texts
        .iter()
        .map(encode)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let vectors = embed(model, &ids, args.pooling.unwrap_or_default(), BATCH)?;
    let scaled = vectors.into_iter().map(|vector| {
        if args.raw {
            vector
        } else {
            normalised(&vector)
        }
    });
    Ok(scaled.zip(ids.iter().map(Vec::len)).collect())
}
