//! The keys of routers: experts and depths.

use serde_json::{Map, Value, json};

use super::config::{CONTEXT_LIMIT, Config, LAYER_LIMIT};
use crate::{
    error::Result,
    spec::{
        BalanceForm, BlockSpec, CapacitySpec, DepthGate, DepthPredictor, DepthRouting, MixerSpec,
        RouterLosses, RouterSpec,
    },
};

/// Most experts of a layer.
pub(super) const EXPERT_LIMIT: usize = 1 << 16;

/// Our own key for weights of experts that are not divided by their sum (Switch); the same as in Qwen's mixtures.
const NORMALISED: &str = "norm_topk_prob";
/// Our own keys of capacities.
const CAPACITY: [&str; 2] = ["expert_capacity_factor", "expert_eval_capacity_factor"];
/// The key of the z-loss in Switch's configuration.
const Z_LOSS: &str = "router_z_loss_coef";
/// Our own key for a balance loss layer by layer.
const PER_LAYER: &str = "router_aux_loss_per_layer";

/// Reads how tokens choose among experts, with Mixtral's defaults.
pub(super) fn read(config: &Config) -> Result<RouterSpec> {
    read_with(config, [8, 2], true)
}

/// Reads how tokens choose among experts; `defaults` are their number and that of active ones. Some files say `num_experts`.
pub(super) fn read_with(
    config: &Config,
    defaults: [usize; 2],
    normalised: bool,
) -> Result<RouterSpec> {
    let named = match config.optional_size("num_local_experts", EXPERT_LIMIT)? {
        None => config.optional_size("num_experts", EXPERT_LIMIT)?,
        experts => experts,
    };
    let experts = named.unwrap_or(defaults[0]);
    let active = config
        .optional_size("num_experts_per_tok", EXPERT_LIMIT)?
        .unwrap_or(defaults[1]);
    if active > experts {
        let reason =
            format!("{active} of {experts} experts cannot be active; choose at most {experts}");
        return Err(config.error("num_experts_per_tok", reason));
    }
    let training = config.optional_positive(CAPACITY[0])?;
    let evaluation = config.optional_positive(CAPACITY[1])?;
    let capacity = training.map(|training| CapacitySpec {
        training,
        evaluation: evaluation.unwrap_or(training),
    });
    let normalised = config.flag_or(NORMALISED, normalised)?;
    Ok(RouterSpec {
        capacity,
        ..RouterSpec::softmax(experts, active, normalised)
    })
}

/// Writes what [`read`] reads; keys of our own only where they say something.
pub(super) fn write(router: &RouterSpec, map: &mut Map<String, Value>) {
    map.insert("num_local_experts".into(), json!(router.experts));
    map.insert("num_experts_per_tok".into(), json!(router.active));
    if !router.normalised {
        map.insert(NORMALISED.into(), json!(false));
    }
    if let Some(capacity) = router.capacity {
        map.insert(CAPACITY[0].into(), json!(capacity.training));
        map.insert(CAPACITY[1].into(), json!(capacity.evaluation));
    }
}

/// Reads the losses of routers; `key` has the weight of the balance loss.
pub(super) fn read_losses(config: &Config, key: &str, default: f64) -> Result<RouterLosses> {
    let weight = |key: &str, default: f64| match config.optional_number(key)? {
        Some(weight) if weight < 0.0 => {
            Err(config.error(key, format!("expected 0 or more, found {weight}")))
        }
        weight => Ok(weight.unwrap_or(default)),
    };
    let form = if config.flag_or(PER_LAYER, false)? {
        BalanceForm::PerLayer
    } else {
        BalanceForm::Joint
    };
    let added = config.flag_or("output_router_logits", false)?;
    Ok(RouterLosses {
        added,
        balance: weight(key, default)?,
        form,
        z: weight(Z_LOSS, 0.0)?,
    })
}

/// Writes what [`read_losses`] reads.
pub(super) fn write_losses(losses: &RouterLosses, key: &str, map: &mut Map<String, Value>) {
    map.insert(key.into(), json!(losses.balance));
    map.insert("output_router_logits".into(), json!(losses.added));
    if losses.z > 0.0 {
        map.insert(Z_LOSS.into(), json!(losses.z));
    }
    if losses.form == BalanceForm::PerLayer {
        map.insert(PER_LAYER.into(), json!(true));
    }
}

/// Reads which blocks tokens may skip, from our own keys, and sets it: `mod_capacity`, `mod_every` (2), `mod_first` (1) and
/// `mod_predictor` (`mlp` or `aux_loss`) and `mod_gate` (`raw` or `sigmoid`). Nothing where there is no `mod_capacity`.
pub(super) fn read_depths(config: &Config, blocks: &mut [BlockSpec]) -> Result<()> {
    let Some(capacity) = config.optional_positive("mod_capacity")? else {
        return Ok(());
    };
    if capacity > 1.0 {
        return Err(config.error(
            "mod_capacity",
            format!("{capacity} is more than all tokens; choose at most 1"),
        ));
    }
    let windowed = |block: &BlockSpec| match &block.mixer {
        MixerSpec::Attention(attention) => attention.window.is_some() || attention.alibi.is_some(),
        MixerSpec::AttentionExperts(_) | MixerSpec::LatentAttention(_) => false,
        MixerSpec::Recurrent(_) => true,
    };
    if blocks.iter().any(windowed) {
        return Err(config.error(
            "mod_capacity",
            "blocks with a window cannot be skipped; remove one of the two",
        ));
    }
    let every = config.optional_size("mod_every", LAYER_LIMIT)?.unwrap_or(2);
    let first = config.count_or("mod_first", 1, CONTEXT_LIMIT)?;
    let predictor = match config.optional_text("mod_predictor")? {
        None | Some("mlp") => DepthPredictor::Mlp,
        Some("aux_loss") => DepthPredictor::AuxLoss,
        Some(name) => {
            return Err(config.error(
                "mod_predictor",
                format!("unknown `{name}`; known are mlp and aux_loss"),
            ));
        }
    };
    let gate = match config.optional_text("mod_gate")? {
        None | Some("raw") => DepthGate::Raw,
        Some("sigmoid") => DepthGate::Sigmoid,
        Some(name) => {
            return Err(config.error(
                "mod_gate",
                format!("unknown `{name}`; known are raw and sigmoid"),
            ));
        }
    };
    for block in blocks.iter_mut().skip(first).step_by(every) {
        block.routing = Some(DepthRouting {
            capacity,
            predictor,
            gate,
        });
    }
    Ok(())
}

/// Writes what [`read_depths`] reads.
pub(super) fn write_depths(blocks: &[BlockSpec], map: &mut Map<String, Value>) {
    let routed: Vec<usize> = (0..blocks.len())
        .filter(|i| blocks[*i].routing.is_some())
        .collect();
    let Some((first, routing)) = routed
        .first()
        .and_then(|first| Some((*first, blocks[*first].routing?)))
    else {
        return;
    };
    let every = routed.get(1).map_or(blocks.len(), |second| second - first);
    map.insert("mod_capacity".into(), json!(routing.capacity));
    map.insert("mod_every".into(), json!(every));
    map.insert("mod_first".into(), json!(first));
    let predictor = match routing.predictor {
        DepthPredictor::Mlp => "mlp",
        DepthPredictor::AuxLoss => "aux_loss",
    };
    map.insert("mod_predictor".into(), json!(predictor));
    if routing.gate == DepthGate::Sigmoid {
        map.insert("mod_gate".into(), json!("sigmoid"));
    }
}
