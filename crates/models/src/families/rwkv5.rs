//! RWKV-5 "Eagle" (arXiv 2404.05892), version 5.2, in the authors' layout.

use super::config::Config;
use super::rwkv::{Sizes, authors_table, read_channel, read_model, write_model};
use super::{Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::recurrent::{RecurrentSpec, Rwkv6Spec, Share};
use crate::spec::{MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of Eagle.
pub const FAMILY: Family = Family {
    model_type: "rwkv5",
    architecture: "Rwkv5",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "",
    ignored: &[],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let Sizes {
        width,
        heads,
        head_dim,
    } = Sizes::read(config)?;
    let mixer = |_| {
        MixerSpec::Recurrent(RecurrentSpec::Rwkv6(Rwkv6Spec {
            heads,
            head_dim,
            dynamic: None,
        }))
    };
    read_model(
        config,
        &FAMILY,
        width,
        read_channel(config, Share::Current, true)?,
        mixer,
    )
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_model(spec, &FAMILY);
    if let Some(MixerSpec::Recurrent(RecurrentSpec::Rwkv6(layer))) =
        spec.blocks.first().map(|block| &block.mixer)
    {
        map.insert("head_size".into(), json!(layer.head_dim));
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    authors_table(
        spec,
        &[
            (".mixer.mix_key", ".att.time_mix_k"),
            (".mixer.mix_value", ".att.time_mix_v"),
            (".mixer.mix_receptance", ".att.time_mix_r"),
            (".mixer.mix_gate", ".att.time_mix_g"),
            (".mixer.decay", ".att.time_decay"),
            (".mixer.bonus", ".att.time_faaaa"),
            (".channel.mix_key", ".ffn.time_mix_k"),
            (".channel.mix_receptance", ".ffn.time_mix_r"),
        ],
    )
}
