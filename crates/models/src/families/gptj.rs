//! GPT-J (kingoflolz/mesh-transformer-jax, 2021): attention and feed-forward side by side behind one norm, interleaved rotary
//! positions on part of each head, and a bias on the logits.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, ModuleNames, TensorEntry, attention, even_head_dim, mlp, table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    RotaryScaling, RotarySpec,
};
use serde_json::{Map, Value, json};

/// The registration of GPT-J.
pub const FAMILY: Family = Family {
    model_type: "gptj",
    architecture: "GPTJForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &["attn.bias", "attn.masked_bias", "attn.embed_positions"],
};

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["n_ctx", "rotary", "scale_attn_weights"]);
    let width = config.size("n_embd", WIDTH_LIMIT)?;
    let heads = config.size("n_head", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "n_head", width, heads)?;
    let rotary_dim = config
        .optional_size("rotary_dim", HEAD_LIMIT)?
        .unwrap_or(64);
    if rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let reason = format!(
            "expected an even number up to the head's width {head_dim}, found {rotary_dim}"
        );
        return Err(config.error("rotary_dim", reason));
    }
    let rotary = RotarySpec {
        dim: rotary_dim,
        theta: 10_000.0,
        interleaved: true,
        scaling: RotaryScaling::None,
    };
    let mixer = MixerSpec::Attention(AttentionSpec {
        rotary: Some(rotary),
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let channel = ChannelSpec::Mlp(MlpSpec {
        inner: config
            .optional_size("n_inner", INNER_LIMIT)?
            .unwrap_or(4 * width),
        activation: config.activation_or("activation_function", Activation::GeluTanh)?,
        bias: true,
        sub_norm: None,
    });
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let blocks =
        vec![BlockSpec::parallel(mixer, channel, norm); config.size("n_layer", LAYER_LIMIT)?];
    let context = config.size("n_positions", CONTEXT_LIMIT)?;
    let frame = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: false,
    };
    let spec = frame.read(config, &FAMILY)?;
    Ok(ModelSpec {
        head_bias: true,
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("n_embd", json!(spec.width));
    set("n_layer", json!(spec.blocks.len()));
    set("n_positions", json!(spec.context));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set(
            "n_inner",
            if mlp.inner == spec.width.saturating_mul(4) {
                Value::Null
            } else {
                json!(mlp.inner)
            },
        );
        set(
            "activation_function",
            json!(activation_name(mlp.activation)),
        );
    }
    if let Some(attention) = spec.blocks.first().and_then(attention) {
        set("n_head", json!(attention.heads));
        set(
            "rotary_dim",
            json!(attention.rotary.as_ref().map(|rotary| rotary.dim)),
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
        (".mixer_norm.", ".ln_1."),
        (".mixer.query.", ".attn.q_proj."),
        (".mixer.key.", ".attn.k_proj."),
        (".mixer.value.", ".attn.v_proj."),
        (".mixer.output.", ".attn.out_proj."),
        (".channel.up.", ".mlp.fc_in."),
        (".channel.down.", ".mlp.fc_out."),
    ];
    table(spec, NAMES, &[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("gptj");
        assert!(spec.head_bias && spec.blocks[0].channel_norm.is_none());
        let rotary = attention(&spec.blocks[0]).unwrap().rotary.clone().unwrap();
        assert_eq!((rotary.dim, rotary.interleaved), (4, true));
        assert!(
            changed("gptj", json!({ "rotary_dim": 8 }))
                .unwrap_err()
                .to_string()
                .contains("up to the head's width 6")
        );
    }
}
