//! The stages of a recipe, and the run that goes through them.
//!
//! A stage works in its own folder of the run. When it is done it writes `stage.json` with the hash of everything that
//! went into it and of everything that it left; a stage of which both are still the same is not run again.

pub mod artifacts;
pub mod best_of;
mod claim;
pub mod classes;
pub mod data;
pub mod depth;
pub mod ends;
pub mod evaluate;
pub mod expand;
pub mod extract;
pub mod folder;
pub mod hashes;
pub mod kinds;
mod lock;
pub mod merge;
pub mod model;
pub mod new_model;
pub mod pack;
pub mod prompts;
pub mod prune;
pub mod rank;
pub mod record;
pub mod report;
pub mod seeds;
pub mod summary;
pub mod train;
pub mod upcycle;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use burn::tensor::Device;
use espalier_data::{disk, nearest::suggestion};
use serde_json::{Map, Value};

use self::{
    artifacts::{Artifact, Artifacts},
    folder::StageFolder,
    hashes::FileHashes,
    kinds::{ArtifactKind, Workplace},
    lock::Lock,
    record::{Past, Record},
};
use crate::{
    Error, Result, interrupt, memory,
    model_path::as_text,
    recipe::{Recipe, Stage, document::Complaint},
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

/// Runs every stage of a recipe in order, once for each seed, and writes the report.
///
/// Returns the figures of all stages by name; of a recipe with seeds, those of every seed, and their mean and spread.
///
/// # Errors
/// When a stage fails; finished stages stay finished, and the same call goes on where this one stopped.
pub fn run(recipe: &Recipe, device: &Device, voice: &mut dyn Voice) -> Result<Value> {
    run_only(recipe, &[], device, voice)
}

/// As [`run`], for the stages of these names and those whose results they read; all where none is named. A part of the stages leaves the
/// report as it was.
///
/// # Errors
/// As [`run`], and when there is no stage of a name.
pub fn run_only(
    recipe: &Recipe,
    only: &[String],
    device: &Device,
    voice: &mut dyn Voice,
) -> Result<Value> {
    check(recipe)?;
    let chosen = chosen(recipe, only)?;
    claim::check(recipe)?;
    let _words = interrupt::last_words(
        "stopped; what is finished stays, and the same command goes on from there",
    );
    disk::create_folder(&recipe.output).map_err(Error::file(&recipe.output))?;
    let _lock = Lock::take(&recipe.output)?;
    // Whoever holds the lock is the only one who writes here.
    disk::clear_partial_files(&recipe.output).map_err(Error::file(&recipe.output))?;
    if !claim::write_copy(recipe)? {
        let own = recipe.output.join("recipe.toml");
        voice.say(&format!(
            "{}: no copy of a run, so it stays as it is",
            own.display()
        ));
    }
    let mut hashes = FileHashes::open(&recipe.output);
    match recipe.seeds.is_empty() {
        true => run_once(recipe, &chosen, device, &mut hashes, voice),
        false => seeds::run(recipe, &chosen, device, &mut hashes, voice),
    }
}

/// The places of the named stages and of those whose results they read; of all where none is named.
fn chosen(recipe: &Recipe, only: &[String]) -> Result<BTreeSet<usize>> {
    let names = || recipe.stage.iter().map(|stage| stage.name.as_str());
    if let Some(strange) = only
        .iter()
        .find(|name| !names().any(|known| known == *name))
    {
        let hint = suggestion(strange, names());
        return Err(Error::usage(format!(
            "the recipe has no stage `{strange}`{hint}"
        )));
    }
    let mut wanted: BTreeSet<String> = only.iter().cloned().collect();
    let mut chosen = BTreeSet::new();
    for (place, stage) in recipe.stage.iter().enumerate().rev() {
        if !only.is_empty() && !wanted.contains(&stage.name) {
            continue;
        }
        chosen.insert(place);
        let mut stage = stage.clone();
        let inputs = stage.kind.work_mut().inputs().into_iter();
        let read = inputs.filter_map(|input| input.reference().cloned());
        wanted.extend(read.map(|name| match name.split_once('.') {
            Some((head, _)) => head.to_owned(),
            None => name,
        }));
    }
    Ok(chosen)
}

/// What can be told before any stage has run.
fn check(recipe: &Recipe) -> Result<()> {
    // Stages, adapters and reports name each other's files.
    let output = std::path::absolute(&recipe.output).map_err(Error::file(&recipe.output))?;
    as_text(&output)?;
    check_names(&recipe.stage)?;
    recipe.check().map_err(|Complaint { stage, reason }| {
        Error::usage(format!("stage `{stage}`: {reason}"))
    })?;
    match recipe.seeds.is_empty() {
        true => folder::check_own_folders(recipe),
        false => {
            let mut runs = recipe.seeds.iter().map(|seed| recipe.of_seed(*seed));
            runs.try_for_each(|run| folder::check_own_folders(&run))
        }
    }
}

/// Runs a recipe without regard to its seeds.
fn run_once(
    recipe: &Recipe,
    chosen: &BTreeSet<usize>,
    device: &Device,
    hashes: &mut FileHashes,
    voice: &mut dyn Voice,
) -> Result<Value> {
    let mut run = Run {
        device,
        folder: &recipe.output,
        hashes,
        artifacts: Artifacts::default(),
        voice,
    };
    let mut results = Map::new();
    let stages = recipe.stage.iter().enumerate();
    for (i, stage) in stages.filter(|(place, _)| chosen.contains(place)) {
        if interrupt::requested() {
            return Err(Error::Interrupted(format!(
                "stopped before stage `{}`; the same command goes on from there",
                stage.name
            )));
        }
        results.insert(stage.name.clone(), run.stage(i + 1, stage)?);
    }
    if chosen.len() == recipe.stage.len() {
        report::write(recipe, &results)?;
        let report = recipe.output.join("report.html");
        run.voice.say(&format!("report: {}", report.display()));
    }
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

/// Writes beside the name and renames.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    disk::write_whole(path, bytes).map_err(Error::file(path))
}

/// The folder of a stage in that of its run; stages are numbered from 1.
pub fn stage_folder(run: &Path, number: usize, name: &str) -> PathBuf {
    run.join(format!("{number:02}-{name}"))
}

/// A run under way.
struct Run<'a> {
    device: &'a Device,
    folder: &'a Path,
    hashes: &'a mut FileHashes,
    artifacts: Artifacts,
    voice: &'a mut dyn Voice,
}

impl Run<'_> {
    /// Runs a stage unless it is done, and gives its figures.
    fn stage(&mut self, number: usize, stage: &Stage) -> Result<Value> {
        let folder = StageFolder::open(stage_folder(self.folder, number, &stage.name))?;
        let fingerprint = self.artifacts.fingerprint(stage, self.hashes)?;
        let title = format!("{number:02} {}", stage.name);
        let record = match record::past(&folder.home, &fingerprint, stage, self.hashes) {
            Past::Done(record) => {
                self.voice.say(&format!("{title}: done before"));
                record
            }
            Past::Outdated(reason) => {
                let place = folder.home.display();
                self.voice.say(&format!(
                    "{title}: {reason}; run again to replace {place}, which stays until then"
                ));
                self.replace(stage, &folder, fingerprint)?
            }
            Past::Unfinished => {
                self.voice.say(&title);
                self.perform(stage, folder.home.clone(), fingerprint)?
            }
        };
        for output in stage.kind.work().outputs() {
            let (name, path) = (
                artifacts::name(&stage.name, &output),
                folder.home.join(output.path),
            );
            let hash = record.artifacts.get(&name).cloned().unwrap_or_default();
            self.artifacts.insert(name, Artifact { path, hash });
        }
        self.hashes.save()?;
        Ok(record.result)
    }

    /// Does a stage's work beside its finished result, and puts what it leaves in the place of that.
    fn replace(
        &mut self,
        stage: &Stage,
        folder: &StageFolder,
        fingerprint: String,
    ) -> Result<Record> {
        let partial = &folder.partial;
        disk::create_folder(partial).map_err(Error::file(partial))?;
        let record = match record::past(partial, &fingerprint, stage, self.hashes) {
            Past::Done(record) => record,
            _ => self.perform(stage, partial.clone(), fingerprint)?,
        };
        folder.exchange()?;
        Ok(record)
    }

    /// Does a stage's work and records it.
    fn perform(&mut self, stage: &Stage, folder: PathBuf, fingerprint: String) -> Result<Record> {
        let started = Instant::now();
        let mut workplace = Workplace {
            device: self.device,
            folder: folder.clone(),
            fingerprint: fingerprint.clone(),
            voice: &mut *self.voice,
        };
        let resolved = self.artifacts.resolved(stage);
        memory::forget_peak();
        let mut result = resolved.kind.work().run(&mut workplace)?;
        for output in stage.kind.work().outputs() {
            if output.kind == ArtifactKind::Report {
                write_whole(
                    &folder.join(output.path),
                    format!("{result:#}\n").as_bytes(),
                )?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        if let Some(figures) = result.as_object_mut() {
            figures.insert("stage_seconds".into(), seconds.into());
        }
        let done = format!("   stage done in {}", units::duration(seconds));
        self.voice.say(&done);
        record::write(&folder, fingerprint, stage, result, self.hashes)
    }
}
