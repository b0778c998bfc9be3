//! MPNet (arXiv 2004.09297): RoBERTa without token types, with T5's biases by distance besides.

use super::encoder_layout::{self, Switches, head_names};
use super::{Config, Family, ModuleNames, TensorEntry, attention};
use crate::error::Result;
use crate::spec::{ModelSpec, RelativePositionSpec};
use serde_json::{Map, Value, json};

/// The registration of MPNet.
pub const FAMILY: Family = Family {
    model_type: "mpnet",
    architecture: "MPNetForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &[
        "embeddings.position_ids",
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
    ],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "mpnet.";
/// Every version counts distances in so many buckets, up to this distance, whatever the configuration says.
const BUCKETS: usize = 32;
const MAX_DISTANCE: usize = 128;
/// Positions are counted from behind this token, whatever the configuration says.
const PADDING: u32 = 1;

fn read(config: &Config) -> Result<ModelSpec> {
    const KEY: &str = "relative_attention_num_buckets";
    let rows = config.optional_size(KEY, 1 << 16)?.unwrap_or(BUCKETS);
    if rows < BUCKETS {
        let reason = format!(
            "{rows} rows do not suffice: MPNet counts distances in {BUCKETS} buckets; give {BUCKETS} or more"
        );
        return Err(config.error(KEY, reason));
    }
    let switches = Switches {
        token_types: false,
        counted_behind: Some(PADDING),
        ..Switches::roberta(config)?
    };
    let spec = encoder_layout::read(config, &FAMILY, &switches)?;
    let heads = spec
        .blocks
        .first()
        .and_then(attention)
        .map_or(0, |a| a.heads);
    let relative = RelativePositionSpec {
        buckets: BUCKETS,
        rows,
        max_distance: MAX_DISTANCE,
        heads,
        per_block: false,
    };
    Ok(ModelSpec {
        relative: Some(relative),
        ..spec
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = encoder_layout::write(spec, &FAMILY);
    let rows = spec.relative.map(|relative| relative.rows);
    map.insert("relative_attention_num_buckets".into(), json!(rows));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "mpnet.embeddings.word_embeddings."),
        ("^positions.", "mpnet.embeddings.position_embeddings."),
        ("^embedding_norm.", "mpnet.embeddings.LayerNorm."),
        ("^relative_bias.", "mpnet.encoder.relative_attention_bias."),
        ("^pooler.", "mpnet.pooler.dense."),
        ("^classifier.dense.", "classifier.dense."),
        ("^head_transform.", "lm_head.dense."),
        ("^head_norm.", "lm_head.layer_norm."),
        ("^blocks.", "mpnet.encoder.layer."),
        (".mixer_norm.", ".attention.LayerNorm."),
        (".mixer.query.", ".attention.attn.q."),
        (".mixer.key.", ".attention.attn.k."),
        (".mixer.value.", ".attention.attn.v."),
        (".mixer.output.", ".attention.attn.o."),
        (".channel.up.", ".intermediate.dense."),
        (".channel.down.", ".output.dense."),
        (".channel_norm.", ".output.LayerNorm."),
    ];
    let head = [
        "lm_head.decoder.weight",
        "lm_head.bias",
        "lm_head.decoder.bias",
    ];
    let names = [
        NAMES,
        &head_names(spec, head),
        &encoder_layout::scores_names(spec),
    ]
    .concat();
    encoder_layout::tensors(spec, PREFIX, &names)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mpnet");
        assert_eq!(spec.token_types, None);
        assert_eq!(
            spec.relative.map(|relative| relative.buckets),
            Some(BUCKETS)
        );
        let rows = |rows| changed("mpnet", json!({ "relative_attention_num_buckets": rows }));
        assert!(rows(16).is_err());
        let relative = rows(40).unwrap().relative.unwrap();
        assert_eq!((relative.buckets, relative.rows), (BUCKETS, 40));
    }
}
