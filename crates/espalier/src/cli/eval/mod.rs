//! `espalier eval`: a model on tasks, perplexity on data, retrieval.

mod judge;
mod output;
mod tasks;

use std::path::PathBuf;

use espalier_kernels::linear::Precision;
use espalier_models::pooling::Pooling;
use espalier_train::quantise::QuantiseOptions;
use serde_json::Value;

use super::Context;
use crate::{
    Error, Result,
    evaluation::Choice,
    model_path::{as_text, resolve_model},
    recipe::DataOptions,
    stages::{
        evaluate::{EvaluateStage, Keeping, evaluate},
        kinds::StageKind,
    },
    voice::TerminalVoice,
};

/// Measure a model: tasks (multiple choice, likelihoods, generated answers), perplexity on data, retrieval.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  espalier eval runs/quickstart sentence/2 --limit 200          a generated world\n  espalier eval path/to/model gsm8k --data folder --limit 50    gsm8k_train.jsonl and gsm8k_test.jsonl in folder\n  espalier eval path/to/model arc_easy.yaml --data folder       a task file of lm-evaluation-harness\n  espalier eval path/to/model mmlu --include lm_eval/tasks/mmlu --data folder\n  espalier eval other/model arc_easy.yaml --data folder --against runs/eval/model\n  espalier eval http://localhost:8000/v1 gsm8k --endpoint-model name --data folder\n  espalier eval path/to/model --data held-out.jsonl             perplexity of a file"
)]
pub struct EvalArgs {
    /// A model folder, an adapter folder, a run, or the address of an endpoint (`http://host/v1`).
    pub model: PathBuf,
    /// Tasks: task files (.yaml), names of tasks, groups or tags in `--include`, worlds' tasks such as `g1/1`, or `gsm8k`.
    pub tasks: Vec<String>,
    /// A folder: where the tasks' data sets are (DIR/NAME/PART/test.jsonl). A file: data whose perplexity is measured; may be given again.
    #[arg(long)]
    pub data: Vec<PathBuf>,
    /// A folder of task files, searched with the folders in it; may be given again.
    #[arg(long, value_name = "DIR")]
    pub include: Vec<PathBuf>,
    /// Labelled examples before each item; each task's own number when absent.
    #[arg(long, visible_alias = "num-fewshot", value_name = "NUMBER")]
    pub shots: Option<usize>,
    /// The first items of each task alone, a share of them when below 1; of worlds 200 when absent.
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<f64>,
    /// Apply the model's chat template to prompts; worlds' always have it where there is one.
    #[arg(long)]
    pub chat: bool,
    /// With `--chat`: labelled examples are turns of their own.
    #[arg(long, requires = "chat")]
    pub multiturn: bool,
    /// What a system message says before a task's description.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Answers that are written, or requests that are sent, at once.
    #[arg(long, default_value_t = 16, value_name = "NUMBER")]
    pub batch: usize,
    /// Most tokens that the model reads at once; its context when absent.
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Most tokens of a generated answer; each task's own number when absent.
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<usize>,
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// Where responses, samples, results and the page go; runs/eval/MODEL when absent. What was answered there is not asked again.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// The folder of an earlier evaluation, of another model: compare the two item by item.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    /// With `--against`: a model folder, or the address of an endpoint, that judges which of the two models' texts is better, in both orders.
    #[arg(long, value_name = "MODEL", requires = "against")]
    pub judge: Option<PathBuf>,
    /// The model that a judge's endpoint is asked for.
    #[arg(long, value_name = "NAME", requires = "judge")]
    pub judge_model: Option<String>,
    /// A file with the question to the judge, with {question}, {first} and {second} where they belong; it answers A or B.
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub judge_question: Option<PathBuf>,
    /// Run the programs that a model writes, for tasks that mark them so (HumanEval).
    #[arg(long)]
    pub allow_code: bool,
    /// Open the page when done.
    #[arg(long)]
    pub open: bool,
    /// The model that an endpoint is asked for; its key is in the variable OPENAI_API_KEY.
    #[arg(long, value_name = "NAME")]
    pub endpoint_model: Option<String>,
    /// A task of a generated world whose texts are embedded: how often has the nearest other text the same answer? May be given again.
    #[arg(long)]
    pub retrieval: Vec<String>,
    /// How texts become vectors: mean, weighted_mean, first or last.
    #[arg(long, default_value = "mean")]
    pub pooling: Pooling,
    /// Round the linear maps of the (base) model's blocks to four bits: nf4 or fp4.
    #[arg(long, value_name = "NAME")]
    pub quantise: Option<QuantiseOptions>,
    /// Longest example in tokens, of `--data FILE`.
    #[arg(long, default_value_t = 1024)]
    pub length: usize,
    /// Sample the answers to worlds at temperature 1 instead of greedily.
    #[arg(long)]
    pub sample: bool,
    /// Seed of sampled answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Seed by which labelled examples are chosen.
    #[arg(long, default_value_t = 1234, value_name = "NUMBER")]
    pub shots_seed: u64,
}

impl EvalArgs {
    /// Files of `--data`, whose perplexity is measured.
    fn texts(&self) -> impl Iterator<Item = &PathBuf> {
        self.data.iter().filter(|path| !path.is_dir())
    }

    /// The folder of `--data`, where data sets are.
    fn folder(&self) -> Result<Option<&PathBuf>> {
        let mut folders = self.data.iter().filter(|path| path.is_dir());
        match (folders.next(), folders.next()) {
            (Some(_), Some(second)) => Err(Error::usage(format!(
                "`--data {}`: there is one folder of data sets at most",
                second.display()
            ))),
            (folder, None) => Ok(folder),
            (None, Some(_)) => Ok(None),
        }
    }

    fn choice(&self) -> Result<Choice<'_>> {
        Ok(Choice {
            names: &self.tasks,
            include: &self.include,
            data: self.folder()?.map(PathBuf::as_path),
            limit: self.limit,
            shots: self.shots,
            shots_seed: self.shots_seed,
            chat: self.chat,
            multiturn: self.multiturn,
            system: self.system.as_deref(),
            max_tokens: self.max_tokens,
            allow_code: self.allow_code,
            sample: self.sample,
        })
    }

    fn is_endpoint(&self) -> bool {
        let text = self.model.to_string_lossy();
        text.starts_with("http://") || text.starts_with("https://")
    }

    fn check(&self) -> Result<()> {
        let measures = self.texts().next().is_some() || !self.retrieval.is_empty();
        if self.tasks.is_empty() && !measures {
            return Err(Error::usage(
                "give at least one task, `--data FILE` or `--retrieval`",
            ));
        }
        if self.is_endpoint() && measures {
            return Err(Error::usage(
                "an endpoint answers tasks alone; `--data FILE` and `--retrieval` need a model here",
            ));
        }
        if self
            .limit
            .is_some_and(|limit| !(limit > 0.0 && limit.is_finite()))
        {
            return Err(Error::usage("`--limit`: expected a number above 0"));
        }
        if self.batch == 0 || self.max_length == Some(0) || self.max_tokens == Some(0) {
            return Err(Error::usage(
                "`--batch`, `--max-length` and `--max-tokens` must be at least 1",
            ));
        }
        if self.tasks.is_empty() && (self.against.is_some() || self.open) {
            return Err(Error::usage("`--against` and `--open` need a task"));
        }
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// When nothing is asked for, or model and data do not fit.
pub fn run(args: &EvalArgs, context: &Context) -> Result<()> {
    args.check()?;
    let mut result = match args.tasks.is_empty() {
        true => Value::Object(serde_json::Map::from_iter([(
            "kind".to_owned(),
            "evaluate".into(),
        )])),
        false => tasks::run(args, context)?,
    };
    if args.texts().next().is_some() || !args.retrieval.is_empty() {
        let measured = measure(args, context)?;
        if let (Some(all), Value::Object(measured)) = (result.as_object_mut(), measured) {
            all.extend(measured);
        }
    }
    if context.json {
        context.terminal.json(&result)
    } else {
        Ok(())
    }
}

/// Perplexity on files, and retrieval.
fn measure(args: &EvalArgs, context: &Context) -> Result<Value> {
    let source = |path: &PathBuf| DataOptions {
        path: Some(path.clone()),
        ..DataOptions::default()
    };
    let stage = EvaluateStage {
        data: args.texts().map(source).collect(),
        quantise: args.quantise,
        retrieval: args.retrieval.clone(),
        pooling: args.pooling,
        seed: args.seed,
        limit: args.limit,
        length: args.length,
        ..EvaluateStage::of_model(as_text(&resolve_model(&args.model)?)?)
    };
    stage.check()?;
    let mut voice = TerminalVoice::new(context.terminal);
    evaluate(&stage, &mut Keeping::nowhere(), &context.device, &mut voice)
}
