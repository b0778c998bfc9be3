//! The configuration of the authors' own Mamba and Mamba-2 files (state-spaces/mamba), in the keys of transformers.

use serde_json::{Map, Value, json};

/// Their keys and today's, in the file and in its `ssm_cfg`.
const KEYS: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("tie_embeddings", "tie_word_embeddings"),
    ("d_state", "state_size"),
    ("d_conv", "conv_kernel"),
    ("headdim", "head_dim"),
    ("ngroups", "n_groups"),
    ("bias", "use_bias"),
    ("conv_bias", "use_conv_bias"),
    ("dt_rank", "time_step_rank"),
    ("dt_limit", "time_step_limit"),
];

/// `map` in today's keys, if it is one of the authors': those have `d_model` and `ssm_cfg`, and name no model type. Keys that
/// have no counterpart stay as they are, to be refused.
pub(super) fn translated(mut map: Map<String, Value>) -> Map<String, Value> {
    if !map.contains_key("ssm_cfg")
        || !map.contains_key("d_model")
        || map.contains_key("model_type")
    {
        return map;
    }
    let mut layer = match map.remove("ssm_cfg") {
        Some(Value::Object(layer)) => layer,
        _ => Map::new(),
    };
    let is_second = layer.remove("layer").is_some_and(|name| name == "Mamba2");
    // Rows are added to the vocabulary until their number is a multiple of this.
    let multiple = map
        .remove("pad_vocab_size_multiple")
        .and_then(|value| value.as_u64())
        .unwrap_or(8)
        .max(1);
    if let Some(rows) = map.get("vocab_size").and_then(Value::as_u64) {
        map.insert(
            "vocab_size".into(),
            json!(rows.checked_next_multiple_of(multiple)),
        );
    }
    // What the authors' code takes where a file says nothing.
    let mut today = Map::from_iter([("tie_word_embeddings".to_owned(), json!(true))]);
    today.insert(
        "model_type".into(),
        json!(if is_second { "mamba2" } else { "mamba" }),
    );
    if is_second {
        today.insert("n_groups".into(), json!(1));
    }
    for (key, value) in map.into_iter().chain(layer) {
        // Switches of the authors' code, and what this family always has: RMSNorm, and no feed-forward layers.
        let switch = ["fused_add_norm", "rms_norm", "chunk_size"].contains(&key.as_str())
            && value != json!(false);
        if switch || (key == "d_intermediate" && value == json!(0)) {
            continue;
        }
        let name = KEYS
            .iter()
            .find(|(theirs, _)| *theirs == key)
            .map_or(key, |(_, ours)| (*ours).to_owned());
        today.insert(name, value);
    }
    today
}

#[cfg(test)]
mod tests {
    use super::super::{Config, family};
    use crate::spec::ModelSpec;

    fn read(text: &str) -> crate::Result<ModelSpec> {
        let config = Config::parse("config.json".as_ref(), text)?;
        let spec = (family(&config)?.read)(&config)?;
        config.refuse_unread()?;
        Ok(spec)
    }

    #[test]
    fn the_authors_models_have_their_published_counts() {
        let first = r#"{"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
            "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8}"#;
        assert_eq!(read(first).unwrap().parameter_count(), 129_135_360);
        let second = r#"{"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
            "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
            "pad_vocab_size_multiple": 16, "tie_embeddings": true}"#;
        assert_eq!(read(second).unwrap().parameter_count(), 128_989_632);
    }

    #[test]
    fn their_hybrids_are_refused() {
        let hybrid = r#"{"d_model": 64, "n_layer": 2, "vocab_size": 64, "ssm_cfg": {}, "attn_layer_idx": [1]}"#;
        let error = read(hybrid).unwrap_err().to_string();
        assert!(error.contains("attn_layer_idx"), "{error}");
    }
}
