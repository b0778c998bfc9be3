//! RWKV-7 "Goose" (arXiv 2503.14456), x070, in the authors' layout.

use super::config::{Config, INNER_LIMIT};
use super::rwkv::{Sizes, authors_table, read_channel, read_model, write_model};
use super::{Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::recurrent::{RecurrentSpec, Rwkv7Spec, Share};
use crate::spec::{BlockSpec, MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Goose. Some files give the first block a mix with its own values, which no one reads.
pub const FAMILY: Family = Family {
    model_type: "rwkv7",
    architecture: "Rwkv7",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "",
    ignored: &["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"],
};

/// The rank that the authors give a map in a model of this width.
fn usual_rank(factor: f64, width: usize, power: f64) -> usize {
    let rank = factor * (width as f64).powf(power) / 32.0;
    (32 * rank.round() as usize).max(32)
}

fn read(config: &Config) -> Result<ModelSpec> {
    let Sizes {
        width,
        heads,
        head_dim,
    } = Sizes::read(config)?;
    let rank = |key, factor, power| {
        let given = config.optional_size(key, INNER_LIMIT)?;
        Ok::<_, crate::Error>(given.unwrap_or_else(|| usual_rank(factor, width, power)))
    };
    let (decay_rank, rate_rank) = (rank("decay_rank", 1.8, 0.5)?, rank("rate_rank", 1.8, 0.5)?);
    let (value_rank, gate_rank) = (rank("value_rank", 1.3, 0.5)?, rank("gate_rank", 0.6, 0.8)?);
    let mixer = |i: usize| {
        let value_rank = (i > 0).then_some(value_rank);
        let spec = Rwkv7Spec {
            heads,
            head_dim,
            decay_rank,
            rate_rank,
            value_rank,
            gate_rank,
        };
        MixerSpec::Recurrent(RecurrentSpec::Rwkv7(spec))
    };
    read_model(
        config,
        &FAMILY,
        width,
        read_channel(config, Share::Previous, false)?,
        mixer,
    )
}

/// The layer of a block of this family.
fn layer(block: &BlockSpec) -> Option<&Rwkv7Spec> {
    match &block.mixer {
        MixerSpec::Recurrent(RecurrentSpec::Rwkv7(layer)) => Some(layer),
        _ => None,
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_model(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    // The last block has every rank, unless it is the first too.
    if let Some(layer) = spec.blocks.last().and_then(layer) {
        set("head_size", json!(layer.head_dim));
        set("decay_rank", json!(layer.decay_rank));
        set("rate_rank", json!(layer.rate_rank));
        set("gate_rank", json!(layer.gate_rank));
        if let Some(rank) = layer.value_rank {
            set("value_rank", json!(rank));
        }
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    authors_table(
        spec,
        &[
            (".mixer.mix_receptance", ".att.x_r"),
            (".mixer.mix_decay", ".att.x_w"),
            (".mixer.mix_key", ".att.x_k"),
            (".mixer.mix_value", ".att.x_v"),
            (".mixer.mix_rate", ".att.x_a"),
            (".mixer.mix_gate", ".att.x_g"),
            (".mixer.decay_down.weight", ".att.w1"),
            (".mixer.decay_up.weight", ".att.w2"),
            (".mixer.decay", ".att.w0"),
            (".mixer.rate_down.weight", ".att.a1"),
            (".mixer.rate_up.weight", ".att.a2"),
            (".mixer.rate", ".att.a0"),
            (".mixer.first_down.weight", ".att.v1"),
            (".mixer.first_up.weight", ".att.v2"),
            (".mixer.first", ".att.v0"),
            (".mixer.gate_down.weight", ".att.g1"),
            (".mixer.gate_up.weight", ".att.g2"),
            (".mixer.removed", ".att.k_k"),
            (".mixer.written", ".att.k_a"),
            (".mixer.bonus", ".att.r_k"),
            (".channel.mix_key", ".ffn.x_k"),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_width() {
        // The published 0.1B model.
        let ranks = [(1.8, 0.5), (1.3, 0.5), (0.6, 0.8)]
            .map(|(factor, power)| usual_rank(factor, 768, power));
        assert_eq!(ranks, [64, 32, 128]);
        assert_eq!(usual_rank(1.3, 16, 0.5), 32);
    }
}
