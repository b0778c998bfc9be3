//! PaLM (arXiv 2204.02311): attention and a gated feed-forward layer side by side behind one norm without bias, a single head
//! of keys and values, interleaved rotary positions, no biases, and a tied head whose logits are divided by the root of the
//! width. No weights were published; the configuration's keys and the tensors' names are our own.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{Family, Frame, ModuleNames, TensorEntry, attention, mlp, table, write_frame};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    RotaryScaling, RotarySpec,
};
use serde_json::{Map, Value, json};

/// The registration of PaLM.
pub const FAMILY: Family = Family {
    model_type: "palm",
    architecture: "PalmForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &[],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let head_dim = config.optional_size("head_dim", HEAD_LIMIT)?.unwrap_or(256);
    if !head_dim.is_multiple_of(2) {
        return Err(config.error(
            "head_dim",
            "rotary positions need an even number of channels",
        ));
    }
    let theta = config.positive_or("rope_theta", 10_000.0)?;
    let mixer = MixerSpec::Attention(AttentionSpec {
        rotary: Some(RotarySpec {
            dim: head_dim,
            theta,
            interleaved: true,
            scaling: RotaryScaling::None,
        }),
        ..AttentionSpec::plain(config.size("num_attention_heads", HEAD_LIMIT)?, 1, head_dim)
    });
    let channel = ChannelSpec::GatedMlp(MlpSpec {
        inner: config
            .optional_size("intermediate_size", INNER_LIMIT)?
            .unwrap_or(4 * width),
        activation: config.activation_or("hidden_act", Activation::Silu)?,
        bias: false,
        sub_norm: None,
    });
    let norm = NormSpec::layer_without_bias(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let blocks = vec![
        BlockSpec::parallel(mixer, channel, norm);
        config.size("num_hidden_layers", LAYER_LIMIT)?
    ];
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    let z_loss = config.optional_number("z_loss")?.unwrap_or(1e-4);
    if z_loss < 0.0 {
        return Err(config.error("z_loss", "expected a number that is not negative"));
    }
    Ok(ModelSpec {
        logit_scale: (width as f64).powf(-0.5),
        z_loss,
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("max_position_embeddings", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    set("z_loss", json!(spec.z_loss));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("num_attention_heads", json!(attention.heads));
        set("head_dim", json!(attention.head_dim));
        set(
            "rope_theta",
            json!(attention.rotary.as_ref().map(|rotary| rotary.theta)),
        );
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "transformer.wte."),
        ("final_norm.", "transformer.ln_f."),
        ("head.", "lm_head."),
        ("blocks.", "transformer.h."),
        (".mixer_norm.", ".ln."),
        (".mixer.query.", ".attn.q_proj."),
        (".mixer.key.", ".attn.k_proj."),
        (".mixer.value.", ".attn.v_proj."),
        (".mixer.output.", ".attn.o_proj."),
        (".channel.gate.", ".mlp.gate_proj."),
        (".channel.up.", ".mlp.up_proj."),
        (".channel.down.", ".mlp.down_proj."),
    ];
    table(spec, NAMES, &[])
}

#[cfg(test)]
mod tests {
    use super::super::write_config;
    use super::*;
    use crate::{
        model::{Input, LanguageModel},
        source::Seed,
    };
    use burn::tensor::Device;

    fn spec() -> ModelSpec {
        let text = r#"{"model_type":"palm","hidden_size":16,"num_attention_heads":2,"head_dim":8,"num_hidden_layers":2,"vocab_size":32}"#;
        read(&Config::parse("config.json".as_ref(), text).unwrap()).unwrap()
    }

    #[test]
    fn one_norm_one_key_head_and_no_bias() {
        let spec = spec();
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 2 * 8 + 2);
        assert!(
            names.iter().all(|name| !name.ends_with("bias"))
                && names.contains(&"transformer.h.1.ln.weight".into())
        );
        // Embedding; per block a norm, queries, one key and one value head, outputs and three matrices; the last norm.
        assert_eq!(
            spec.parameter_count(),
            32 * 16 + 2 * (16 + 256 + 2 * 128 + 256 + 3 * 16 * 64) + 16
        );
        assert_eq!(write_config(&spec).unwrap()["intermediate_size"], 64);
    }

    #[test]
    fn logits_are_divided_by_the_root_of_the_width_and_the_loss_agrees() {
        let model = LanguageModel::build(spec(), &mut Seed(0), &Device::flex()).unwrap();
        let plain = ModelSpec {
            logit_scale: 1.0,
            ..spec()
        };
        let plain = LanguageModel::build(plain, &mut Seed(0), &Device::flex()).unwrap();
        let input = Input::rows(&[vec![1, 2, 3]]).unwrap();
        let logits = model.logits(&input).unwrap();
        let gap = (logits.clone() * 4.0 - plain.logits(&input).unwrap())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(gap < 1e-5);
        let hidden = model.hidden(&input, None).unwrap().reshape([3, 16]);
        let loss = model
            .cross_entropy(hidden, &[2, 3, 4])
            .unwrap()
            .into_scalar::<f32>();
        let rows = logits
            .reshape([3, 32])
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let expected: f32 = rows
            .chunks(32)
            .zip([2, 3, 4])
            .map(|(row, target): (&[f32], usize)| {
                row.iter().map(|logit| logit.exp()).sum::<f32>().ln() - row[target]
            })
            .sum();
        assert!((loss - expected).abs() < 1e-4);
    }
}
