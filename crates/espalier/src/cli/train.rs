//! `espalier train`: one training stage, from the command line alone.

use espalier_train::{
    adapters::AdapterOptions,
    objectives::registry::{OBJECTIVES, Registered},
};

use super::{Context, run::perform};
use crate::{
    Result,
    recipe::{Recipe, document},
};

/// Train a model on a data file; the same as a recipe of one stage.
///
/// Interrupted, the same command goes on from its last checkpoint. Every option of a recipe's `train` table can be set as
/// KEY=VALUE: learning_rate, epochs, steps, batch, accumulation, length, packing, schedule, warmup, validation_share, ...
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier train --model path/to/model --data conversations.jsonl --adapter lora --output runs/mine learning_rate=1e-4 epochs=2"
)]
pub struct TrainArgs {
    /// A model folder in Hugging Face form, or an adapter folder to train on.
    #[arg(long)]
    pub model: String,
    /// Training data: jsonl or json in alpaca, sharegpt, messages, preference, completion or text form.
    #[arg(long)]
    pub data: String,
    /// What is learned.
    #[arg(long, default_value = "sft", help = objectives())]
    pub objective: String,
    /// What is trained instead of all weights.
    #[arg(long, help = adapter_help())]
    pub adapter: Option<String>,
    /// The run's folder; the trained model is in its `01-train/model`.
    #[arg(long)]
    pub output: String,
    /// Recipe keys to set.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
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
        "What is learned:{lines}\nWith options as KEY=VALUE: 'objective={{ dpo = {{ beta = 0.2 }} }}'"
    )
}

fn adapter_help() -> String {
    format!(
        "Train an adapter instead of all weights. {}",
        AdapterOptions::help()
    )
}

/// Runs the command.
///
/// # Errors
/// When an option is wrong or training fails.
pub fn run(args: &TrainArgs, context: &Context) -> Result<()> {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = format!(
        "output = {}\n[[stage]]\nname = \"train\"\n[stage.train]\n",
        quoted(&args.output)
    );
    let mut set = |key: &str, value: &str| text.push_str(&format!("{key} = {}\n", quoted(value)));
    set("model", &args.model);
    set("data", &args.data);
    set("objective", &args.objective);
    if let Some(adapter) = &args.adapter {
        set("adapter", adapter);
    }
    text.push_str("[stage.train.options]\n");
    let recipe: Recipe = document::parse(&text, "command line", &args.overrides)?;
    perform(&recipe, context)
}
