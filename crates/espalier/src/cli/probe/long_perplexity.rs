//! `espalier probe longppl`: perplexity over the tokens that need the far context.

use std::path::{Path, PathBuf};

use espalier_engine::text::TextModel;
use espalier_evaluate::long_perplexity::{KeyOptions, LongPerplexity, key_spans, long_perplexity};
use serde_json::json;

use super::{Context, grouped};
use crate::{Error, Result, model_path::open_text_model};

/// LongPPL: perplexity over the tokens of long texts that need their far context, beside that over all tokens.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier probe longppl MODEL book.txt
  espalier probe longppl MODEL --evaluator LONG-MODEL --short 512 --window 128 first.txt second.txt")]
pub struct LongPerplexityArgs {
    /// A model folder, an adapter folder or a run
    model: PathBuf,
    /// Texts
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The model that decides which tokens need far context; the model itself when absent
    #[arg(long, value_name = "MODEL")]
    evaluator: Option<PathBuf>,
    /// Tokens of the short context
    #[arg(long, default_value_t = KeyOptions::default().short, value_name = "TOKENS")]
    short: usize,
    /// Tokens that share a short context
    #[arg(long, default_value_t = KeyOptions::default().window, value_name = "TOKENS")]
    window: usize,
    /// Nats that a token must gain by the far context
    #[arg(long, default_value_t = KeyOptions::default().gain, value_name = "NATS")]
    gain: f64,
    /// Nats below which its loss must lie
    #[arg(long, default_value_t = KeyOptions::default().loss, value_name = "NATS")]
    loss: f64,
}

/// Runs the command.
///
/// # Errors
/// When a model or a file is not there, or no text is longer than the short context.
pub fn run(args: &LongPerplexityArgs, context: &Context) -> Result<()> {
    if args.short == 0 || args.window == 0 {
        return Err(Error::usage("`--short` and `--window` must be at least 1"));
    }
    let open = |path: &Path| -> Result<TextModel> {
        let opened = open_text_model(path, &context.device)?;
        context.terminal.notes(&opened.remarks);
        Ok(opened.text)
    };
    let model = open(&args.model)?;
    let evaluator = args.evaluator.as_deref().map(open).transpose()?;
    let options = KeyOptions {
        short: args.short,
        window: args.window,
        gain: args.gain,
        loss: args.loss,
    };
    let progress = context.terminal.progress(args.files.len() as u64, "texts");
    let mut sum = LongPerplexity::default();
    for (number, file) in args.files.iter().enumerate() {
        let text = std::fs::read_to_string(file).map_err(Error::file(file))?;
        let spans = key_spans(evaluator.as_ref().unwrap_or(&model), &text, &options)?;
        sum.add(&long_perplexity(&model, &text, &spans)?);
        progress.set(number as u64 + 1, "");
    }
    progress.finish("done");
    tell(&sum, &options, context)
}

fn tell(sum: &LongPerplexity, options: &KeyOptions, context: &Context) -> Result<()> {
    let long = (sum.key.tokens > 0).then(|| sum.key.per_token());
    if context.json {
        return context.terminal.json(&json!({
            "longppl": long, "key_tokens": sum.key.tokens, "ppl": sum.all.per_token(), "tokens": sum.all.tokens,
            "short": options.short, "window": options.window, "gain": options.gain, "loss": options.loss,
        }));
    }
    let long = long.map_or_else(
        || {
            format!(
                "none: no token of texts beyond {} tokens needs far context",
                options.short
            )
        },
        |long| format!("{long:.3} over {} tokens", grouped(sum.key.tokens)),
    );
    let all = format!(
        "{:.3} over {} tokens",
        sum.all.per_token(),
        grouped(sum.all.tokens)
    );
    context
        .terminal
        .facts(&[("LongPPL", long), ("perplexity", all)])
}
