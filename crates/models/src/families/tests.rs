//! What must hold of every family, over all fixtures.

use super::*;
use crate::folder::Description;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
/// The fixtures that have a configuration, found by looking: a new one is tested by lying in its folder.
pub(super) fn models() -> Vec<String> {
    let has = |folder: &Path, file: &str| folder.join(file).exists();
    let mut models: Vec<String> = std::fs::read_dir(FIXTURES)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| has(folder, "config.json") && has(folder, "expected.safetensors"))
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    models.sort();
    assert!(models.len() > 30);
    models
}

pub(super) fn config(model: &str) -> Config {
    Config::load(format!("{FIXTURES}/{model}").as_ref()).unwrap()
}

/// The fixture's configuration with some keys set or, by null, unset.
pub(super) fn changed(model: &str, changes: Value) -> Result<ModelSpec> {
    let mut map = config(model).map().clone();
    map.extend(changes.as_object().unwrap().clone());
    let config = Config::from_map("config.json".as_ref(), map);
    let spec = (family(&config)?.read)(&config)?;
    config.refuse_unread()?;
    Ok(spec)
}

pub(super) fn fixture(model: &str) -> ModelSpec {
    changed(model, json!({})).unwrap()
}

#[test]
fn every_tensor_of_a_checkpoint_is_consumed_once_and_fits() {
    for model in &models() {
        // Some things the names of the tensors tell, and no configuration.
        let folder = format!("{FIXTURES}/{model}");
        let Description {
            spec, checkpoint, ..
        } = Description::read(folder.as_ref()).unwrap();
        let entries = (family(&config(model)).unwrap().tensors)(&spec);
        let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), entries.len(), "{model}");
        assert!(names.iter().copied().eq(checkpoint.names()), "{model}");
        let shapes: BTreeMap<String, Vec<usize>> = spec.parameters().into_iter().collect();
        for entry in &entries {
            let mut stored = checkpoint.info(&entry.name).unwrap().shape.clone();
            if entry.transposed {
                let last = stored.len().saturating_sub(2);
                stored[last..].reverse();
            }
            let mut whole = shapes[&entry.parts[0]].clone();
            whole[0] = entry.parts.iter().map(|part| shapes[part][0]).sum();
            if let Some(rows) = &entry.rows {
                whole = crate::layout::row_shape(rows, &whole);
            }
            assert_eq!(stored, whole, "{model}: {}", entry.name);
        }
        let mut rows: BTreeMap<&String, Vec<Range<usize>>> = BTreeMap::new();
        for (entry, part) in entries
            .iter()
            .flat_map(|entry| entry.parts.iter().map(move |part| (entry, part)))
        {
            let shape = &shapes[part];
            let all = 0..shape[..(shape.len() - 1).max(1)].iter().product();
            rows.entry(part)
                .or_default()
                .push(entry.rows.clone().unwrap_or(all));
        }
        assert_eq!(
            rows.keys().copied().collect::<BTreeSet<_>>(),
            shapes.keys().collect(),
            "{model}"
        );
        for (part, mut rows) in rows {
            rows.sort_by_key(|rows| rows.start);
            assert!(
                rows[0].start == 0 && rows.windows(2).all(|pair| pair[0].end == pair[1].start),
                "{part}"
            );
        }
        let numbers: usize = checkpoint
            .names()
            .map(|name| checkpoint.info(name).unwrap().elements())
            .sum();
        assert_eq!(spec.parameter_count(), numbers as u64);
    }
}

#[test]
fn every_key_of_the_fixtures_is_known() {
    let mut unknown = Vec::new();
    for model in &models() {
        let config = config(model);
        (family(&config).unwrap().read)(&config).unwrap();
        unknown.extend(
            config
                .refuse_unread()
                .err()
                .map(|error| format!("{model}: {error}")),
        );
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
}

#[test]
fn what_is_written_is_read_back() {
    for model in &models() {
        let spec = fixture(model);
        let map = write_config(&spec).unwrap();
        let text = serde_json::to_string(&map).unwrap();
        let again = Config::parse("config.json".as_ref(), &text).unwrap();
        assert_eq!(
            (family(&again).unwrap().read)(&again).unwrap(),
            spec,
            "{model}"
        );
        // How another library cuts its sequences is no size of the model.
        let is_size = |key: &&String| {
            (key.ends_with("size") && *key != "chunk_size") || key.starts_with("num_")
        };
        for key in config(model).map().keys().filter(is_size) {
            assert_eq!(map.get(key), config(model).map().get(key), "{model}: {key}");
        }
    }
}

/// Whole numbers that were written with a point, or the other way round, by their keys.
fn other_forms(key: &str, written: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (written, theirs) {
        (Value::Object(written), Value::Object(theirs)) => {
            for (key, value) in written {
                let their = theirs.get(key).unwrap_or(&Value::Null);
                other_forms(key, value, their, found);
            }
        }
        (Value::Array(written), Value::Array(theirs)) => {
            let pairs = written.iter().zip(theirs);
            pairs.for_each(|(one, other)| other_forms(key, one, other, found));
        }
        (Value::Number(written), Value::Number(theirs)) if written.is_f64() != theirs.is_f64() => {
            found.push(format!("`{key}`: {written}, not {theirs}"));
        }
        _ => {}
    }
}

#[test]
fn numbers_are_written_in_the_form_that_transformers_writes() {
    for model in &models() {
        let (map, theirs) = (write_config(&fixture(model)).unwrap(), config(model));
        let mut found = Vec::new();
        let [ours, theirs] = [map, theirs.map().clone()].map(Value::Object);
        other_forms("", &ours, &theirs, &mut found);
        assert!(found.is_empty(), "{model}: {}", found.join("; "));
    }
}

#[test]
fn architectures_come_by_name_base_name_and_type() {
    let find = |text: &str| {
        family(&Config::parse("config.json".as_ref(), text).unwrap())
            .map(|family| family.model_type)
    };
    assert_eq!(
        find(r#"{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen3"}"#).unwrap(),
        "qwen2"
    );
    assert_eq!(find(r#"{"architectures":["GPT2Model"]}"#).unwrap(), "gpt2");
    assert_eq!(
        find(r#"{"architectures":[],"model_type":"mistral"}"#).unwrap(),
        "mistral"
    );
    assert_eq!(
        find(r#"{"architectures":["MPTForCausalLM"],"model_type":"mpt"}"#).unwrap(),
        "mpt"
    );
    assert!(
        find("{}")
            .unwrap_err()
            .to_string()
            .contains("key `architectures`: missing")
    );
    assert_eq!(
        find(r#"{"architectures":["LlamaForSequenceClassification"]}"#).unwrap(),
        "llama"
    );
    assert_eq!(
        find(r#"{"architectures":["XLMRobertaForTokenClassification"]}"#).unwrap(),
        "xlm-roberta"
    );
    assert_eq!(
        find(r#"{"architectures":["MT5EncoderModel"]}"#).unwrap(),
        "mt5"
    );
    assert!(find(r#"{"architectures":["LlamaForPreTraining"]}"#).is_err());
    let error = find(r#"{"architectures":["LlamaForCausalML"]}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("did you mean `LlamaForCausalLM`?") && error.contains("`espalier families`"),
        "{error}"
    );
    assert!(
        !find(r#"{"model_type":"zebra_transformer"}"#)
            .unwrap_err()
            .to_string()
            .contains("did you mean")
    );
}

#[test]
fn hostile_sizes_are_errors_in_every_family() {
    // Each size goes by one of several names.
    let names: [&[&str]; 5] = [
        &["hidden_size", "n_embd", "d_model", "dim"],
        &[
            // JetMoE's heads follow from its other sizes.
            "kv_channels",
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "attention_hidden_size",
        ],
        &[
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
        ],
        &["vocab_size"],
        &[
            "intermediate_size",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "ffn_dim",
            "d_ff",
            "hidden_dim",
        ],
    ];
    for model in &models() {
        let map = config(model).map().clone();
        let keys = names
            .iter()
            .filter_map(|names| names.iter().find(|key| map.contains_key(**key)));
        for key in keys {
            for value in [
                json!(0),
                json!(-3),
                json!(1e18),
                json!(1_000_000_000_000_000_000u64),
                json!(2.5),
                json!("4"),
            ] {
                let error = changed(model, json!({ *key: value.clone() }))
                    .unwrap_err()
                    .to_string();
                assert!(
                    error.contains(&format!("key `{key}`")),
                    "{model} {key} {value}: {error}"
                );
            }
        }
        let error = changed(model, json!({ "vocab_size": null }))
            .unwrap_err()
            .to_string();
        assert!(error.contains("key `vocab_size`: missing"), "{error}");
        assert!(changed(model, json!({ "quantization_config": { "bits": 4 } })).is_err());
    }
}

#[test]
fn models_that_a_family_cannot_express_are_not_written() {
    let mut unequal = fixture("mistral");
    if let ChannelSpec::GatedMlp(mlp) = &mut unequal.blocks[2].channel {
        mlp.inner = 8;
    }
    assert!(
        write_config(&unequal)
            .unwrap_err()
            .to_string()
            .contains("cannot express")
    );
    let mut empty = fixture("gpt2");
    empty.blocks.clear();
    assert!(write_config(&empty).is_err());
    let foreign = ModelSpec {
        family: "mistrall".into(),
        ..fixture("gpt2")
    };
    assert!(
        write_config(&foreign)
            .unwrap_err()
            .to_string()
            .contains("did you mean `mistral`?")
    );
}

#[test]
fn a_decoder_that_is_not_causal_reads_both_ways() {
    assert!(!fixture("qwen3").bidirectional);
    let spec = changed("qwen3", json!({ "is_causal": false })).unwrap();
    assert!(spec.bidirectional);
}

#[test]
fn the_older_key_of_rotary_scaling_wins_where_both_stand() {
    let scaling = json!({ "rope_type": "linear", "factor": 4.0 });
    for model in ["llama", "qwen2"] {
        let both = changed(model, json!({ "rope_scaling": scaling })).unwrap();
        assert_ne!(both, fixture(model), "{model}");
        let alone = json!({ "rope_parameters": scaling });
        assert_eq!(both, changed(model, alone).unwrap(), "{model}");
        let empty = changed(model, json!({ "rope_scaling": {} })).unwrap();
        assert_eq!(empty, fixture(model), "{model}");
    }
}

#[test]
fn smollm3s_windows_are_those_of_its_list() {
    let kinds = ["sliding_attention", "full_attention"];
    let count = fixture("smollm3").blocks.len();
    let types: Vec<&str> = (0..count).map(|layer| kinds[layer % 2]).collect();
    let keys = json!({ "use_sliding_window": true, "sliding_window": 4, "layer_types": types });
    let spec = changed("smollm3", keys).unwrap();
    let windows = spec
        .blocks
        .iter()
        .map(|block| attention(block).unwrap().window);
    let expected = (0..count).map(|layer| (layer % 2 == 0).then_some(4));
    assert!(windows.eq(expected));
}
