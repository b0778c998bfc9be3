//! RULER's tasks among others: `ruler/vt@4096` is one of the thirteen at a length in the model's own tokens, `ruler@4096` all of them.
//!
//! Prompts are those of `espalier probe ruler` with the published seed ([`crate::ruler`]), made of the authors' essays and documents where
//! the folder of data sets has them in `ruler/`. Marks are the published ones, from 0 to 1.

use std::path::Path;

use espalier_data::record::Message;
use serde_json::json;

use super::{
    Generation, Group, Item, Metric, Pipeline, Prompt, Request, Task, build::digest,
    prompt::ChatTemplate,
};
use crate::{
    Error, Result,
    ruler::{self, Count, Options, Sample, TASKS, sources::Sources},
};

/// Prompts of each task where the user names no number.
pub const USUAL_PROMPTS: usize = 20;

/// The name of the mean mark.
const SCORE: &str = "score";

/// Stands where a task will be while the chat template is rendered.
const PLACE: &str = "\u{e000}task\u{e000}";

/// The folder, in that of data sets, of the authors' essays and documents.
pub const FOLDER: &str = "ruler";

/// Whether a name means tasks of RULER.
pub fn is_ruler(name: &str) -> bool {
    name == "ruler" || name.starts_with("ruler/") || name.starts_with("ruler@")
}

/// The tasks that a name means, and their length.
///
/// ```
/// use espalier_evaluate::tasks::ruler::named;
/// let (tasks, length) = named("ruler/vt@4096")?;
/// assert_eq!((tasks[0].name, tasks.len(), length), ("vt", 1, 4096));
/// assert_eq!(named("ruler@1024")?.0.len(), 13);
/// assert!(named("ruler/vt").unwrap_err().to_string().contains("@4096"));
/// # Ok::<(), espalier_evaluate::Error>(())
/// ```
///
/// # Errors
/// When there is no such task, or no length.
pub fn named(name: &str) -> Result<(Vec<&'static ruler::Task>, usize)> {
    let (task, length) = name.split_once('@').ok_or_else(|| {
        Error::task(format!(
            "`{name}`: RULER's tasks have a length in tokens, as in `{name}@4096`"
        ))
    })?;
    let length = length.parse().ok().filter(|length| *length > 0);
    let length = length.ok_or_else(|| {
        Error::task(format!(
            "`{name}`: the length is a number of tokens, as in `{task}@4096`"
        ))
    })?;
    match task.strip_prefix("ruler/") {
        Some(task) => Ok((vec![ruler::task(task)?], length)),
        None => Ok((TASKS.iter().collect(), length)),
    }
}

/// The tasks that a name means, with `count` prompts each; `tokens` counts them, `data` is the folder of data sets.
///
/// # Errors
/// When there is no such task, the length is too short for it, or the template changes what users say.
pub fn tasks(
    name: &str,
    count: usize,
    tokens: Count,
    chat: Option<ChatTemplate<'_>>,
    data: Option<&Path>,
) -> Result<Vec<Task>> {
    let (tasks, length) = named(name)?;
    let options = Options {
        template: chat.map(around).transpose()?.unwrap_or_default(),
        ..Options::new(length, count)
    };
    let folder = data
        .map(|data| data.join(FOLDER))
        .filter(|data| data.is_dir());
    let sources = folder
        .as_deref()
        .map_or_else(Sources::generated, Sources::folder);
    let groups = match name.starts_with("ruler/") {
        true => Vec::new(),
        false => vec![Group {
            name: name.to_owned(),
            by_size: false,
            metrics: vec![SCORE.to_owned()],
        }],
    };
    let task = |task: &&'static ruler::Task| {
        let samples = ruler::samples(task, &options, &sources, tokens)?;
        Ok(of_samples(
            task,
            &options,
            samples,
            &groups,
            chat.is_some(),
            sources.name(),
        ))
    };
    tasks.iter().map(task).collect()
}

fn of_samples(
    task: &'static ruler::Task,
    options: &Options,
    samples: Vec<Sample>,
    groups: &[Group],
    marked: bool,
    source: &str,
) -> Task {
    let name = format!("ruler/{}@{}", task.name, options.length);
    let item = |sample: Sample| Item {
        number: sample.index,
        doc: json!({"index": sample.index, "outputs": sample.outputs, "length": sample.length}),
        request: Request::Generate {
            prompt: Prompt {
                text: sample.prompt(),
                messages: vec![Message::user(sample.prompt())],
                marked,
            },
            gold: sample.outputs,
        },
    };
    let metric = task.metric;
    let score = move |item: &Item, answer: &str| {
        let gold: Vec<String> = item.request.gold().into_iter().map(str::to_owned).collect();
        Ok(metric.score(answer, &gold))
    };
    Task {
        definition: digest(&format!("{name} seed {} {source}", options.seed)),
        alias: name.clone(),
        name,
        groups: groups.to_vec(),
        version: String::new(),
        shots: 0,
        items: samples.into_iter().map(item).collect(),
        generation: Generation {
            max_tokens: task.answer_tokens,
            cuts_prompt: false,
            ..Generation::default()
        },
        repeats: 1,
        filters: vec![Pipeline::none()],
        metrics: vec![Metric::checked(SCORE, score)],
    }
}

/// What a chat template puts before and after a user's words.
///
/// # Errors
/// When it changes them.
pub fn around(chat: ChatTemplate<'_>) -> Result<[String; 2]> {
    let text = chat(&[Message::user(PLACE)], false)?;
    let parts = text.split_once(PLACE);
    let (before, after) = parts.ok_or_else(|| {
        Error::task(
            "the chat template changes what the user says, so that no task can be put in its place",
        )
    })?;
    Ok([before.to_owned(), after.to_owned()])
}
