//! `espalier verify`: how far two forms of a model are apart.

use std::path::PathBuf;

use super::Context;
use crate::{
    Error, Result,
    export::{Source, TOKENS, Verdict},
};

/// Compare two forms of a model: the largest gap of logits, the divergence, the likeliest tokens, and where greedy continuations part.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier verify folder model.gguf
  espalier verify folder model.gguf --text held-out.txt --json")]
pub struct VerifyArgs {
    /// A model folder, an adapter folder, a GGUF file, or a run's output; its tokenizer cuts the text
    pub first: PathBuf,
    /// Another form of it
    pub second: PathBuf,
    /// The text that both read [default: a page of a story]
    #[arg(long, value_name = "TEXT")]
    pub text: Option<PathBuf>,
    /// Tokens of it that are read
    #[arg(long, value_name = "COUNT", default_value_t = TOKENS)]
    pub tokens: usize,
}

/// Compares and prints.
///
/// # Errors
/// When a model cannot be loaded, or the two have different vocabularies.
pub fn run(args: &VerifyArgs, context: &Context) -> Result<()> {
    let first = Source::open(&args.first, &context.device)?;
    let second = Source::open(&args.second, &context.device)?;
    context
        .terminal
        .notes(first.loaded.remarks.iter().chain(&second.loaded.remarks));
    let ids = first.ids(args.text.as_deref(), args.tokens)?;
    let rows = |source: &Source| source.loaded.model.spec().vocabulary;
    if rows(&first) != rows(&second) {
        return Err(Error::Work(format!(
            "{} has {} tokens and {} has {}: they are no two forms of one model",
            args.first.display(),
            rows(&first),
            args.second.display(),
            rows(&second)
        )));
    }
    if let (Some(one), Some(other)) = (&first.tokenizer, &second.tokenizer) {
        let decoded = one.decode(&ids, false)?;
        let cut =
            |tokenizer: &espalier_data::tokenizer::Tokenizer| tokenizer.encode_ids(&decoded, false);
        if cut(one)? != cut(other)? {
            context.terminal.note(
                "note: their tokenizers cut the text differently; the ids are those of the first",
            );
        }
    }
    let verdict = Verdict::of(&first.loaded.model, &second.loaded.model, &ids)?;
    match context.json {
        true => context.terminal.json(&verdict.json()),
        false => context.terminal.line(&verdict.lines(["first", "second"])),
    }
}
