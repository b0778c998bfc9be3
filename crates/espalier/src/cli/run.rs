//! `espalier run`: a recipe's stages, one after another.

use std::path::PathBuf;

use super::Context;
use crate::{
    Result,
    recipe::{Recipe, document},
    stages,
    voice::TerminalVoice,
};

/// Run the stages of a recipe; what is done already is not done again, what was interrupted goes on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier run recipes/sft-lora.toml learning_rate=2e-4 output=runs/second"
)]
pub struct RunArgs {
    /// The recipe, a TOML file.
    pub recipe: PathBuf,
    /// Recipe keys to set, such as `learning_rate=1e-4` or `stage.0.train.options.batch=4`.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the recipe is wrong or a stage fails.
pub fn run(args: &RunArgs, context: &Context) -> Result<()> {
    let recipe: Recipe = document::load(&args.recipe, &args.overrides)?;
    perform(&recipe, context)
}

/// Runs a recipe and, with `--json`, writes its figures.
///
/// # Errors
/// When a stage fails.
pub fn perform(recipe: &Recipe, context: &Context) -> Result<()> {
    let mut voice = TerminalVoice::new(context.terminal);
    let results = stages::run(recipe, &context.device, &mut voice)?;
    if context.json {
        context.terminal.json(&results)
    } else {
        Ok(())
    }
}
