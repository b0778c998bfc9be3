//! `espalier run`: a recipe's stages, one after another.

use std::path::PathBuf;

use serde_json::Value;

use super::{Context, open_page};
use crate::{
    Result,
    recipe::{Recipe, keys, schema},
    stages::{self, seeds, summary},
    voice::TerminalVoice,
};

/// Run the stages of a recipe; what is done already is not done again, what was interrupted goes on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier run recipes/sft-lora.toml learning_rate=2e-4 output=runs/second\n  espalier run recipes/experts.toml 'seeds=[0, 1, 2]' defaults.train.options.steps=100\n  espalier run --schema > recipe.schema.json"
)]
pub struct RunArgs {
    /// The recipe, a TOML file.
    #[arg(required_unless_present_any = ["schema", "keys"])]
    pub recipe: Option<PathBuf>,
    /// Recipe keys to set, such as `learning_rate=1e-4` or `stage.tune.train.options.batch=4`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Run this stage, and those whose results it reads, and leave the others; may be given several times.
    #[arg(long, value_name = "STAGE")]
    pub only: Vec<String>,
    /// Write the JSON schema of recipes, for editors, and run nothing.
    #[arg(long, conflicts_with_all = ["recipe", "keys"])]
    pub schema: bool,
    /// Write what every key of a recipe means, as Markdown, and run nothing.
    #[arg(long, conflicts_with = "recipe")]
    pub keys: bool,
    /// Open the report when done.
    #[arg(long, conflicts_with_all = ["schema", "keys", "only"])]
    pub open: bool,
}

/// Runs the command.
///
/// # Errors
/// When the recipe is wrong or a stage fails.
pub fn run(args: &RunArgs, context: &Context) -> Result<()> {
    match &args.recipe {
        Some(path) => {
            let recipe = Recipe::load(path, &args.overrides)?;
            perform(&recipe, &args.only, context)?;
            match args.open {
                true => open_page(&recipe.output.join("report.html")),
                false => Ok(()),
            }
        }
        None if args.schema => {
            let text = serde_json::to_string_pretty(&schema::schema());
            context.terminal.line(&text.unwrap_or_default())
        }
        None => context.terminal.line(keys::reference().trim_end()),
    }
}

/// Runs a recipe, or of its stages `only` some, and writes its figures: with `--json` all of them, else what was measured, or mean and spread
/// where there are several seeds.
///
/// # Errors
/// When a stage fails.
pub fn perform(recipe: &Recipe, only: &[String], context: &Context) -> Result<()> {
    let mut voice = TerminalVoice::new(context.terminal);
    let results = stages::run_only(recipe, only, &context.device, &mut voice)?;
    if context.json {
        return context.terminal.json(&results);
    }
    let of_seeds = results.get("seeds").and_then(Value::as_object);
    if let Some(of_seeds) = of_seeds.filter(|_| !recipe.seeds.is_empty()) {
        for table in seeds::tables(&seeds::spreads(recipe, of_seeds)) {
            context.terminal.line(&table.text())?;
        }
        return Ok(());
    }
    say_summary(recipe, &results, context)
}

/// The table of what a run measured, where it measured something.
///
/// # Errors
/// When the terminal is gone.
pub fn say_summary(recipe: &Recipe, results: &Value, context: &Context) -> Result<()> {
    let summary = results
        .as_object()
        .map(|results| summary::summary(recipe, results));
    match summary.and_then(|summary| summary.table()) {
        Some(table) => context.terminal.line(table.text().trim_end()),
        None => Ok(()),
    }
}
