//! The tasks of an evaluation: which they are, who answers them, and what becomes of the answers.

use std::path::{Path, PathBuf};

use espalier_data::record::Message;
use espalier_evaluate::{
    endpoint::Endpoint,
    respondent::{LocalModel, Respondent},
    results::{TaskResult, group_results, samples, task_result},
    run::{ResponseLog, run as ask},
    tasks::{
        Prompting, Task,
        build::{self, Limit, digest},
        registry::Registry,
        world,
    },
};
use espalier_models::spec::MixerSpec;
use serde_json::{Value, json};

use super::{EvalArgs, compare, judge, output};
use crate::{
    Error, Result,
    cli::Context,
    model_path::{OpenedModel, open_quantised_text_model},
    recipe::data::MOST_ITEMS,
    stages::{Voice, hashes::FileHashes},
    voice::TerminalVoice,
};

/// Items of a world's task where the user names no number.
const WORLD_ITEMS: usize = 200;

/// The context of models that have none of their own, as in lm-evaluation-harness.
const USUAL_CONTEXT: usize = 2048;

/// What is evaluated, and what decides its responses.
pub(super) struct Subject {
    /// Its name for readers.
    pub name: String,
    /// A digest of its files.
    pub revision: String,
    /// Everything else that decides responses or explains them.
    pub settings: Value,
}

/// The items of a world's task.
pub(super) fn world_items(limit: Option<f64>) -> usize {
    limit.map_or(WORLD_ITEMS, |limit| (limit as usize).max(1))
}

/// Asks all tasks, writes what was found, and says it.
pub(super) fn run(args: &EvalArgs, context: &Context) -> Result<Value> {
    let items = world_items(args.limit);
    if items > MOST_ITEMS && args.tasks.iter().any(|name| world::is_world(name)) {
        return Err(Error::usage(format!(
            "`--limit`: {items} is more than {MOST_ITEMS}"
        )));
    }
    let folder = output_folder(args);
    let earlier = args
        .against
        .as_deref()
        .map(compare::Earlier::read)
        .transpose()?;
    match args.is_endpoint() {
        true => of_endpoint(args, context, &folder, earlier.as_ref()),
        false => of_model(args, context, &folder, earlier.as_ref()),
    }
}

/// Where everything goes.
pub(super) fn output_folder(args: &EvalArgs) -> PathBuf {
    let usual = || {
        let name = args
            .model
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let name = if args.is_endpoint() {
            args.endpoint_model.clone()
        } else {
            name
        };
        let plain = |c: char| {
            if c.is_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let name: String = name.unwrap_or_default().chars().map(plain).collect();
        Path::new("runs/eval").join(if name.is_empty() { "model" } else { &name })
    };
    args.output.clone().unwrap_or_else(usual)
}

fn of_endpoint(
    args: &EvalArgs,
    context: &Context,
    folder: &Path,
    earlier: Option<&compare::Earlier>,
) -> Result<Value> {
    let model = args.endpoint_model.clone().ok_or_else(|| {
        Error::usage("an endpoint serves models by name; give `--endpoint-model NAME`")
    })?;
    let base = args.model.to_string_lossy().into_owned();
    let key = std::env::var("OPENAI_API_KEY").ok();
    // Prompts are conversations that the server renders.
    let tasks = tasks(args, &prompting(args, None))?;
    let chat = args.chat || args.tasks.iter().all(|name| world::is_world(name));
    let mut endpoint = Endpoint::new(&base, &model, key, chat, args.batch, args.seed)?;
    let subject = Subject {
        revision: digest(&format!("{base} {model}")),
        settings: json!({"endpoint": base, "model": model, "chat": chat, "seed": args.seed}),
        name: model,
    };
    all(
        args,
        context,
        folder,
        &tasks,
        &mut endpoint,
        &subject,
        earlier,
    )
}

fn of_model(
    args: &EvalArgs,
    context: &Context,
    folder: &Path,
    earlier: Option<&compare::Earlier>,
) -> Result<Value> {
    let OpenedModel {
        mut text,
        folder: home,
        remarks,
        ..
    } = open_quantised_text_model(&args.model, args.quantise, &context.device)?;
    context.terminal.notes(&remarks);
    text.model.set_precision(args.precision);
    let spec = text.model.spec();
    let recurrent = spec
        .blocks
        .iter()
        .all(|block| matches!(block.mixer, MixerSpec::Recurrent(_)));
    let context_of_model = if recurrent {
        USUAL_CONTEXT.min(spec.context)
    } else {
        spec.context
    };
    let longest = args.max_length.unwrap_or(context_of_model);
    if let Some(limit) = spec.learned_positions().filter(|limit| *limit < longest) {
        return Err(Error::usage(format!(
            "`--max-length {longest}`: the model has learned {limit} positions"
        )));
    }
    let has_template = text.tokenizer.template().is_some();
    let chat = |messages: &[Message], continues: bool| LocalModel::chat(&text, messages, continues);
    let tasks = tasks(
        args,
        &prompting(
            args,
            Some(&chat)
                .filter(|_| has_template || args.chat)
                .map(|chat| chat as _),
        ),
    )?;
    let template = text.tokenizer.template().filter(|_| args.chat);
    let subject = Subject {
        name: args.model.display().to_string(),
        revision: FileHashes::open(folder).of_model(&home)?,
        settings: json!({
            "dtype": args.precision.to_string(),
            "quantise": args.quantise.map(|options| json!(options)),
            "device": format!("{:?}", context.device),
            "max_length": longest,
            "batch": args.batch,
            "seed": args.seed,
            "chat": args.chat,
            "multiturn": args.multiturn,
            "template": template.map(|template| digest(template.source())),
        }),
    };
    let mut local = LocalModel {
        text: &text,
        longest,
        batch: args.batch,
        seed: args.seed,
    };
    all(args, context, folder, &tasks, &mut local, &subject, earlier)
}

fn prompting<'a>(
    args: &'a EvalArgs,
    chat: Option<espalier_evaluate::tasks::prompt::ChatTemplate<'a>>,
) -> Prompting<'a> {
    Prompting {
        shots: args.shots,
        seed: args.shots_seed,
        system: args.system.as_deref(),
        chat,
        multiturn: args.multiturn,
    }
}

/// The tasks that the user names. Prompts of task files go through the template where `--chat` says so, those of worlds where there is one.
fn tasks(args: &EvalArgs, prompting: &Prompting<'_>) -> Result<Vec<Task>> {
    let mut registry = Registry::new(args.include.clone());
    let of_files = Prompting {
        chat: prompting.chat.filter(|_| args.chat),
        ..*prompting
    };
    let data = args.folder()?;
    let mut all: Vec<Task> = Vec::new();
    for name in &args.tasks {
        if world::is_world(name) {
            let items = world_items(args.limit);
            let temperature = if args.sample { 1.0 } else { 0.0 };
            all.push(world::task(name, items, temperature, prompting)?);
            continue;
        }
        let found = registry
            .find(name)
            .map_err(|error| Error::usage(error.to_string()))?;
        for definition in found {
            let mut task = build::task(
                &definition,
                data.map(PathBuf::as_path),
                &of_files,
                Limit(args.limit),
            )?;
            task.generation.max_tokens = args.max_tokens.unwrap_or(task.generation.max_tokens);
            if !all.iter().any(|known| known.name == task.name) {
                all.push(task);
            }
        }
    }
    let programs = all.iter().find(|task| task.runs_programs());
    match programs.filter(|_| !args.allow_code) {
        Some(task) => Err(Error::usage(format!(
            "task `{}` runs what the model writes on this machine; give `--allow-code` where that may be",
            task.name
        ))),
        None => Ok(all),
    }
}

/// Asks all tasks of one respondent.
fn all(
    args: &EvalArgs,
    context: &Context,
    folder: &Path,
    tasks: &[Task],
    respondent: &mut dyn Respondent,
    subject: &Subject,
    earlier: Option<&compare::Earlier>,
) -> Result<Value> {
    espalier_data::disk::create_folder(folder).map_err(Error::file(folder))?;
    let mut log = ResponseLog::open(&folder.join("responses.jsonl"))?;
    let settings = json!([subject.revision, subject.settings]).to_string();
    let mut voice = TerminalVoice::new(context.terminal);
    let (mut results, mut logged): (Vec<TaskResult>, Vec<Vec<Value>>) = (Vec::new(), Vec::new());
    for task in tasks {
        let mut progress = |done: usize| {
            voice.progress(&format!("   {}", task.name), done, task.items.len(), "");
        };
        let answered = ask(task, respondent, &settings, &mut log, &mut progress)?;
        results.push(task_result(task, &answered));
        logged.push(samples(task, &answered));
    }
    let verdicts = match (&args.judge, earlier) {
        (Some(path), Some(earlier)) => Some(judge::judged(
            path,
            args,
            context,
            earlier,
            (tasks, &logged),
            &mut log,
        )?),
        _ => None,
    };
    let pairs: Vec<(&Task, &TaskResult)> = tasks.iter().zip(&results).collect();
    let found = output::Found {
        subject,
        args,
        groups: group_results(&pairs),
        comparisons: match earlier {
            Some(earlier) => compare::compared(earlier, tasks, &logged)?,
            None => Vec::new(),
        },
        tasks,
        results: &results,
        samples: &logged,
        verdicts,
        against: earlier.map(|earlier| earlier.name.clone()),
    };
    output::write(&found, folder)?;
    output::say(&found, folder, context)?;
    if args.open {
        output::open(&folder.join("report.html"))?;
    }
    Ok(found.to_json())
}
