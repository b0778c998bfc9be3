//! Runs a merge: as many tensors at a time as memory allows, on all cores, into a folder that gets its name when it is whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::{disk, random};
use espalier_models::checkpoint::TensorWriter;
use espalier_models::folder;
use rayon::prelude::*;
use serde_json::Value;

use super::card;
use super::methods::{Operand, Operands};
use super::model::{Model, Place, is_table, place};
use super::plan::{Models, Plan, PlannedInput, PlannedTensor, plan};
use super::recipe::{Document, model_of};
use super::tokens::Tokens;
use crate::{Error, Result};

/// Memory that the program takes besides tensors.
const OVERHEAD: u64 = 96 << 20;
/// Tensors are merged this many bytes at a time where no limit is given.
const USUAL_MEMORY: u64 = 4 << 30;

/// Tells how many of all tensors are done.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// How to merge.
pub struct Options<'a> {
    /// Finds a model's folder.
    pub resolve: &'a dyn Fn(&Path) -> std::result::Result<PathBuf, String>,
    /// Most bytes of memory; 4 GiB of tensors at a time when absent.
    pub memory: Option<u64>,
    /// The start of everything that is drawn at random.
    pub seed: u64,
    /// Largest weight file.
    pub shard_bytes: u64,
    /// Is told of every batch of tensors.
    pub progress: Progress<'a>,
    /// Whether to stop: the output then does not appear.
    pub stop: &'a dyn Fn() -> bool,
    /// Adds files to the folder before it gets its name.
    pub finish: &'a dyn Fn(&Summary, &Path) -> std::result::Result<(), String>,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// The method.
    pub method: String,
    /// Numbers of the output.
    pub parameters: u64,
    /// How far every tensor is from the base's, or the first model's.
    pub differences: Vec<Difference>,
    /// What the user should know, a sentence each.
    pub remarks: Vec<String>,
}

/// How far a merged tensor is from the base's: `|x - b|` and `|b|`, squared.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The tensor.
    pub tensor: String,
    /// Its block.
    pub block: Option<usize>,
    /// The square of the difference's length.
    pub distance: f64,
    /// The square of the base's length.
    pub length: f64,
}

/// Merges the documents of a recipe in their order; the last one's merge becomes the folder `out`, the others' are gone afterwards.
///
/// # Errors
/// When something does not fit, in which case nothing is written; or a file cannot be read or written, or the merge was stopped, in which
/// case `out` is as it was.
pub fn merge(documents: &[Document], out: &Path, options: &Options) -> Result<Summary> {
    if out.is_file() || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Invalid(format!(
            "{}: there is something already; name another folder, or remove it",
            out.display()
        )));
    }
    let workplace = Workplace::of(out)?;
    let result = all(documents, out, &workplace, options);
    // Whether it went well or not, what is left here is nobody's.
    let cleared = disk::remove_folder(&workplace.0).map_err(Error::file(&workplace.0));
    let summary = result?;
    cleared.map(|()| summary)
}

/// The folder beside the output in which it is made.
struct Workplace(PathBuf);

impl Workplace {
    fn of(out: &Path) -> Result<Self> {
        let name = out
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| {
            Error::Invalid(format!(
                "{}: has no name of its own; name a folder",
                out.display()
            ))
        })?;
        Ok(Self(out.with_file_name(format!(".{name}.merging"))))
    }
}

fn all(
    documents: &[Document],
    out: &Path,
    workplace: &Workplace,
    options: &Options,
) -> Result<Summary> {
    let mut summary = Summary::default();
    // What a merge that was killed has left.
    disk::remove_folder(&workplace.0).map_err(Error::file(&workplace.0))?;
    let mut made: HashMap<&str, PathBuf> = HashMap::new();
    for (number, document) in documents.iter().enumerate() {
        let models = open_all(document, &made, workplace, options)?;
        let last = number + 1 == documents.len();
        let folder = workplace.0.join(format!("document-{number}"));
        let name = match &document.name {
            Some(name) => name.clone(),
            None => out
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        let mut merged = one(document, &models, &folder, &name, options)?;
        merged
            .remarks
            .splice(0..0, std::mem::take(&mut summary.remarks));
        summary = merged;
        if let Some(name) = document.name.as_deref().filter(|_| !last) {
            made.insert(name, folder);
            continue;
        }
        (options.finish)(&summary, &folder).map_err(Error::Invalid)?;
        drop(models);
        if out.is_dir() {
            std::fs::remove_dir(out).map_err(Error::file(out))?;
        }
        disk::rename(&folder, out).map_err(Error::file(out))?;
    }
    Ok(summary)
}

/// Opens every model once.
fn open_all(
    document: &Document,
    made: &HashMap<&str, PathBuf>,
    workplace: &Workplace,
    options: &Options,
) -> Result<Models> {
    let mut models = Vec::new();
    for name in document.models() {
        let resolve = |name: &str| match made.get(name) {
            Some(folder) => Ok(folder.clone()),
            None => (options.resolve)(Path::new(name))
                .map_err(|reason| document.error(name, format!("`{name}`: {reason}"))),
        };
        let whole = if made.contains_key(name) || Path::new(name).exists() {
            name
        } else {
            model_of(name)
        };
        let mut folder = resolve(whole)?;
        if let Some((_, adapter)) = name.split_once('+').filter(|_| whole != name) {
            let adapter = resolve(adapter)?;
            let target = workplace.0.join(format!("with-adapter-{}", models.len()));
            add_adapter(&folder, &adapter, &target)?;
            folder = target;
        }
        models.push((name.to_owned(), Model::open(&folder)?));
    }
    Ok(models)
}

/// Writes a model with an adapter merged into it, in the type of the model's file.
fn add_adapter(model: &Path, adapter: &Path, target: &Path) -> Result<()> {
    let mut loaded = folder::load(model, &Device::flex())?;
    let own = espalier_models::adapter::Adapter::read(adapter)?;
    let family = loaded.family()?;
    own.load(&mut loaded.model, family, adapter)?;
    loaded.model.merge_adapters()?;
    folder::save_from(
        &loaded.model,
        target,
        Some(&loaded.config),
        &loaded.generation,
        loaded.dtype,
    )?;
    for name in [super::tokens::FILE, "tokenizer_config.json"] {
        let from = model.join(name);
        if from.is_file() {
            let bytes = std::fs::read(&from).map_err(Error::file(&from))?;
            let to = target.join(name);
            disk::write_whole(&to, &bytes).map_err(Error::file(&to))?;
        }
    }
    Ok(())
}

/// Merges one document into `folder`.
fn one(
    document: &Document,
    models: &Models,
    folder: &Path,
    name: &str,
    options: &Options,
) -> Result<Summary> {
    let choice = document.tokenizer.as_ref();
    let tokens = choice
        .map(|choice| Tokens::gather(choice, document, models))
        .transpose()?;
    let plan = plan(document, models, tokens.as_ref())?;
    card::chat_template(document, models)?;
    let room = room(&plan, models, options)?;
    disk::create_folder(folder).map_err(Error::file(folder))?;
    let merging = Merging {
        document,
        models,
        tokens: tokens.as_ref(),
        seed: options.seed,
    };
    let written = plan
        .tensors
        .iter()
        .map(|tensor| tensor.written.clone())
        .collect();
    let mut ready: HashMap<String, Vec<f32>> = HashMap::new();
    let (mut next, mut differences, mut failure) = (0, Vec::new(), None);
    let wrote = TensorWriter::new(written)?.write_sharded(folder, options.shard_bytes, |name| {
        if ready.is_empty() {
            match merging.batch(&plan, &mut next, room, options) {
                Ok(batch) => {
                    for (tensor, numbers, difference) in batch {
                        differences.push(difference);
                        ready.insert(tensor, numbers);
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    return Err(espalier_models::Error::Invalid("stopped".into()));
                }
            }
        }
        Ok(ready.remove(name).unwrap_or_default())
    });
    if let Some(error) = failure {
        return Err(error);
    }
    wrote?;
    espalier_models::folder::write_json(
        &folder.join("config.json"),
        &Value::Object(plan.config.clone()),
    )?;
    card::write(folder, name, document, models, tokens.as_ref())?;
    Ok(Summary {
        method: document.method.name.to_owned(),
        parameters: plan
            .tensors
            .iter()
            .map(|tensor| tensor.elements() as u64)
            .sum(),
        differences,
        remarks: document.remarks.clone(),
    })
}

/// Bytes that a tensor takes while it is merged: its inputs and the result, in f32.
fn bytes(tensor: &PlannedTensor) -> u64 {
    4 * (tensor.elements() * (tensor.inputs.len() + 1)) as u64
}

/// Bytes for tensors that are merged at a time.
fn room(plan: &Plan, models: &Models, options: &Options) -> Result<u64> {
    let room = options
        .memory
        .map_or(USUAL_MEMORY, |limit| limit.saturating_sub(OVERHEAD));
    let Some(largest) = plan.tensors.iter().max_by_key(|tensor| bytes(tensor)) else {
        return Ok(room);
    };
    match options.memory {
        Some(limit) if bytes(largest) > room => Err(Error::Invalid(format!(
            "{}: tensor `{}` alone takes {} MiB to merge, and the limit is {} MiB; raise `--memory`",
            models[largest.inputs[0].model].1.folder.display(),
            largest.written.name,
            (bytes(largest) + OVERHEAD) >> 20,
            limit >> 20
        ))),
        _ => Ok(room),
    }
}

struct Merging<'a> {
    document: &'a Document,
    models: &'a Models,
    tokens: Option<&'a Tokens>,
    seed: u64,
}

/// A merged tensor: its name, its numbers, and how far it is from the base.
type Merged = (String, Vec<f32>, Difference);

impl Merging<'_> {
    /// Merges the next tensors, as many as there is room for.
    fn batch(
        &self,
        plan: &Plan,
        next: &mut usize,
        room: u64,
        options: &Options,
    ) -> Result<Vec<Merged>> {
        if (options.stop)() {
            return Err(Error::Invalid(
                "the merge was stopped; the same command starts it again".into(),
            ));
        }
        let rest = &plan.tensors[*next..];
        let mut taken = 0;
        let mut count = 0;
        while count < rest.len() && (count == 0 || taken + bytes(&rest[count]) <= room) {
            taken += bytes(&rest[count]);
            count += 1;
        }
        let merged = rest[..count]
            .par_iter()
            .map(|tensor| self.tensor(tensor))
            .collect();
        *next += count;
        (options.progress)(*next, plan.tensors.len());
        merged
    }

    fn tensor(&self, planned: &PlannedTensor) -> Result<Merged> {
        let mut inputs = Vec::new();
        for input in &planned.inputs {
            inputs.push(Operand {
                numbers: self.read(planned, input)?,
                values: input.values.clone(),
                is_base: input.is_base,
                seed: random::fnv(&format!(
                    "{}|{}|{}",
                    self.seed, planned.written.name, self.models[input.model].0
                )),
            });
        }
        let operands = Operands {
            shape: planned.written.shape.clone(),
            inputs,
            values: planned.values.clone(),
        };
        let name = &planned.written.name;
        let merged = (self.document.method.merge)(operands).map_err(|reason| {
            let key = reason.split('`').nth(1).unwrap_or("merge_method");
            self.document
                .error(key, format!("tensor `{name}`: {reason}"))
        })?;
        let difference = self.difference(planned, &merged)?;
        Ok((name.clone(), merged, difference))
    }

    fn difference(&self, planned: &PlannedTensor, merged: &[f32]) -> Result<Difference> {
        let reference = self.read(planned, &planned.inputs[planned.reference])?;
        let pairs = || {
            merged
                .par_chunks(1 << 16)
                .zip(reference.par_chunks(1 << 16))
        };
        let total = |term: fn(f32, f32) -> f64| -> f64 {
            let sums: Vec<f64> = pairs()
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| term(*a, *b)).sum())
                .collect();
            sums.iter().sum()
        };
        Ok(Difference {
            tensor: planned.written.name.clone(),
            block: match place(&planned.written.name) {
                Place::Block(_, number, _) => Some(number),
                Place::Outside => None,
            },
            distance: total(|a, b| f64::from(a - b).powi(2)),
            length: total(|_, b| f64::from(b).powi(2)),
        })
    }

    /// A model's tensor; a table of tokens in the order of the output's vocabulary.
    fn read(&self, planned: &PlannedTensor, input: &PlannedInput) -> Result<Vec<f32>> {
        let model = &self.models[input.model].1;
        let (Some(tokens), true) = (self.tokens, is_table(&planned.written.name)) else {
            return model.read(&input.name);
        };
        let width = planned.written.shape.get(1).copied().unwrap_or(1);
        let name_in = |place: usize| match place == input.model {
            true => Some(input.name.clone()),
            false => self.models[place].1.stored_name(&input.name),
        };
        tokens.permuted(input.model, width, &|place, number| {
            let name = name_in(place).unwrap_or_else(|| input.name.clone());
            let rows = Some(number..number + 1);
            Ok(self.models[place].1.checkpoint.read_f32(&name, rows)?)
        })
    }
}
