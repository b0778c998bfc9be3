//! Tasks as `espalier eval` and the stage `evaluate` ask them: which they are, who answers, and what is kept of the answers.

pub mod compare;
pub mod shown;

use std::path::{Path, PathBuf};

use espalier_data::{disk::write_whole, record::Message, worlds};
use espalier_engine::text::TextModel;
use espalier_evaluate::{
    respondent::{LocalModel, Respondent},
    results::{TaskResult, samples, task_result},
    ruler::Count,
    run::{ResponseLog, run as ask},
    tasks::{
        Prompting, Task,
        build::{self, Definition, Limit},
        prompt::ChatTemplate,
        registry::Registry,
        ruler, world,
    },
};
use espalier_models::spec::MixerSpec;
use serde_json::Value;

use crate::{Error, Result, recipe::data::MOST_ITEMS, stages::Voice};

/// Items of a world's task where the user names no number.
const WORLD_ITEMS: usize = 200;

/// The context of models that have none of their own, as in lm-evaluation-harness.
const USUAL_CONTEXT: usize = 2048;

/// Which tasks are asked, and how.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Task files, names of tasks, groups and tags, worlds' tasks.
    pub names: &'a [String],
    /// Folders of task files.
    pub include: &'a [PathBuf],
    /// The folder in which data sets are.
    pub data: Option<&'a Path>,
    /// The first items of each task alone, a share of them when below 1.
    pub limit: Option<f64>,
    /// Labelled examples before each item; each task's own number when absent.
    pub shots: Option<usize>,
    /// Seed by which they are chosen.
    pub shots_seed: u64,
    /// Whether prompts of task files go through the chat template; those of worlds do where there is one.
    pub chat: bool,
    /// Whether labelled examples are turns of their own.
    pub multiturn: bool,
    /// What a system message says before a task's description.
    pub system: Option<&'a str>,
    /// Most tokens of a generated answer; each task's own number when absent.
    pub max_tokens: Option<usize>,
    /// Whether programs that a model writes are run.
    pub allow_code: bool,
    /// Whether answers to worlds are sampled at temperature 1.
    pub sample: bool,
}

/// The items of a world's task.
pub fn world_items(limit: Option<f64>) -> usize {
    limit.map_or(WORLD_ITEMS, |limit| (limit as usize).max(1))
}

impl Choice<'_> {
    /// Whether the tasks are there, with their files, before any model is read.
    ///
    /// # Errors
    /// The first that is not, or a number that makes no sense.
    pub fn check(&self) -> Result<()> {
        if self
            .limit
            .is_some_and(|limit| !(limit > 0.0 && limit.is_finite()))
        {
            return Err(Error::usage("`limit`: expected a number above 0"));
        }
        if self.multiturn && !self.chat {
            return Err(Error::usage(
                "`multiturn` makes turns of labelled examples, for which `chat` must be on",
            ));
        }
        self.files().map(|_| ())
    }

    /// Digests of the definitions of the tasks that are files, and the files of records that they read.
    ///
    /// # Errors
    /// When a task or a file is not there.
    pub fn files(&self) -> Result<(Vec<String>, Vec<PathBuf>)> {
        let wrong = |error: espalier_evaluate::Error| Error::usage(error.to_string());
        let (mut registry, mut digests, mut files) =
            (Registry::new(self.include.to_vec()), Vec::new(), Vec::new());
        for name in self.names {
            if world::is_world(name) {
                self.check_world(name)?;
                continue;
            }
            if ruler::is_ruler(name) {
                ruler::named(name).map_err(wrong)?;
                let folder = self.data.map(|data| data.join(ruler::FOLDER));
                files.extend(folder.iter().flat_map(|folder| files_in(folder)));
                continue;
            }
            for definition in registry.find(name).map_err(wrong)? {
                files.extend(build::files(&definition, self.data)?);
                digests.push(definition.digest);
            }
        }
        Ok((digests, files))
    }

    fn check_world(&self, name: &str) -> Result<()> {
        let items = world_items(self.limit);
        if items > MOST_ITEMS {
            return Err(Error::usage(format!(
                "`limit`: {items} is more than {MOST_ITEMS}"
            )));
        }
        worlds::item(name, worlds::Split::Test, 0, 0)
            .map(|_| ())
            .map_err(|error| Error::usage(error.to_string()))
    }

    /// The tasks, with their prompts made. `template` renders conversations, where the model has one; `tokens` counts its tokens, where
    /// they are known.
    ///
    /// # Errors
    /// When a task or its data are not there, or a task runs programs and may not.
    pub fn tasks(
        &self,
        template: Option<ChatTemplate<'_>>,
        tokens: Option<Count>,
    ) -> Result<Vec<Task>> {
        let of_worlds = Prompting {
            shots: self.shots,
            seed: self.shots_seed,
            system: self.system,
            chat: template,
            multiturn: self.multiturn,
        };
        let of_files = Prompting {
            chat: template.filter(|_| self.chat),
            ..of_worlds
        };
        let mut registry = Registry::new(self.include.to_vec());
        let mut all: Vec<Task> = Vec::new();
        for name in self.names {
            if world::is_world(name) {
                self.check_world(name)?;
                let temperature = if self.sample { 1.0 } else { 0.0 };
                let items = world_items(self.limit);
                add(&mut all, world::task(name, items, temperature, &of_worlds)?);
                continue;
            }
            if ruler::is_ruler(name) {
                let tokens = tokens.ok_or_else(|| {
                    Error::usage(format!(
                        "`{name}`: prompts are made to a length in the model's own tokens, which an endpoint does not tell"
                    ))
                })?;
                let prompts = self
                    .limit
                    .map_or(ruler::USUAL_PROMPTS, |limit| (limit as usize).max(1));
                for task in ruler::tasks(name, prompts, tokens, of_files.chat, self.data)? {
                    add(&mut all, task);
                }
                continue;
            }
            let found = registry
                .find(name)
                .map_err(|error| Error::usage(error.to_string()))?;
            for definition in found {
                add(&mut all, self.task(&definition, &of_files)?);
            }
        }
        let programs = all.iter().find(|task| task.runs_programs());
        match programs.filter(|_| !self.allow_code) {
            Some(task) => Err(Error::usage(format!(
                "task `{}` runs what the model writes on this machine; give `--allow-code`, in a recipe `allow_code = true`, where that may be",
                task.name
            ))),
            None => Ok(all),
        }
    }

    fn task(&self, definition: &Definition, prompting: &Prompting<'_>) -> Result<Task> {
        let mut task = build::task(definition, self.data, prompting, Limit(self.limit))?;
        task.generation.max_tokens = self.max_tokens.unwrap_or(task.generation.max_tokens);
        Ok(task)
    }

    /// As [`Choice::tasks`], of a model here.
    ///
    /// # Errors
    /// As [`Choice::tasks`].
    pub fn tasks_of(&self, text: &TextModel) -> Result<Vec<Task>> {
        let render =
            |messages: &[Message], continues: bool| LocalModel::chat(text, messages, continues);
        let renders = text.tokenizer.template().is_some() || self.chat;
        let tokens = |words: &str| Ok(text.tokenizer.encode_ids(words, false)?.len());
        self.tasks(
            renders.then_some(&render as ChatTemplate<'_>),
            Some(&tokens),
        )
    }
}

/// The files in a folder; none where there is no such folder.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect()
}

fn add(all: &mut Vec<Task>, task: Task) {
    if !all.iter().any(|known| known.name == task.name) {
        all.push(task);
    }
}

/// Most tokens that a model reads at once: what was asked for, or its context.
///
/// # Errors
/// When it has learned fewer positions.
pub fn longest(text: &TextModel, asked: Option<usize>) -> Result<usize> {
    let spec = text.model.spec();
    let recurrent = spec
        .blocks
        .iter()
        .all(|block| matches!(block.mixer, MixerSpec::Recurrent(_)));
    let own = match recurrent {
        true => USUAL_CONTEXT.min(spec.context),
        false => spec.context,
    };
    let longest = asked.unwrap_or(own);
    match spec.learned_positions().filter(|limit| *limit < longest) {
        None => Ok(longest),
        Some(limit) => Err(Error::usage(format!(
            "`--max-length {longest}`: the model has learned {limit} positions"
        ))),
    }
}

/// What was found of some tasks: figures, and every item with its answer, in the tasks' order.
#[derive(Debug, Default)]
pub struct Answers {
    /// The figures.
    pub results: Vec<TaskResult>,
    /// The items.
    pub samples: Vec<Vec<Value>>,
}

/// Asks all tasks. `settings` is what decides responses besides prompts; what `log` has is not asked again.
///
/// # Errors
/// When an item cannot be answered or marked, or the disk is full.
pub fn answers(
    tasks: &[Task],
    respondent: &mut dyn Respondent,
    settings: &str,
    log: &mut ResponseLog,
    voice: &mut dyn Voice,
) -> Result<Answers> {
    let mut found = Answers::default();
    for task in tasks {
        let label = format!("   {}", task.name);
        let mut progress = |done: usize| voice.progress(&label, done, task.items.len(), "");
        let answered = ask(task, respondent, settings, log, &mut progress)?;
        found.results.push(task_result(task, &answered));
        found.samples.push(samples(task, &answered));
    }
    Ok(found)
}

impl Answers {
    /// Writes the items of each task into a file of a folder.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, tasks: &[Task], folder: &Path) -> Result<()> {
        for (task, samples) in tasks.iter().zip(&self.samples) {
            let lines: String = samples.iter().map(|sample| format!("{sample}\n")).collect();
            let path = folder.join(samples_name(&task.name));
            write_whole(&path, lines.as_bytes()).map_err(Error::file(&path))?;
        }
        Ok(())
    }
}

/// A name for files, made of a task's or a model's.
pub fn plain_name(name: &str) -> String {
    let plain = |c: char| match c.is_alphanumeric() || "-_.".contains(c) {
        true => c,
        false => '-',
    };
    name.chars().map(plain).collect()
}

/// The file of a task's items.
pub fn samples_name(task: &str) -> String {
    format!("samples_{}.jsonl", plain_name(task))
}
