//! `espalier convert`: a model in another form.

use std::path::PathBuf;

use espalier_models::{
    checkpoint::{
        Dtype,
        gguf::{Importance, Mixture},
    },
    folder::MAX_SHARD_BYTES,
};
use serde_json::json;

use super::Context;
use crate::{
    Error, Result,
    export::{self, Source, TOKENS, Verdict},
    memory,
};

/// Write a model in another form: a folder in Hugging Face form, a GGUF file (by the name's ending) or weights as PyTorch's (.pth).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  espalier convert model.gguf folder --dtype bf16
  espalier convert folder model.gguf --dtype f16
  espalier convert folder weights.pth
  espalier convert folder another --dtype f32 --shard 2GB")]
pub struct ConvertArgs {
    /// A model folder, an adapter folder, a GGUF file, or a run's output
    pub model: PathBuf,
    /// The folder or file to write; its ending says which form: .gguf, .pth, or a folder's name
    pub out: PathBuf,
    /// How numbers are written: f32, f16 or bf16; to a GGUF file also what `quantize` knows [default: as most are]
    #[arg(long, value_name = "FORMAT")]
    pub dtype: Option<Mixture>,
    /// The largest file of a folder, such as 2GB
    #[arg(long, value_name = "SIZE", value_parser = memory::parse_limit)]
    pub shard: Option<u64>,
    /// The text on which the two are compared [default: a page of a story]
    #[arg(long, value_name = "TEXT")]
    pub text: Option<PathBuf>,
    /// Do not compare the two afterwards
    #[arg(long)]
    pub no_verify: bool,
}

/// Writes and compares.
///
/// # Errors
/// When the model cannot be loaded or written.
pub fn run(args: &ConvertArgs, context: &Context) -> Result<()> {
    let ending = args.out.extension().and_then(|ending| ending.to_str());
    if ending == Some("safetensors") {
        return Err(Error::Usage(format!(
            "{}: weights alone do not say what model they are; give the name of a folder",
            args.out.display()
        )));
    }
    let to_folder = !matches!(ending, Some("gguf" | "pth" | "pt"));
    if args.shard.is_some() && !to_folder {
        return Err(Error::usage(
            "--shard: only folders are written in several files",
        ));
    }
    let same = |a: &PathBuf, b: &PathBuf| {
        a.canonicalize()
            .ok()
            .zip(b.canonicalize().ok())
            .is_some_and(|(a, b)| a == b)
    };
    if same(&args.model, &args.out) {
        return Err(Error::usage(
            "the model would be written over itself; choose another name",
        ));
    }
    let source = Source::open(&args.model, &context.device)?;
    context.terminal.notes(&source.loaded.remarks);
    let own = match source.loaded.dtype {
        Dtype::F16 => Mixture::F16,
        Dtype::BF16 => Mixture::Bf16,
        _ => Mixture::F32,
    };
    let wanted = args.dtype.unwrap_or(own);
    match ending {
        Some("gguf") => _ = export::write_gguf(&source, &args.out, wanted, &Importance::default())?,
        Some("pth" | "pt") => match args.dtype {
            None | Some(Mixture::F32) => export::write_pth(&source, &args.out)?,
            Some(_) => return Err(Error::usage("--dtype: files of PyTorch are written in f32")),
        },
        _ => {
            let dtype = match wanted {
                Mixture::F32 => Dtype::F32,
                Mixture::F16 => Dtype::F16,
                Mixture::Bf16 => Dtype::BF16,
                _ => {
                    return Err(Error::usage(
                        "--dtype: a folder is written in f32, f16 or bf16",
                    ));
                }
            };
            export::write_folder(
                &source,
                &args.out,
                dtype,
                args.shard.unwrap_or(MAX_SHARD_BYTES),
            )?;
        }
    }
    // Weights alone are no model that could be opened.
    let verified = !args.no_verify && !matches!(ending, Some("pth" | "pt"));
    let verdict = match verified {
        true => {
            let written = Source::open(&args.out, &context.device)?;
            let ids = source.ids(args.text.as_deref(), TOKENS)?;
            Some(Verdict::of(
                &source.loaded.model,
                &written.loaded.model,
                &ids,
            )?)
        }
        false => None,
    };
    if context.json {
        return context.terminal.json(&json!({
            "written": args.out.to_string_lossy(), "verdict": verdict.map(|verdict| verdict.json()),
        }));
    }
    let lines = verdict.map(|verdict| format!("\n{}", verdict.lines(["before", "after"])));
    context.terminal.line(&format!(
        "{}: written{}",
        args.out.display(),
        lines.unwrap_or_default()
    ))
}
