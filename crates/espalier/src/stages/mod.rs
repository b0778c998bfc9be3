//! The stages of a recipe, and the run that goes through them.
//!
//! A stage works in its own folder of the run. When it is done it writes `stage.json` with the hash of everything that
//! went into it; a stage whose hash is there already is not run again.

pub mod data;
pub mod evaluate;
pub mod fingerprint;
pub mod model;
pub mod report;
pub mod train;
pub mod upcycle;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::Device;
use serde_json::{Value, json};

use crate::{
    Error, Result,
    model_path::resolve_model,
    recipe::{Recipe, Stage},
    units,
};

/// Where a run's words go: a terminal, a log, nowhere.
pub trait Voice {
    /// One line for the reader.
    fn say(&mut self, line: &str);

    /// How far the present work is.
    fn progress(&mut self, label: &str, done: usize, total: usize, message: &str);
}

/// A voice that says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Voice for Silent {
    fn say(&mut self, _: &str) {}

    fn progress(&mut self, _: &str, _: usize, _: usize, _: &str) {}
}

/// A run under way.
pub struct Workshop<'a> {
    /// Where tensors live.
    pub device: Device,
    /// The run's folder.
    pub folder: PathBuf,
    /// Models of the finished stages, by stage name.
    pub models: BTreeMap<String, PathBuf>,
    /// Where words go.
    pub voice: &'a mut dyn Voice,
}

impl Workshop<'_> {
    /// The folder of a stage.
    pub fn stage_folder(&self, number: usize, name: &str) -> PathBuf {
        self.folder.join(format!("{number:02}-{name}"))
    }

    /// The model that a recipe means: an earlier stage's by its name, else a path.
    pub fn model_path(&self, name: &str) -> PathBuf {
        // A run's folder stands for the last model that it made, as it does for `chat` and `eval`.
        let elsewhere = || resolve_model(Path::new(name)).unwrap_or_else(|_| PathBuf::from(name));
        self.models.get(name).cloned().unwrap_or_else(elsewhere)
    }
}

/// Runs every stage of a recipe in order and writes the report.
///
/// # Errors
/// When a stage fails; finished stages stay finished, and the same call goes on where this one stopped.
pub fn run(recipe: &Recipe, device: &Device, voice: &mut dyn Voice) -> Result<Value> {
    check_names(&recipe.stage)?;
    recipe.stage.iter().try_for_each(check_stage)?;
    fs::create_dir_all(&recipe.output).map_err(Error::file(&recipe.output))?;
    write_recipe(recipe)?;
    let mut workshop = Workshop {
        device: device.clone(),
        folder: recipe.output.clone(),
        models: BTreeMap::new(),
        voice,
    };
    let mut results = serde_json::Map::new();
    for (i, stage) in recipe.stage.iter().enumerate() {
        let result = run_stage(&mut workshop, i + 1, stage)?;
        results.insert(stage.name.clone(), result);
    }
    report::write(recipe, &results)?;
    workshop.voice.say(&format!(
        "report: {}",
        recipe.output.join("report.html").display()
    ));
    Ok(Value::Object(results))
}

/// Stage names are folder names: short, plain and different.
fn check_names(stages: &[Stage]) -> Result<()> {
    if stages.is_empty() {
        return Err(Error::usage(
            "the recipe has no [[stage]]; give at least one",
        ));
    }
    for (i, stage) in stages.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if stage.name.is_empty() || !stage.name.chars().all(plain) {
            return Err(Error::usage(format!(
                "stage name `{}`: use letters, digits, `-` and `_`",
                stage.name
            )));
        }
        if stages[..i].iter().any(|earlier| earlier.name == stage.name) {
            return Err(Error::usage(format!(
                "two stages are named `{}`; give each its own name",
                stage.name
            )));
        }
    }
    Ok(())
}

/// What can be told of a stage before any has run: nobody wants to hear of it an hour later.
fn check_stage(stage: &Stage) -> Result<()> {
    match (&stage.train, &stage.evaluate, &stage.upcycle) {
        (Some(train), None, None) => {
            let check = || {
                train.options.check()?;
                train.new.as_ref().map_or(Ok(()), model::check)
            };
            check().map_err(|error: Error| Error::usage(format!("stage `{}`: {error}", stage.name)))
        }
        (None, Some(_), None) | (None, None, Some(_)) => Ok(()),
        _ => Err(Error::usage(format!(
            "stage `{}`: give one of `train`, `evaluate` and `upcycle`",
            stage.name
        ))),
    }
}

fn write_recipe(recipe: &Recipe) -> Result<()> {
    let text = toml::to_string(recipe).map_err(|error| Error::work(format!("recipe: {error}")))?;
    write_whole(&recipe.output.join("recipe.toml"), text.as_bytes())
}

/// Writes beside the name and renames.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(espalier_models::checkpoint::partial_file::write_whole(
        path, bytes,
    )?)
}

fn run_stage(workshop: &mut Workshop, number: usize, stage: &Stage) -> Result<Value> {
    let folder = workshop.stage_folder(number, &stage.name);
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
    let fingerprint = fingerprint::of_stage(workshop, stage)?;
    let done = folder.join("stage.json");
    let result = match finished(&done, &fingerprint) {
        Some(result) => {
            workshop
                .voice
                .say(&format!("{number:02} {}: done before", stage.name));
            result
        }
        None => {
            workshop.voice.say(&format!("{number:02} {}", stage.name));
            let started = Instant::now();
            let mut result = perform(workshop, stage, &folder, &fingerprint)?;
            let seconds = started.elapsed().as_secs_f64();
            if let Some(figures) = result.as_object_mut() {
                figures.insert("stage_seconds".into(), seconds.into());
            }
            workshop
                .voice
                .say(&format!("   stage done in {}", units::duration(seconds)));
            let record = json!({"fingerprint": fingerprint, "result": result});
            write_whole(&done, format!("{record:#}\n").as_bytes())?;
            result
        }
    };
    if stage.train.is_some() || stage.upcycle.is_some() {
        workshop
            .models
            .insert(stage.name.clone(), folder.join("model"));
    }
    Ok(result)
}

fn finished(path: &Path, fingerprint: &str) -> Option<Value> {
    let record: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    (record.get("fingerprint")?.as_str()? == fingerprint)
        .then(|| record.get("result").cloned().unwrap_or_default())
}

fn perform(
    workshop: &mut Workshop,
    stage: &Stage,
    folder: &Path,
    fingerprint: &str,
) -> Result<Value> {
    match (&stage.train, &stage.evaluate, &stage.upcycle) {
        (Some(train), None, None) => train::run(workshop, train, folder, fingerprint),
        (None, Some(evaluate), None) => evaluate::run(workshop, evaluate),
        (None, None, Some(upcycle)) => upcycle::run(workshop, upcycle, folder),
        _ => Err(Error::usage(format!(
            "stage `{}`: give one of `train`, `evaluate` and `upcycle`",
            stage.name
        ))),
    }
}
