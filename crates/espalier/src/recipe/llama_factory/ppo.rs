//! The keys of the stage `ppo`: the reward model, how answers are written and how often they are learned from.
//!
//! Their steps are TRL's of version 0.9: a batch of `per_device_train_batch_size * gradient_accumulation_steps * ppo_buffer_size` answers,
//! of which `ppo_epochs` rounds of `ppo_buffer_size` optimiser steps are made.

use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use super::{
    Reading,
    preferences::{reference, table},
    set,
};
use crate::Result;

/// What TRL 0.9 has besides, which no key of theirs changes.
const KL_COEFFICIENT: f64 = 0.2;
const KL_HORIZON: f64 = 10_000.0;

/// Keys of generation that mean something which answers have not here, unless they have the value beside them.
fn of_generation() -> [(&'static str, Value); 5] {
    [
        ("do_sample", json!(true)),
        ("num_beams", json!(1)),
        ("repetition_penalty", json!(1.0)),
        ("length_penalty", json!(1.0)),
        ("skip_special_tokens", json!(true)),
    ]
}

/// The keys of the stage; in other stages they mean nothing.
pub(super) struct Keys {
    reward: Option<String>,
    kind: String,
    target: f64,
    whitens: bool,
    normalises: bool,
    temperature: f64,
    top_p: f64,
    top_k: i64,
    longest: i64,
    /// Rounds over a batch, and optimiser steps of a round.
    reuse: [i64; 2],
    reference: Option<Toml>,
}

impl Keys {
    pub(super) fn read(reading: &mut Reading) -> Result<Self> {
        // Answers are written in this stage, and else in prediction alone, which is refused.
        let writes = reading.keys.get("stage") == Some(&json!("ppo"));
        for (key, usual) in of_generation() {
            let is_usual = |value: &Value| {
                *value == usual || value.as_f64().is_some_and(|n| usual.as_f64() == Some(n))
            };
            let value = reading.take(key);
            if writes && !value.as_ref().is_none_or(is_usual) {
                reading.refuse(key, "has no counterpart in `stage: ppo`");
            }
        }
        reading.take("max_length");
        Ok(Self {
            reward: reading.text("reward_model")?,
            kind: reading.text("reward_model_type")?.unwrap_or("lora".into()),
            target: reading.number("ppo_target")?.unwrap_or(6.0),
            whitens: reading.flag("ppo_whiten_rewards")?,
            normalises: reading.flag("ppo_score_norm")?,
            temperature: reading.number("temperature")?.unwrap_or(0.95),
            top_p: reading.number("top_p")?.unwrap_or(0.7),
            top_k: reading.integer("top_k")?.unwrap_or(50),
            longest: reading.integer("max_new_tokens")?.unwrap_or(1024),
            reuse: rounds(reading)?,
            reference: reference(reading)?,
        })
    }

    /// The objective.
    pub(super) fn objective(self, reading: &mut Reading) -> Result<Table> {
        if self.normalises {
            reading.refuse("ppo_score_norm", "has no counterpart here");
        }
        let rewards = self.rewards(reading);
        let [rounds, parts] = self.reuse;
        let mut rollout = Table::new();
        set(&mut rollout, "rewards", rewards.map(|model| vec![model]));
        set(&mut rollout, "reference", self.reference);
        set(&mut rollout, "max_completion_length", Some(self.longest));
        set(&mut rollout, "temperature", Some(self.temperature));
        set(&mut rollout, "top_p", Some(self.top_p));
        set(&mut rollout, "top_k", Some(self.top_k));
        let mut options = table("rollout", rollout);
        set(&mut options, "num_ppo_epochs", Some(rounds));
        set(&mut options, "num_mini_batches", Some(parts));
        set(&mut options, "kl_coef", Some(KL_COEFFICIENT));
        set(&mut options, "kl_target", Some(self.target));
        set(&mut options, "kl_horizon", Some(KL_HORIZON));
        set(&mut options, "whiten_rewards", self.whitens.then_some(true));
        Ok(table("ppo", options))
    }

    /// The reward model.
    fn rewards(&self, reading: &mut Reading) -> Option<Toml> {
        let Some(path) = &self.reward else {
            reading
                .refused
                .push("`reward_model` is missing, which `stage: ppo` needs".into());
            return None;
        };
        if !["full", "lora"].contains(&self.kind.as_str()) {
            reading.refuse(
                "reward_model_type",
                "has no counterpart: a server is asked in another form, as a recipe's `rewards = [{ endpoint = { url = ... } }]`; `full` and `lora` have",
            );
            return None;
        }
        reading.remarks.push(format!(
            "`reward_model: {path}`: a classifier of texts with one label, as `stage: rm` leaves it here; LLaMA-Factory's own `value_head` files are not read"
        ));
        Some(Toml::Table(table("model", table("path", path.clone()))))
    }
}

/// Rounds over a batch, and optimiser steps of a round.
fn rounds(reading: &mut Reading) -> Result<[i64; 2]> {
    let rounds = reading.integer("ppo_epochs")?.unwrap_or(4);
    let parts = reading.integer("ppo_buffer_size")?.unwrap_or(1);
    Ok([rounds.max(1), parts.max(1)])
}

/// Counts optimiser steps where they count batches of answers.
pub(super) fn reuse(reading: &mut Reading, options: &mut Table) -> Result<()> {
    let [rounds, parts] = rounds(reading)?;
    let mut times = |key: &str, factor: i64| {
        let product = match options.get(key) {
            Some(Toml::Integer(number)) => Toml::from(number.saturating_mul(factor)),
            Some(Toml::Float(number)) => Toml::from(number * factor as f64),
            _ => return,
        };
        options.insert(key.to_owned(), product);
    };
    times("batch", parts);
    let steps = rounds.saturating_mul(parts);
    for key in ["epochs", "steps", "log_every", "checkpoint_every"] {
        times(key, steps);
    }
    // Below 1 it is a share of all steps.
    if reading
        .number("warmup_steps")?
        .is_some_and(|steps| steps >= 1.0)
    {
        times("warmup", steps);
    }
    reading.remarks.push(format!(
        "steps are the optimiser's, {steps} for each batch of answers, and `epochs` are as many more"
    ));
    Ok(())
}
