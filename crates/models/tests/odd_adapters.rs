//! Adapters by PEFT whose files hold more than a plain one, or name it otherwise: what they compute, what is said of them, and that
//! they are written as they were.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use espalier_models::{
    adapter::Adapter,
    checkpoint::{
        PeftConfig, TensorFile,
        peft_config::{Targets, TrainedTokens},
    },
    folder,
    layout::{Module, modules},
    model::{Input, LanguageModel},
    parameter::{Parameter, Parameters},
};
use fixture_lists::{
    adapter_folders::{configuration, gap, load, names},
    fixture, outputs,
};
use serde_json::{Value, json};

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixture("odd-adapters")).unwrap();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() > 8);
    all
}

#[test]
fn they_compute_what_peft_computes_before_and_after_saving_and_when_merged() {
    for case in cases() {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let mut loaded = load(&case);
        let difference = gap(&case, &loaded.model);
        assert!(difference < 1e-4, "{name}: {difference}");
        // What is written has PEFT's names, copies of the base's weights aside, and its use.
        let (saved, family) = (tempfile::tempdir().unwrap(), loaded.family().unwrap());
        let adapter = loaded
            .adapter
            .clone()
            .unwrap()
            .based_on(loaded.base.to_string_lossy());
        adapter.save(&loaded.model, family, saved.path()).unwrap();
        let is_copy = |tensor: &String| match name.as_str() {
            "whole-embeddings" => !tensor.contains("lora"),
            // What transformers never reads.
            "shared" | "shared-bart" => tensor.ends_with("shared.weight"),
            "state-dict" => !tensor.contains("lora") && !tensor.contains(".modules_to_save."),
            _ => tensor.contains(".base_layer.") && !tensor.contains(".experts.base_layer."),
        };
        let wanted = names(&case).into_iter().filter(|tensor| !is_copy(tensor));
        // Those of a model with a head that are put on one without become adapters of that; state dicts name the adapter.
        let wanted = wanted.map(|tensor| {
            let tensor = match name.as_str() {
                "encoder-masked" => tensor.replace(".model.bert.", ".model."),
                _ => tensor,
            };
            tensor
                .replace(".modules_to_save.default.", ".")
                .replace(".default.", ".")
        });
        assert_eq!(names(saved.path()), wanted.collect(), "{name}");
        let (theirs, ours) = (configuration(&case), configuration(saved.path()));
        if !["no-task", "encoder-masked"].contains(&name.as_str()) {
            assert_eq!(ours["task_type"], theirs["task_type"], "{name}");
        }
        assert_eq!(ours["ensure_weight_tying"], theirs["ensure_weight_tying"]);
        let again = load(saved.path());
        assert!(gap(&case, &again.model) < 1e-4, "{name}");
        // The base alone computes something else, and the merged model the same.
        loaded.model.set_active_adapters(&[]).unwrap();
        assert!(gap(&case, &loaded.model) > 1e-3, "{name}");
        loaded.model.set_active_adapters(&["default"]).unwrap();
        loaded.model.merge_adapters().unwrap();
        assert!(gap(&case, &loaded.model) < 1e-4, "{name}");
        let tied = loaded.model.spec().tied_head && !loaded.model.spec().headless;
        let base = load(&loaded.base).model.spec().tied_head;
        let parts = PARTED.contains(&name.as_str());
        assert!(
            !base || loaded.model.spec().headless || tied != parts,
            "{name}"
        );
    }
}

/// The cases in which head and embedding part.
const PARTED: [&str; 6] = [
    "tied-embedding",
    "tied-head",
    "tied-target",
    "head-with-table",
    "both-head",
    "scaled-head",
];

#[test]
fn heads_that_part_from_their_embedding_are_told() {
    for case in cases() {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let remarks = load(&case).remarks;
        let parts = PARTED.contains(&name.as_str());
        let told = remarks
            .iter()
            .any(|remark| remark.contains("alone, so the two part"));
        assert_eq!(told, parts, "{name}: {remarks:?}");
    }
}

#[test]
fn what_means_nothing_to_transformers_is_told() {
    let remarks = |case: &str| load(&fixture("odd-adapters").join(case)).remarks.join(" ");
    for case in ["shared", "shared-bart"] {
        let told = remarks(case);
        assert!(
            told.contains("never reads `shared`") && told.contains("left out here"),
            "{told}"
        );
    }
    let told = remarks("steps");
    assert!(
        told.contains("an adapter of `dt_proj` counts here, but not everywhere"),
        "{told}"
    );
    // A table for each of two sides.
    let mut loaded = load(&fixture("t5"));
    let family = loaded.family().unwrap();
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q".into()]));
    config.modules_to_save = vec!["embed_tokens".into()];
    let error = Adapter::new(config)
        .attach(&mut loaded.model, family, 0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a table for each of the model's two sides"),
        "{error}"
    );
}

#[test]
fn only_what_the_configuration_names_is_trained() {
    let trained = |name: &str| {
        let mut loaded = load(&fixture("odd-adapters").join(name));
        loaded.adapter.unwrap().mark_trainable(&mut loaded.model);
        let mut names = BTreeSet::new();
        loaded.model.visit(&mut |parameter: &Parameter| {
            if parameter.is_trainable() && parameter.adapter().is_none() {
                names.insert(parameter.name().to_owned());
            }
        });
        names.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(trained("tied-embedding"), ["embedding.weight"]);
    assert_eq!(trained("tied-head"), ["head.weight"]);
    assert_eq!(trained("tied-both"), ["embedding.weight"]);
    assert!(trained("target").is_empty() && trained("whole-embeddings").is_empty());
}

/// A copy of a case with another file of weights, in which `change` may touch the values.
fn changed(case: &str, change: impl Fn(&str, &mut Vec<f32>)) -> tempfile::TempDir {
    use espalier_models::checkpoint::{Dtype, TensorPlan, TensorWriter};
    let (folder, source) = (
        tempfile::tempdir().unwrap(),
        fixture("odd-adapters").join(case),
    );
    let mut config = configuration(&source);
    let base = config["base_model_name_or_path"].as_str().unwrap();
    let base = fs::canonicalize(source.join(base)).unwrap();
    config.insert("base_model_name_or_path".into(), json!(base));
    let text = Value::Object(config).to_string();
    fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    let file = TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
    let plan = |name: &str| TensorPlan {
        name: name.into(),
        dtype: Dtype::F32,
        shape: file.info(name).unwrap().shape.clone(),
    };
    TensorWriter::new(file.names().map(plan).collect())
        .unwrap()
        .write_file(&folder.path().join("adapter_model.safetensors"), |name| {
            let mut values = file.read_f32(name, None)?;
            change(name, &mut values);
            Ok(values)
        })
        .unwrap();
    folder
}

#[test]
fn weights_beside_the_adapter_replace_the_bases_and_stay_frozen() {
    for (case, tensor) in [
        ("target", "lm_head.base_layer.weight"),
        ("whole-embeddings", "lm_head.weight"),
    ] {
        let folder = changed(case, |name, values| {
            if name.ends_with(tensor) {
                values.fill(0.0);
            }
        });
        let mut loaded = load(folder.path());
        let head = |model: &LanguageModel| {
            let parameters = model.parameters();
            let head = parameters
                .iter()
                .find(|p| p.name() == "head.weight")
                .unwrap();
            head.to_vec()
        };
        assert!(head(&loaded.model).iter().all(|x| *x == 0.0), "{case}");
        let adapter = loaded.adapter.clone().unwrap();
        adapter.mark_trainable(&mut loaded.model);
        let parameters = loaded.model.parameters();
        assert!(
            parameters
                .iter()
                .all(|p| p.name() != "head.weight" || !p.is_trainable())
        );
        let (saved, family) = (tempfile::tempdir().unwrap(), loaded.family().unwrap());
        let adapter = adapter.based_on(loaded.base.to_string_lossy());
        adapter.save(&loaded.model, family, saved.path()).unwrap();
        assert!(
            names(saved.path())
                .iter()
                .any(|name| name.ends_with(tensor)),
            "{case}"
        );
        assert!(
            head(&load(saved.path()).model).iter().all(|x| *x == 0.0),
            "{case}"
        );
        loaded.model.set_active_adapters(&[]).unwrap();
        assert!(head(&loaded.model).iter().any(|x| *x != 0.0), "{case}");
    }
}

#[test]
fn fresh_adapters_say_what_the_model_is_for() {
    for (base, module, task) in [
        ("llama", "q_proj", json!("CAUSAL_LM")),
        ("t5", "q", json!("SEQ_2_SEQ_LM")),
        ("bert", "query", json!("FEATURE_EXTRACTION")),
    ] {
        let mut loaded = load(&fixture(base));
        let family = loaded.family().unwrap();
        let adapter = Adapter::new(PeftConfig::new(2, 4.0, Targets::List(vec![module.into()])));
        adapter.attach(&mut loaded.model, family, 0).unwrap();
        let saved = tempfile::tempdir().unwrap();
        adapter.save(&loaded.model, family, saved.path()).unwrap();
        assert_eq!(configuration(saved.path())["task_type"], task, "{base}");
    }
}

#[test]
fn what_heads_and_embeddings_cannot_have_is_refused_by_name() {
    type Change = fn(&mut PeftConfig);
    let cases: [(&str, &str, Change, &[&str]); 10] = [
        (
            "llama",
            "q_proj",
            |config| config.modules_to_save = vec!["classifier".into(), "score".into()],
            &["has a classification head (`classifier`), and its base has none"],
        ),
        (
            "gpt2",
            "wpe",
            |_| {},
            &["`wpe` is no linear map", "`modules_to_save`"],
        ),
        (
            "llama",
            "embed_tokens",
            |config| config.use_dora = true,
            &["DoRA is not supported for the embedding `model.embed_tokens`"],
        ),
        (
            "llama",
            "embed_tokens",
            |config| config.lora_bias = true,
            &["`model.embed_tokens` has no `lora_bias`"],
        ),
        (
            "gpt2",
            "wte",
            |config| config.ensure_weight_tying = true,
            &[
                "only where the embedding is called `embed_tokens`",
                "`transformer.wte`",
            ],
        ),
        (
            "t5",
            "q",
            |config| config.tokens = Some(TrainedTokens::OfEmbedding(vec![3])),
            &["a table for each of the model's two sides"],
        ),
        (
            "llama",
            "embed_tokens",
            |config| config.tokens = Some(TrainedTokens::OfEmbedding(vec![3])),
            &[
                "rows of `model.embed_tokens` are trained",
                "leave it out of one of them",
            ],
        ),
        (
            "llama",
            "q_proj",
            |config| config.tokens = Some(TrainedTokens::OfEmbedding(vec![3, 61])),
            &["the model has no row 61, only 61"],
        ),
        (
            "llama",
            "q_proj",
            |config| config.tokens = Some(by_module(&[("embed_token", &[3])])),
            &["no module of the model is named `embed_token`; did you mean `embed_tokens`?"],
        ),
        (
            "gemma2",
            "q_proj",
            |config| {
                config.ensure_weight_tying = true;
                config.tokens = Some(by_module(&[("embed_tokens", &[3]), ("lm_head", &[4])]));
            },
            &["embedding and head are to stay one", "their lists differ"],
        ),
    ];
    for (base, target, change, parts) in cases {
        let mut loaded = load(&fixture(base));
        let family = loaded.family().unwrap();
        let mut config = PeftConfig::new(2, 4.0, Targets::List(vec![target.into()]));
        change(&mut config);
        let attached = Adapter::new(config).attach(&mut loaded.model, family, 0);
        let error = attached.unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{base} {target}: {error}");
        }
        assert!(loaded.model.adapters().is_empty(), "{base} {target}");
    }
}

fn by_module(modules: &[(&str, &[u32])]) -> TrainedTokens {
    let entry = |(name, ids): &(&str, &[u32])| ((*name).to_owned(), ids.to_vec());
    TrainedTokens::ByModule(modules.iter().map(entry).collect())
}

/// Rows of tokens that the base lacks are the adapter's, where it has all of them.
#[test]
fn an_adapter_may_hold_rows_that_its_base_lacks() {
    for (base, tied) in [("llama", false), ("gemma2", true)] {
        let source = load(&fixture(base));
        let family = source.family().unwrap();
        let known = source.model.spec().vocabulary as u32;
        let new: Vec<u32> = (known - 1..known + 2).collect();
        let tokens = match tied {
            true => TrainedTokens::OfEmbedding(new.clone()),
            false => by_module(&[("embed_tokens", &new), ("lm_head", &new)]),
        };
        let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
        config.tokens = Some(tokens);
        let adapter = Adapter::new(config.clone()).based_on(fixture(base).to_string_lossy());
        let mut model = source
            .model
            .grown(known as usize, known as usize + 2)
            .unwrap();
        adapter.attach(&mut model, family, 3).unwrap();
        model.visit_mut(&mut |parameter| {
            if parameter.is_trainable() {
                let values = (0..parameter.len()).map(|i| 0.1 * ((i % 9) as f32 - 4.0));
                parameter.set_data(values.collect(), &Device::flex());
            }
        });
        let saved = tempfile::tempdir().unwrap();
        adapter.save(&model, family, saved.path()).unwrap();
        let again = load(saved.path());
        assert!(
            again
                .remarks
                .iter()
                .any(|said| said.contains("2 more tokens")),
            "{base}"
        );
        let input = Input::rows(&[vec![3, known, 5, known + 1, 7, known - 1, 9]]).unwrap();
        let computed = |model: &LanguageModel| {
            let logits = model.frozen().logits(&input).unwrap();
            logits.into_data().try_into_vec::<f32>().unwrap()
        };
        assert_eq!(computed(&again.model), computed(&model), "{base}");
        let mut merged = again.model.clone();
        merged.merge_adapters().unwrap();
        let difference = outputs::gap(&computed(&merged), &computed(&model));
        assert!(difference < 1e-5, "{base}: {difference}");
        // A row that nobody has.
        let beyond = TrainedTokens::OfEmbedding(vec![known + 1]);
        let lacking = Adapter::new(PeftConfig {
            tokens: Some(beyond),
            ..config
        });
        let error = lacking.rows_needed(&source.model, family).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("names row {}", known + 1)),
            "{error}"
        );
    }
}

#[test]
fn dropout_falls_on_what_the_adapter_reads_and_on_nothing_else() {
    let mut loaded = load(&fixture("llama"));
    let family = loaded.family().unwrap();
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
    config.dropout = 0.5;
    let adapter = Adapter::new(config);
    adapter.attach(&mut loaded.model, family, 0).unwrap();
    loaded.model.visit_mut(&mut |parameter| {
        if parameter.is_trainable() {
            parameter.set_data(vec![0.3; parameter.len()], &Device::flex());
        }
    });
    let input = Input::rows(&[vec![1, 2, 3, 4, 5, 6]]).unwrap();
    let logits = |model: &LanguageModel| {
        let logits = model.logits(&input).unwrap();
        logits.into_data().try_into_vec::<f32>().unwrap()
    };
    let whole = logits(&loaded.model);
    let drawn = [7, 7, 8].map(|seed| {
        loaded.model.set_adapter_dropout(Some(seed));
        logits(&loaded.model)
    });
    assert!(drawn[0] == drawn[1] && drawn[0] != drawn[2] && drawn[0] != whole);
    // A copy outside training drops nothing, and neither does a model whose adapter adds nothing.
    assert_eq!(logits(&loaded.model.frozen()), whole);
    loaded.model.set_adapter_dropout(None);
    assert_eq!(logits(&loaded.model), whole);
    let saved = tempfile::tempdir().unwrap();
    adapter.save(&loaded.model, family, saved.path()).unwrap();
    assert_eq!(configuration(saved.path())["lora_dropout"], json!(0.5));
}

/// A copy of an adapter of PEFT on a fixture, with some keys of its configuration changed.
fn configured(case: &str, changes: Value) -> tempfile::TempDir {
    let (folder, case) = (tempfile::tempdir().unwrap(), fixture(case));
    let weights = "adapter_model.safetensors";
    fs::copy(case.join(weights), folder.path().join(weights)).unwrap();
    let mut config = configuration(&case);
    let base = case.join(config["base_model_name_or_path"].as_str().unwrap());
    config["base_model_name_or_path"] = base.to_string_lossy().into();
    config.extend(changes.as_object().unwrap().clone());
    let path = folder.path().join("adapter_config.json");
    fs::write(path, Value::Object(config).to_string()).unwrap();
    folder
}

#[test]
fn parameters_that_the_model_has_not_are_told_unless_nothing_is_meant() {
    // As PEFT writes all linear layers of a DeepSeek-V3 without experts.
    let names = json!(["gate_up_proj", "gate.weight", "down_proj"]);
    let folder = configured("peft-lora", json!({ "target_parameters": names }));
    let (plain, loaded) = (load(&fixture("peft-lora")), load(folder.path()));
    let told = "`target_parameters`: the model has no gate_up_proj, gate.weight, down_proj; as PEFT does, the adapter is read without";
    assert!(loaded.remarks.iter().any(|remark| remark == told));
    let input = Input::rows(&[vec![1, 2, 3, 4]]).unwrap();
    let logits = |model: &LanguageModel| {
        let logits = model.logits(&input).unwrap();
        logits.into_data().try_into_vec::<f32>().unwrap()
    };
    assert_eq!(logits(&loaded.model), logits(&plain.model));
    // Of some that are there, the others are told alone.
    let case = "odd-adapters/all-linear-qwen3";
    let mut some = configuration(&fixture(case))["target_parameters"].clone();
    some.as_array_mut().unwrap().push("w3.weight".into());
    let folder = configured(case, json!({ "target_parameters": some }));
    let remarks = load(folder.path()).remarks;
    assert!(
        remarks
            .iter()
            .any(|remark| remark.contains("has no w3.weight;")),
        "{remarks:?}"
    );
    // Where nothing else is meant either, and where somebody wants to train them.
    let alone = json!({ "target_modules": null, "target_parameters": ["experts.w3"] });
    let folder = configured("peft-lora", alone);
    let error = folder::load(folder.path(), &Device::flex()).unwrap_err();
    assert!(
        error.to_string().contains("is named `experts.w3`"),
        "{error}"
    );
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
    config.target_parameters = vec!["experts.w3".into()];
    let mut base = load(&fixture("llama"));
    let family = base.family().unwrap();
    let error = Adapter::new(config).attach(&mut base.model, family, 0);
    assert!(error.unwrap_err().to_string().contains("`experts.w3`"));
}

#[test]
fn what_peft_adapts_as_a_parameter_has_neither_dropout_nor_dora() {
    let part = "a layer that PEFT takes for a part of an expert";
    type Chosen = fn(&Module) -> bool;
    let cases: [(&str, Chosen, &str); 4] = [
        ("deepseek-v3", |m| m.name.ends_with(".mlp.up_proj"), part),
        (
            "deepseek-v3",
            |m| m.name.ends_with("shared_experts.up_proj"),
            part,
        ),
        ("qwen3-moe", |m| m.expert.is_some(), "an expert of a stack"),
        ("mixtral", Module::is_router, "a router without one"),
    ];
    for (name, chosen, what) in cases {
        let mut loaded = load(&fixture(name));
        let family = loaded.family().unwrap();
        let modules = modules(&loaded.model, family);
        let module = modules.iter().find(|module| chosen(module)).unwrap();
        let attention = modules
            .iter()
            .find(|m| m.name.contains(".self_attn."))
            .unwrap();
        let attention = attention.name.clone();
        let mut kept = |targets: &[&String], dropout: f64, dora: bool| {
            let targets = targets.iter().map(|name| name.to_string()).collect();
            let mut config = PeftConfig::new(2, 4.0, Targets::List(targets));
            (config.dropout, config.use_dora) = (dropout, dora);
            let adapter = Adapter::new(config);
            let attached = adapter.attach(&mut loaded.model, family, 0);
            let kept = attached.and_then(|()| adapter.check_kept(&loaded.model, family));
            loaded.model.detach_adapter("default");
            kept.map_err(|error| error.to_string())
        };
        assert_eq!(kept(&[&attention], 0.1, true), Ok(()), "{name}");
        assert_eq!(kept(&[&module.name], 0.0, false), Ok(()), "{name}");
        let dropout = kept(&[&attention, &module.name], 0.1, false).unwrap_err();
        assert!(
            dropout.contains("without dropout") && dropout.contains(what),
            "{name}: {dropout}"
        );
        let dora = kept(&[&attention, &module.name], 0.0, true).unwrap_err();
        assert!(
            dora.contains("DoRA needs") && dora.contains(what),
            "{name}: {dora}"
        );
    }
}

#[test]
fn a_base_that_was_moved_with_its_adapter_is_found_and_named() {
    let place = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path, files: &[&str]| {
        fs::create_dir_all(to).unwrap();
        for file in files {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    let run = place.path().join("run");
    let (base, tuned) = (run.join("01-base/model"), run.join("02-tune/model"));
    copy(
        &fixture("llama"),
        &base,
        &["config.json", "model.safetensors"],
    );
    let case = fixture("odd-adapters/target");
    copy(
        &case,
        &tuned,
        &["adapter_config.json", "adapter_model.safetensors"],
    );
    let mut config = configuration(&tuned);
    config.insert("base_model_name_or_path".into(), json!(base));
    fs::write(
        tuned.join("adapter_config.json"),
        Value::Object(config).to_string(),
    )
    .unwrap();
    assert!(load(&tuned).remarks.is_empty());
    let moved = place.path().join("elsewhere/run");
    fs::create_dir_all(moved.parent().unwrap()).unwrap();
    fs::rename(&run, &moved).unwrap();
    let loaded = load(&moved.join("02-tune/model"));
    assert_eq!(loaded.base, moved.join("01-base/model"));
    assert!(gap(&case, &loaded.model) < 1e-4);
    assert!(
        loaded.remarks[0].contains("is no longer at"),
        "{:?}",
        loaded.remarks
    );
    // Without it there is nothing to take its place, the adapter's own folder least of all.
    fs::remove_dir_all(moved.join("01-base")).unwrap();
    let error = folder::load(&moved.join("02-tune/model"), &Device::flex());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("is not there, nor further up from the adapter"),
        "{error}"
    );
}
