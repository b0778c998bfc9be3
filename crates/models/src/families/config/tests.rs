//! Typed access to wrong and odd values.

use super::*;

fn config(text: &str) -> Config {
    Config::parse("config.json".as_ref(), text).unwrap()
}

#[test]
fn pythons_infinity_is_read() {
    let text = r#"{"name": "an \"Infinity\" inside", "limit": [0.0, Infinity], "n": 3}"#;
    let config = Config::parse("config.json".as_ref(), text).unwrap();
    assert_eq!(config.map()["limit"][1], "Infinity");
    assert_eq!(config.map()["name"], "an \"Infinity\" inside");
    assert!(Config::parse("config.json".as_ref(), "{\"a\": Infinite}").is_err());
}

#[test]
fn sizes_are_whole_positive_and_bounded() {
    for wrong in [
        "0",
        "-4",
        "24.0",
        "1e18",
        "1000000000000000000",
        "\"24\"",
        "true",
        "[24]",
        "99999999999999999999999",
    ] {
        let error = config(&format!(r#"{{"n":{wrong}}}"#))
            .size("n", 1 << 20)
            .unwrap_err()
            .to_string();
        assert!(
            error
                .starts_with("config.json: key `n`: expected an integer from 1 to 1048576, found "),
            "{error}"
        );
    }
    assert!(
        config("{}")
            .size("n", 9)
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    assert_eq!(config(r#"{"n":null}"#).optional_size("n", 9).unwrap(), None);
}

#[test]
fn keys_that_nobody_reads_are_refused() {
    let config = config(
        r#"{"width":4,"attention_dropout":0.1,"use_cache":true,"odd":false,"sparse_attention":3}"#,
    );
    config.size("width", 9).unwrap();
    let error = config.refuse_unread().unwrap_err().to_string();
    assert!(
        error.contains("key `sparse_attention`: unknown to this family:"),
        "{error}"
    );
    config.ignore(&["sparse_attention"]);
    config.refuse_unread().unwrap();
}

#[test]
fn keys_without_a_word_on_the_computation_are_ignored() {
    let text = r#"{"is_llama_config":true,"tokenizer_name":"x","use_flash_attn":true,"model_max_length":4096}"#;
    let config = config(text);
    assert_eq!(
        config.unread(),
        ["is_llama_config", "tokenizer_name", "model_max_length"]
    );
    config.refuse_unread().unwrap();
    let error = |text: &str| self::config(text).refuse_unread().unwrap_err().to_string();
    for key in [
        "residual_multiplier",
        "rope_interleaved",
        "qk_layernorm",
        "moe_layer_freq",
    ] {
        assert!(error(&format!(r#"{{"{key}":2}}"#)).contains(&format!("key `{key}`")));
    }
}

#[test]
fn tokens_come_in_four_forms() {
    let tokens = |value: &str| config(&format!(r#"{{"eos":{value}}}"#)).tokens("eos");
    assert_eq!(tokens("2").unwrap(), [2]);
    assert_eq!(tokens("[2, 5]").unwrap(), [2, 5]);
    assert_eq!(tokens("null").unwrap(), Vec::<u32>::new());
    assert_eq!(tokens("-1").unwrap(), Vec::<u32>::new());
    assert!(tokens("-2").is_err() && tokens("4294967296").is_err() && tokens("[1.5]").is_err());
    assert!(config(r#"{"bos":[1,2]}"#).token("bos").is_err());
}

#[test]
fn nested_keys_are_named_in_full() {
    let nested = config(r#"{"rope":{"factor":-1}}"#)
        .optional_object("rope")
        .unwrap()
        .unwrap();
    assert!(
        nested
            .positive("factor")
            .unwrap_err()
            .to_string()
            .contains("key `rope.factor`")
    );
    assert!(
        nested
            .positive("theta")
            .unwrap_err()
            .to_string()
            .contains("key `rope.theta`: missing")
    );
}

#[test]
fn activations_and_types_have_old_names() {
    let read = |name: &str| {
        config(&format!(r#"{{"act":"{name}"}}"#)).activation_or("act", Activation::Relu)
    };
    assert_eq!(read("swish").unwrap(), Activation::Silu);
    assert_eq!(read("gelu_fast").unwrap(), Activation::GeluTanh);
    assert!(
        read("mish")
            .unwrap_err()
            .to_string()
            .contains("unknown activation `mish`")
    );
    for activation in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu2,
    ] {
        assert_eq!(read(activation_name(activation)).unwrap(), activation);
    }
    assert_eq!(
        config(r#"{"torch_dtype":"bfloat16"}"#).dtype().unwrap(),
        Some("bfloat16")
    );
}

#[test]
fn files_that_are_no_configuration_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        Config::load(folder.path()),
        Err(Error::File { .. })
    ));
    std::fs::write(folder.path().join("config.json"), "[1]").unwrap();
    assert!(
        Config::load(folder.path())
            .unwrap_err()
            .to_string()
            .contains("not a JSON object")
    );
    assert!(Config::parse("c".as_ref(), &"[".repeat(100_000)).is_err());
}
