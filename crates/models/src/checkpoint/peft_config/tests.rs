//! Tests of `peft_config`.

use std::collections::BTreeMap;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
const QUERY: &str = "model.layers.1.self_attn.q_proj";

fn fixture(name: &str) -> PeftConfig {
    let path = format!("{FIXTURES}/{name}/adapter_config.json");
    PeftConfig::read(&Config::load(path.as_ref()).unwrap()).unwrap()
}

/// The fixture with some keys changed.
fn changed(changes: Value) -> Result<PeftConfig> {
    let path = format!("{FIXTURES}/peft-lora/adapter_config.json");
    let mut map = Config::load(path.as_ref()).unwrap().map().clone();
    map.extend(changes.as_object().unwrap().clone());
    PeftConfig::read(&Config::from_map("adapter_config.json".as_ref(), map))
}

#[test]
fn reads_the_fixtures() {
    let config = fixture("peft-lora");
    assert_eq!((config.rank, config.alpha), (4, 8.0));
    assert!(config.matches(QUERY) && config.matches("model.layers.2.mlp.down_proj"));
    assert!(!config.matches("lm_head") && !config.matches("model.layers.1.self_attn.xq_proj"));
    assert_eq!((config.rank_for(QUERY), config.scale_for(QUERY)), (4, 2.0));
    let config = fixture("peft-lora-head");
    assert!(config.matches(QUERY) && !config.matches("model.layers.1.self_attn.k_proj"));
    assert_eq!(config.modules_to_save, ["lm_head"]);
}

#[test]
fn what_is_written_is_read_back() {
    let mut config = fixture("peft-lora-head");
    config.rank_pattern = vec![(Pattern::suffix("q_proj").unwrap(), 2)];
    config.alpha_pattern = vec![(Pattern::suffix("v_proj").unwrap(), 2.5)];
    config.layers_to_transform = Some(vec![0, 2]);
    config.layers_pattern = vec![Pattern::layer("layers").unwrap()];
    config.biases = TrainedBiases::OfTargets;
    config.lora_bias = true;
    config.tokens = Some(TrainedTokens::OfEmbedding(vec![7, 3]));
    let by_module = BTreeMap::from([("lm_head".to_owned(), vec![5])]);
    let by_module = PeftConfig {
        tokens: Some(TrainedTokens::ByModule(by_module)),
        ..config.clone()
    };
    let all = PeftConfig {
        target_modules: Targets::AllLinear,
        ..config.clone()
    };
    let regex = Targets::Regex(Pattern::whole(r".*\.(q|v)_proj").unwrap());
    for config in [
        fixture("peft-lora"),
        config.clone(),
        by_module,
        all,
        PeftConfig {
            target_modules: regex,
            ..config
        },
    ] {
        let written = config.to_json().as_object().unwrap().clone();
        let written = Config::from_map("adapter_config.json".as_ref(), written);
        assert_eq!(PeftConfig::read(&written).unwrap(), config);
    }
}

#[test]
fn scales_follow_rank_alpha_and_rslora() {
    let scale = |rank: usize, rslora: bool| {
        changed(json!({ "r": rank, "lora_alpha": 16, "use_rslora": rslora }))
            .unwrap()
            .scale_for(QUERY)
    };
    assert_eq!([4, 16, 64].map(|rank| scale(rank, true)), [8.0, 4.0, 2.0]);
    assert_eq!([4, 16, 64].map(|rank| scale(rank, false)), [4.0, 1.0, 0.25]);
    let keys = json!({ "rank_pattern": { "q_proj": 2, r"layers\.1\..*": 8 }, "alpha_pattern": { "1.self_attn.q_proj": 3 } });
    let config = changed(keys).unwrap();
    assert_eq!(
        (
            config.rank_for(QUERY),
            config.rank_for("model.layers.1.mlp.up_proj")
        ),
        (2, 8)
    );
    assert_eq!(
        (
            config.rank_for("model.layers.0.mlp.up_proj"),
            config.rank_for("model.layers.0.xq_proj")
        ),
        (4, 4)
    );
    assert_eq!(config.scale_for(QUERY), 1.5);
}

#[test]
fn one_module_can_have_its_own_rank_and_scale() {
    for rslora in [false, true] {
        let mut config =
            changed(json!({ "use_rslora": rslora, "rank_pattern": { "q_proj": 2 } })).unwrap();
        config.set_pattern(QUERY, 12, 0.5);
        assert_eq!(config.rank_for(QUERY), 12);
        assert!((config.scale_for(QUERY) - 0.5).abs() < 1e-12);
        assert_eq!(config.rank_for("model.layers.0.self_attn.q_proj"), 2);
    }
}

#[test]
fn targets_have_three_forms() {
    let regex = changed(json!({ "target_modules": r".*layers\.[01]\..*q_proj" })).unwrap();
    assert!(regex.matches(QUERY) && !regex.matches("model.layers.2.self_attn.q_proj"));
    assert!(!regex.matches("model.layers.1.self_attn.q_proj.extra"));
    let all =
        changed(json!({ "target_modules": "all-linear", "exclude_modules": ["up_proj"] })).unwrap();
    assert!(regex.names(QUERY) && !all.names(QUERY));
    assert!(
        all.matches(QUERY) && !all.matches("lm_head") && !all.matches("model.layers.0.mlp.up_proj")
    );
}

#[test]
fn layers_can_be_chosen() {
    let config = changed(json!({ "layers_to_transform": [0, 2] })).unwrap();
    assert!(!config.matches(QUERY) && config.matches("model.layers.2.self_attn.q_proj"));
    let config = changed(json!({ "layers_to_transform": 1, "layers_pattern": "layers" })).unwrap();
    assert!(config.matches(QUERY) && !config.matches("transformer.h.1.self_attn.q_proj"));
    let config = changed(json!({ "layers_to_transform": [0], "target_modules": [QUERY] })).unwrap();
    assert!(config.matches(QUERY));
}

#[test]
fn keys_that_would_change_the_result_are_refused_by_name() {
    let cases = [
        (json!({ "bias": "some" }), "key `bias`"),
        (
            json!({ "lora_bias": true, "use_dora": true }),
            "key `lora_bias`: DoRA has no bias",
        ),
        (
            json!({ "trainable_token_indices": [1, 1] }),
            "key `trainable_token_indices`",
        ),
        (
            json!({ "trainable_token_indices": { "lm_head": [-1] } }),
            "key `trainable_token_indices`",
        ),
        (json!({ "a_new_key": 3 }), "key `a_new_key`"),
        (
            json!({ "init_lora_weights": "olora" }),
            "key `init_lora_weights`: \"olora\" changes the base model",
        ),
        (
            json!({ "init_lora_weights": "pissa_niter_4" }),
            "key `init_lora_weights`: \"pissa_niter_4\" took out of the base",
        ),
        (json!({ "r": 0 }), "key `r`"),
        (json!({ "r": -4 }), "key `r`"),
        (json!({ "lora_alpha": "8" }), "key `lora_alpha`"),
        (json!({ "lora_dropout": 1.5 }), "key `lora_dropout`"),
        (
            json!({ "target_modules": null }),
            "key `target_modules`: missing",
        ),
        (
            json!({ "target_modules": [] }),
            "key `target_modules`: missing",
        ),
        (
            json!({ "target_modules": "(" }),
            "not a supported regular expression",
        ),
        (
            json!({ "rank_pattern": { "q_proj": 0 } }),
            "key `rank_pattern.q_proj`",
        ),
    ];
    for (changes, part) in cases {
        let error = changed(changes).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
    assert!(changed(json!({ "a_new_key": null, "another": {}, "revision": "main" })).is_ok());
}
