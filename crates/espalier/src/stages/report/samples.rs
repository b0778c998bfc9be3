//! Samples on the page of a run: the same questions to several of its models, with right and wrong marked.

use std::{fs, path::Path};

use espalier_evaluate::report::{Answered, Sample, Section};
use serde_json::{Map, Value};

use crate::{
    Error, Result,
    evaluation::{samples_name, shown},
    recipe::Recipe,
    stages::{kinds::Kind, stage_folder},
};

/// Questions of each task.
const QUESTIONS: usize = 6;

/// Models beside one another; of more, the first and the last ones.
const MODELS: usize = 4;

/// The items of a task as one evaluation has them.
struct Asked {
    by: String,
    items: Vec<Value>,
}

/// The questions that tell most of each task; nothing where no task was asked. `columns` names the evaluations, in order.
///
/// # Errors
/// When the items of a task cannot be read.
pub fn section(
    recipe: &Recipe,
    results: &Map<String, Value>,
    columns: &[String],
) -> Result<Option<Section>> {
    let mut tasks: Vec<(String, Vec<Asked>)> = Vec::new();
    let stages = recipe.stage.iter().enumerate();
    let evaluations = stages.filter(|(_, stage)| {
        matches!(stage.kind, Kind::Evaluate(_)) && results.contains_key(&stage.name)
    });
    for ((place, stage), by) in evaluations.zip(columns) {
        let folder = stage_folder(&recipe.output, place + 1, &stage.name);
        for task in results[&stage.name]["tasks"]
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
        {
            let path = folder.join(samples_name(task));
            if !path.is_file() {
                continue;
            }
            let asked = Asked {
                by: by.clone(),
                items: items(&path)?,
            };
            match tasks.iter_mut().find(|(known, _)| known == task) {
                Some((_, all)) => all.push(asked),
                None => tasks.push((task.clone(), vec![asked])),
            }
        }
    }
    let samples: Vec<Sample> = tasks
        .iter_mut()
        .flat_map(|(task, asked)| {
            let middle = asked.len().saturating_sub(MODELS);
            asked.drain(1..1 + middle);
            of_task(task, asked)
        })
        .collect();
    Ok((!samples.is_empty()).then(|| Section::Samples {
        title: "The same questions to each model".into(),
        note:
            "Questions on which the models differ come first; all items lie in the stages' folders."
                .into(),
        samples,
    }))
}

fn items(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).map_err(Error::file(path))?;
    let item = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            Error::work(format!("{}: line {}: {error}", path.display(), number + 1))
        })
    };
    text.lines().enumerate().map(item).collect()
}

/// Questions on which the first and the last model differ, then what the last has wrong, then right.
fn of_task(task: &str, asked: &[Asked]) -> Vec<Sample> {
    let count = asked
        .iter()
        .map(|asked| asked.items.len())
        .min()
        .unwrap_or(0);
    let (Some(first), Some(last)) = (asked.first(), asked.last()) else {
        return Vec::new();
    };
    let rank = |place: &usize| match (right(&first.items[*place]), right(&last.items[*place])) {
        (Some(false), Some(true)) => 0,
        (Some(true), Some(false)) => 1,
        (_, Some(false)) => 2,
        _ => 3,
    };
    let mut chosen = Vec::new();
    for (kind, most) in [(0, 3), (1, 1), (2, 2), (3, 1), (0, QUESTIONS)] {
        let places = (0..count).filter(|place| rank(place) == kind);
        let new: Vec<usize> = places
            .filter(|place| !chosen.contains(place))
            .take(most)
            .collect();
        chosen.extend(new);
    }
    chosen.truncate(QUESTIONS);
    let sample = |place: usize| sample(task, place, asked);
    chosen.into_iter().map(sample).collect()
}

fn sample(task: &str, place: usize, asked: &[Asked]) -> Sample {
    let first = &asked[0].items[place];
    let expected = shown::expected(first);
    let answer = |asked: &Asked| Answered {
        by: asked.by.clone(),
        text: shown::answer(&asked.items[place]),
        right: right(&asked.items[place]),
    };
    Sample {
        title: format!("{task}, item {}", first["doc_id"]),
        question: shown::question(first),
        expected,
        answers: asked.iter().map(answer).collect(),
    }
}

/// Whether any of the marks that are 0 or 1 says that an item is right; none where no mark is one.
fn right(item: &Value) -> Option<bool> {
    let marks = item["marks"].as_object()?.values();
    let verdicts = marks
        .filter_map(Value::as_f64)
        .filter(|mark| *mark == 0.0 || *mark == 1.0);
    verdicts.reduce(f64::max).map(|mark| mark == 1.0)
}
