//! `espalier train`: one training stage, from the command line alone.

use std::path::{Path, PathBuf};

use espalier_train::{
    adapters::AdapterOptions,
    objectives::registry::{OBJECTIVES, Registered},
};

use super::{Context, run::perform};
use crate::{
    Error, Result,
    recipe::{
        Recipe, keys,
        llama_factory::{self, Translated},
    },
    stages::Voice,
    voice::TerminalVoice,
};

/// Train a model on a data file; the same as a recipe of one stage.
///
/// Interrupted, the same command goes on from its last checkpoint. Every option of a recipe's `train` table can be set as
/// KEY=VALUE: learning_rate, epochs, steps, batch, ...; `--keys` says what they all mean.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier train --model path/to/model --data conversations.jsonl --adapter lora --output runs/mine learning_rate=1e-4 epochs=2"
)]
pub struct TrainArgs {
    /// A model folder in Hugging Face form, or an adapter folder to train on.
    #[arg(long, required_unless_present_any = ["keys", "from_llamafactory"])]
    pub model: Option<String>,
    /// Training data: jsonl or json in alpaca, sharegpt, messages, preference, completion or text form; may be given several times.
    #[arg(long, required_unless_present_any = ["keys", "from_llamafactory"])]
    pub data: Vec<String>,
    /// What is learned.
    #[arg(long, help = objectives())]
    pub objective: Option<String>,
    /// What is trained instead of all weights.
    #[arg(long, help = adapter_help())]
    pub adapter: Option<String>,
    /// Give the tokenizer this special token, and the model a row for it; may be given several times.
    #[arg(long, value_name = "TOKEN")]
    pub add_tokens: Vec<String>,
    /// The run's folder; the trained model is in its `01-train/model`.
    #[arg(long, required_unless_present_any = ["keys", "from_llamafactory"])]
    pub output: Option<String>,
    /// Train what a training file of LLaMA-Factory says, YAML or JSON: its recipe is written first, and keys without a counterpart are
    /// errors. `dataset_info.json` is read from its `dataset_dir`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "data", "objective", "adapter", "add_tokens", "keys"])]
    pub from_llamafactory: Option<PathBuf>,
    /// With `--from-llamafactory`: write the recipe and train nothing.
    #[arg(long, requires = "from_llamafactory")]
    pub recipe_only: bool,
    /// Recipe keys to set.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Write what every key means, as Markdown, and train nothing.
    #[arg(long)]
    pub keys: bool,
}

/// The objectives with their help, and where their options are set.
fn objectives() -> String {
    let width = OBJECTIVES
        .iter()
        .map(|objective| objective.name.len())
        .max();
    let line = |objective: &Registered| {
        let (name, width) = (objective.name, width.unwrap_or_default());
        format!("\n  {name:width$}  {}", objective.help)
    };
    let lines: String = OBJECTIVES.iter().map(line).collect();
    format!(
        "What is learned, `sft` when absent:{lines}\nWith options as KEY=VALUE: objective.dpo.beta=0.2"
    )
}

fn adapter_help() -> String {
    format!(
        "Train an adapter instead of all weights. {} With options as KEY=VALUE: adapter.lora.rank=16; quantise=nf4 rounds the base besides (QLoRA), and freeze.layers=2 without an adapter trains the last two blocks",
        AdapterOptions::help()
    )
}

/// Runs the command.
///
/// # Errors
/// When an option is wrong or training fails.
pub fn run(args: &TrainArgs, context: &Context) -> Result<()> {
    if let Some(path) = &args.from_llamafactory {
        return translated(path, args, context);
    }
    match (&args.model, &args.output) {
        (Some(model), Some(output)) if !args.keys => {
            let text = recipe(args, model, output);
            let recipe = Recipe::parse(&text, "command line", &args.overrides)?;
            perform(&recipe, &[], context)
        }
        _ => context.terminal.line(keys::of_kind("train").trim_end()),
    }
}

/// Writes and runs the recipe that another tool's training file means.
fn translated(path: &Path, args: &TrainArgs, context: &Context) -> Result<()> {
    let Translated {
        recipe: text,
        remarks,
    } = llama_factory::translate(path)?;
    let mut overrides = args.overrides.clone();
    if let Some(output) = &args.output {
        overrides.push(format!("output={}", toml::Value::String(output.clone())));
    }
    let name = format!("the recipe of {}", path.display());
    let recipe = Recipe::parse(&text, &name, &overrides)?;
    if args.recipe_only {
        return context
            .terminal
            .line(&printed(&text, &recipe, &remarks, !overrides.is_empty())?);
    }
    let mut voice = TerminalVoice::new(context.terminal);
    text.lines().for_each(|line| voice.say(line));
    for remark in remarks {
        voice.say(&format!("   {remark}"));
    }
    perform(&recipe, &[], context)
}

/// The recipe with what there is to say about it as comments; where keys were given besides, with these and all its defaults.
fn printed(text: &str, recipe: &Recipe, remarks: &[String], changed: bool) -> Result<String> {
    let comments = remarks.iter().map(|remark| format!("# {remark}\n"));
    let text = match changed {
        true => toml::to_string(recipe).map_err(|error| Error::work(error.to_string()))?,
        false => text.to_owned(),
    };
    Ok(comments.collect::<String>() + text.trim_end())
}

/// The recipe of one stage that the arguments describe.
fn recipe(args: &TrainArgs, model: &str, output: &str) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |texts: &[String]| {
        let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        format!("[{}]", texts.join(", "))
    };
    let mut text = format!("output = {}\n[[stage]]\nname = \"train\"\n", quoted(output));
    // Where options of an objective are set and none is named, theirs is meant.
    let sets_objective = |text: &String| text.starts_with("objective.");
    let usual = match args.overrides.iter().any(sets_objective) {
        true => None,
        false => Some("sft"),
    };
    let given = [
        ("model", Some(model)),
        ("objective", args.objective.as_deref().or(usual)),
        ("adapter", args.adapter.as_deref()),
    ];
    text.push_str("[stage.train]\n");
    for (key, value) in given {
        if let Some(value) = value {
            text.push_str(&format!("{key} = {}\n", quoted(value)));
        }
    }
    let data = match &args.data[..] {
        [file] => quoted(file),
        files => list(files),
    };
    text.push_str(&format!("data = {data}\n"));
    if !args.add_tokens.is_empty() {
        text.push_str(&format!("add_tokens = {}\n", list(&args.add_tokens)));
    }
    text.push_str("[stage.train.options]\n");
    text
}
