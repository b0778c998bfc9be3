//! ALBERT (arXiv 1909.11942): BERT whose embedding is narrower than the model, and whose blocks are few and run again and again.

use super::config::{Config, LAYER_LIMIT, WIDTH_LIMIT};
use super::encoder_layout::{self, Switches, head_names};
use super::{Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::spec::{Activation, EmbeddingProjectionSpec, ModelSpec};
use serde_json::{Map, Value, json};

/// The registration of ALBERT.
pub const FAMILY: Family = Family {
    model_type: "albert",
    architecture: "AlbertForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &[
        "embeddings.position_ids",
        "predictions.decoder.weight",
        "predictions.decoder.bias",
    ],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "albert.";
/// `num_hidden_groups` and `inner_group_num`: groups of blocks that are run together, and blocks of a group.
const GROUPS: &str = "num_hidden_groups";
const GROUP_SIZE: &str = "inner_group_num";

fn read(config: &Config) -> Result<ModelSpec> {
    // No version reads them.
    config.ignore(&[
        "down_scale_factor",
        "gap_size",
        "net_structure_type",
        "num_memory_blocks",
    ]);
    let switches = Switches {
        activation: Activation::GeluTanh,
        ..Switches::BERT
    };
    let spec = encoder_layout::read(config, &FAMILY, &switches)?;
    let groups = config.optional_size(GROUPS, LAYER_LIMIT)?.unwrap_or(1);
    let size = config.optional_size(GROUP_SIZE, LAYER_LIMIT)?.unwrap_or(1);
    let runs = spec.blocks.len();
    if runs.saturating_mul(size) > LAYER_LIMIT || groups.saturating_mul(size) > LAYER_LIMIT {
        let reason = format!("{size} blocks in each of {runs} runs are more than {LAYER_LIMIT}");
        return Err(config.error(GROUP_SIZE, reason));
    }
    // As the reference rounds it: with more groups than runs, some are not run.
    let group = |run: usize| (run as f64 / (runs as f64 / groups as f64)) as usize;
    let order = (0..runs).flat_map(|run| (0..size).map(move |block| group(run) * size + block));
    Ok(ModelSpec {
        embedding_projection: Some(EmbeddingProjectionSpec::behind_positions(
            config
                .optional_size("embedding_size", WIDTH_LIMIT)?
                .unwrap_or(128),
        )),
        block_order: Some(order.collect()),
        blocks: spec
            .blocks
            .first()
            .map_or(Vec::new(), |block| vec![block.clone(); groups * size]),
        ..spec
    })
}

/// How many blocks are run one after another before a group comes again, as far as the order says.
fn group_size(spec: &ModelSpec) -> usize {
    let order = spec.block_order();
    let runs = |size: &usize| {
        let groups = spec.blocks.len() / size;
        let count = order.len() / size;
        let group = |run: usize| (run as f64 / (count as f64 / groups as f64)) as usize;
        let expected = (0..count).flat_map(|run| (0..*size).map(move |block| (run, block)));
        let expected = expected.map(|(run, block)| group(run) * size + block);
        spec.blocks.len().is_multiple_of(*size)
            && order.len().is_multiple_of(*size)
            && expected.eq(order.iter().copied())
    };
    (1..=spec.blocks.len()).find(runs).unwrap_or(1)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = encoder_layout::write(spec, &FAMILY);
    let size = group_size(spec);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("embedding_size", json!(spec.outer_width()));
    set("num_hidden_layers", json!(spec.block_order().len() / size));
    set(GROUPS, json!(spec.blocks.len() / size));
    set(GROUP_SIZE, json!(size));
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "albert.embeddings.word_embeddings."),
        ("^positions.", "albert.embeddings.position_embeddings."),
        ("^token_types.", "albert.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "albert.embeddings.LayerNorm."),
        (
            "^embedding_projection.",
            "albert.encoder.embedding_hidden_mapping_in.",
        ),
        ("^pooler.", "albert.pooler."),
        ("^classifier.dense.", "albert.pooler."),
        ("^classifier.output.", "classifier."),
        ("^next_sentence.", "sop_classifier.classifier."),
        ("^head_transform.", "predictions.dense."),
        ("^head_norm.", "predictions.LayerNorm."),
        (".mixer.output.", ".attention.dense."),
        (".mixer_norm.", ".attention.LayerNorm."),
        (".mixer.", ".attention."),
        (".channel.up.", ".ffn."),
        (".channel.down.", ".ffn_output."),
        (".channel_norm.", ".full_layer_layer_norm."),
    ];
    let head = [
        "predictions.decoder.weight",
        "predictions.bias",
        "predictions.decoder.bias",
    ];
    let names = [NAMES, &head_names(spec, head)].concat();
    let size = group_size(spec);
    let mut entries = encoder_layout::tensors(spec, PREFIX, &names);
    let bare = spec.headless && spec.classifier.is_none();
    for entry in &mut entries {
        let numbered = entry.name.strip_prefix("blocks.").and_then(|rest| {
            let (number, rest) = rest.split_once('.')?;
            Some((number.parse::<usize>().ok()?, rest))
        });
        if let Some((number, rest)) = numbered {
            let (group, block) = (number / size, number % size);
            let place = format!("albert_layer_groups.{group}.albert_layers.{block}");
            let prefix = if bare { "" } else { PREFIX };
            entry.name = format!("{prefix}encoder.{place}.{rest}");
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn blocks_are_run_again() {
        let spec = fixture("albert");
        assert!(spec.blocks.len() < spec.block_order().len());
        let change =
            json!({ "num_hidden_layers": 6, "num_hidden_groups": 2, "inner_group_num": 2 });
        let spec = changed("albert", change).unwrap();
        assert_eq!(spec.block_order(), [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
        let map = write_config(&spec).unwrap();
        assert_eq!(
            (&map["num_hidden_layers"], &map["inner_group_num"]),
            (&json!(6), &json!(2))
        );
        assert!(changed("albert", json!({ "inner_group_num": 4096 })).is_err());
    }

    #[test]
    fn the_published_model_has_its_published_count() {
        let sizes = json!({
            "architectures": ["AlbertForMaskedLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 512, "vocab_size": 30000, "embedding_size": 128,
            "num_hidden_groups": 1, "inner_group_num": 1, "type_vocab_size": 2,
        });
        assert_eq!(
            changed("albert", sizes).unwrap().parameter_count(),
            11_221_680
        );
    }
}
