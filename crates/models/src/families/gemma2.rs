//! Gemma 2 (arXiv 2408.00118): Gemma with soft caps on scores and logits, a window on every other layer, a scale of the
//! scores of its own, and norms after attention and feed-forward too.

use super::gemma::as_gemma;
use super::llama_layout::{self, IGNORED, NAMES, PREFIX, Switches, layers};
use super::{
    Config, Family, ModuleNames, TensorEntry, attention, config::CONTEXT_LIMIT, layer_types, table,
    whole,
};
use crate::error::Result;
use crate::spec::{Activation, MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Gemma 2.
pub const FAMILY: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.refuse("use_bidirectional_attention")?;
    let bias = config.flag_or("attention_bias", false)?;
    let windows = windows(config)?;
    let switches = Switches {
        head_dim: Some(256),
        qkv_bias: bias,
        output_bias: bias,
        windows,
        ..Switches::plain(config, 8192)?
    };
    let activation = config.activation_or("hidden_activation", Activation::GeluTanh)?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let mut spec = as_gemma(
        llama_layout::read(config, &FAMILY, &switches)?,
        tied,
        activation,
    );
    let scale = config
        .positive_or("query_pre_attn_scalar", 256.0)?
        .powf(-0.5);
    let softcap = softcap(config, "attn_logit_softcapping", 50.0)?;
    for block in &mut spec.blocks {
        let MixerSpec::Attention(attention) = &mut block.mixer else {
            continue;
        };
        (attention.scale, attention.softcap) = (scale, softcap);
        (block.mixer_output_norm, block.channel_output_norm) =
            (block.channel_norm, block.channel_norm);
    }
    Ok(ModelSpec {
        logit_softcap: self::softcap(config, "final_logit_softcapping", 30.0)?,
        ..spec
    })
}

/// A soft cap: the class default where the key is absent, none where it is null.
pub(super) fn softcap(config: &Config, key: &str, default: f64) -> Result<Option<f64>> {
    match config.contains(key) {
        true => config.optional_positive(key),
        false => Ok(Some(default)),
    }
}

/// The window of each block: as `layer_types` says, else on even layers.
fn windows(config: &Config) -> Result<Vec<Option<usize>>> {
    let window = config.optional_size("sliding_window", CONTEXT_LIMIT)?;
    let sliding = layer_types::read(config, layers(config)?, |layer| layer % 2 == 0)?;
    let window = |sliding: bool| sliding.then_some(window.unwrap_or(4096));
    Ok(sliding.into_iter().map(window).collect())
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let activation = map.remove("hidden_act").unwrap_or_default();
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_activation", activation);
    set("attention_bias", json!(llama_layout::output_bias(spec)));
    set("final_logit_softcapping", json!(spec.logit_softcap));
    let all: Vec<_> = spec.blocks.iter().filter_map(attention).collect();
    if let Some(first) = all.first() {
        set("attn_logit_softcapping", json!(first.softcap));
        set(
            "query_pre_attn_scalar",
            whole(rounded(first.scale.powi(-2))),
        );
    }
    layer_types::write(spec, &mut map);
    map
}

/// Without the noise that a root and a square leave: the number is a whole one in all known files.
pub(super) fn rounded(number: f64) -> f64 {
    if (number - number.round()).abs() < 1e-9 * number {
        number.round()
    } else {
        number
    }
}

/// LLaMA's table with the norms after the parts.
pub(super) fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    // The names of the norms after the parts; the norm before the feed-forward layer is not LLaMA's.
    const NORMS: &[(&str, &str)] = &[
        (".mixer_output_norm.", ".post_attention_layernorm."),
        (".channel_output_norm.", ".post_feedforward_layernorm."),
        (".channel_norm.", ".pre_feedforward_layernorm."),
    ];
    table(spec, &[NORMS, NAMES].concat(), &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("gemma2");
        let windows: Vec<_> = spec
            .blocks
            .iter()
            .map(|block| attention(block).unwrap().window)
            .collect();
        assert_eq!(windows, [Some(8), None, Some(8)]);
        assert_eq!(
            (
                spec.logit_softcap,
                attention(&spec.blocks[0]).unwrap().softcap
            ),
            (Some(30.0), Some(50.0))
        );
        assert_eq!(attention(&spec.blocks[0]).unwrap().scale, 0.25);
    }

    #[test]
    fn null_caps_are_no_caps_and_absent_ones_the_published() {
        let spec = changed(
            "gemma2",
            json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null }),
        )
        .unwrap();
        assert_eq!(
            (
                spec.logit_softcap,
                attention(&spec.blocks[0]).unwrap().softcap
            ),
            (None, None)
        );
        assert!(changed("gemma2", json!({ "layer_types": ["full_attention"] })).is_err());
    }
}
