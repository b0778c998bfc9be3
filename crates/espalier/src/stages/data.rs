//! Data for a stage: records from files and worlds, encoded and packed.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use espalier_data::{
    encode::{Encoded, Encoder, Pair, Truncation},
    packing::{self, Strategy},
    random::{Random, fnv},
    readers::{self, Source, Wanted},
    record::{Message, Record},
    tokenizer::Tokenizer,
    worlds::{self, Item, Split, noise::with_noise, preferences, steps},
};
use espalier_train::{batch::Sample, rewards::judge};
use rayon::prelude::*;
use serde_json::Value;

use super::{Voice, classes::Classes};
use crate::{
    Error, Result,
    recipe::{DataOptions, WorldShape},
};

/// A record and where it comes from.
#[derive(Debug, Clone)]
pub struct Sourced {
    /// What it says.
    pub record: Record,
    /// The file and its line, from 1; nothing for a world's items.
    pub place: Option<(Arc<Path>, usize)>,
    /// All that its item, or its object in the file, says, where prompts are wanted, for what scores their answers; otherwise null.
    pub origin: Value,
}

impl Sourced {
    /// Where the record stands, for the beginning of a message; nothing for a world's items.
    pub fn words(&self) -> String {
        let place = self.shown_place();
        place.map_or(String::new(), |place| format!("{place}: "))
    }

    /// Encodes the record.
    ///
    /// # Errors
    /// When it cannot be encoded, with its place.
    pub fn encoded(&self, encoder: &Encoder) -> Result<Encoded> {
        encoder.encode(&self.record).map_err(|error| {
            Error::work(match self.shown_place() {
                Some(place) => format!("{place}: {error}"),
                None => error.to_string(),
            })
        })
    }

    /// Its file and line, where it has them.
    fn shown_place(&self) -> Option<String> {
        let (path, line) = self.place.as_ref()?;
        Some(format!("{}:{line}", path.display()))
    }
}

/// Records of all sources, in order; `wanted` says what is read of records that hold several things. What was left out is counted and said.
///
/// # Errors
/// When a file cannot be read, a record is malformed, or a world is unknown.
pub fn records(
    sources: &[DataOptions],
    wanted: Wanted,
    voice: &mut dyn Voice,
) -> Result<Vec<Sourced>> {
    let mut all = Vec::new();
    for source in sources {
        source.check()?;
        let mut records = match &source.world {
            Some(task) => of_world(source, task, wanted)?,
            None => of_file(source, wanted, voice)?,
        };
        if source.flip > 0.0 {
            flip(source, &mut records, voice)?;
        }
        all.extend(records);
    }
    Ok(all)
}

/// Lets the better and the worse answer of some preferences change places: each with the source's probability, by its number, so that a
/// source has the same ones wherever it is read.
fn flip(source: &DataOptions, records: &mut [Sourced], voice: &mut dyn Voice) -> Result<()> {
    let (mut pairs, mut flipped) = (0, 0);
    for (number, sourced) in records.iter_mut().enumerate() {
        let Record::Preference {
            chosen, rejected, ..
        } = &mut sourced.record
        else {
            continue;
        };
        pairs += 1;
        let mut random = Random::named(&format!("flip|{number}|{}", seed(source)));
        if random.chance(source.flip) {
            std::mem::swap(chosen, rejected);
            flipped += 1;
        }
    }
    if pairs == 0 {
        return Err(Error::usage(
            "`flip` turns preferences around, and the source has none; leave it out",
        ));
    }
    voice.say(&format!(
        "   {flipped} of {pairs} preferences are flipped (`flip` = {})",
        source.flip
    ));
    Ok(())
}

fn of_file(source: &DataOptions, wanted: Wanted, voice: &mut dyn Voice) -> Result<Vec<Sourced>> {
    let path = source.path.clone().ok_or_else(|| {
        Error::usage("`from` means what an earlier stage of the same recipe left; there is no such stage here")
    })?;
    let file = Source {
        path: path.clone(),
        form: source.form,
        columns: source.columns.clone(),
        wanted,
    };
    let loaded = readers::read_all(&file, source.skip_malformed)?;
    if let Some(first) = loaded.skipped.first() {
        voice.say(&format!(
            "{}: {} malformed records left out; the first: {first}",
            path.display(),
            loaded.skipped.len()
        ));
    }
    if !loaded.unread.is_empty() {
        voice.say(&format!(
            "{}: columns that are not read: {}",
            path.display(),
            loaded.unread.join(", ")
        ));
    }
    let path: Arc<Path> = path.into();
    let records = loaded.records.into_iter().zip(loaded.lines);
    let records = records.zip(loaded.origins);
    let records = records.map(|((record, line), origin)| Sourced {
        record,
        place: Some((path.clone(), line)),
        origin: origin.into(),
    });
    Ok(records.take(source.limit.unwrap_or(usize::MAX)).collect())
}

/// Items of a world when a recipe does not say how many.
const DEFAULT_ITEMS: usize = 1000;

fn of_world(source: &DataOptions, task: &str, wanted: Wanted) -> Result<Vec<Sourced>> {
    let split: Split = source.split.parse()?;
    let record = |index: u64| match source.shape {
        WorldShape::Chat => demonstration(source, task, split, index),
        WorldShape::Text if source.noise > 0.0 => noisy(source, task, split, index),
        shape => of_item(shape, task, split, index, seed(source)),
    };
    let origin = |index: u64| match wanted {
        Wanted::Prompts => Ok(worlds::item(task, split, index, seed(source))?.to_json()),
        _ => Ok::<Value, Error>(Value::Null),
    };
    let sourced = |index: usize| {
        Ok(Sourced {
            record: record(index as u64)?,
            place: None,
            origin: origin(index as u64)?,
        })
    };
    in_order(
        (0..source.limit.unwrap_or(DEFAULT_ITEMS))
            .into_par_iter()
            .map(sourced),
    )
}

/// A plain text with words between its own that mean nothing.
fn noisy(source: &DataOptions, task: &str, split: Split, index: u64) -> Result<Record> {
    let text = worlds::item(task, split, index, seed(source))?.text();
    let name = format!("noise|{task}|{split}|{index}|{}", seed(source));
    let text = with_noise(&text, source.noise, &mut Random::named(&name));
    Ok(Record::Text { text })
}

/// The world's seed; the recipe's first where it says nothing.
fn seed(source: &DataOptions) -> u64 {
    source.seed.unwrap_or(0)
}

/// What all threads make, in order; the first error is that of the first item that has one, whichever thread meets it.
fn in_order<T: Send>(items: impl IndexedParallelIterator<Item = Result<T>>) -> Result<Vec<T>> {
    items.collect::<Vec<_>>().into_iter().collect()
}

/// An item of a world as a record.
///
/// # Errors
/// When there is no such task, or it has no such shape.
pub fn of_item(
    shape: WorldShape,
    task: &str,
    split: Split,
    index: u64,
    seed: u64,
) -> Result<Record> {
    let item = || worlds::item(task, split, index, seed);
    Ok(match shape {
        WorldShape::Preference => preferences::preference(task, split, index, seed)?,
        WorldShape::Label => item()?.record_label(),
        WorldShape::Steps => steps::steps(task, split, index, seed)?,
        WorldShape::Text => item()?.record_text(),
        WorldShape::Answer => Record::Text {
            text: item()?.solution,
        },
        WorldShape::Rating => rating(&item()?, index, seed),
        WorldShape::Chat => item()?.record_chat(),
    })
}

/// A judge's question of an answer that is right, or in one of two cases wrong where one can be made, and its reply: the right answer, by
/// which it judges, and the score.
fn rating(item: &Item, index: u64, seed: u64) -> Record {
    let mut random = Random::named(&format!("rating|{}|{index}|{seed}", item.task));
    let wrong = random
        .chance(0.5)
        .then(|| preferences::corrupt(item, &mut random))
        .flatten();
    let score = if wrong.is_some() { 0 } else { 10 };
    let reply = format!("{} Score: {score}", item.solution);
    let answer = wrong.as_deref().unwrap_or(&item.solution);
    let asked = judge::question(judge::USUAL_PROMPT, &item.prompt, answer);
    Record::Chat {
        messages: vec![Message::user(asked), Message::assistant(reply)],
        tools: None,
    }
}

/// A question and its answer; with the source's probability, an answer with a natural mistake.
fn demonstration(source: &DataOptions, task: &str, split: Split, index: u64) -> Result<Record> {
    let item = worlds::item(task, split, index, seed(source))?;
    let mut random = Random::new(fnv(&format!("mistakes|{task}|{index}|{}", seed(source))));
    let wrong = random
        .chance(source.mistakes)
        .then(|| preferences::corrupt(&item, &mut random))
        .flatten();
    Ok(match wrong {
        Some(answer) => Record::Chat {
            messages: vec![Message::user(item.prompt), Message::assistant(answer)],
            tools: None,
        },
        None => item.record_chat(),
    })
}

/// The plain text of a record, on which a tokenizer can be trained.
pub fn text_of(record: &Record) -> String {
    let contents = |messages: &[Message]| {
        messages
            .iter()
            .map(Message::text)
            .collect::<Vec<_>>()
            .join("\n")
    };
    match record {
        Record::Text { text } => text.clone(),
        Record::Chat { messages, .. } => contents(messages),
        Record::Preference { prompt, chosen, .. } => {
            format!("{}\n{}", contents(prompt), chosen.text())
        }
        Record::Unpaired { prompt, answer, .. } => {
            format!("{}\n{}", contents(prompt), answer.text())
        }
        Record::Labelled { text, .. } => text.clone(),
        Record::Tagged { words, .. } => words.join(" "),
        Record::Steps { prompt, steps, .. } => {
            format!("{}\n{}", contents(prompt), steps.join("\n"))
        }
    }
}

/// Encodes records; those with nothing to learn, those with labels where none are wanted, and those that cannot be encoded, are counted and
/// said.
///
/// # Errors
/// When nothing is left.
pub fn encode(
    tokenizer: &Tokenizer,
    records: &[Sourced],
    wanted: Wanted,
    length: usize,
    voice: &mut dyn Voice,
) -> Result<Vec<Encoded>> {
    let truncation = Truncation::default();
    encode_within(tokenizer, records, wanted, length, truncation, false, voice)
}

/// Why a record is left out that says nothing but labels.
const LABELS_ALONE: &str = "`labels` judge them, and nothing else of them is learned; `classify` and `process_reward` learn from labels";

/// As [`encode`], with what is too long treated as `truncation` says; documents are left whole where they will be cut into pieces.
///
/// # Errors
/// As [`encode`].
pub fn encode_within(
    tokenizer: &Tokenizer,
    records: &[Sourced],
    wanted: Wanted,
    length: usize,
    mut truncation: Truncation,
    whole_documents: bool,
    voice: &mut dyn Voice,
) -> Result<Vec<Encoded>> {
    let room = |record: &Record| match record {
        Record::Text { .. } if whole_documents => usize::MAX,
        _ => length,
    };
    let encoder = Encoder::new(tokenizer.clone(), usize::MAX);
    let mut dropped: BTreeMap<String, Vec<&Sourced>> = BTreeMap::new();
    let mut failed = Vec::new();
    let mut kept = Vec::with_capacity(records.len());
    let encode = |sourced: &Sourced| sourced.encoded(&encoder);
    let encoded: Vec<Result<Encoded>> = records.par_iter().map(encode).collect();
    for (sourced, encoded) in records.iter().zip(encoded) {
        match encoded.map(|encoded| truncation.cut(encoded, room(&sourced.record))) {
            Ok(Encoded::Labelled(_)) if wanted != Wanted::Labels => {
                let left_out = dropped.entry(LABELS_ALONE.into());
                left_out.or_default().push(sourced);
            }
            Ok(Encoded::Dropped { reason }) => dropped.entry(reason).or_default().push(sourced),
            Ok(encoded) => kept.push(encoded),
            Err(reason) => failed.push(reason),
        }
    }
    let total = records.len();
    if truncation.records > 0 {
        voice.say(&format!(
            "{} of {total} records are longer than `length` = {length} and keep their beginning: {} tokens are cut off (the longest has {})",
            truncation.records, truncation.lost, truncation.longest
        ));
    }
    for (reason, left_out) in &dropped {
        let count = left_out.len();
        let first = left_out.iter().find_map(|sourced| sourced.shown_place());
        let first = first.map_or(String::new(), |place| format!("; the first: {place}"));
        voice.say(&format!(
            "{count} of {total} records left out: {reason}{first}"
        ));
    }
    match failed.first() {
        Some(first) if kept.is_empty() => {
            return Err(Error::work(format!(
                "no record is left to learn from: {} of {total} cannot be encoded; the first: {first}",
                failed.len()
            )));
        }
        Some(first) => voice.say(&format!(
            "{} of {total} records left out that cannot be encoded; the first: {first}",
            failed.len()
        )),
        None => {}
    }
    if kept.is_empty() && !records.is_empty() {
        let why = match (truncation.records, dropped.keys().next()) {
            (0, Some(reason)) => reason.as_str(),
            _ => "raise `options.length` or check the data",
        };
        return Err(Error::work(format!(
            "no record is left to learn from; {why}"
        )));
    }
    let hidden = records
        .par_iter()
        .filter(|sourced| encoder.hides_reasoning(&sourced.record));
    let hidden = hidden.count();
    if hidden > 0 {
        voice.say(&format!(
            "{hidden} of {total} records have reasoning in turns before the last one that the template does not show, so that it is not learned"
        ));
    }
    Ok(kept)
}

/// Pairs as two answers with verdicts; other records as they are.
pub fn unpaired(encoded: Vec<Encoded>) -> Vec<Encoded> {
    let answer = |example, desirable| Encoded::Unpaired { example, desirable };
    let parts = |encoded| match encoded {
        Encoded::Pair(Pair {
            chosen, rejected, ..
        }) => {
            vec![answer(chosen, true), answer(rejected, false)]
        }
        other => vec![other],
    };
    encoded.into_iter().flat_map(parts).collect()
}

/// Samples of the trainer, packed into rows where a way is given; `classes` say what labels mean.
///
/// # Errors
/// When a label means nothing.
pub fn samples(
    encoded: Vec<Encoded>,
    packing: Option<Strategy>,
    length: usize,
    classes: Option<&Classes>,
) -> Result<Vec<Sample>> {
    let mut examples = Vec::new();
    let mut samples = Vec::new();
    for encoded in encoded {
        match encoded {
            Encoded::Example(example) => examples.push(example),
            Encoded::Pair(pair) => samples.push(Sample::pair(&pair)),
            Encoded::Labelled(labelled) => {
                let classes = classes.ok_or_else(|| Error::work(LABELS_ALONE))?;
                let values = classes.values(&labelled.labels)?;
                samples.push(Sample::labelled(&labelled.ids, &labelled.places, &values));
            }
            Encoded::Unpaired { example, desirable } => {
                samples.push(Sample::judged(&example, desirable));
            }
            Encoded::Dropped { .. } => {}
        }
    }
    match packing {
        Some(strategy) => samples.extend(
            packing::pack(&examples, length, strategy)
                .into_iter()
                .map(|row| Sample::new(vec![row])),
        ),
        None => samples.extend(examples.iter().map(Sample::example)),
    }
    Ok(samples)
}

#[cfg(test)]
mod tests;
