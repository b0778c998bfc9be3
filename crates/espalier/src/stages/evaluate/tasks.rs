//! The tasks of an evaluation stage, asked and marked by the evaluator of `espalier eval`.

use std::path::{Path, PathBuf};

use espalier_data::{
    disk,
    encode::{Encoded, Encoder, Example},
    record::{Message, Record},
    worlds::Split,
};
use espalier_engine::{
    score::{Score, score},
    text::TextModel,
};
use espalier_evaluate::{
    respondent::LocalModel,
    results::{Figure, TaskResult, group_results},
    run::ResponseLog,
    tasks::Task,
    world,
};
use espalier_models::model::LanguageModel;

use serde_json::{Map, Value, json};

use super::{BATCH, EvaluateStage, Voice};
use crate::{
    Error, Result,
    evaluation::{
        self, Answers,
        compare::{Compared, Earlier, compared},
        shown,
    },
};

/// Items of each task among the stage's figures; all are in its folder.
const SHOWN: usize = 5;

/// What tells sampled answers from greedy ones in the names of tasks.
pub(crate) const SAMPLED: &str = " sampled";

/// Where answers are kept until the stage is done, so that a killed one goes on, and all items afterwards.
#[derive(Debug)]
pub struct Keeping {
    log: ResponseLog,
    settings: String,
    folder: Option<PathBuf>,
}

impl Keeping {
    /// In memory alone.
    pub fn nowhere() -> Self {
        Self {
            log: ResponseLog::nowhere(),
            settings: String::new(),
            folder: None,
        }
    }

    /// In a stage's folder; `fingerprint` is all that decides answers besides what is asked.
    ///
    /// # Errors
    /// When what was kept there cannot be read.
    pub fn of(folder: &Path, fingerprint: &str) -> Result<Self> {
        Ok(Self {
            log: ResponseLog::open(&folder.join("responses.jsonl"))?,
            settings: fingerprint.to_owned(),
            folder: Some(folder.to_owned()),
        })
    }

    /// Asks tasks, and keeps what is answered.
    ///
    /// # Errors
    /// When an item cannot be answered, or the disk is full.
    pub fn ask(
        &mut self,
        tasks: &[Task],
        model: &TextModel,
        seed: u64,
        voice: &mut dyn Voice,
    ) -> Result<Answers> {
        let mut respondent = LocalModel {
            text: model,
            longest: evaluation::longest(model, None)?,
            batch: BATCH,
            seed,
        };
        let (settings, log) = (&self.settings, &mut self.log);
        let answers = evaluation::answers(tasks, &mut respondent, settings, log, voice)?;
        if let Some(folder) = &self.folder {
            answers.write(tasks, folder)?;
        }
        Ok(answers)
    }

    /// The answers are among the items of the tasks now, and need no other place.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn done(self) -> Result<()> {
        drop(self.log);
        match self.folder.map(|folder| folder.join("responses.jsonl")) {
            Some(path) => disk::remove_file(&path).map_err(Error::file(&path)),
            None => Ok(()),
        }
    }
}

/// Asks `tasks`, and `sampled_worlds` at temperature 1: the figures by task.
pub(super) fn measure(
    model: &TextModel,
    stage: &EvaluateStage,
    reference: Option<&LanguageModel>,
    keeping: &mut Keeping,
    voice: &mut dyn Voice,
) -> Result<Map<String, Value>> {
    let mut found = Map::new();
    let sampled = stage.sampled(&stage.sampled_worlds);
    let (greedy, mut sampled) = (stage.choice().tasks_of(model)?, sampled.tasks_of(model)?);
    sampled
        .iter_mut()
        .for_each(|task| task.name.push_str(SAMPLED));
    let answers = keeping.ask(&greedy, model, stage.seed, voice)?;
    say(&greedy, &answers, voice);
    if !greedy.is_empty() {
        found.insert("tasks".into(), figures(&greedy, &answers));
        found.extend(groups(&greedy, &answers));
    }
    let drawn = keeping.ask(&sampled, model, stage.seed, voice)?;
    say(&sampled, &drawn, voice);
    if !sampled.is_empty() {
        let mut of_tasks = figures(&sampled, &drawn);
        if let Some(reference) = reference {
            for (task, samples) in sampled.iter().zip(&drawn.samples) {
                let (nats, tokens) = divergence(model, reference, &task.alias, samples)?;
                voice.say(&format!(
                    "   {}: {nats:.3} nats from the reference",
                    task.name
                ));
                of_tasks[&task.alias]["divergence"] = nats.into();
                of_tasks[&task.alias]["tokens"] = tokens.into();
            }
        }
        found.insert("sampled_worlds".into(), of_tasks);
    }
    if let Some(path) = &stage.against {
        let all = [greedy, sampled].concat();
        let samples = [answers.samples, drawn.samples].concat();
        found.insert("against".into(), against(path, &all, &samples, voice)?);
    }
    Ok(found)
}

/// The figures of each task, and its first items.
fn figures(tasks: &[Task], answers: &Answers) -> Value {
    let all = tasks.iter().zip(&answers.results).zip(&answers.samples);
    let of_task = |((task, result), samples): ((&Task, &TaskResult), &Vec<Value>)| {
        let mut figures = by_name(&result.figures);
        figures.insert("items".into(), result.items.into());
        if result.shots > 0 {
            figures.insert("shots".into(), result.shots.into());
        }
        figures.insert("prompts".into(), result.prompts.clone().into());
        if let Some(metric) = shown::deciding_metric(task) {
            let sample = |sample: &Value| {
                json!({
                    "prompt": shown::question(sample),
                    "answer": shown::answer(sample),
                    "right": shown::verdict(sample, metric),
                })
            };
            figures.insert("verdict".into(), metric.into());
            figures.insert(
                "samples".into(),
                samples.iter().take(SHOWN).map(sample).collect(),
            );
        }
        let name = task.name.trim_end_matches(SAMPLED).to_owned();
        (name, Value::Object(figures))
    };
    Value::Object(all.map(of_task).collect())
}

fn by_name(figures: &[Figure]) -> Map<String, Value> {
    let entry = |figure: &Figure| {
        let Figure {
            value,
            low,
            high,
            is_share,
            higher_is_better,
            ..
        } = figure;
        let value = json!({"value": value, "low": low, "high": high, "share": is_share, "higher_is_better": higher_is_better});
        (shown::figure_name(figure), value)
    };
    figures.iter().map(entry).collect()
}

/// The means of groups, where tasks belong to some.
fn groups(tasks: &[Task], answers: &Answers) -> Option<(String, Value)> {
    let pairs: Vec<_> = tasks.iter().zip(&answers.results).collect();
    let groups = group_results(&pairs);
    let filled = groups.iter().filter(|group| !group.figures.is_empty());
    let groups: Map<String, Value> = filled
        .map(|group| (group.group.clone(), Value::Object(by_name(&group.figures))))
        .collect();
    (!groups.is_empty()).then(|| ("groups".into(), Value::Object(groups)))
}

fn say(tasks: &[Task], answers: &Answers, voice: &mut dyn Voice) {
    for (task, result) in tasks.iter().zip(&answers.results) {
        for figure in &result.figures {
            voice.say(&format!(
                "   {}: {} {}",
                task.name,
                shown::figure_name(figure),
                shown::figure(figure)
            ));
        }
    }
}

/// This model's answers beside an earlier evaluation's.
fn against(
    path: &str,
    tasks: &[Task],
    samples: &[Vec<Value>],
    voice: &mut dyn Voice,
) -> Result<Value> {
    let path = Path::new(path);
    let earlier = match (path.is_file(), path.parent()) {
        (true, Some(folder)) => Earlier::of_stage(folder),
        _ => Earlier::read(path)?,
    };
    let found = compared(&earlier, tasks, samples)?;
    for Compared {
        task,
        figure,
        comparison,
    } in &found
    {
        let chance = comparison.p.map(|p| format!(", p = {p:.4}"));
        voice.say(&format!(
            "   {task}: {} against {}: {:+.4} ({:+.4} to {:+.4}){}",
            figure.trim_end_matches(",none"),
            earlier.name,
            comparison.difference,
            comparison.low,
            comparison.high,
            chance.unwrap_or_default(),
        ));
    }
    Ok(json!({ "evaluation": earlier.name, "comparisons": found }))
}

/// How far a model is from another one on its own answers, the mean of their log-ratios, and the mean of their tokens.
fn divergence(
    model: &TextModel,
    reference: &LanguageModel,
    task: &str,
    samples: &[Value],
) -> Result<(f64, f64)> {
    let encoder = Encoder::new(model.tokenizer.clone(), usize::MAX);
    let items = world::items(task, Split::Test, samples.len(), 0)?;
    let mut examples = Vec::with_capacity(samples.len());
    for (item, sample) in items.iter().zip(samples) {
        let text = sample.pointer("/response/texts/0").and_then(Value::as_str);
        let record = Record::Unpaired {
            prompt: item.question(),
            answer: Message::assistant(text.unwrap_or_default()),
            desirable: true,
            tools: None,
        };
        if let Encoded::Unpaired { example, .. } = encoder.encode(&record)? {
            examples.push(example);
        }
    }
    let scores = [&model.model, reference].map(|model| score(model, &examples, BATCH));
    let [own, other] = scores;
    let (own, other) = (own?, other?);
    let ratio = |(own, other): (&Score, &Score)| own.log_probability - other.log_probability;
    let sum: f64 = own.iter().zip(&other).map(ratio).sum();
    let tokens: usize = examples.iter().map(Example::target_count).sum();
    let count = examples.len().max(1) as f64;
    Ok((sum / count, tokens as f64 / count))
}
