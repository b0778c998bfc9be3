//! OpenELM (arXiv 2404.14619): a decoder whose heads and feed-forward widths grow with depth, with norms on queries and keys.
//!
//! Left out, and refused: feed-forward layers without a gate, and norms other than RMSNorm.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::{
    Family, Frame, Fused, GATE_UP, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, mlp,
    table, write_frame,
};
use crate::error::Result;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, MixerSpec, MlpSpec, ModelSpec, NormSpec,
    RotaryScaling, RotarySpec,
};
use serde_json::{Map, Value, json};

/// The registration of OpenELM.
pub const FAMILY: Family = Family {
    model_type: "openelm",
    architecture: "OpenELMForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "transformer.",
    ignored: &["pos_embedding.inv_freq"],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let width = config.size("model_dim", WIDTH_LIMIT)?;
    let head_dim = config.size("head_dim", HEAD_LIMIT)?;
    let count = config.size("num_transformer_layers", LAYER_LIMIT)?;
    // What the lists of heads follow from, and how far a table of rotations reaches at first.
    config.ignore(&["qkv_multipliers", "rope_max_length"]);
    if !config.flag_or("ffn_with_glu", true)? {
        return Err(config.error(
            "ffn_with_glu",
            "false is not supported: published models have gates",
        ));
    }
    if let Some(name) = config
        .optional_text("normalization_layer_name")?
        .filter(|name| *name != "rms_norm")
    {
        return Err(config.error(
            "normalization_layer_name",
            format!("`{name}` is not supported; expected rms_norm"),
        ));
    }
    let norm = NormSpec::rms(1e-6);
    let sizes = heads(config, width, head_dim, count)?
        .into_iter()
        .zip(inner_widths(config, width, count)?);
    let theta = config.positive_or("rope_freq_constant", 10_000.0)?;
    let qk_norm = config
        .flag_or("normalize_qk_projections", true)?
        .then_some(norm);
    let activation = config.activation_or("activation_fn_name", Activation::Silu)?;
    let block = |((heads, kv_heads), inner)| {
        let mixer = MixerSpec::Attention(AttentionSpec {
            rotary: Some(RotarySpec {
                dim: head_dim,
                theta,
                interleaved: false,
                scaling: RotaryScaling::None,
            }),
            qk_norm,
            ..AttentionSpec::plain(heads, kv_heads, head_dim)
        });
        BlockSpec::sequential(
            mixer,
            ChannelSpec::GatedMlp(MlpSpec {
                inner,
                activation,
                bias: false,
                sub_norm: None,
            }),
            norm,
        )
    };
    let blocks = sizes.map(block).collect();
    let context = config
        .optional_size("max_context_length", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: true,
    }
    .read(config, &FAMILY)?;
    Ok(ModelSpec {
        tied_head: config.flag_or("share_input_output_layers", true)?,
        ..spec
    })
}

/// Query and key heads of each layer: as listed, else from the multipliers.
fn heads(
    config: &Config,
    width: usize,
    head_dim: usize,
    count: usize,
) -> Result<Vec<(usize, usize)>> {
    let group = config
        .optional_size("num_gqa_groups", HEAD_LIMIT)?
        .unwrap_or(1);
    let queries = match config.optional_counts("num_query_heads", HEAD_LIMIT)? {
        Some(list) => list,
        None => multipliers(config, "qkv_multipliers", count)?
            .into_iter()
            .map(|multiplier| divisible(width as f64 * multiplier, head_dim * group) / head_dim)
            .collect(),
    };
    let keys = match config.optional_counts("num_kv_heads", HEAD_LIMIT)? {
        Some(list) => list,
        None => queries.iter().map(|heads| heads / group).collect(),
    };
    if queries.len() != count || keys.len() != count {
        return Err(config.error(
            "num_query_heads",
            format!("expected {count} numbers, here and in num_kv_heads"),
        ));
    }
    let fits = |(heads, kv_heads): &(usize, usize)| {
        *kv_heads > 0 && *heads > 0 && heads.is_multiple_of(*kv_heads)
    };
    let pairs: Vec<(usize, usize)> = queries.into_iter().zip(keys).collect();
    match pairs.iter().find(|pair| !fits(pair)) {
        Some((heads, kv_heads)) => {
            let reason = format!(
                "{kv_heads} key heads do not divide the {heads} query heads; choose a divisor"
            );
            Err(config.error("num_kv_heads", reason))
        }
        None => Ok(pairs),
    }
}

fn inner_widths(config: &Config, width: usize, count: usize) -> Result<Vec<usize>> {
    let divisor = config
        .optional_size("ffn_dim_divisor", INNER_LIMIT)?
        .unwrap_or(256);
    let widths = multipliers(config, "ffn_multipliers", count)?
        .into_iter()
        .map(|m| divisible(width as f64 * m, divisor));
    let widths: Vec<usize> = widths.collect();
    match widths.iter().all(|inner| (1..=INNER_LIMIT).contains(inner)) {
        true => Ok(widths),
        false => Err(config.error(
            "ffn_multipliers",
            format!("gives layers wider than {INNER_LIMIT}"),
        )),
    }
}

/// A number for each layer: as listed, or spread evenly between two and rounded to hundredths, or one for all.
fn multipliers(config: &Config, key: &str, count: usize) -> Result<Vec<f64>> {
    let list = config.optional_positives(key)?.unwrap_or_default();
    match list[..] {
        [one] => Ok(vec![one; count]),
        _ if list.len() == count => Ok(list),
        [first, last] => {
            let step = (last - first) / (count.max(2) - 1) as f64;
            Ok((0..count)
                .map(|i| ((first + step * i as f64) * 100.0).round() / 100.0)
                .collect())
        }
        _ => Err(config.error(
            key,
            format!(
                "expected {count} numbers, or the first and the last; found {}",
                list.len()
            ),
        )),
    }
}

/// The multiple of `divisor` nearest to `value`, never less than nine tenths of it.
fn divisible(value: f64, divisor: usize) -> usize {
    let value = value.min(INNER_LIMIT as f64 * 2.0);
    let rounded = ((value + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    if (rounded as f64) < 0.9 * value {
        rounded + divisor
    } else {
        rounded
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let all: Vec<&AttentionSpec> = spec.blocks.iter().filter_map(attention).collect();
    let inner: Vec<usize> = spec
        .blocks
        .iter()
        .filter_map(mlp)
        .map(|mlp| mlp.inner)
        .collect();
    set("model_dim", json!(spec.width));
    set("num_transformer_layers", json!(spec.blocks.len()));
    set("max_context_length", json!(spec.context));
    set("share_input_output_layers", json!(spec.tied_head));
    set(
        "num_query_heads",
        all.iter().map(|attention| attention.heads).collect(),
    );
    set(
        "num_kv_heads",
        all.iter().map(|attention| attention.kv_heads).collect(),
    );
    set(
        "ffn_multipliers",
        inner
            .iter()
            .map(|inner| *inner as f64 / spec.width.max(1) as f64)
            .collect(),
    );
    set(
        "ffn_dim_divisor",
        json!(
            inner
                .iter()
                .copied()
                .fold(0, greatest_common_divisor)
                .max(1)
        ),
    );
    set("ffn_with_glu", json!(true));
    set("normalization_layer_name", json!("rms_norm"));
    if let Some(attention) = all.first() {
        set("head_dim", json!(attention.head_dim));
        set(
            "num_gqa_groups",
            json!(attention.heads / attention.kv_heads.max(1)),
        );
        set(
            "normalize_qk_projections",
            json!(attention.qk_norm.is_some()),
        );
        set(
            "rope_freq_constant",
            json!(attention.rotary.as_ref().map(|rotary| rotary.theta)),
        );
        let name = spec
            .blocks
            .first()
            .and_then(mlp)
            .map(|mlp| activation_name(mlp.activation));
        set(
            "activation_fn_name",
            json!(name.map(|name| if name == "silu" { "swish" } else { name })),
        );
    }
    map
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "transformer.token_embeddings."),
        ("final_norm.", "transformer.norm."),
        ("head.", "lm_head."),
        ("blocks.", "transformer.layers."),
        (".mixer_norm.", ".attn_norm."),
        (".channel_norm.", ".ffn_norm."),
        (".mixer.query_norm.", ".attn.q_norm."),
        (".mixer.key_norm.", ".attn.k_norm."),
        (".mixer.query.", ".attn.qkv_proj."),
        (".mixer.output.", ".attn.out_proj."),
        (".channel.gate.", ".ffn.proj_1."),
        (".channel.down.", ".ffn.proj_2."),
    ];
    let fused = [
        Fused {
            parts: QUERY_KEY_VALUE,
            groups: 1,
        },
        Fused {
            parts: GATE_UP,
            groups: 1,
        },
    ];
    table(spec, NAMES, &fused)
}

#[cfg(test)]
mod tests {
    use super::super::write_config;
    use super::*;

    /// A published size by its layers, width and width of a head.
    fn published(layers: usize, width: usize, head_dim: usize) -> ModelSpec {
        let text = json!({
            "model_type": "openelm", "model_dim": width, "head_dim": head_dim, "num_transformer_layers": layers,
            "num_gqa_groups": 4, "qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [0.5, 4.0], "vocab_size": 32000,
        });
        read(&Config::parse("config.json".as_ref(), &text.to_string()).unwrap()).unwrap()
    }

    fn query_heads(spec: &ModelSpec) -> Vec<usize> {
        spec.blocks
            .iter()
            .map(|block| attention(block).unwrap().heads)
            .collect()
    }

    fn inner(spec: &ModelSpec) -> Vec<usize> {
        spec.blocks
            .iter()
            .filter_map(mlp)
            .map(|mlp| mlp.inner)
            .collect()
    }

    #[test]
    fn published_sizes_have_their_heads_widths_and_counts() {
        let spec = published(16, 1280, 64);
        assert_eq!(
            query_heads(&spec),
            [[12; 5].as_slice(), &[16; 7], &[20; 4]].concat()
        );
        let expected = [
            768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608,
            4864, 5120,
        ];
        assert_eq!(inner(&spec), expected);
        let counts = [(20, 1536, 64), (28, 2048, 64), (36, 3072, 128)]
            .map(|(layers, width, head_dim)| published(layers, width, head_dim).parameter_count());
        assert_eq!(spec.parameter_count(), 271_527_168);
        assert_eq!(counts, [457_179_136, 1_079_891_456, 3_036_647_424]);
    }

    #[test]
    fn larger_published_sizes_grow_with_depth_too() {
        let spec = published(20, 1536, 64);
        assert_eq!(
            query_heads(&spec),
            [[12; 3].as_slice(), &[16; 7], &[20; 6], &[24; 4]].concat()
        );
        let expected = [
            768, 1024, 1280, 1536, 1792, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4352,
            4608, 5120, 5376, 5632, 5888, 6144,
        ];
        assert_eq!(inner(&spec), expected);
        let spec = published(28, 2048, 64);
        assert_eq!(
            query_heads(&spec),
            [[16; 3].as_slice(), &[20; 7], &[24; 8], &[28; 6], &[32; 4]].concat()
        );
        assert_eq!((inner(&spec)[0], inner(&spec)[27]), (1024, 8192));
        let spec = published(36, 3072, 128);
        assert_eq!(
            query_heads(&spec),
            [[12; 4].as_slice(), &[16; 14], &[20; 12], &[24; 6]].concat()
        );
        assert_eq!((inner(&spec)[0], inner(&spec)[35]), (1536, 12288));
    }

    #[test]
    fn unequal_layers_are_written_and_read_back() {
        let spec = published(16, 1280, 64);
        assert_eq!(write_config(&spec).unwrap()["num_query_heads"][15], 20);
        let entries = tensors(&spec);
        assert_eq!(
            entries.iter().map(|entry| entry.parts.len()).sum::<usize>(),
            spec.parameters().len()
        );
        assert!(
            entries
                .iter()
                .any(|entry| entry.name == "transformer.layers.3.ffn.proj_1.weight")
        );
    }

    #[test]
    fn lists_must_fit() {
        let wrong = |changes: Value| {
            let mut map = write_config(&published(16, 1280, 64)).unwrap();
            map.extend(changes.as_object().unwrap().clone());
            read(&Config::from_map("config.json".as_ref(), map))
                .unwrap_err()
                .to_string()
        };
        assert!(wrong(json!({ "num_query_heads": [4] })).contains("expected 16 numbers"));
        assert!(wrong(json!({ "num_kv_heads": vec![5; 16] })).contains("do not divide"));
        assert!(
            wrong(json!({ "ffn_multipliers": [1.0, 2.0, 3.0] })).contains("key `ffn_multipliers`")
        );
        assert!(wrong(json!({ "ffn_with_glu": false })).contains("key `ffn_with_glu`"));
    }
}
