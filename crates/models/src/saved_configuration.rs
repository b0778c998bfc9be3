//! The `config.json` of a model that is saved: what the model is, over what the folder that it came from said.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    checkpoint::Dtype,
    families::{
        self, Config,
        one_bit::{BITS, PACKING},
    },
    spec::ModelSpec,
};

/// Refuses a model that could not be saved beside what `config`, its original `config.json`, says: before it is trained, and not
/// after.
///
/// # Errors
/// When no configuration of the model's family describes it.
pub fn check_savable(spec: &ModelSpec, config: Option<&Map<String, Value>>) -> Result<()> {
    let refusal = |error| Error::Invalid(format!("the trained model could not be saved: {error}"));
    configuration(spec, config, Dtype::F32)
        .map(drop)
        .map_err(refusal)
}

/// The configuration of `spec`, with weights of type `dtype`: what the model is overrides what `config` said, and keys that nobody
/// knows stay.
///
/// # Errors
/// When it would be read as another model.
pub(crate) fn configuration(
    spec: &ModelSpec,
    config: Option<&Map<String, Value>>,
    dtype: Dtype,
) -> Result<Map<String, Value>> {
    let mut map = config.cloned().unwrap_or_default();
    let mut written = families::write_config(spec)?;
    keep_labels(&map, &mut written);
    // What is saved is packed as the model is, not as it was.
    map.remove(PACKING);
    map.remove(BITS);
    // A list with a word for each layer, which the model may have more or fewer of now.
    if !written.contains_key("layer_types") {
        map.remove("layer_types");
    }
    for (key, value) in written {
        // An equal number keeps its form: readers tell 8 from 8.0.
        let is_same = map.get(&key).is_some_and(|old| are_equal(old, &value));
        if !is_same {
            map.insert(key, value);
        }
    }
    let name = match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    map.remove("torch_dtype");
    map.insert("dtype".into(), name.into());
    let again = Config::from_map(Path::new("config.json"), map.clone());
    match families::is_of(&again, spec)? {
        true => Ok(map),
        false => Err(Error::Invalid(format!(
            "keys of the original config.json that the family `{}` no longer needs say something else than the model; remove them",
            spec.family
        ))),
    }
}

/// Names of classes stay where they name as many as there are.
fn keep_labels(old: &Map<String, Value>, written: &mut Map<String, Value>) {
    let count = |map: &Map<String, Value>| Some(map.get("id2label")?.as_object()?.len());
    if count(old).is_some() && count(old) == count(written) {
        written.remove("id2label");
        written.remove("label2id");
    }
}

/// Whether two values mean the same, numbers by what they are worth.
fn are_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| are_equal(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(key, value): (&String, &Value)| {
                other.get(key).is_some_and(|o| are_equal(value, o))
            };
            one.len() == other.len() && one.iter().all(has)
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::NormSpec;
    use serde_json::json;

    #[test]
    fn what_cannot_be_saved_is_told_before() {
        let spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
        check_savable(&spec, None).unwrap();
        let mut unequal = spec.clone();
        unequal.blocks[1].mixer_norm = Some(NormSpec::layer(1e-5));
        let error = check_savable(&unequal, None).unwrap_err().to_string();
        assert!(
            error.starts_with("the trained model could not be saved: ")
                && error.contains("`llama` cannot express this model"),
            "{error}"
        );
        // A key of the original that would change the model when it is read again.
        let stale = json!({ "bidirectional": true });
        let error = check_savable(&spec, stale.as_object()).unwrap_err();
        assert!(error.to_string().contains("something else than the model"));
    }

    #[test]
    fn what_nobody_knows_stays() {
        let spec = ModelSpec::llama(512, 64, 2, 4, 2, 160, 128);
        let original = json!({ "rope_theta": 10000, "torch_dtype": "float16", "odd": [1], "layer_types": ["full_attention"] });
        let map = configuration(&spec, original.as_object(), Dtype::BF16).unwrap_or_default();
        assert_eq!(map.get("odd"), Some(&json!([1])));
        assert_eq!(map.get("dtype"), Some(&json!("bfloat16")));
        assert!(!map.contains_key("torch_dtype") && !map.contains_key("layer_types"));
    }
}
