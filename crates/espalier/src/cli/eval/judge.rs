//! A judge between the answers of this evaluation and those of an earlier one (`--judge`).

use std::path::Path;

use espalier_data::record::Message;
use espalier_evaluate::{
    endpoint::Endpoint,
    judge::{Pair, USUAL_QUESTION, Verdicts, task, verdicts},
    respondent::{LocalModel, Respondent},
    run::{ResponseLog, run as ask},
    tasks::{Task, build::digest},
};
use serde_json::{Value, json};

use super::EvalArgs;
use crate::{
    Error, Result,
    cli::Context,
    evaluation::compare::{Earlier, identity},
    model_path::{OpenedModel, open_text_model},
    stages::{Voice, hashes::FileHashes},
    voice::TerminalVoice,
};

/// The pairs of answers to the same items, of all tasks that ask for texts.
fn pairs(earlier: &Earlier, tasks: &[Task], samples: &[Vec<Value>]) -> Result<Vec<Pair>> {
    let mut all = Vec::new();
    for (task, samples) in tasks.iter().zip(samples) {
        let Some(others) = earlier.whole_samples(&task.name)? else {
            continue;
        };
        let metric = task.metrics.iter().find(|metric| metric.is_verdict());
        let prefix = metric.map(|metric| format!("{},", metric.name));
        let mark = |sample: &Value| {
            let marks = sample["marks"].as_object()?.iter();
            let own = marks.filter(|(key, _)| {
                prefix
                    .as_ref()
                    .is_some_and(|prefix| key.starts_with(prefix))
            });
            own.filter_map(|(_, mark)| mark.as_f64()).reduce(f64::max)
        };
        let text = |sample: &Value| Some(sample.pointer("/response/texts/0")?.as_str()?.to_owned());
        let pair = |sample: &Value| {
            let other = others.get(&identity(sample))?;
            Some(Pair {
                question: sample["prompt"].as_str()?.to_owned(),
                answers: [text(sample)?, text(other)?],
                marks: mark(sample)
                    .zip(mark(other))
                    .map(|(own, other)| [own, other]),
            })
        };
        all.extend(samples.iter().filter_map(pair));
    }
    match all.is_empty() {
        false => Ok(all),
        true => Err(Error::usage(
            "`--judge` compares texts, and both evaluations have none to the same items; give a task that asks for texts",
        )),
    }
}

/// Asks the judge.
pub(super) fn judged(
    judge: &Path,
    args: &EvalArgs,
    context: &Context,
    earlier: &Earlier,
    (tasks, samples): (&[Task], &[Vec<Value>]),
    log: &mut ResponseLog,
) -> Result<Verdicts> {
    let pairs = pairs(earlier, tasks, samples)?;
    let question = match &args.judge_question {
        Some(path) => std::fs::read_to_string(path).map_err(Error::file(path))?,
        None => USUAL_QUESTION.to_owned(),
    };
    let address = judge.to_string_lossy();
    if address.starts_with("http://") || address.starts_with("https://") {
        let model = args.judge_model.as_deref().ok_or_else(|| {
            Error::usage("an endpoint serves models by name; give `--judge-model NAME`")
        })?;
        let key = std::env::var("OPENAI_API_KEY").ok();
        let mut endpoint = Endpoint::new(&address, model, key, true, args.batch, args.seed)?;
        let asked = task(&pairs, &question, None, true)?;
        let settings = digest(&format!("judge {address} {model}"));
        return answers(&pairs, &asked, &mut endpoint, &settings, log, context);
    }
    let OpenedModel {
        text,
        folder,
        remarks,
        ..
    } = open_text_model(judge, &context.device)?;
    context.terminal.notes(&remarks);
    let chat = |messages: &[Message], continues: bool| LocalModel::chat(&text, messages, continues);
    let has_template = text.tokenizer.template().is_some();
    let asked = task(&pairs, &question, has_template.then_some(&chat as _), false)?;
    let revision = FileHashes::open(&super::tasks::output_folder(args)).of_model(&folder)?;
    let settings = json!(["judge", revision]).to_string();
    let mut local = LocalModel {
        longest: text.model.spec().context,
        text: &text,
        batch: args.batch,
        seed: args.seed,
    };
    answers(&pairs, &asked, &mut local, &settings, log, context)
}

fn answers(
    pairs: &[Pair],
    asked: &Task,
    respondent: &mut dyn Respondent,
    settings: &str,
    log: &mut ResponseLog,
    context: &Context,
) -> Result<Verdicts> {
    let mut voice = TerminalVoice::new(context.terminal);
    let mut progress = |done: usize| voice.progress("   judge", done, asked.items.len(), "");
    let answered = ask(asked, respondent, settings, log, &mut progress)?;
    Ok(verdicts(pairs, &answered)?)
}
