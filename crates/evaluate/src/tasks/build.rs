//! From a task's file and its records to its items: the prompt of each, with labelled examples before it, and what is asked.

mod fields;
mod keys;
mod pool;

use std::path::{Path, PathBuf};

use serde_json::Value;
use twox_hash::xxhash3_128;

use self::{
    fields::{Field, Fields, Target, as_text, chosen, right},
    keys::{filters, generation, metrics},
    pool::Pool,
};
use super::{
    Group, Item, Metric, Prompt, Prompting, Request, Task,
    data::{self, Places},
    file::{OutputType, TaskFile},
    functions::{self, ChangeDocs},
    metric::words,
    prompt::{Question, Turn, joined, plain_text, prompt},
    sampling::PythonRandom,
};
use crate::{Error, Result};

/// A task's file, and what surrounds it.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Its keys.
    pub file: TaskFile,
    /// Where it is; functions are known by the name of its folder.
    pub path: PathBuf,
    /// The groups it was called by.
    pub groups: Vec<Group>,
    /// A digest of its keys.
    pub digest: String,
}

/// Which items are asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limit(pub Option<f64>);

impl Limit {
    /// So many of `count` items: the first ones, or a share where it is below 1.
    pub fn of(self, count: usize) -> usize {
        match self.0 {
            None => count,
            Some(share) if share < 1.0 => (count as f64 * share).ceil() as usize,
            Some(number) => (number as usize).min(count),
        }
    }
}

/// Builds a task.
///
/// # Errors
/// When records are missing, a template fails, or a key asks for what is not supported.
pub fn task(
    definition: &Definition,
    data: Option<&Path>,
    prompting: &Prompting<'_>,
    limit: Limit,
) -> Result<Task> {
    let context = |error: Error| match error {
        Error::Task(reason) => Error::task(format!(
            "{}: task `{}`: {reason}",
            definition.path.display(),
            definition.file.task
        )),
        other => other,
    };
    Builder::new(definition, data, prompting)
        .and_then(|builder| builder.task(limit))
        .map_err(context)
}

/// The files of records that a task reads, with labelled examples where it has some.
///
/// # Errors
/// When one is not there, naming where it is looked for.
pub fn files(definition: &Definition, data: Option<&Path>) -> Result<Vec<PathBuf>> {
    let file = &definition.file;
    let places = Places {
        given: data,
        beside: definition.path.parent().unwrap_or(Path::new("")),
    };
    let asked = file.test_split.as_ref().or(file.validation_split.as_ref());
    let of_examples = file.fewshot_config.clone().unwrap_or_default().split;
    let examples = of_examples.as_ref().or(file.fewshot_split.as_ref());
    let others = file
        .training_split
        .as_ref()
        .or(file.validation_split.as_ref());
    let examples = examples.or(others);
    let mut all = Vec::new();
    if let Some(split) = asked {
        all.extend(data::files(file, split, places)?);
    }
    // Where there are no examples, and some are needed, building the task says so.
    if let Some(split) = examples {
        all.extend(data::files(file, split, places).unwrap_or_default());
    }
    all.sort();
    all.dedup();
    Ok(all)
}

struct Builder<'a> {
    definition: &'a Definition,
    file: &'a TaskFile,
    folder: String,
    prompting: &'a Prompting<'a>,
    places: Places<'a>,
    own: Fields,
    example: Fields,
    description: Field,
    change: Option<ChangeDocs>,
    /// Whether words and bytes are counted of the page as it stands in the data.
    counts_page: bool,
    metrics: Vec<Metric>,
}

impl<'a> Builder<'a> {
    fn new(
        definition: &'a Definition,
        data: Option<&'a Path>,
        prompting: &'a Prompting<'a>,
    ) -> Result<Self> {
        let file = &definition.file;
        let beside = definition.path.parent().unwrap_or(Path::new(""));
        let folder = beside
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let field = |key: &str, value: &Value| Field::parse(key, value, folder);
        let prefix =
            |prefix: &Option<String>| prefix.clone().map_or(Field::Absent, Field::Template);
        let own = Fields {
            text: field("doc_to_text", &file.doc_to_text)?,
            target: field("doc_to_target", &file.doc_to_target)?,
            choices: field("doc_to_choice", &file.doc_to_choice)?,
            prefix: prefix(&file.gen_prefix),
        };
        let shots = file.fewshot_config.clone().unwrap_or_default();
        let example = Fields {
            text: field("doc_to_text", &shots.doc_to_text)?.or(&own.text),
            target: field("doc_to_target", &shots.doc_to_target)?.or(&own.target),
            choices: field("doc_to_choice", &shots.doc_to_choice)?.or(&own.choices),
            prefix: prefix(&shots.gen_prefix).or(&own.prefix),
        };
        let changed = functions::name(&file.process_docs);
        let counted = functions::name(&file.process_results);
        Ok(Self {
            definition,
            file,
            prompting,
            places: Places {
                given: data,
                beside,
            },
            own,
            example,
            description: field("description", &file.description)?,
            change: changed
                .map(|name| ChangeDocs::named(folder, name))
                .transpose()?,
            counts_page: match counted {
                Some(name) => functions::counts_original(folder, name)?,
                None => false,
            },
            metrics: metrics(file, folder)?,
            folder: folder.to_owned(),
        })
    }

    fn records(&self, split: &str, change: bool) -> Result<Vec<Value>> {
        let records = data::records(self.file, split, self.places)?;
        Ok(match self.change.filter(|_| change) {
            Some(change) => records.into_iter().map(|doc| change.apply(doc)).collect(),
            None => records,
        })
    }

    fn task(&self, limit: Limit) -> Result<Task> {
        let file = self.file;
        let split = file.test_split.as_ref().or(file.validation_split.as_ref());
        let split = split
            .ok_or_else(|| Error::task("there is neither `test_split` nor `validation_split`"))?;
        let docs = self.records(split, true)?;
        // What a task sets to none stays none.
        let shots = match (file.num_fewshot, self.prompting.shots) {
            (Some(0), _) | (None, None) => 0,
            (_, Some(given)) => given,
            (Some(own), None) => own,
        };
        let mut pool = if shots > 0 { Some(self.pool()?) } else { None };
        let count = limit.of(docs.len());
        let mut items = Vec::with_capacity(count);
        let several = docs.first().map(|doc| self.own.target(doc)).transpose()?;
        let several = matches!(several, Some(Target::List(_)));
        for (number, doc) in docs.into_iter().take(count).enumerate() {
            let located = |error: Error| match error {
                Error::Task(reason) => Error::task(format!("record {number}: {reason}")),
                Error::Data(error) => Error::task(format!("record {number}: {error}")),
                other => other,
            };
            let request = self
                .request(&doc, pool.as_mut(), shots, several)
                .map_err(located)?;
            items.push(Item {
                number,
                doc,
                request,
            });
        }
        let version = file.metadata.get("version").map(plain_text);
        Ok(Task {
            name: file.task.clone(),
            alias: file.task_alias.clone().unwrap_or_else(|| file.task.clone()),
            groups: self.definition.groups.clone(),
            version: version.unwrap_or_default(),
            shots,
            items,
            generation: generation(file)?,
            repeats: file.repeats.unwrap_or(1).max(1),
            filters: filters(file, &self.folder)?,
            metrics: self.metrics.clone(),
            definition: self.definition.digest.clone(),
        })
    }

    /// The labelled examples that may be chosen.
    fn pool(&self) -> Result<Pool> {
        let file = self.file;
        let config = file.fewshot_config.clone().unwrap_or_default();
        let split = config.split.as_ref().or(file.fewshot_split.as_ref());
        let mut docs = match (split, &config.samples) {
            (Some(split), _) => {
                if let Some(name) = functions::name(&config.process_docs) {
                    return Err(functions::unknown("process_docs", &self.folder, name));
                }
                self.records(split, true)?
            }
            (None, Value::Array(samples)) => samples.clone(),
            (None, samples) => {
                if let Some(name) = functions::name(samples) {
                    return Err(functions::unknown("samples", &self.folder, name));
                }
                let others = [
                    &file.training_split,
                    &file.validation_split,
                    &file.test_split,
                ];
                let split = others.into_iter().flatten().next();
                let split = split.ok_or_else(|| Error::task("no split has examples"))?;
                self.records(split, true)?
            }
        };
        if let Some(places) = &config.fewshot_indices {
            let chosen: Option<Vec<Value>> = places
                .iter()
                .map(|place| docs.get(*place).cloned())
                .collect();
            docs = chosen.ok_or_else(|| {
                Error::task(format!(
                    "`fewshot_indices` goes beyond the {} records",
                    docs.len()
                ))
            })?;
        }
        let first = match config.sampler.as_deref() {
            None | Some("default") => false,
            Some("first_n") => true,
            Some(other) => {
                return Err(Error::task(format!(
                    "`sampler`: {other} is not supported; expected default or first_n"
                )));
            }
        };
        Ok(Pool {
            turns: vec![None; docs.len()],
            docs,
            random: PythonRandom::new(self.prompting.seed),
            first,
            excludes: split == file.test_split.as_ref(),
        })
    }

    fn turns(&self, doc: &Value, pool: Option<&mut Pool>, shots: usize) -> Result<Vec<Turn>> {
        let file = self.file;
        let description = self.description.text(doc)?;
        let system = joined(
            self.prompting.system,
            Some(&description),
            &file.fewshot_delimiter,
        );
        let mut turns = Vec::new();
        if !system.is_empty() {
            turns.push(Turn::new("system", system, ""));
        }
        if let Some(pool) = pool {
            for place in pool.choose(shots, doc)? {
                let known = pool.turns[place].take();
                let example = known.map_or_else(|| self.example(&pool.docs[place]), Ok)?;
                turns.extend(example.clone());
                pool.turns[place] = Some(example);
            }
        }
        let prefix = self.own.prefix.text(doc)?;
        let question = Question {
            text: match self.own.right_context(doc)? {
                None => self.own.text.text(doc)?,
                Some(_) => String::new(),
            },
            answer: None,
            prefix: Some(prefix),
            target_delimiter: &file.target_delimiter,
            shot_delimiter: "",
        };
        turns.extend(question.turns());
        Ok(turns)
    }

    /// The question of a labelled example; of one whose choices are contexts, the right one.
    fn question(&self, fields: &Fields, doc: &Value) -> Result<String> {
        match (fields.right_context(doc)?, fields.choices(doc)?) {
            (Some(number), Some(contexts)) => Ok(chosen(&contexts, number)?.to_owned()),
            _ => fields.text.text(doc),
        }
    }

    fn example(&self, doc: &Value) -> Result<Vec<Turn>> {
        let config = self.file.fewshot_config.clone().unwrap_or_default();
        let question = Question {
            text: self.question(&self.example, doc)?,
            answer: Some(self.example.answer(doc)?),
            prefix: Some(self.example.prefix.text(doc)?),
            target_delimiter: config
                .target_delimiter
                .as_ref()
                .unwrap_or(&self.file.target_delimiter),
            shot_delimiter: config
                .fewshot_delimiter
                .as_ref()
                .unwrap_or(&self.file.fewshot_delimiter),
        };
        Ok(question.turns())
    }

    fn request(
        &self,
        doc: &Value,
        pool: Option<&mut Pool>,
        shots: usize,
        several: bool,
    ) -> Result<Request> {
        if self.file.output_type == OutputType::LoglikelihoodRolling {
            let text = self.own.target.text(doc)?;
            let page = doc
                .get("page")
                .and_then(Value::as_str)
                .filter(|_| self.counts_page);
            let counted = page.unwrap_or(&text);
            return Ok(Request::Rolling {
                words: words(counted),
                bytes: counted.len(),
                text,
            });
        }
        let prompt = prompt(&self.turns(doc, pool, shots)?, self.prompting)?;
        let target = self.own.target(doc)?;
        Ok(match self.file.output_type {
            OutputType::Loglikelihood => Request::Likelihood {
                prompt,
                target: as_text(&target),
            },
            OutputType::MultipleChoice => {
                let choices = self.own.choices(doc)?;
                let choices = choices.ok_or_else(|| Error::task("`doc_to_choice` is missing"))?;
                let delimiter = self.choice_delimiter();
                let named = self
                    .metrics
                    .iter()
                    .any(|metric| metric.name == "acc_mutual_info");
                if let Some(number) = self.own.right_context(doc)? {
                    return self.of_contexts(prompt, choices, number, &as_text(&target), named);
                }
                Request::Choice {
                    contexts: Vec::new(),
                    continuations: choices
                        .iter()
                        .map(|choice| format!("{delimiter}{choice}"))
                        .collect(),
                    gold: right(&choices, &target),
                    prompt,
                    choices,
                    alone: named,
                }
            }
            _ => Request::Generate {
                prompt,
                gold: self.right_texts(doc, target, several)?,
            },
        })
    }

    /// One answer behind several contexts, of which one is right.
    fn of_contexts(
        &self,
        prompt: Prompt,
        contexts: Vec<String>,
        right: i64,
        answer: &str,
        alone: bool,
    ) -> Result<Request> {
        chosen(&contexts, right)?;
        if alone || self.prompting.chat.is_some() {
            return Err(Error::task(
                "choices that are contexts have neither `acc_mutual_info` nor a chat template; leave out the metric and `--chat`",
            ));
        }
        let answer = format!("{}{answer}", self.file.target_delimiter);
        Ok(Request::Choice {
            prompt,
            continuations: vec![answer; contexts.len()],
            choices: contexts.clone(),
            contexts,
            gold: usize::try_from(right).into_iter().collect(),
            alone: false,
        })
    }

    /// What stands between prompt and choice: nothing where a template ends the prompt.
    fn choice_delimiter(&self) -> &str {
        let open = self.file.gen_prefix.as_deref().unwrap_or("");
        let delimited = !open.is_empty() && !open.ends_with(char::is_whitespace);
        match self.prompting.chat.is_none() || delimited {
            true => &self.file.target_delimiter,
            false => "",
        }
    }

    fn right_texts(&self, doc: &Value, target: Target, several: bool) -> Result<Vec<String>> {
        let choices = self.own.choices(doc)?;
        Ok(match (target, choices) {
            (Target::Number(number), Some(choices)) => vec![chosen(&choices, number)?.to_owned()],
            (Target::List(list), _) if several => list.iter().map(plain_text).collect(),
            (target, _) => vec![as_text(&target)],
        })
    }
}

/// A digest of what has a text.
pub fn digest(text: &str) -> String {
    let mut hasher = xxhash3_128::Hasher::new();
    hasher.write(text.as_bytes());
    format!("{:032x}", hasher.finish_128())
}
