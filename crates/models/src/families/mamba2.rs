//! Mamba-2 (arXiv 2405.21060), in the layout of transformers.

use super::config::{Config, HEAD_LIMIT};
use super::mamba::{NAMES, OUTPUT_LEFT_OUT, STATE_LIMIT, Sizes, read_blocks};
use super::{Family, Fused, ModuleNames, TensorEntry, table, write_frame};
use crate::error::Result;
use crate::recurrent::{Mamba2Spec, RecurrentSpec};
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Mamba-2.
pub const FAMILY: Family = Family {
    model_type: "mamba2",
    architecture: "Mamba2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::without(&[OUTPUT_LEFT_OUT]),
    prefix: "backbone.",
    ignored: &[],
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["time_step_rank"]);
    // Of the code that the first files came with: the class norms after the gate, by RMSNorm, in any case.
    config.ignore(&["intermediate_size", "norm_before_gate", "rms_norm"]);
    let sizes = Sizes::read_expanded(config, 128)?;
    let head_dim = config.optional_size("head_dim", HEAD_LIMIT)?.unwrap_or(64);
    let heads = config
        .optional_size("num_heads", HEAD_LIMIT)?
        .unwrap_or(sizes.inner / head_dim);
    if heads.checked_mul(head_dim) != Some(sizes.inner) {
        let reason = format!(
            "{heads} heads of {head_dim} are not the {} channels that expand gives",
            sizes.inner
        );
        return Err(config.error("num_heads", reason));
    }
    let groups = config.optional_size("n_groups", STATE_LIMIT)?.unwrap_or(8);
    if !heads.is_multiple_of(groups) {
        return Err(config.error(
            "n_groups",
            format!("{groups} groups do not divide {heads} heads; choose a divisor"),
        ));
    }
    let (least_step, greatest_step) = read_limits(config)?;
    let mixer = MixerSpec::Recurrent(RecurrentSpec::Mamba2(Mamba2Spec {
        heads,
        head_dim,
        states: sizes.states,
        groups,
        taps: sizes.taps,
        convolution_bias: sizes.convolution_bias,
        bias: sizes.bias,
        least_step,
        greatest_step,
        epsilon: config.positive_or("layer_norm_epsilon", 1e-5)?,
    }));
    read_blocks(config, &FAMILY, sizes.width, mixer, false)
}

/// The key of the limits of step sizes.
const LIMITS: &str = "time_step_limit";

/// The limits of step sizes; the greatest may be infinite, for which there are several spellings.
fn read_limits(config: &Config) -> Result<(f64, Option<f64>)> {
    let wrong = || {
        config.error(
            LIMITS,
            "expected the least and the greatest step size, as in [0.0, Infinity]",
        )
    };
    let limits = match config.get(LIMITS) {
        None => return Ok((0.0, None)),
        Some(Value::Array(limits)) => limits,
        Some(_) => return Err(wrong()),
    };
    let [least, greatest] = &limits[..] else {
        return Err(wrong());
    };
    let least = least
        .as_f64()
        .filter(|least| *least >= 0.0)
        .ok_or_else(wrong)?;
    let infinite = |value: &Value| value == "Infinity" || value["__float__"] == "Infinity";
    match greatest.as_f64() {
        Some(greatest) if greatest > least => Ok((least, Some(greatest))),
        None if infinite(greatest) => Ok((least, None)),
        _ => Err(wrong()),
    }
}

/// The first block's layer, if it is of this family.
fn layer(spec: &ModelSpec) -> Option<&Mamba2Spec> {
    match spec.blocks.first().map(|block| &block.mixer) {
        Some(MixerSpec::Recurrent(RecurrentSpec::Mamba2(layer))) => Some(layer),
        _ => None,
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let Some(layer) = layer(spec) else { return map };
    let Mamba2Spec {
        taps,
        states,
        convolution_bias,
        bias,
        ..
    } = *layer;
    Sizes {
        width: spec.width,
        inner: layer.inner(),
        taps,
        states,
        convolution_bias,
        bias,
    }
    .write(spec, &mut map);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("num_heads", json!(layer.heads));
    set("head_dim", json!(layer.head_dim));
    set("n_groups", json!(layer.groups));
    let greatest = layer
        .greatest_step
        .map_or_else(|| json!({ "__float__": "Infinity" }), |step| json!(step));
    set(LIMITS, json!([layer.least_step, greatest]));
    map
}

/// `in_proj` has gates, what is convolved, and step sizes.
const GATE_INPUT_STEP: Fused = Fused {
    parts: &[".mixer.gate.", ".mixer.input.", ".mixer.step."],
    groups: 1,
};

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let own = [
        (".mixer.gate.", ".mixer.in_proj."),
        (".mixer.convolution.", ".mixer.conv1d."),
        (".mixer.step_bias", ".mixer.dt_bias"),
        (".mixer.a_log", ".mixer.A_log"),
        (".mixer.skip", ".mixer.D"),
        (".mixer.output_norm.", ".mixer.norm."),
        (".mixer.output.", ".mixer.out_proj."),
    ];
    table(spec, &[NAMES, &own].concat(), &[GATE_INPUT_STEP])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mamba2");
        let layer = layer(&spec).unwrap();
        assert_eq!(
            (layer.heads, layer.head_dim, layer.groups, layer.states),
            (6, 8, 2, 8)
        );
        assert!(!spec.tied_head && layer.greatest_step.is_none());
    }

    #[test]
    fn limits_of_steps_survive() {
        let spec = changed("mamba2", json!({ "time_step_limit": [0.001, 0.1] })).unwrap();
        assert_eq!(write_config(&spec).unwrap()[LIMITS], json!([0.001, 0.1]));
        assert!(changed("mamba2", json!({ "time_step_limit": [0.0, "Infinity"] })).is_ok());
        for limits in [
            json!([0.1]),
            json!([-1.0, 1.0]),
            json!([1.0, 0.5]),
            json!("none"),
        ] {
            assert!(changed("mamba2", json!({ "time_step_limit": limits })).is_err());
        }
    }

    #[test]
    fn heads_must_fit() {
        for (key, value) in [("num_heads", 5), ("n_groups", 4)] {
            let error = changed("mamba2", json!({ key: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("key `{key}`")), "{error}");
        }
    }
}
