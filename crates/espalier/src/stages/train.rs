//! The training stage: model, data, plan, run, model folder.

use std::path::Path;

use espalier_models::{families, folder::LoadedModel, parameter::Parameters};
use espalier_train::{
    batch::Sample,
    objectives::registry::Registered,
    plan::{Plan, plan},
    trainer::{self, Event, Outcome, Run},
};
use serde_json::{Value, json};

use super::{
    Voice, Workshop, data,
    model::{self, Origin, Start},
};
use crate::{
    Error, Result,
    memory::peak_bytes,
    recipe::TrainStage,
    units::{bytes, count, duration},
};

/// Trains and leaves `model/` in the stage's folder.
///
/// # Errors
/// When model, data or options do not fit, the loss is not finite, or the disk is full.
pub fn run(
    workshop: &mut Workshop,
    stage: &TrainStage,
    folder: &Path,
    fingerprint: &str,
) -> Result<Value> {
    let (start, training, validation) = prepare(workshop, stage)?;
    let Start { loaded, tokenizer } = start;
    let LoadedModel {
        mut model,
        config,
        base,
        adapter: earlier,
        ..
    } = loaded;
    let family = families::by_name(&model.spec().family)?;
    let adapter = match (&stage.adapter, earlier) {
        (None, None) => {
            model.set_trainable(|_| true);
            None
        }
        (Some(options), None) => Some(options.attach(&mut model, family, stage.options.seed)?),
        (None, Some(earlier)) => {
            earlier.mark_trainable(&mut model);
            Some(earlier)
        }
        (Some(_), Some(_)) => {
            return Err(Error::usage(
                "the model is an adapter already: leave `adapter` out to train it on, or merge it first",
            ));
        }
    };
    let refusal = adapter.as_ref().and_then(|adapter| adapter.merge_refusal());
    if let Some(reason) = refusal.filter(|_| !stage.config.is_empty()) {
        let fix = "change the base in a stage of its own";
        return Err(Error::usage(format!(
            "the adapter cannot be merged into a base that `config` changes: {reason}; {fix}"
        )));
    }
    let planned = plan(&model, &training, &stage.options)?;
    say_plan(&planned, workshop.voice);
    let mut objective = stage.objective.build(&model::symbols(&tokenizer, &model))?;
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: training,
        validation,
        options: stage.options.clone(),
        folder: folder.to_owned(),
        fingerprint: fingerprint.to_owned(),
    };
    let (voice, registered) = (&mut *workshop.voice, stage.objective.registered());
    let mut outcome = trainer::train(run, &mut |event| say_event(event, registered, voice))?;
    // An adapter's folder cannot say that its base was changed, so the adapter is merged.
    let adapter = match stage.config.is_empty() {
        true => adapter,
        false => {
            outcome.model.merge_adapters()?;
            None
        }
    };
    model::save(
        &folder.join("model"),
        &outcome.model,
        Origin {
            config: &config,
            base: &base,
        },
        adapter.as_ref(),
        &tokenizer,
    )?;
    say_outcome(&outcome, &planned, workshop.voice);
    Ok(summary(&outcome, &planned))
}

/// The model to start from, and training and held-out samples.
fn prepare(
    workshop: &mut Workshop,
    stage: &TrainStage,
) -> Result<(Start, Vec<Sample>, Vec<Sample>)> {
    let mut records = data::records(&stage.data, workshop.voice)?;
    let mut held_out = data::records(&stage.validation, workshop.voice)?;
    if held_out.is_empty() && stage.validation_share > 0.0 {
        if stage.validation_share >= 1.0 {
            return Err(Error::usage("`validation_share` must be below 1"));
        }
        let share = (records.len() as f64 * stage.validation_share).ceil() as usize;
        held_out = records.split_off(records.len() - share.min(records.len() - 1));
    }
    let template = stage.template.as_deref();
    let start = match (&stage.model, &stage.new) {
        (Some(name), None) => model::open(
            &workshop.model_path(name),
            &stage.config,
            template,
            &workshop.device,
        )?,
        (None, Some(new)) => {
            let more = data::records(&new.tokenizer_data, workshop.voice)?;
            let texts = records.iter().chain(&more);
            let special = (stage.objective.registered().special_tokens)();
            model::create(
                new,
                texts,
                &special,
                template,
                stage.options.seed,
                &workshop.device,
            )?
        }
        _ => return Err(Error::usage("a train stage needs one of `model` and `new`")),
    };
    let options = &stage.options;
    let mut prepare = |records: &[_]| -> Result<Vec<Sample>> {
        let encoded = data::encode(&start.tokenizer, records, options.length, workshop.voice)?;
        Ok(data::samples(encoded, options.packing, options.length))
    };
    let (training, validation) = (prepare(&records)?, prepare(&held_out)?);
    Ok((start, training, validation))
}

fn say_plan(plan: &Plan, voice: &mut dyn Voice) {
    let share = 100.0 * plan.trainable as f64 / plan.parameters.max(1) as f64;
    voice.say(&format!(
        "   plan: {} parameters, {} trained ({share:.1} %); {} samples, {} steps, {} tokens; about {} and {}",
        count(plan.parameters),
        count(plan.trainable),
        plan.samples,
        plan.steps,
        count(plan.tokens),
        bytes(plan.memory),
        duration(plan.seconds),
    ));
}

fn say_event(event: &Event, objective: Registered, voice: &mut dyn Voice) {
    match event {
        Event::Resumed(step) => voice.say(&format!("   goes on after step {step}")),
        Event::Step {
            step,
            total,
            loss,
            speed: (tokens, elapsed),
        } => {
            let rate = *tokens as f64 / elapsed.max(1e-9);
            voice.progress(
                "   train",
                *step,
                *total,
                &format!("loss {loss:.4}  {rate:.0} tokens/s"),
            );
        }
        Event::Evaluated {
            step,
            loss,
            metrics,
        } => {
            let share = |(name, value): &(String, f64)| format!(", {name} {:.1} %", 100.0 * value);
            let is_share = |(name, _): &&(String, f64)| {
                let mut known = objective.metrics.iter();
                known.any(|metric| metric.share && metric.name == name)
            };
            let shares: String = metrics.iter().filter(is_share).map(share).collect();
            voice.say(&format!(
                "   step {step}: held-out loss {loss:.4}{}",
                shares.replace('_', " ")
            ));
        }
    }
}

fn say_outcome(outcome: &Outcome, plan: &Plan, voice: &mut dyn Voice) {
    let peak = peak_bytes().map(|peak| {
        format!(
            ", peak memory {} (planned {})",
            bytes(peak),
            bytes(plan.memory)
        )
    });
    voice.say(&format!(
        "   used: {} for {} tokens (planned {}){}",
        duration(outcome.seconds),
        count(outcome.tokens),
        duration(plan.seconds),
        peak.unwrap_or_default()
    ));
}

fn summary(outcome: &Outcome, plan: &Plan) -> Value {
    let mut trained = 0;
    outcome.model.visit(&mut |p| trained += p.len());
    let metrics: serde_json::Map<String, Value> = outcome
        .validation_metrics
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "kind": "train",
        "validation": metrics,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "validation_loss": outcome.validation_loss,
        "parameters": trained,
        "trainable": plan.trainable,
        "planned_seconds": plan.seconds,
        "planned_bytes": plan.memory,
        "peak_bytes": peak_bytes(),
    })
}
