//! `espalier eval`: perplexity on data, accuracy on generated worlds.

use std::path::PathBuf;

use super::Context;

use espalier_models::pooling::Pooling;
use espalier_train::quantise::QuantiseOptions;

use crate::{
    Error, Result,
    model_path::{as_text, resolve_model},
    recipe::DataOptions,
    stages::{
        evaluate::{EvaluateStage, evaluate},
        kinds::StageKind,
    },
    voice::TerminalVoice,
};

/// Measure a model: perplexity on a data file, accuracy on the held-out items of generated worlds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier eval runs/quickstart --world sentence/2 --items 200\n  espalier eval path/to/model --data held-out.jsonl"
)]
pub struct EvalArgs {
    /// A model folder, an adapter folder or a run.
    pub model: PathBuf,
    /// Data whose perplexity is measured; may be given again.
    #[arg(long)]
    pub data: Vec<PathBuf>,
    /// A task of a generated world, such as `g1/1` or `sentence/2`; may be given again.
    #[arg(long)]
    pub world: Vec<String>,
    /// A task whose texts are embedded: how often has the nearest other text the same answer? May be given again.
    #[arg(long)]
    pub retrieval: Vec<String>,
    /// How texts become vectors: mean, weighted_mean, first or last.
    #[arg(long, default_value = "mean")]
    pub pooling: Pooling,
    /// Round the linear maps of the (base) model's blocks to four bits: nf4 or fp4.
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
    /// Items of each task.
    #[arg(long, default_value_t = 200)]
    pub items: usize,
    /// Longest example in tokens.
    #[arg(long, default_value_t = 1024)]
    pub length: usize,
    /// Sample answers at temperature 1 instead of greedy ones.
    #[arg(long)]
    pub sample: bool,
    /// Seed of sampled answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Runs the command.
///
/// # Errors
/// When nothing is asked for, or model and data do not fit.
pub fn run(args: &EvalArgs, context: &Context) -> Result<()> {
    if args.data.is_empty() && args.world.is_empty() && args.retrieval.is_empty() {
        return Err(Error::usage(
            "give at least one of --data, --world and --retrieval",
        ));
    }
    let (worlds, sampled_worlds) = if args.sample {
        (vec![], args.world.clone())
    } else {
        (args.world.clone(), vec![])
    };
    let source = |path: &PathBuf| DataOptions {
        path: Some(path.clone()),
        ..DataOptions::default()
    };
    let stage = EvaluateStage {
        model: as_text(&resolve_model(&args.model)?)?.to_owned(),
        data: args.data.iter().map(source).collect(),
        baseline: Vec::new(),
        preferences: Vec::new(),
        labels: Vec::new(),
        reward: None,
        best_of: None,
        worlds,
        sampled_worlds,
        divergence_from: None,
        config: Default::default(),
        quantise: args.quantise,
        retrieval: args.retrieval.clone(),
        pooling: args.pooling,
        from: 0,
        template: None,
        seed: args.seed,
        items: args.items,
        length: args.length,
    };
    stage.check()?;
    let mut voice = TerminalVoice::new(context.terminal);
    let result = evaluate(&stage, &context.device, &mut voice)?;
    if context.json {
        context.terminal.json(&result)
    } else {
        Ok(())
    }
}
