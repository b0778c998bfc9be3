//! Heads that are the embedding and heads that are not, as configuration and file say it together.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{fs, path::PathBuf};

use burn::tensor::Device;
use espalier_models::{
    checkpoint::{Checkpoint, Dtype, TensorPlan, TensorWriter},
    folder::{self, LoadedModel},
    model::{Input, LanguageModel},
};
use serde_json::{Map, Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// The names of embedding and head in the files of a fixture, and whether it ties them.
const CASES: [(&str, &str, &str); 5] = [
    ("llama3-rope", "model.embed_tokens.weight", "lm_head.weight"),
    ("gpt2", "transformer.wte.weight", "lm_head.weight"),
    (
        "bloom-alibi",
        "transformer.word_embeddings.weight",
        "lm_head.weight",
    ),
    ("t5", "shared.weight", "lm_head.weight"),
    ("bart", "model.shared.weight", "lm_head.weight"),
];

/// A copy of a fixture with these tensors more (as copies of others, times a number) and some fewer.
fn copy(
    name: &str,
    more: &[(&str, &str, f32)],
    fewer: &[&str],
    config: Value,
) -> tempfile::TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), fixture(name));
    let text = fs::read_to_string(source.join("config.json")).unwrap();
    let mut map: Map<String, Value> = serde_json::from_str(&text).unwrap();
    map.extend(config.as_object().unwrap().clone());
    fs::write(
        folder.path().join("config.json"),
        Value::Object(map).to_string(),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let of = |name: &str| {
        let found = more.iter().find(|(new, _, _)| *new == name);
        let (from, factor) = found.map_or((name, 1.0), |(_, from, factor)| (*from, *factor));
        (from.to_owned(), factor)
    };
    let kept = checkpoint.names().filter(|name| !fewer.contains(name));
    let plan = |name: &str| TensorPlan {
        name: name.into(),
        dtype: Dtype::F32,
        shape: checkpoint.info(&of(name).0).unwrap().shape.clone(),
    };
    let all = kept.chain(more.iter().map(|(new, _, _)| *new)).map(plan);
    TensorWriter::new(all.collect())
        .unwrap()
        .write_file(&folder.path().join("model.safetensors"), |name| {
            let (from, factor) = of(name);
            let values = checkpoint.read_f32(&from, None)?;
            Ok(values.into_iter().map(|x| x * factor).collect::<Vec<f32>>())
        })
        .unwrap();
    folder
}

fn load(folder: &std::path::Path) -> LoadedModel {
    folder::load(folder, &Device::flex()).unwrap()
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let mut input = Input::rows(&[vec![3, 4, 5, 6]]).unwrap();
    if model.spec().encoder.is_some() {
        input.source = Some(Box::new(Input::rows(&[vec![7, 8, 9]]).unwrap()));
    }
    let logits = model.logits(&input).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

#[test]
fn a_file_that_repeats_the_embedding_is_tied_and_one_that_differs_is_not() {
    for (name, embedding, head) in CASES {
        let plain = load(&fixture(name));
        assert!(
            plain.model.spec().tied_head && plain.remarks.is_empty(),
            "{name}"
        );
        let same = load(copy(name, &[(head, embedding, 1.0)], &[], json!({})).path());
        assert!(
            same.model.spec().tied_head && same.remarks.is_empty(),
            "{name}"
        );
        assert_eq!(logits(&same.model), logits(&plain.model), "{name}");
        let other = copy(name, &[(head, embedding, 2.0)], &[], json!({}));
        let other = load(other.path());
        assert!(!other.model.spec().tied_head, "{name}");
        assert!(
            other.remarks[0].contains("differ; both are taken as they are"),
            "{name}"
        );
        let untied = json!({"tie_word_embeddings": false});
        let untied = copy(name, &[(head, embedding, 2.0)], &[], untied);
        let untied = load(untied.path());
        assert!(untied.remarks.is_empty(), "{name}");
        // T5 scales the hidden state only before a tied head.
        if name != "t5" {
            assert_eq!(logits(&other.model), logits(&untied.model), "{name}");
            let saved = tempfile::tempdir().unwrap();
            folder::save(&other.model, saved.path(), Some(&other.config), Dtype::F32).unwrap();
            let again = load(saved.path());
            assert!(
                again.remarks.is_empty() && !again.model.spec().tied_head,
                "{name}"
            );
            assert_eq!(logits(&again.model), logits(&other.model), "{name}");
        }
    }
}

#[test]
fn of_two_that_are_tied_either_may_be_missing() {
    for (name, embedding, head) in CASES {
        let plain = load(&fixture(name));
        let swapped = copy(name, &[(head, embedding, 1.0)], &[embedding], json!({}));
        let swapped = load(swapped.path());
        assert!(swapped.model.spec().tied_head, "{name}");
        assert_eq!(logits(&swapped.model), logits(&plain.model), "{name}");
        let neither = copy(name, &[], &[embedding], json!({}));
        let error = folder::load(neither.path(), &Device::flex())
            .unwrap_err()
            .to_string();
        assert!(error.contains(embedding), "{name}: {error}");
    }
}

#[test]
fn a_head_that_is_missing_starts_from_random_numbers_and_that_is_told() {
    for name in ["llama", "qwen2", "gptj"] {
        let head = ["lm_head.weight"];
        let folder = copy(name, &[], &head, json!({}));
        let (one, two) = (load(folder.path()), load(folder.path()));
        assert!(!one.model.spec().tied_head, "{name}");
        assert!(
            one.remarks[0].contains("starts from random numbers"),
            "{name}"
        );
        assert_eq!(logits(&one.model), logits(&two.model), "{name}");
        // GPT-J's head has a bias, tied or not.
        let gone = ["lm_head.weight", "lm_head.bias"];
        let tied = copy(name, &[], &gone, json!({"tie_word_embeddings": true}));
        let tied = load(tied.path());
        let told = tied.remarks.iter().all(|remark| remark.contains("bias"));
        assert!(told && tied.model.spec().tied_head, "{name}");
        assert_eq!(tied.remarks.len(), usize::from(name == "gptj"), "{name}");
        assert_ne!(logits(&one.model), logits(&tied.model), "{name}");
    }
    // Files of base models never have one.
    let base = copy(
        "llama",
        &[],
        &["lm_head.weight"],
        json!({"architectures": ["LlamaModel"]}),
    );
    let base = load(base.path());
    assert!(base.model.spec().tied_head && base.remarks[0].contains("a base model without a head"));
}

#[test]
fn heads_of_masked_tokens_have_tables_and_biases_of_their_own() {
    // The names of the table, of the bias of a tied head, and of that of its own.
    for (name, embedding, table, tied, own) in [
        (
            "roberta",
            "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.weight",
            "lm_head.bias",
            "lm_head.decoder.bias",
        ),
        (
            "mpnet",
            "mpnet.embeddings.word_embeddings.weight",
            "lm_head.decoder.weight",
            "lm_head.bias",
            "lm_head.decoder.bias",
        ),
        (
            "albert",
            "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.weight",
            "predictions.bias",
            "predictions.decoder.bias",
        ),
        (
            "nomic-bert",
            "nomic_bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
            "cls.predictions.decoder.bias",
        ),
        (
            "distilbert",
            "distilbert.embeddings.word_embeddings.weight",
            "vocab_projector.weight",
            "vocab_projector.bias",
            "vocab_projector.bias",
        ),
        (
            "electra",
            "electra.embeddings.word_embeddings.weight",
            "generator_lm_head.weight",
            "generator_lm_head.bias",
            "generator_lm_head.bias",
        ),
        (
            "modernbert",
            "model.embeddings.tok_embeddings.weight",
            "decoder.weight",
            "decoder.bias",
            "decoder.bias",
        ),
    ] {
        let plain = logits(&load(&fixture(name)).model);
        let mut more = vec![(table, embedding, 2.0)];
        // Transformers writes the tied one, which it does not read, beside it.
        if own != tied {
            more.push((own, tied, 2.0));
        }
        let folder = copy(name, &more, &[], json!({"tie_word_embeddings": false}));
        let loaded = load(folder.path());
        assert!(
            loaded.remarks.is_empty() && !loaded.model.spec().tied_head,
            "{name}"
        );
        let found = logits(&loaded.model);
        let bias = Checkpoint::open(&fixture(name))
            .unwrap()
            .read_f32(tied, None)
            .unwrap();
        let missing = |index: usize| {
            if own == tied {
                bias[index % bias.len()]
            } else {
                0.0
            }
        };
        let twice = |(index, x): (usize, &f32)| 2.0 * x - missing(index);
        let differences = plain
            .iter()
            .enumerate()
            .map(twice)
            .zip(&found)
            .map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) < 1e-5, "{name}");
        let saved = tempfile::tempdir().unwrap();
        folder::save(
            &loaded.model,
            saved.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        let names = Checkpoint::open(saved.path()).unwrap();
        assert!(
            names.info(table).is_some() && names.info(own).is_some(),
            "{name}"
        );
        assert_eq!(logits(&load(saved.path()).model), found, "{name}");
    }
}

#[test]
fn stacks_read_tables_of_their_own_where_nothing_ties_them() {
    for (name, shared) in [
        ("bart", "model.shared"),
        ("m2m-100", "model.shared"),
        ("t5", "shared"),
    ] {
        let (shared, head) = (format!("{shared}.weight"), "lm_head.weight");
        let [encoder, decoder] = ["encoder", "decoder"]
            .map(|side| shared.replace("shared", &format!("{side}.embed_tokens")));
        let untied = json!({"tie_word_embeddings": false});
        let tables = |of_decoder: f32, fewer: &[&str]| {
            let more = [
                (encoder.as_str(), shared.as_str(), 3.0),
                (&decoder, &shared, of_decoder),
                (head, &shared, 2.0),
            ];
            copy(name, &more, fewer, untied.clone())
        };
        // What is called shared means nothing, and may be missing.
        let (beside, alone) = (tables(3.0, &[]), tables(3.0, &[&shared]));
        let (beside, alone) = (load(beside.path()), load(alone.path()));
        assert_eq!(logits(&beside.model), logits(&alone.model), "{name}");
        let plain = copy(name, &[(head, &shared, 2.0)], &[], untied.clone());
        let plain = load(plain.path());
        assert_ne!(logits(&beside.model), logits(&plain.model), "{name}");
        let differ = tables(4.0, &[]);
        let error = folder::load(differ.path(), &Device::flex())
            .unwrap_err()
            .to_string();
        assert!(error.contains("embeddings of their own"), "{name}: {error}");
        let saved = tempfile::tempdir().unwrap();
        folder::save(
            &beside.model,
            saved.path(),
            Some(&beside.config),
            Dtype::F32,
        )
        .unwrap();
        let file = Checkpoint::open(saved.path()).unwrap();
        let read = |name: &str| file.read_f32(name, None).unwrap();
        assert!(
            read(&encoder) == read(&shared) && read(&decoder) == read(&shared),
            "{name}"
        );
        assert_eq!(
            logits(&load(saved.path()).model),
            logits(&beside.model),
            "{name}"
        );
    }
}

#[test]
fn tables_that_a_configuration_ties_must_be_alike() {
    for (name, shared) in [
        ("bart", "model.shared"),
        ("mbart", "model.shared"),
        ("marian-vanilla", "model.shared"),
        ("t5", "shared"),
    ] {
        let shared = format!("{shared}.weight");
        let [encoder, decoder] = ["encoder", "decoder"]
            .map(|side| shared.replace("shared", &format!("{side}.embed_tokens")));
        let plain = logits(&load(&fixture(name)).model);
        // Each side has the shared table where it has none, and the head has it too.
        for (of_encoder, of_decoder, fewer, fits) in [
            (Some(1.0), Some(1.0), &[][..], true),
            (Some(1.0), None, &[], true),
            (None, Some(1.0), &[], true),
            (Some(1.0), Some(1.0), &[shared.as_str()], true),
            (Some(1.0), None, &[shared.as_str()], true),
            (Some(2.0), None, &[], false),
            (None, Some(2.0), &[], false),
            (Some(1.0), Some(2.0), &[], false),
            (Some(2.0), Some(2.0), &[], false),
            (Some(1.0), Some(2.0), &[shared.as_str()], false),
        ] {
            let sides = [(&encoder, of_encoder), (&decoder, of_decoder)].into_iter();
            let more: Vec<(&str, &str, f32)> = sides
                .filter_map(|(table, factor)| Some((table.as_str(), shared.as_str(), factor?)))
                .collect();
            let folder = copy(name, &more, fewer, json!({}));
            let case = format!("{name}: {more:?} without {fewer:?}");
            match folder::load(folder.path(), &Device::flex()) {
                Ok(loaded) => {
                    assert!(fits, "{case}");
                    assert_eq!(logits(&loaded.model), plain, "{case}");
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(!fits, "{case}: {error}");
                    assert!(error.contains("embeddings of their own"), "{case}: {error}");
                }
            }
        }
        // A head of the file's own is not the shared table, which then nobody reads.
        let head = [
            (encoder.as_str(), shared.as_str(), 2.0),
            (&decoder, &shared, 2.0),
            ("lm_head.weight", &shared, 3.0),
        ];
        let loaded = load(copy(name, &head, &[], json!({})).path());
        assert!(!loaded.model.spec().tied_head, "{name}");
    }
}
