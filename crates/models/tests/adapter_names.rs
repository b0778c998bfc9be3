//! The names under which adapters know modules, in what is asked for, read and written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{collections::BTreeSet, fs, path::Path};

use espalier_models::{
    adapter::Adapter,
    checkpoint::{Dtype, PeftConfig, TensorFile, TensorPlan, TensorWriter, peft_config::Targets},
    folder::LoadedModel,
    fresh_classifier::{FreshClassifier, save_names},
};
use fixture_lists::{
    adapter_folders::{configuration, gap, load, names},
    fixture,
};
use serde_json::{Value, json};

/// Writes an adapter's tensors.
fn write(folder: &Path, tensors: Vec<(String, Vec<usize>, Vec<f32>)>) {
    let plan = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| TensorPlan {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: shape.clone(),
    };
    let values = |name: &str| {
        let found = tensors.iter().find(|(other, _, _)| other == name);
        Ok(found.unwrap().2.clone())
    };
    TensorWriter::new(tensors.iter().map(plan).collect())
        .unwrap()
        .write_file(&folder.join("adapter_model.safetensors"), values)
        .unwrap();
}

#[test]
fn tables_that_transformers_never_reads_are_trained_where_the_adapter_is_merged() {
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q".into()]));
    config.modules_to_save = vec!["shared".into()];
    let trained = |adapter: Adapter| {
        let mut loaded = load(&fixture("t5"));
        let family = loaded.family().unwrap();
        let remarks = adapter.remarks(&loaded.model, family);
        adapter.attach(&mut loaded.model, family, 0).unwrap();
        let parameters = loaded.model.parameters();
        let mut embedding = parameters.iter().filter(|p| p.name() == "embedding.weight");
        (
            embedding.any(|p| p.is_trainable()),
            remarks.iter().any(|r| r.contains("never reads")),
        )
    };
    assert_eq!(trained(Adapter::new(config.clone())), (false, true));
    assert_eq!(trained(Adapter::new(config).to_be_merged()), (true, false));
}

#[test]
fn layers_that_others_cannot_serve_are_adapted_where_they_are_named() {
    for (base, left_out) in [
        ("mamba", &["dt_proj", "out_proj"][..]),
        ("mamba2", &["out_proj"]),
        ("jamba", &["dt_proj"]),
    ] {
        let adapted = |targets: Targets| {
            let mut loaded = load(&fixture(base));
            let family = loaded.family().unwrap();
            let adapter = Adapter::new(PeftConfig::new(2, 4.0, targets));
            let remarks = adapter.remarks(&loaded.model, family);
            adapter.attach(&mut loaded.model, family, 0).unwrap();
            let saved = tempfile::tempdir().unwrap();
            adapter.save(&loaded.model, family, saved.path()).unwrap();
            (names(saved.path()), configuration(saved.path()), remarks)
        };
        let (tensors, config, remarks) = adapted(Targets::AllLinear);
        // PEFT would take all linear layers for more.
        let targets: Vec<&str> = config["target_modules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect();
        assert!(targets.contains(&"in_proj") && remarks.is_empty(), "{base}");
        for name in left_out {
            let has = |tensors: &BTreeSet<String>| {
                tensors
                    .iter()
                    .any(|tensor| tensor.contains(&format!(".{name}.")))
            };
            assert!(!has(&tensors) && !targets.contains(name), "{base} {name}");
            let (tensors, _, remarks) = adapted(Targets::List(vec![(*name).into()]));
            assert!(
                has(&tensors) && remarks[0].contains(&format!("adapter of `{name}`")),
                "{base} {name}"
            );
        }
    }
}

#[test]
fn both_names_mean_a_module_and_that_of_transformers_is_written() {
    for (base, target, written, saved) in [
        (
            "gpt-neox",
            "embed_out",
            vec!["lm_head"],
            ("embed_out", "lm_head"),
        ),
        (
            "gpt-neox",
            "lm_head",
            vec!["lm_head"],
            ("lm_head", "lm_head"),
        ),
        (
            "nomic-bert",
            "Wqkv",
            vec!["k_proj", "q_proj", "v_proj"],
            ("emb_ln", "nomic_bert.embeddings.LayerNorm"),
        ),
        (
            "nomic-bert",
            "fc11",
            vec!["up_proj"],
            ("emb_ln", "nomic_bert.embeddings.LayerNorm"),
        ),
    ] {
        let attached = |adapter: &Adapter| {
            let mut loaded = load(&fixture(base));
            let family = loaded.family().unwrap();
            adapter.attach(&mut loaded.model, family, 0).unwrap();
            loaded
        };
        let config = PeftConfig::new(2, 4.0, Targets::List(vec![target.into()]));
        let adapter = Adapter::new(config).based_on(fixture(base).to_string_lossy());
        let (loaded, folder) = (attached(&adapter), tempfile::tempdir().unwrap());
        adapter
            .save(&loaded.model, loaded.family().unwrap(), folder.path())
            .unwrap();
        let mut targets: Vec<Value> = configuration(folder.path())["target_modules"]
            .as_array()
            .unwrap()
            .clone();
        targets.sort_by_key(Value::to_string);
        assert_eq!(json!(targets), json!(written), "{base}");
        assert_eq!(
            load(folder.path()).model.active_adapters(),
            ["default"],
            "{base}"
        );

        let mut config = PeftConfig::new(2, 4.0, Targets::AllLinear);
        config.modules_to_save = vec![saved.0.into()];
        let adapter = Adapter::new(config).based_on(fixture(base).to_string_lossy());
        let (loaded, folder) = (attached(&adapter), tempfile::tempdir().unwrap());
        adapter
            .save(&loaded.model, loaded.family().unwrap(), folder.path())
            .unwrap();
        assert_eq!(
            configuration(folder.path())["modules_to_save"],
            json!([saved.1]),
            "{base}"
        );
        let weight = format!("base_model.model.{}.weight", saved.1);
        assert!(names(folder.path()).contains(&weight), "{base}");
        load(folder.path());
    }
}

#[test]
fn adapters_with_the_names_of_files_are_read() {
    // As they were written here before, and by the models' own code.
    for (case, renamed, targets) in [
        (
            "odd-adapters/renamed-target",
            &[("lm_head.", "embed_out.")][..],
            json!(["query_key_value", "embed_out"]),
        ),
        (
            "odd-adapters/renamed-head",
            &[("lm_head.", "embed_out.")],
            json!(["query_key_value"]),
        ),
        (
            "adapters/nomic-bert",
            &[
                (".self_attn.o_proj.", ".attn.out_proj."),
                (".mlp.up_proj.", ".mlp.fc11."),
                (".mlp.gate_proj.", ".mlp.fc12."),
                (".mlp.down_proj.", ".mlp.fc2."),
                ("nomic_bert.layers.", "nomic_bert.encoder.layers."),
            ],
            json!([
                "q_proj", "k_proj", "v_proj", "out_proj", "fc11", "fc12", "fc2", "dense"
            ]),
        ),
    ] {
        let (folder, source) = (tempfile::tempdir().unwrap(), fixture(case));
        let mut config = configuration(&source);
        let base = config["base_model_name_or_path"].as_str().unwrap();
        let base = fs::canonicalize(source.join(base)).unwrap();
        config.insert("base_model_name_or_path".into(), json!(base));
        config.insert("target_modules".into(), targets);
        fs::write(
            folder.path().join("adapter_config.json"),
            Value::Object(config).to_string(),
        )
        .unwrap();
        let file = TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
        let other = |name: &str| {
            let keep = name.contains(".self_attn.") && !name.contains(".o_proj.");
            let mut names = renamed.iter().filter(|_| !keep);
            let (name, names) = (name.to_owned(), &mut names);
            names.fold(name, |name, (ours, theirs)| name.replace(ours, theirs))
        };
        let tensor = |name: &str| {
            let shape = file.info(name).unwrap().shape.clone();
            (other(name), shape, file.read_f32(name, None).unwrap())
        };
        let tensors: Vec<_> = file.names().map(tensor).collect();
        assert!(file.names().any(|name| other(name) != name));
        write(folder.path(), tensors);
        let found = gap(&source, &load(folder.path()).model);
        assert!(found < 1e-4, "{case}: {found}");
    }
}

#[test]
fn modules_to_save_are_the_ends_of_names_as_in_peft() {
    let attached = |base: &str, targets: Targets, saved: &str| {
        let mut loaded = load(&fixture(base));
        let family = loaded.family().unwrap();
        let mut config = PeftConfig::new(2, 4.0, targets);
        config.modules_to_save = vec![saved.into()];
        let adapter = Adapter::new(config);
        adapter
            .attach(&mut loaded.model, family, 0)
            .map_err(|error| error.to_string())?;
        let folder = tempfile::tempdir().unwrap();
        adapter.save(&loaded.model, family, folder.path()).unwrap();
        Ok::<_, String>(names(folder.path()))
    };
    let list = |name: &str| Targets::List(vec![name.into()]);
    let norms = attached("llama", list("q_proj"), "norm").unwrap();
    for name in [
        "model.norm",
        "model.layers.0.input_layernorm",
        "model.layers.1.post_attention_layernorm",
    ] {
        assert!(
            norms.contains(&format!("base_model.model.{name}.weight")),
            "{name}"
        );
    }
    // What is trained whole is none of all linear layers, and is not adapted besides.
    let whole = attached("llama", Targets::AllLinear, "o_proj").unwrap();
    assert!(
        whole.iter().all(|name| !name.contains("o_proj.lora"))
            && whole.iter().any(|name| name.ends_with("o_proj.weight"))
    );
    let error = attached("llama", list("o_proj"), "o_proj").unwrap_err();
    assert!(error.contains("which PEFT refuses"), "{error}");
    let error = attached("qwen3-moe", list("q_proj"), "experts").unwrap_err();
    assert!(error.contains("not trained whole"), "{error}");
}

#[test]
fn a_fused_projection_of_the_file_is_read_as_the_three_of_transformers() {
    // Nomic BERT's adapters as they were written here before: one `A` of all ranks, and a `B` with those of each on its diagonal.
    let (folder, source) = (tempfile::tempdir().unwrap(), fixture("adapters/nomic-bert"));
    let mut config = configuration(&source);
    config.insert(
        "base_model_name_or_path".into(),
        json!(fixture("nomic-bert")),
    );
    config.insert("target_modules".into(), json!(["Wqkv"]));
    config.insert("rank_pattern".into(), json!({"attn.Wqkv": 6}));
    config.insert("alpha_pattern".into(), json!({"attn.Wqkv": 9}));
    let text = Value::Object(config.clone()).to_string();
    fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    let file = TensorFile::open(&source.join("adapter_model.safetensors")).unwrap();
    let split = |layer: &str, factor: &str| {
        ["q", "k", "v"].map(|part| {
            let name = format!(
                "base_model.model.nomic_bert.layers.{layer}.self_attn.{part}_proj.{factor}.weight"
            );
            (
                file.read_f32(&name, None).unwrap(),
                file.info(&name).unwrap().shape.clone(),
            )
        })
    };
    let name = |layer: &str, factor: &str| {
        format!("base_model.model.nomic_bert.encoder.layers.{layer}.attn.Wqkv.{factor}.weight")
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for layer in ["0", "1"] {
        let downs = split(layer, "lora_A");
        let width = downs[0].1[1];
        let down = downs.into_iter().flat_map(|(values, _)| values).collect();
        tensors.push((name(layer, "lora_A"), vec![6, width], down));
        let ups = split(layer, "lora_B");
        let outputs = ups[0].1[0];
        let mut up = vec![0.0; 3 * outputs * 6];
        for (part, (values, _)) in ups.iter().enumerate() {
            for (row, pair) in values.chunks(2).enumerate() {
                let place = (part * outputs + row) * 6 + 2 * part;
                up[place..place + 2].copy_from_slice(pair);
            }
        }
        tensors.push((name(layer, "lora_B"), vec![3 * outputs, 6], up));
    }
    write(folder.path(), tensors);
    let fused = load(folder.path());
    let saved = tempfile::tempdir().unwrap();
    let adapter = fused.adapter.clone().unwrap();
    adapter
        .save(&fused.model, fused.family().unwrap(), saved.path())
        .unwrap();
    // The names of transformers, and the same values.
    let kept = TensorFile::open(&saved.path().join("adapter_model.safetensors")).unwrap();
    let of_projections = file.names().filter(|name| {
        ["q_proj", "k_proj", "v_proj"]
            .iter()
            .any(|part| name.contains(part))
    });
    assert!(kept.names().eq(of_projections));
    for name in kept.names() {
        assert_eq!(
            kept.read_f32(name, None).unwrap(),
            file.read_f32(name, None).unwrap(),
            "{name}"
        );
    }
    assert!(load(saved.path()).adapter.is_some());
}

#[test]
fn what_peft_takes_for_experts_is_known_by_its_parameter() {
    // PEFT takes `gate_proj` of these for the experts' own, also in whole names.
    for name in ["deepseek-v3", "deepseek-v2"] {
        let mut loaded = load(&fixture(name));
        let family = loaded.family().unwrap();
        let adapter = Adapter::new(PeftConfig::new(2, 4.0, Targets::AllLinear));
        adapter.attach(&mut loaded.model, family, 0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        adapter.save(&loaded.model, family, folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let modules = config["target_modules"].to_string();
        let parameters = config["target_parameters"].to_string();
        assert!(
            !modules.contains("gate_proj") && modules.contains("o_proj"),
            "{modules}"
        );
        assert!(parameters.contains("gate_proj.weight"), "{parameters}");
    }
}

#[test]
fn a_classifier_under_the_names_of_a_state_dict_is_read() {
    let base = fixture("llama");
    let mut loaded = load(&base);
    let names: Vec<String> = ["LABEL_2", "LABEL_0", "LABEL_1"].map(str::to_owned).into();
    let fresh = FreshClassifier {
        of_tokens: false,
        names: &names,
        problem: None,
        deviation: Some(0.5),
        seed: 3,
    };
    fresh.put_on(&mut loaded).unwrap();
    let family = loaded.family().unwrap();
    let mut config = PeftConfig::new(2, 4.0, Targets::List(vec!["q_proj".into()]));
    config.modules_to_save = vec!["score".into()];
    let adapter = Adapter::new(config).based_on(base.to_string_lossy());
    adapter.attach(&mut loaded.model, family, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    adapter.save(&loaded.model, family, folder.path()).unwrap();
    save_names(&loaded.config, folder.path()).unwrap();
    let scores = |loaded: &LoadedModel| {
        let parameters = loaded.model.parameters();
        let mut all = parameters.iter().map(|p| (p.name(), p.to_vec()));
        let found = all.find(|(name, _)| *name == "classifier.output.weight");
        assert_eq!(loaded.model.spec().classifier.unwrap().labels, 3);
        found.unwrap().1
    };
    let expected = scores(&loaded);
    let plain = load(folder.path());
    assert_eq!(scores(&plain), expected);
    // The same names in another order are names of their own.
    assert_eq!(plain.config["id2label"]["0"], "LABEL_2");
    let file = TensorFile::open(&folder.path().join("adapter_model.safetensors")).unwrap();
    let renamed = file.names().map(|name| {
        let (module, weight) = name.rsplit_once('.').unwrap();
        let between = match module.ends_with(".score") {
            true => ".modules_to_save.default.",
            false => ".default.",
        };
        let shape = file.info(name).unwrap().shape.clone();
        let values = file.read_f32(name, None).unwrap();
        (format!("{module}{between}{weight}"), shape, values)
    });
    let renamed: Vec<_> = renamed.collect();
    assert!(
        renamed
            .iter()
            .any(|(name, ..)| name.contains("score.modules_to_save.default"))
    );
    drop(file);
    write(folder.path(), renamed);
    assert_eq!(scores(&load(folder.path())), expected);
}

#[test]
fn a_vocabulary_that_grew_under_an_adapted_embedding_is_read() {
    let base = fixture("llama");
    let mut loaded = load(&base);
    let known = loaded.model.spec().vocabulary;
    loaded.model = loaded.model.grown(known, known + 2).unwrap();
    let family = loaded.family().unwrap();
    let targets = ["q_proj", "embed_tokens"].map(str::to_owned);
    let config = PeftConfig::new(2, 4.0, Targets::List(targets.into()));
    let adapter = Adapter::new(config).based_on(base.to_string_lossy());
    adapter.attach(&mut loaded.model, family, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    adapter.save(&loaded.model, family, folder.path()).unwrap();
    let refused = espalier_models::folder::load(folder.path(), &burn::tensor::Device::flex());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("resized before training"), "{refused}");
    // PEFT writes the tables besides.
    let path = folder.path().join("adapter_model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let own = |name: &str| {
        let shape = file.info(name).unwrap().shape.clone();
        (name.to_owned(), shape, file.read_f32(name, None).unwrap())
    };
    let mut tensors: Vec<_> = file.names().map(own).collect();
    let width = loaded.model.spec().width;
    let table: Vec<f32> = (0..(known + 2) * width).map(|i| (i % 7) as f32).collect();
    for name in ["model.embed_tokens.base_layer.weight", "lm_head.weight"] {
        let name = format!("base_model.model.{name}");
        tensors.push((name, vec![known + 2, width], table.clone()));
    }
    drop(file);
    write(folder.path(), tensors);
    let read = load(folder.path());
    assert_eq!(read.model.spec().vocabulary, known + 2);
    assert_eq!(read.model.embedding().weight.to_vec(), table);
    assert!(read.remarks.iter().any(|r| r.contains("2 more tokens")));
}
