//! StableLM 2 (arXiv 2402.17834): LLaMA with LayerNorm, rotary positions on a part of each head, and, in some sizes, biases on
//! queries, keys and values, or attention and feed-forward side by side and a norm for each head of queries and keys.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, rename_key};
use super::{Config, Family, ModuleNames, TensorEntry, attention, block_of};
use crate::error::Result;
use crate::spec::{BlockSpec, MixerSpec, ModelSpec, NormExtent, NormSpec, Residual};
use serde_json::{Map, Value, json};

/// The registration of StableLM.
pub const FAMILY: Family = Family {
    model_type: "stablelm",
    architecture: "StableLmForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let parallel = config.flag_or("use_parallel_residual", false)?;
    let heads_normed = config.flag_or("qk_layernorm", false)?;
    let epsilon = config.positive_or("layer_norm_eps", 1e-5)?;
    let switches = Switches {
        partial: true,
        qkv_bias: config.flag_or("use_qkv_bias", false)?,
        norm: Some(NormSpec::layer(epsilon)),
        qk_norm: heads_normed.then_some(NormExtent::OwnHead),
        block: if parallel {
            BlockSpec::parallel
        } else {
            BlockSpec::sequential
        },
        ..Switches::plain(config, 4096)?
    };
    // The class computes the width of a head, whatever the file says.
    config.ignore(&["head_dim"]);
    let config = config
        .clone()
        .with("head_dim", Value::Null)
        .with_defaults(&[("partial_rotary_factor", json!(0.25))]);
    let mut spec = llama_layout::read(&config, &FAMILY, &switches)?;
    for block in &mut spec.blocks {
        if let MixerSpec::Attention(attention) = &mut block.mixer {
            attention.qk_norm = heads_normed.then(|| NormSpec::layer_without_bias(epsilon));
        }
    }
    Ok(spec)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write_partial(spec, &FAMILY);
    rename_key(&mut map, "rms_norm_eps", "layer_norm_eps");
    // The class computes the width of a head.
    map.remove("head_dim");
    let first = spec.blocks.first().map(|block| block.residual);
    map.insert(
        "use_parallel_residual".into(),
        json!(first == Some(Residual::Parallel)),
    );
    map.insert("use_qkv_bias".into(), json!(llama_layout::qkv_bias(spec)));
    let first = spec.blocks.first().and_then(attention);
    let heads_normed = first.is_some_and(|attention| attention.qk_norm.is_some());
    map.insert("qk_layernorm".into(), json!(heads_normed));
    map
}

/// LLaMA's table, in which each head's norm is a tensor of its own.
fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: [(&str, &str); 2] = [(".q_norm.", ".q_layernorm."), (".k_norm.", ".k_layernorm.")];
    let heads = |entry: &TensorEntry| {
        let attention = block_of(spec, &entry.parts[0]).and_then(attention)?;
        let (ours, theirs) = NAMES.iter().find(|(ours, _)| entry.name.contains(ours))?;
        let heads = match theirs.starts_with(".q") {
            true => attention.heads,
            false => attention.kv_heads,
        };
        Some((heads, entry.name.replace(ours, theirs)))
    };
    let mut table = Vec::new();
    for entry in llama_layout::tensors(spec) {
        let Some((heads, name)) = heads(&entry) else {
            table.push(entry);
            continue;
        };
        table.extend((0..heads).map(|head| TensorEntry {
            name: name.replace("norm.weight", &format!("norm.norms.{head}.weight")),
            rows: Some(head..head + 1),
            ..entry.clone()
        }));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixtures() {
        let spec = fixture("stablelm");
        assert!(llama_layout::qkv_bias(&spec) && spec.blocks[0].channel_norm.is_some());
        let spec = fixture("stablelm-parallel");
        assert!(
            spec.blocks[0].residual == Residual::Parallel && spec.blocks[0].channel_norm.is_none()
        );
        let normed = changed("stablelm", json!({ "qk_layernorm": true })).unwrap();
        let attention = attention(&normed.blocks[0]).unwrap();
        assert_eq!(attention.qk_norm_extent, NormExtent::OwnHead);
    }
}
