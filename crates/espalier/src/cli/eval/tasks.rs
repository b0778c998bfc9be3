//! The tasks of an evaluation: which they are, who answers them, and what becomes of the answers.

use std::path::{Path, PathBuf};

use espalier_evaluate::{
    endpoint::Endpoint,
    respondent::{LocalModel, Respondent},
    results::{TaskResult, group_results},
    run::ResponseLog,
    tasks::{Task, build::digest, world},
};
use serde_json::{Value, json};

use super::{EvalArgs, judge, output};
use crate::{
    Error, Result,
    cli::{Context, open_page},
    evaluation::{self, Choice, compare, longest, plain_name},
    model_path::{OpenedModel, open_quantised_text_model},
    stages::hashes::FileHashes,
    voice::TerminalVoice,
};

/// What is evaluated, and what decides its responses.
pub(super) struct Subject {
    /// Its name for readers.
    pub name: String,
    /// A digest of its files.
    pub revision: String,
    /// Everything else that decides responses or explains them.
    pub settings: Value,
}

/// Asks all tasks, writes what was found, and says it.
pub(super) fn run(args: &EvalArgs, context: &Context) -> Result<Value> {
    let choice = args.choice()?;
    choice.check()?;
    let folder = output_folder(args);
    let earlier = args
        .against
        .as_deref()
        .map(compare::Earlier::read)
        .transpose()?;
    match args.is_endpoint() {
        true => of_endpoint(args, &choice, context, &folder, earlier.as_ref()),
        false => of_model(args, &choice, context, &folder, earlier.as_ref()),
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
        let name = plain_name(&name.unwrap_or_default());
        Path::new("runs/eval").join(if name.is_empty() { "model" } else { &name })
    };
    args.output.clone().unwrap_or_else(usual)
}

fn of_endpoint(
    args: &EvalArgs,
    choice: &Choice<'_>,
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
    let tasks = choice.tasks(None, None)?;
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
    choice: &Choice<'_>,
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
    let longest = longest(&text, args.max_length)?;
    let tasks = choice.tasks_of(&text)?;
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
    let answers = evaluation::answers(tasks, respondent, &settings, &mut log, &mut voice)?;
    let verdicts = match (&args.judge, earlier) {
        (Some(path), Some(earlier)) => Some(judge::judged(
            path,
            args,
            context,
            earlier,
            (tasks, &answers.samples),
            &mut log,
        )?),
        _ => None,
    };
    let pairs: Vec<(&Task, &TaskResult)> = tasks.iter().zip(&answers.results).collect();
    let found = output::Found {
        subject,
        args,
        groups: group_results(&pairs),
        comparisons: match earlier {
            Some(earlier) => compare::compared(earlier, tasks, &answers.samples)?,
            None => Vec::new(),
        },
        tasks,
        answers: &answers,
        verdicts,
        against: earlier.map(|earlier| earlier.name.clone()),
    };
    output::write(&found, folder)?;
    output::say(&found, folder, context)?;
    if args.open {
        open_page(&folder.join("report.html"))?;
    }
    Ok(found.to_json())
}
