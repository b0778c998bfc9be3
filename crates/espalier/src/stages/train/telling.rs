//! What a training stage says: its plan, its steps, what it has used.

use espalier_models::spec::ModelSpec;
use espalier_train::{
    batch::Sample,
    objectives::registry::Registered,
    options::TrainOptions,
    plan::Plan,
    token_count::TokenCount,
    trainer::{Event, Outcome},
};

use crate::{
    memory::peak_bytes,
    stages::{Voice, model},
    units::{bytes, count, duration},
};

/// Share of padding from which it is said.
const WASTE: f64 = 0.05;

/// Share of padding from which a remedy is named.
const MUCH_WASTE: f64 = 0.25;

pub(super) fn say_plan(plan: &Plan, options: &TrainOptions, voice: &mut dyn Voice) {
    let share = 100.0 * plan.trainable as f64 / plan.parameters.max(1) as f64;
    voice.say(&format!(
        "   plan: {} parameters, {} trained ({share:.1} %); {} samples, {} steps, {}; about {} and {}",
        count(plan.parameters),
        count(plan.trainable),
        plan.samples,
        plan.steps,
        tokens(&plan.tokens),
        bytes(plan.memory + plan.data),
        duration(plan.seconds),
    ));
    for remark in options.unread(plan.steps) {
        voice.say(&format!("   {remark}"));
    }
    // A batch of one has none, and packed rows are full but for the last.
    let helps = options.batch > 1 && !options.packing && !options.group_by_length;
    if plan.tokens.padding_share() > MUCH_WASTE && helps {
        voice.say("   `group_by_length = true` puts samples of like length into a batch, which spares padding");
    }
}

/// Tokens in words; padding where it is a share worth sparing.
fn tokens(tokens: &TokenCount) -> String {
    let padding = match tokens.padding_share() {
        share if share < WASTE => String::new(),
        share => format!(" and {:.0} % padding", 100.0 * share),
    };
    format!(
        "{} tokens ({} learned){padding}",
        count(tokens.real),
        count(tokens.learned)
    )
}

/// Tells of texts that are longer than what the model was made for, where it reads them all the same.
pub(super) fn say_context(samples: &[Sample], spec: &ModelSpec, voice: &mut dyn Voice) {
    let positions = samples.iter().flat_map(|sample| &sample.rows);
    let last = positions.flat_map(|row| row.positions.iter().max()).max();
    let longest = last.map_or(0, |last| *last as usize + 1);
    if let Some(remark) = model::beyond_context(spec, longest) {
        let context = spec.context;
        voice.say(&format!("   {remark}; `length = {context}` cuts them"));
    }
}

pub(super) fn say_event(event: &Event, objective: Registered, voice: &mut dyn Voice) {
    match event {
        Event::Remark(remark) => voice.say(&format!("   {remark}")),
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

pub(super) fn say_outcome(outcome: &Outcome, plan: &Plan, voice: &mut dyn Voice) {
    let peak = peak_bytes().map(|peak| {
        format!(
            ", peak memory {} (planned {})",
            bytes(peak),
            bytes(plan.memory + plan.data)
        )
    });
    voice.say(&format!(
        "   used: {} for {} (planned {}){}",
        duration(outcome.seconds),
        tokens(&outcome.tokens),
        duration(plan.seconds),
        peak.unwrap_or_default()
    ));
}
