//! RWKV-4 (arXiv 2305.13048), in the layout of transformers and, under the name `rwkv4`, in the authors'.
//!
//! The key `rescale_every` is accepted and has no effect: it halves the residual stream now and then so that f16 does not
//! overflow, which f32 and bf16 need not fear; the model is the same but for the norms' epsilons.

use super::config::{CONTEXT_LIMIT, Config, INNER_LIMIT, WIDTH_LIMIT};
use super::rwkv::{self, authors_table, write_model};
use super::{Family, ModuleNames, TensorEntry, table};
use crate::error::Result;
use crate::recurrent::{RecurrentSpec, Rwkv4Spec, RwkvChannelSpec, Share};
use crate::spec::{ChannelSpec, MixerSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration in the layout of transformers.
pub const FAMILY: Family = Family {
    model_type: "rwkv",
    architecture: "RwkvForCausalLM",
    read: |config| read(config, &FAMILY),
    write: |spec| write(spec, &FAMILY),
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "rwkv.",
    ignored: &[],
};

/// The registration in the authors' layout.
pub const AUTHORS: Family = Family {
    model_type: "rwkv4",
    architecture: "Rwkv4",
    read: |config| read(config, &AUTHORS),
    write: |spec| write(spec, &AUTHORS),
    tensors: |spec| authors_table(spec, AUTHORS_NAMES),
    modules: ModuleNames::OF_FILES,
    prefix: "",
    ignored: &[],
};

/// The length for which a model was trained where its file does not say.
const CONTEXT: usize = 1024;

fn read(config: &Config, family: &Family) -> Result<ModelSpec> {
    config.ignore(&["rescale_every"]);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let inner = config
        .optional_size("attention_hidden_size", INNER_LIMIT)?
        .unwrap_or(width);
    let channel = config
        .optional_size("intermediate_size", INNER_LIMIT)?
        .unwrap_or(4 * width);
    let channel = ChannelSpec::Rwkv(RwkvChannelSpec {
        inner: channel,
        share: Share::Current,
        receptance: true,
    });
    let mixer = |_| MixerSpec::Recurrent(RecurrentSpec::Rwkv4(Rwkv4Spec { inner }));
    let spec = rwkv::read_model(config, family, width, channel, mixer)?;
    Ok(ModelSpec {
        context: config
            .optional_size("context_length", CONTEXT_LIMIT)?
            .unwrap_or(CONTEXT),
        ..spec
    })
}

fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_model(spec, family);
    map.remove("max_position_embeddings");
    map.insert("context_length".into(), json!(spec.context));
    if let Some(MixerSpec::Recurrent(RecurrentSpec::Rwkv4(layer))) =
        spec.blocks.first().map(|block| &block.mixer)
    {
        map.insert("attention_hidden_size".into(), json!(layer.inner));
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    let names = [
        ("embedding.", "rwkv.embeddings."),
        ("embedding_norm.", "rwkv.blocks.0.pre_ln."),
        ("final_norm.", "rwkv.ln_out."),
        ("^blocks.", "rwkv.blocks."),
        (".mixer_norm.", ".ln1."),
        (".channel_norm.", ".ln2."),
        (".mixer.mix_", ".attention.time_mix_"),
        (".mixer.decay", ".attention.time_decay"),
        (".mixer.bonus", ".attention.time_first"),
        (".mixer.", ".attention."),
        (".channel.mix_", ".feed_forward.time_mix_"),
        (".channel.", ".feed_forward."),
    ];
    table(spec, &names, &[])
}

const AUTHORS_NAMES: &[(&str, &str)] = &[
    (".mixer.mix_key", ".att.time_mix_k"),
    (".mixer.mix_value", ".att.time_mix_v"),
    (".mixer.mix_receptance", ".att.time_mix_r"),
    (".mixer.decay", ".att.time_decay"),
    (".mixer.bonus", ".att.time_first"),
    (".channel.mix_key", ".ffn.time_mix_k"),
    (".channel.mix_receptance", ".ffn.time_mix_r"),
];

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("rwkv4");
        assert_eq!((spec.width, spec.context, spec.tied_head), (24, 64, false));
        assert_eq!(write_config(&spec).unwrap()["attention_hidden_size"], 24);
    }

    #[test]
    fn sizes_have_defaults() {
        let plain = json!({"attention_hidden_size": null, "intermediate_size": null, "context_length": null});
        let spec = changed("rwkv4", plain).unwrap();
        let map = write_config(&spec).unwrap();
        assert_eq!(
            (&map["attention_hidden_size"], &map["intermediate_size"]),
            (&json!(24), &json!(96))
        );
        let tied = changed(
            "rwkv4",
            json!({"tie_word_embeddings": true, "rescale_every": 0}),
        )
        .unwrap();
        assert!(
            tied.tied_head
                && (FAMILY.tensors)(&tied)
                    .iter()
                    .all(|entry| entry.name != "head.weight")
        );
    }
}
