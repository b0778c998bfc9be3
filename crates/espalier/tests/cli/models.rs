//! What is told of models, and how fast they are.

use super::generation::generating;
use super::{err, espalier, fixture, json, model, out};

#[test]
fn inspect_describes_models_and_adapters() {
    let value = json(&espalier(&["inspect", &fixture("qwen3"), "--json"]));
    assert_eq!(
        (&value["family"], &value["dtype"]),
        (&"qwen3".into(), &"f32".into())
    );
    // The file holds each parameter once, in four bytes.
    assert_eq!(
        value["parameters"].as_u64().unwrap() * 4,
        value["file_bytes"].as_u64().unwrap()
    );
    let whole = &value["memory"]["kinds"][0];
    assert_eq!(
        (&whole["format"], &whole["place"]),
        (&"f32".into(), &"owned".into())
    );
    assert_eq!(whole["bytes"], value["file_bytes"]);
    let tiny = espalier(&["inspect", model()]);
    assert!(out(&tiny).contains("attention 2/1 heads of 8, rotary 10000 ← RMSNorm"));
    assert!(
        out(&tiny).contains("<|im_start|>user\n  Hello<|im_end|>"),
        "{}",
        out(&tiny)
    );
}

/// Matrices of a file in bf16 stay there, norms do not.
#[test]
fn inspect_tells_what_stays_in_the_file() {
    use espalier_models::{checkpoint::Dtype, folder};
    let loaded = folder::load(fixture("qwen3").as_ref(), &burn::tensor::Device::flex()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    folder::save(
        &loaded.model,
        folder.path(),
        Some(&loaded.config),
        Dtype::BF16,
    )
    .unwrap();
    let value = json(&espalier(&[
        "inspect",
        folder.path().to_str().unwrap(),
        "--json",
    ]));
    let kinds = value["memory"]["kinds"].as_array().unwrap();
    let kind = |format: &str, place: &str| {
        let same = |kind: &&serde_json::Value| kind["format"] == format && kind["place"] == place;
        kinds.iter().find(same).unwrap()["bytes"].as_u64().unwrap()
    };
    let (mapped, owned) = (kind("bf16", "mapped"), kind("f32", "owned"));
    assert!(mapped > 10 * owned);
    assert_eq!(mapped + owned / 2, value["file_bytes"].as_u64().unwrap());
    assert_eq!(
        mapped + owned,
        value["memory"]["load_bytes"].as_u64().unwrap()
    );
    let embedding = &value["weights"][0];
    assert_eq!(
        (&embedding["name"], &embedding["place"]),
        (&"embedding.weight".into(), &"mapped".into())
    );
}

#[test]
fn benchmarks_report_speed() {
    let bench = |job: &str, more: &[&str]| {
        let mut arguments = vec!["bench", job];
        arguments.extend((job != "attention" && job != "matmul").then(model));
        json(&espalier(&[&arguments[..], more, &["--json"]].concat()))
    };
    let generate = bench("generate", &["--prompt", "8", "--new", "4", "--batch", "2"]);
    assert!(generate["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(generate["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (&generate["batch"], &generate["new"]),
        (&2.into(), &4.into())
    );
    for (job, more) in [
        ("train", "--batch"),
        ("lora", "--batch"),
        ("dpo", "--pairs"),
    ] {
        let figures = bench(job, &[more, "2", "--length", "8", "--runs", "1"]);
        assert!(
            figures["tokens_per_second"].as_f64().unwrap() > 0.0,
            "{figures}"
        );
    }
    let attention = bench(
        "attention",
        &["--length", "70", "--heads", "2", "--runs", "1"],
    );
    assert!(attention["gflops"].as_f64().unwrap() > 0.0);
    assert!(
        bench("matmul", &["--rows", "16", "--runs", "1"])["peak_gflops"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert_eq!(
        espalier(&["bench", "generate", model(), "--new", "1"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn files_of_other_programs_above_a_model_are_not_read() {
    let above = generating("{}");
    let folder = above.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let elsewhere = r#"[{"path": "other", "type": "sentence_transformers.models.Transformer"}]"#;
    for text in [r#"{"name": "my web app"}"#, "no json", "[3]", elsewhere] {
        std::fs::write(above.path().join("modules.json"), text).unwrap();
        let output = espalier(&["embed", folder.to_str().unwrap(), "hi"]);
        assert_eq!(output.status.code(), Some(0), "{text}: {}", err(&output));
    }
    // A list that names this folder counts, and what is wrong with it is said.
    let own = r#"[{"path": "model", "type": "sentence_transformers.models.Transformer"}, {"path": "x", "type": "x.Unknown"}]"#;
    std::fs::write(above.path().join("modules.json"), own).unwrap();
    let output = espalier(&["embed", folder.to_str().unwrap(), "hi"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("modules.json"), "{}", err(&output));
}
