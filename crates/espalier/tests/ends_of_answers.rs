//! Answers that are learned end with a token at which generation ends, and tokens can be added for that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use espalier::data::tokenizer::{BpeOptions, Tokenizer};
use espalier::models::{
    checkpoint::Dtype,
    folder,
    model::{Input, LanguageModel},
    source::Seed,
    spec::ModelSpec,
};
use serde_json::Value;

/// Turns that end with a mark of several ordinary pieces.
const WORDS: &str =
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n### End\n{% endfor %}";
/// Turns that end with one token, which the model does not know as an end.
const MARK: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";
const CHATS: &str = r#"{"messages":[{"role":"user","content":"the sum"},{"role":"assistant","content":"is five"}]}
{"messages":[{"role":"user","content":"of two"},{"role":"assistant","content":"and three"}]}
"#;

struct Workplace {
    folder: tempfile::TempDir,
}

impl Workplace {
    /// A tiny model whose only end is `<|pad|>`, templates and conversations.
    fn new(tied: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let texts = vec!["the sum of two and three is five".to_string(); 4];
        let options = BpeOptions {
            vocabulary: 270,
            eos: Some("<|pad|>".into()),
            ..Default::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(texts.into_iter(), &options).unwrap();
        // Two rows more than the tokenizer has tokens.
        let mut spec = ModelSpec::llama(tokenizer.vocabulary_size() + 2, 16, 2, 2, 1, 32, 64);
        (spec.eos, spec.tied_head) = (vec![0], tied);
        let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        let path = folder.path().join("model");
        folder::save(&model, &path, None, Dtype::F32).unwrap();
        tokenizer.save(&path).unwrap();
        for (name, text) in [
            ("words.jinja", WORDS),
            ("mark.jinja", MARK),
            ("chats.jsonl", CHATS),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self { folder }
    }

    fn train(&self, template: &str, more: &[&str]) -> Output {
        let template = format!("template={template}.jinja");
        let fixed = [
            "train",
            "--model",
            "model",
            "--data",
            "chats.jsonl",
            "--output",
            "run",
            "steps=1",
            "batch=2",
            &template,
        ];
        Command::new(env!("CARGO_BIN_EXE_espalier"))
            .current_dir(self.folder.path())
            .args([&fixed[..], more].concat())
            .output()
            .unwrap()
    }

    fn trained(&self, template: &str, more: &[&str]) -> (String, PathBuf) {
        let output = self.train(template, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        (said, self.folder.path().join("run/01-train/model"))
    }
}

fn ends(model: &Path) -> Value {
    let text = fs::read_to_string(model.join("generation_config.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["eos_token_id"].clone()
}

#[test]
fn a_mark_that_is_one_token_becomes_an_end() {
    let place = Workplace::new(false);
    let distilled = ["--objective", "distill", "objective.distill.teacher=model"];
    for objective in [&[][..], &distilled] {
        let (said, model) = place.trained("mark", objective);
        assert!(
            said.contains("answers end with `<|im_end|>` (2), which was no end token"),
            "{said}"
        );
        assert_eq!(ends(&model), serde_json::json!([0, 2]));
    }
}

#[test]
fn an_adapter_remembers_its_ends() {
    let place = Workplace::new(false);
    let (_, adapter) = place.trained("mark", &["--adapter", "lora"]);
    assert!(adapter.join("adapter_config.json").is_file());
    assert_eq!(ends(&adapter), serde_json::json!([0, 2]));
    // The base's folder as the adapter names it is found from where it was trained.
    let output = Command::new(env!("CARGO_BIN_EXE_espalier"))
        .current_dir(place.folder.path())
        .args([
            "train",
            "--model",
            "run",
            "--data",
            "chats.jsonl",
            "--output",
            "more",
            "steps=1",
            "batch=2",
            "template=mark.jinja",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && !said.contains("no end token"),
        "{said}"
    );
}

#[test]
fn ordinary_text_is_no_end_of_an_answer() {
    let place = Workplace::new(false);
    let output = place.train("words", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("would never stop") && said.contains("--add-tokens MARK"),
        "{said}"
    );
}

#[test]
fn an_added_mark_is_an_end_and_has_rows() {
    for (tied, adapter) in [(false, false), (true, false), (false, true), (true, true)] {
        let place = Workplace::new(tied);
        let more: &[&str] = &[
            "--add-tokens",
            "### End",
            "--add-tokens",
            "<|a|>",
            "--add-tokens",
            "<|b|>",
            "learning_rate=1e-30",
            "weight_decay=0",
        ];
        let lora: &[&str] = if adapter { &["--adapter", "lora"] } else { &[] };
        let (said, model) = place.trained("words", &[more, lora].concat());
        assert!(
            said.contains("3 tokens added; the model has 1 row more"),
            "{said}"
        );
        assert_eq!(said.contains("the whole model is left"), adapter, "{said}");
        assert_eq!(ends(&model), serde_json::json!([0, 270]));
        let tokenizer = Tokenizer::load(&model).unwrap();
        assert_eq!(
            tokenizer.encode("### End<|b|>", false).unwrap().ids,
            [270, 272]
        );
        let old = folder::load(&place.folder.path().join("model"), &Device::flex())
            .unwrap()
            .model;
        let new = folder::load(&model, &Device::flex()).unwrap().model;
        assert_eq!((new.spec().vocabulary, new.spec().tied_head), (273, tied));
        let logits = |model: &LanguageModel| {
            let input = Input::rows(&[vec![5, 6, 7]]).unwrap();
            model
                .logits(&input)
                .unwrap()
                .narrow(2, 0, 270)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap()
        };
        let (before, after) = (logits(&old), logits(&new));
        let gap = before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(gap < 1e-5, "tied {tied}, adapter {adapter}: {gap}");
    }
}

#[test]
fn state_tuning_and_new_models_take_no_tokens() {
    let place = Workplace::new(false);
    let output = place.train("words", &["--add-tokens", "### End", "--adapter", "state"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("state tuning trains no weights"),
        "{said}"
    );
}
