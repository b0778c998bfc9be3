//! RWKV-6 "Finch" (arXiv 2404.05892), x060, in the authors' layout.

use super::config::{Config, INNER_LIMIT};
use super::rwkv::{Sizes, authors_table, read_channel, read_model, write_model};
use super::{Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::recurrent::{DynamicSpec, RecurrentSpec, Rwkv6Spec, Share};
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Finch.
pub const FAMILY: Family = Family {
    model_type: "rwkv6",
    architecture: "Rwkv6",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "",
    ignored: &[],
};

/// Mixes that share the map into a narrow middle.
pub(super) const MIXES: usize = 5;

fn read(config: &Config) -> Result<ModelSpec> {
    let Sizes {
        width,
        heads,
        head_dim,
    } = Sizes::read(config)?;
    let mix_rank = config.optional_size("mix_rank", INNER_LIMIT)?.unwrap_or(32);
    let decay_rank = config
        .optional_size("decay_rank", INNER_LIMIT)?
        .unwrap_or(64);
    let dynamic = Some(DynamicSpec {
        mix_rank,
        decay_rank,
    });
    let mixer = |_| {
        MixerSpec::Recurrent(RecurrentSpec::Rwkv6(Rwkv6Spec {
            heads,
            head_dim,
            dynamic,
        }))
    };
    read_model(
        config,
        &FAMILY,
        width,
        read_channel(config, Share::Previous, true)?,
        mixer,
    )
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_model(spec, &FAMILY);
    if let Some(MixerSpec::Recurrent(RecurrentSpec::Rwkv6(layer))) =
        spec.blocks.first().map(|block| &block.mixer)
    {
        map.insert("head_size".into(), json!(layer.head_dim));
        map.insert(
            "mix_rank".into(),
            json!(layer.dynamic.map(|dynamic| dynamic.mix_rank)),
        );
        map.insert(
            "decay_rank".into(),
            json!(layer.dynamic.map(|dynamic| dynamic.decay_rank)),
        );
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    authors_table(
        spec,
        &[
            (".mixer.mix_down.weight", ".att.time_maa_w1"),
            (".mixer.mix_up", ".att.time_maa_w2"),
            (".mixer.mix_decay", ".att.time_maa_w"),
            (".mixer.mix_key", ".att.time_maa_k"),
            (".mixer.mix_value", ".att.time_maa_v"),
            (".mixer.mix_receptance", ".att.time_maa_r"),
            (".mixer.mix_gate", ".att.time_maa_g"),
            (".mixer.mix", ".att.time_maa_x"),
            (".mixer.decay_down.weight", ".att.time_decay_w1"),
            (".mixer.decay_up.weight", ".att.time_decay_w2"),
            (".mixer.decay", ".att.time_decay"),
            (".mixer.bonus", ".att.time_faaaa"),
            (".channel.mix_key", ".ffn.time_maa_k"),
            (".channel.mix_receptance", ".ffn.time_maa_r"),
        ],
    )
}
