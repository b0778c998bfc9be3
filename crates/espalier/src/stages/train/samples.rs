//! What a training stage starts from: the model, and its data as samples.

use std::path::Path;

use espalier_data::{
    encode::Truncation,
    packing::Strategy,
    readers::{self, Wanted},
};
use espalier_train::{
    batch::Sample,
    objectives::{ObjectiveOptions, language::Turns, registry::Registered},
};

use super::{TrainStage, VALIDATION};
use crate::{
    Error, Result,
    stages::{
        classes,
        data::{self, Sourced},
        ends,
        kinds::Workplace,
        model::{self, Start},
        new_model::{self, Fresh},
        prompts,
    },
};

/// The model to start from, and training and held-out samples.
pub(super) fn prepare(
    workplace: &mut Workplace,
    stage: &TrainStage,
) -> Result<(Start, Vec<Sample>, Vec<Sample>)> {
    let Registered {
        wanted, classifies, ..
    } = stage.objective.registered();
    let mut records = data::records(&stage.data, wanted, workplace.voice)?;
    let mut held_out = data::records(&stage.validation, wanted, workplace.voice)?;
    if let ObjectiveOptions::Sft(options) = &stage.objective
        && options.turns == Turns::Last
    {
        let all = records.iter_mut().chain(&mut held_out);
        all.for_each(|sourced| sourced.record.learn_last_turn());
    }
    if stage.splits() {
        let share = (records.len() as f64 * stage.validation_share).ceil() as usize;
        held_out = hold_out(&mut records, share.max(stage.validation_count));
        let path = workplace.folder.join(VALIDATION);
        readers::write_jsonl(
            &path,
            held_out.iter().map(|held| readers::to_json(&held.record)),
        )?;
    }
    let mut start = start(stage, &records, workplace)?;
    ends::settle(
        &mut start.loaded.model,
        &start.tokenizer,
        &records,
        &stage.objective,
        workplace.voice,
    )?;
    let options = &stage.options;
    if wanted == Wanted::Prompts {
        let tokenizer = &start.tokenizer;
        let mut prepare = |records: &[Sourced]| {
            prompts::samples(tokenizer, records, options.length, workplace.voice)
        };
        let (training, validation) = (prepare(&records)?, prepare(&held_out)?);
        return Ok((start, training, validation));
    }
    let said = [records.as_slice(), held_out.as_slice()];
    let classes = classes::settle(
        &mut start.loaded,
        &stage.objective,
        &said,
        options.seed,
        workplace.voice,
    )?;
    // Of a document every part is worth learning; of an answer the beginning, which stands behind its question.
    let packing = options.packing.then_some(Strategy::BestFitSplit);
    let mut prepare = |records: &[Sourced]| -> Result<Vec<Sample>> {
        let truncation = Truncation {
            whole_pairs: classifies,
            ..Truncation::default()
        };
        let encoded = data::encode_within(
            &start.tokenizer,
            records,
            wanted,
            options.length,
            truncation,
            options.packing,
            workplace.voice,
        )?;
        let encoded = match wanted {
            Wanted::Verdicts => data::unpaired(encoded),
            Wanted::Texts | Wanted::Pairs | Wanted::Prompts | Wanted::Labels => encoded,
        };
        data::samples(encoded, packing, options.length, classes.as_ref())
    };
    let (training, validation) = (prepare(&records)?, prepare(&held_out)?);
    Ok((start, training, validation))
}

/// Takes the last records away, so many as there are beside one.
fn hold_out(records: &mut Vec<Sourced>, count: usize) -> Vec<Sourced> {
    let most = records.len().saturating_sub(1);
    records.split_off(records.len() - count.min(most))
}

/// The model that the stage names or describes.
fn start(stage: &TrainStage, records: &[Sourced], workplace: &mut Workplace) -> Result<Start> {
    let template = stage.template.as_deref();
    match (&stage.model, &stage.new) {
        (Some(path), None) => {
            let mut changes = stage.config.clone();
            if let Some(bits) = stage.bits {
                changes.insert("bits".into(), bits.to_string().into());
            }
            let start = model::open(
                Path::new(path),
                &changes,
                stage.quantise,
                template,
                workplace.device,
            )?;
            model::grow(start, &stage.add_tokens, workplace.voice)
        }
        (None, Some(new)) => {
            let more = data::records(&new.tokenizer_data, Wanted::Texts, workplace.voice)?;
            let texts = records.iter().chain(&more).map(|sourced| &sourced.record);
            let special = (stage.objective.registered().special_tokens)();
            let seed = stage.options.seed;
            let fresh = Fresh {
                bits: stage.bits,
                seed,
            };
            new_model::create(new, texts, &special, template, fresh, workplace.device)
        }
        _ => Err(Error::usage("a train stage needs one of `model` and `new`")),
    }
}
