//! The keys that become the options of training: lengths, steps, schedule, optimiser.

use serde_json::json;
use toml::{Table, Value as Toml};

use super::{Reading, set};
use crate::Result;

/// The options of a training stage.
pub(super) fn options(reading: &mut Reading) -> Result<Table> {
    let mut options = Table::new();
    for (theirs, ours) in [
        ("cutoff_len", "length"),
        ("per_device_train_batch_size", "batch"),
        ("gradient_accumulation_steps", "accumulation"),
        ("logging_steps", "log_every"),
        ("save_steps", "checkpoint_every"),
        ("save_total_limit", "keep_checkpoints"),
        ("seed", "seed"),
    ] {
        let value = reading.integer(theirs)?;
        set(&mut options, ours, value);
    }
    for (theirs, ours) in [
        ("num_train_epochs", "epochs"),
        ("learning_rate", "learning_rate"),
        ("weight_decay", "weight_decay"),
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "epsilon"),
        ("max_grad_norm", "clip"),
        ("neftune_noise_alpha", "embedding_noise"),
        ("label_smoothing_factor", "label_smoothing"),
    ] {
        let value = reading.number(theirs)?;
        set(&mut options, ours, value);
    }
    // What they have where nothing is said.
    for (key, usual) in [
        ("length", Toml::from(2048)),
        ("batch", Toml::from(8)),
        ("epochs", Toml::from(3.0)),
        ("learning_rate", Toml::from(5e-5)),
        ("seed", Toml::from(42)),
    ] {
        options.entry(key).or_insert(usual);
    }
    let steps = reading.integer("max_steps")?.filter(|steps| *steps > 0);
    set(&mut options, "steps", steps);
    let share = reading.number("warmup_ratio")?;
    let steps = reading.number("warmup_steps")?.filter(|steps| *steps > 0.0);
    set(&mut options, "warmup", Some(steps.or(share).unwrap_or(0.0)));
    if reading.flag("bf16")? {
        set(&mut options, "precision", Some("bf16"));
    }
    let packs = reading.take("packing").and_then(|packs| packs.as_bool());
    let neat = reading.keys.get("neat_packing") == Some(&json!(true));
    if packs == Some(true) && !neat {
        let remark =
            "`packing`: texts of a packed row do not see each other, as with `neat_packing`";
        reading.remarks.push(remark.into());
    }
    let pretrains = reading.keys.get("stage") == Some(&json!("pt"));
    set(
        &mut options,
        "packing",
        packs.unwrap_or(pretrains).then_some(true),
    );
    let grouped = reading.flag("group_by_length")?;
    set(&mut options, "group_by_length", grouped.then_some(true));
    let plain = reading.take("disable_gradient_checkpointing");
    let recomputes = plain.and_then(|plain| plain.as_bool()) != Some(true);
    set(
        &mut options,
        "gradient_checkpointing",
        recomputes.then_some(true),
    );
    match reading.text("eval_strategy")?.as_deref() {
        Some("steps") => {
            let steps = reading.integer("eval_steps")?;
            set(&mut options, "evaluate_every", Some(steps.unwrap_or(500)));
        }
        Some("epoch") => {
            let reason = "is `epoch`, which has no counterpart; give `steps` with `eval_steps`";
            reading.refuse("eval_strategy", reason);
        }
        _ => _ = reading.take("eval_steps"),
    }
    if let Some(other) = reading.text("save_strategy")?.filter(|own| own != "steps") {
        reading.remarks.push(format!(
            "`save_strategy: {other}`: checkpoints are written every `checkpoint_every` steps, and the model in the end"
        ));
    }
    schedule(reading, &mut options)?;
    optimiser(reading, &mut options)?;
    Ok(options)
}

fn schedule(reading: &mut Reading, options: &mut Table) -> Result<()> {
    let name = reading.text("lr_scheduler_type")?;
    let own = reading.take("lr_scheduler_kwargs");
    let own = own
        .and_then(|own| own.as_object().cloned())
        .unwrap_or_default();
    let ours = match name.as_deref() {
        None | Some("linear") => "linear",
        Some("cosine" | "cosine_with_min_lr") => "cosine",
        Some("cosine_with_restarts") => "cosine_restarts",
        Some("constant") => {
            set(options, "warmup", Some(0.0));
            "constant"
        }
        Some("constant_with_warmup") => "constant",
        Some("inverse_sqrt") => "inverse_square_root",
        Some("warmup_stable_decay") => "warmup_stable_decay",
        Some(_) => {
            reading.refuse("lr_scheduler_type", "has no counterpart here");
            return Ok(());
        }
    };
    set(options, "schedule", Some(ours));
    if ours == "warmup_stable_decay" && !own.contains_key("num_decay_steps") {
        // Two thirds of what warm-up leaves.
        let number = |key: &str| {
            let value = options.get(key)?;
            value.as_float().or(value.as_integer().map(|n| n as f64))
        };
        let warmup = number("warmup").unwrap_or(0.0);
        let decay = match number("steps") {
            Some(steps) if warmup >= 1.0 => ((steps - warmup) * 2.0 / 3.0).ceil().max(1.0),
            _ if warmup >= 1.0 => 2.0 / 3.0,
            _ => (1.0 - warmup) * 2.0 / 3.0,
        };
        set(options, "decay", Some(decay));
    }
    for (key, value) in own {
        match (key.as_str(), value.as_f64()) {
            ("num_cycles", Some(cycles)) if ours == "cosine_restarts" => {
                set(options, "cycles", Some(cycles as i64));
            }
            ("min_lr_rate", Some(share)) if ours == "cosine" => {
                set(options, "final_learning_rate", Some(share));
            }
            ("num_decay_steps", Some(steps)) if ours == "warmup_stable_decay" => {
                set(options, "decay", Some(steps));
            }
            _ => reading.refuse(
                "lr_scheduler_kwargs",
                &format!("has `{key}`, which has no counterpart"),
            ),
        }
    }
    Ok(())
}

fn optimiser(reading: &mut Reading, options: &mut Table) -> Result<()> {
    let name = reading.text("optim")?;
    let muon = reading.flag("use_muon")?;
    let galore = reading.flag("use_galore")?;
    let rank = reading.integer("galore_rank")?;
    let interval = reading.integer("galore_update_interval")?;
    let scale = reading.number("galore_scale")?;
    // Its weights are updated one after another in the backward.
    let layerwise = reading.flag("galore_layerwise")?;
    if galore {
        let mut own = Table::new();
        set(&mut own, "rank", Some(rank.unwrap_or(16)));
        set(&mut own, "interval", Some(interval.unwrap_or(200)));
        set(&mut own, "scale", Some(scale.unwrap_or(2.0)));
        let own = Table::from_iter([("galore".to_owned(), Toml::Table(own))]);
        set(options, "optimiser", Some(own));
        if layerwise {
            set(options, "release_gradients", Some(true));
            set(options, "clip", Some(0.0));
            let remark = "`galore_layerwise`: gradients are gone before their norm is known, and nothing is clipped";
            reading.remarks.push(remark.into());
        }
        return Ok(());
    }
    if let Some(paged) = name.as_deref().filter(|name| name.starts_with("paged_")) {
        let remark = format!("`optim: {paged}`: the state of the optimiser is not paged");
        reading.remarks.push(remark);
    }
    let ours = match name.as_deref() {
        _ if muon => Some("muon"),
        None | Some("adamw_torch" | "adamw_torch_fused" | "adamw_hf" | "paged_adamw_32bit") => None,
        Some("adamw_bnb_8bit" | "adamw_8bit" | "paged_adamw_8bit") => Some("adamw_8bit"),
        Some("lion_32bit" | "paged_lion_32bit") => Some("lion"),
        Some("adafactor") => Some("adafactor"),
        Some("sgd") => Some("sgd"),
        Some(_) => {
            reading.refuse("optim", "has no counterpart here");
            None
        }
    };
    set(options, "optimiser", ours);
    Ok(())
}
