//! `espalier quantize`: a model as a GGUF file in few bits, and what that costs.

use std::path::PathBuf;

use espalier_models::checkpoint::gguf::{Importance, Mixture};
use serde_json::json;

use super::Context;
use crate::{
    Error, Result,
    export::{self, Source, TOKENS, Verdict},
    units,
};

/// Write a model as a GGUF file in fewer bits, which llama.cpp and this program read, and measure what is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier quantize MODEL model.gguf --to q4_k_m
  espalier quantize MODEL model.gguf --to q4_k_m --importance calibration.txt --text held-out.txt")]
pub struct QuantizeArgs {
    /// A model folder, an adapter folder, a GGUF file, or a run's output
    pub model: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT.gguf")]
    pub out: PathBuf,
    /// f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m or q6_k
    #[arg(long, value_name = "FORMAT")]
    pub to: Mixture,
    /// Let errors count by how large the inputs of each column are on this text
    #[arg(long, value_name = "TEXT")]
    pub importance: Option<PathBuf>,
    /// The text on which the two are compared [default: a page of a story]
    #[arg(long, value_name = "TEXT")]
    pub text: Option<PathBuf>,
    /// Tokens of each text that are read
    #[arg(long, value_name = "COUNT", default_value_t = TOKENS)]
    pub tokens: usize,
}

/// Writes and measures.
///
/// # Errors
/// When the model cannot be loaded or written, or a text cannot be read.
pub fn run(args: &QuantizeArgs, context: &Context) -> Result<()> {
    if args.out.extension().is_none_or(|ending| ending != "gguf") {
        return Err(Error::Usage(format!(
            "{}: expected a name that ends in .gguf; `espalier convert` writes other forms",
            args.out.display()
        )));
    }
    let source = Source::open(&args.model, &context.device)?;
    context.terminal.notes(&source.loaded.remarks);
    let model = &source.loaded.model;
    let importance = match &args.importance {
        Some(text) => export::importance(model, &source.ids(Some(text), args.tokens)?)?,
        None => Importance::default(),
    };
    let ids = source.ids(args.text.as_deref(), args.tokens)?;
    let bytes = export::write_gguf(&source, &args.out, args.to, &importance)?;
    let written = Source::open(&args.out, &context.device)?;
    let verdict = Verdict::of(model, &written.loaded.model, &ids)?;
    let elements = model.spec().parameter_count();
    let bits = 8.0 * bytes as f64 / elements as f64;
    if context.json {
        return context.terminal.json(&json!({
            "file": args.out.to_string_lossy(), "bytes": bytes, "bits_per_weight": bits, "columns_weighed": importance.len(),
            "verdict": verdict.json(),
        }));
    }
    context.terminal.line(&format!(
        "{}: {}, {bits:.2} bits a weight\n{}",
        args.out.display(),
        units::bytes(bytes),
        verdict.lines(["before", "after"])
    ))
}
