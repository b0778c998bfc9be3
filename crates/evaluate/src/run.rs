//! Asks a model all of a task, item by item, so that what was answered once is never asked again.
//!
//! Every response is appended to a log as soon as it is there. It is found again by a key: a digest of the settings (model, precision,
//! seed, ...) and of the request itself, so a changed prompt is a new question. A killed evaluation goes on where it stopped, to the same
//! figures; a line that was being written when it was killed is dropped.

use std::{collections::HashMap, path::Path};

use espalier_data::disk::Log;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error, Result,
    respondent::{Respondent, Response},
    tasks::{
        Item, Request, Task,
        build::digest,
        metric::{Answer, Score},
    },
};

/// A response in the log.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    key: String,
    response: Response,
}

/// The responses of an evaluation, in a file.
#[derive(Debug)]
pub struct ResponseLog {
    known: HashMap<String, Response>,
    log: Option<(Log, std::path::PathBuf)>,
}

impl ResponseLog {
    /// A log that is kept nowhere.
    pub fn nowhere() -> Self {
        Self {
            known: HashMap::new(),
            log: None,
        }
    }

    /// Opens a log, and reads what is in it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| Error::task(format!("{}: {error}", path.display()));
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let (mut known, mut whole) = (HashMap::new(), 0);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let read = serde_json::from_slice::<Line>(line);
            let (true, Ok(line_read)) = (line.ends_with(b"\n"), read) else {
                break;
            };
            known.insert(line_read.key, line_read.response);
            whole += line.len() as u64;
        }
        let log = Log::open(path).map_err(failed)?;
        log.cut(whole).map_err(failed)?;
        Ok(Self {
            known,
            log: Some((log, path.to_owned())),
        })
    }

    fn add(&mut self, key: &str, response: &Response) -> Result<()> {
        let Some((log, path)) = &mut self.log else {
            return Ok(());
        };
        let line = json!({"key": key, "response": response});
        let failed = |error: std::io::Error| Error::task(format!("{}: {error}", path.display()));
        log.append(format!("{line}\n").as_bytes()).map_err(failed)
    }
}

/// An item that was answered.
#[derive(Debug, Clone)]
pub struct Answered<'a> {
    /// The item.
    pub item: &'a Item,
    /// What was answered.
    pub response: Response,
    /// What each way of reading made of it; one entry without texts where there was nothing to read.
    pub filtered: Vec<Vec<String>>,
    /// The marks, by way of reading and metric, in the task's order.
    pub marks: Vec<Vec<Option<Score>>>,
}

/// Asks and marks a task. `settings` is what else decides the responses; `progress` sees how many items are done.
///
/// # Errors
/// When an item cannot be answered or marked, or the log cannot be written.
pub fn run<'a>(
    task: &'a Task,
    respondent: &mut dyn Respondent,
    settings: &str,
    log: &mut ResponseLog,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Answered<'a>>> {
    let keys: Vec<String> = task
        .items
        .iter()
        .map(|item| key(task, item, settings))
        .collect();
    let mut responses: Vec<Option<Response>> =
        keys.iter().map(|key| log.known.get(key).cloned()).collect();
    let open: Vec<usize> = (0..keys.len())
        .filter(|place| responses[*place].is_none())
        .collect();
    let mut done = keys.len() - open.len();
    progress(done);
    let items: Vec<&Item> = open.iter().map(|place| &task.items[*place]).collect();
    respondent.answer(
        &items,
        &task.generation,
        task.repeats,
        &mut |asked, response| {
            let place = open[asked];
            log.add(&keys[place], &response)?;
            responses[place] = Some(response);
            done += 1;
            progress(done);
            Ok(())
        },
    )?;
    let answered = task.items.iter().zip(responses).map(|(item, response)| {
        let response = response
            .ok_or_else(|| Error::task(format!("item {} was not answered", item.number)))?;
        marked(task, item, response)
    });
    answered.collect()
}

fn marked<'a>(task: &Task, item: &'a Item, response: Response) -> Result<Answered<'a>> {
    let (mut filtered, mut marks) = (Vec::new(), Vec::new());
    match &response {
        Response::Likelihoods(found) => {
            filtered.push(Vec::new());
            marks.push(of_metrics(task, item, &Answer::Likelihoods(found))?);
        }
        Response::Texts(texts) => {
            for pipeline in &task.filters {
                let read = pipeline.apply(texts, &item.doc)?;
                marks.push(of_metrics(task, item, &Answer::Texts(&read))?);
                filtered.push(read);
            }
        }
    }
    Ok(Answered {
        item,
        response,
        filtered,
        marks,
    })
}

fn of_metrics(task: &Task, item: &Item, answer: &Answer<'_>) -> Result<Vec<Option<Score>>> {
    task.metrics
        .iter()
        .map(|metric| metric.mark(item, answer))
        .collect()
}

/// What an item's response is kept under.
fn key(task: &Task, item: &Item, settings: &str) -> String {
    let generation = match item.request {
        Request::Generate { .. } => json!([task.generation, task.repeats, item.number]),
        _ => Value::Null,
    };
    digest(&json!([settings, asked(&item.request), generation]).to_string())
}

/// What is asked, in JSON: all that the model sees.
pub fn asked(request: &Request) -> Value {
    match request {
        Request::Likelihood { prompt, target } => json!(["likelihood", prompt.text, target]),
        Request::Rolling { text, .. } => json!(["rolling", text]),
        Request::Choice {
            prompt,
            contexts,
            continuations,
            alone,
            ..
        } => match contexts.is_empty() {
            true => json!(["choice", prompt.text, continuations, alone]),
            false => json!(["choice", prompt.text, contexts, continuations]),
        },
        Request::Generate { prompt, .. } => json!(["generate", prompt.text]),
    }
}

/// A digest of all that a task asks.
pub fn prompt_digest(task: &Task) -> String {
    let all: Vec<Value> = task.items.iter().map(|item| asked(&item.request)).collect();
    digest(&Value::Array(all).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        respondent::Sink,
        tasks::{Generation, Metric, Pipeline, Prompt},
    };

    /// Answers with the prompt, and fails after some items.
    struct Echo {
        left: usize,
        asked: usize,
    }

    impl Respondent for Echo {
        fn answer(
            &mut self,
            items: &[&Item],
            _: &Generation,
            _: usize,
            sink: Sink<'_>,
        ) -> Result<()> {
            for (place, item) in items.iter().enumerate() {
                if self.left == 0 {
                    return Err(Error::task("killed"));
                }
                (self.left, self.asked) = (self.left - 1, self.asked + 1);
                sink(
                    place,
                    Response::Texts(vec![item.request.prompt().to_owned()]),
                )?;
            }
            Ok(())
        }
    }

    fn task() -> Task {
        let item = |number: usize| Item {
            number,
            doc: Value::Null,
            request: Request::Generate {
                prompt: Prompt::plain(format!("{number}")),
                gold: vec!["2".into()],
            },
        };
        Task {
            name: "echo".into(),
            alias: "echo".into(),
            groups: vec![],
            version: String::new(),
            shots: 0,
            items: (0..5).map(item).collect(),
            generation: Generation::default(),
            repeats: 1,
            filters: vec![Pipeline::none()],
            metrics: vec![Metric::named("exact_match").unwrap()],
            definition: String::new(),
        }
    }

    #[test]
    fn a_killed_evaluation_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("responses.jsonl");
        let task = task();
        let ask = |left: usize, settings: &str| {
            let mut echo = Echo { left, asked: 0 };
            let mut log = ResponseLog::open(&path).unwrap();
            let marks = run(&task, &mut echo, settings, &mut log, &mut |_| {}).map(|answered| {
                let mark = |answered: &Answered| answered.marks[0][0].unwrap().value;
                answered.iter().map(mark).collect::<Vec<f64>>()
            });
            (marks, echo.asked)
        };
        assert!(ask(3, "a").0.is_err());
        // The last line was being written.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let (marks, asked) = ask(9, "a");
        assert_eq!((marks.unwrap(), asked), (vec![0.0, 0.0, 1.0, 0.0, 0.0], 3));
        assert_eq!(ask(9, "a").1, 0);
        assert_eq!(ask(9, "b").1, 5);
    }
}
