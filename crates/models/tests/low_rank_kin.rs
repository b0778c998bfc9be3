//! DoRA, PiSSA, rsLoRA, LoRA on embeddings, trained rows of tokens and biases: what PEFT computes with them is computed here, what is fresh changes nothing, what is merged or saved
//! computes the same, and the base stays as it was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use espalier_models::{
    adapter::Adapter,
    checkpoint::{
        Checkpoint, Dtype, PeftConfig, TensorFile,
        peft_config::{Initialisation, Pattern, Targets},
    },
    folder,
    model::{Input, LanguageModel},
    parameter::Parameters,
};
use fixture_lists::{
    adapter_folders::{configuration, gap, load, names},
    fixture, outputs,
};

/// The folders of PEFT's adapters, found by looking.
fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(fixture("")).unwrap();
    let is_case = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("peft-") && !name.starts_with("peft-lora")
    };
    let mut all: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(is_case)
        .collect();
    all.sort();
    assert!(all.len() > 8);
    all
}

fn base_weights(model: &LanguageModel) -> Vec<(String, Vec<f32>)> {
    let parameters = model.parameters().into_iter();
    parameters
        .filter(|p| p.adapter().is_none())
        .map(|p| (p.name().to_owned(), p.to_vec()))
        .collect()
}

#[test]
fn they_compute_what_peft_computes_before_and_after_saving_and_when_merged() {
    for case in cases() {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let mut loaded = load(&case);
        let difference = gap(&case, &loaded.model);
        assert!(difference < 1e-4, "{name}: {difference}");
        let (saved, family) = (tempfile::tempdir().unwrap(), loaded.family().unwrap());
        let adapter = loaded.adapter.clone().unwrap();
        let adapter = adapter.based_on(loaded.base.to_string_lossy());
        adapter.save(&loaded.model, family, saved.path()).unwrap();
        // What was not converted is.
        let before = configuration(&case);
        let after = configuration(saved.path());
        // PEFT writes a table that it adapts, and a head, beside their adapters.
        let is_own = |name: &String| !name.ends_with(".base_layer.weight");
        let theirs: BTreeSet<String> = names(&case).into_iter().filter(is_own).collect();
        assert_eq!(names(saved.path()), theirs, "{name}");
        assert_eq!(after["init_lora_weights"], true, "{name}");
        for key in [
            "use_dora",
            "use_rslora",
            "bias",
            "lora_bias",
            "trainable_token_indices",
            "ensure_weight_tying",
        ] {
            assert_eq!(after[key], before[key], "{name}");
        }
        if name == "peft-pissa" {
            assert_eq!(after["r"], 4);
            assert_eq!(after["lora_alpha"], 6);
        }
        if !["fused", "transposed", "fast"]
            .iter()
            .any(|part| name.contains(part))
        {
            assert!(after["rank_pattern"].as_object().unwrap().len() < 2);
        }
        let again = load(saved.path());
        let difference = gap(&case, &again.model);
        assert!(difference < 1e-4, "{name}: {difference} when saved");
        // The base alone is as it was, but for a head that became one of its own.
        loaded.model.set_active_adapters(&[]).unwrap();
        let mut alone = base_weights(&loaded.model);
        let base = base_weights(&load(&loaded.base).model);
        alone.retain(|(weight, _)| {
            weight != "head.weight" || base.iter().any(|(own, _)| own == weight)
        });
        assert!(alone == base, "{name}");
        assert!(gap(&case, &loaded.model) > 1e-2, "{name}");
        loaded.model.set_active_adapters(&["default"]).unwrap();
        loaded.model.merge_adapters().unwrap();
        assert!(gap(&case, &loaded.model) < 1e-4, "{name}");
        let merged = tempfile::tempdir().unwrap();
        folder::save(
            &loaded.model,
            merged.path(),
            Some(&loaded.config),
            Dtype::F32,
        )
        .unwrap();
        let expected = TensorFile::open(&case.join("merged.safetensors")).unwrap();
        let ours = Checkpoint::open(merged.path()).unwrap();
        let mut compared = 0;
        for tensor in expected.names() {
            let ours = ours.read_f32(tensor, None).unwrap();
            let theirs = expected.read_f32(tensor, None).unwrap();
            let difference = outputs::gap(&ours, &theirs);
            assert!(difference < 1e-4, "{name}: `{tensor}`: {difference}");
            compared += 1;
        }
        assert!(compared > 10, "{name}");
    }
}

#[test]
fn factors_beside_a_lessened_base_have_pefts_gradients() {
    let case = fixture("peft-pissa");
    let expected = TensorFile::open(&case.join("gradients.safetensors")).unwrap();
    let mut loaded = load(&case);
    loaded
        .adapter
        .clone()
        .unwrap()
        .mark_trainable(&mut loaded.model);
    let file = TensorFile::open(&case.join("expected.safetensors")).unwrap();
    let ids = file.read_i64("input_ids").unwrap();
    let width = file.info("input_ids").unwrap().shape[1];
    let rows: Vec<Vec<u32>> = ids
        .chunks(width)
        .map(|row| row.iter().map(|id| *id as u32).collect())
        .collect();
    let logits = loaded.model.logits(&Input::rows(&rows).unwrap()).unwrap();
    let [batch, time, vocabulary] = logits.dims();
    let log = burn::tensor::activation::log_softmax(logits, 2);
    let log = log.narrow(1, 0, time - 1);
    let targets: Vec<i32> = rows
        .iter()
        .flat_map(|row| row[1..].to_vec())
        .map(|id| id as i32)
        .collect();
    let targets =
        burn::tensor::Tensor::<1, burn::tensor::Int>::from_ints(&targets[..], &log.device())
            .reshape([batch, time - 1, 1]);
    let loss = -log.gather(2, targets).mean();
    assert_eq!(vocabulary, 61);
    let gradients = loss.backward();
    let mut found = BTreeMap::new();
    loaded.model.visit(&mut |p| {
        if let (true, Some(leaf)) = (p.is_trainable(), p.leaf()) {
            let gradient = leaf.grad(&gradients).unwrap();
            let values = gradient.into_data().try_into_vec::<f32>().unwrap();
            found.insert(p.name().to_owned(), values);
        }
    });
    let modules = [
        ("self_attn.q_proj", "mixer.query"),
        ("self_attn.k_proj", "mixer.key"),
        ("self_attn.v_proj", "mixer.value"),
        ("self_attn.o_proj", "mixer.output"),
    ];
    let mut compared = 0;
    for layer in 0..3 {
        for (theirs, ours) in modules {
            for (factor, part) in [("lora_A", "down"), ("lora_B", "up")] {
                let theirs =
                    format!("grad.base_model.model.model.layers.{layer}.{theirs}.{factor}.weight");
                let theirs = expected.read_f32(&theirs, None).unwrap();
                let ours = format!("blocks.{layer}.{ours}.adapter.default.{part}");
                let difference = outputs::gap(&found[&ours], &theirs);
                assert!(difference < 1e-4, "{ours}: {difference}");
                compared += 1;
            }
        }
    }
    // What the base lost is not trained.
    assert_eq!(compared, 24);
    assert_eq!(found.len(), expected.names().count());
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let input = Input::rows(&[vec![5, 9, 2, 7, 1, 30, 11], vec![3, 3, 8, 40, 2, 6, 9]]).unwrap();
    let logits = model.frozen().logits(&input).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

/// Every way to begin, with what it may change at first.
fn kinds() -> Vec<(&'static str, PeftConfig, f32)> {
    let plain = PeftConfig::new(3, 4.5, Targets::AllLinear);
    let rslora = PeftConfig {
        use_rslora: true,
        ..plain.clone()
    };
    let dora = PeftConfig {
        use_dora: true,
        ..plain.clone()
    };
    let start = |initialisation, config: &PeftConfig| PeftConfig {
        initialisation,
        ..config.clone()
    };
    let pissa = Initialisation::Pissa { passes: None };
    let fast = Initialisation::Pissa { passes: Some(16) };
    vec![
        ("plain", plain.clone(), 0.0),
        ("gaussian", start(Initialisation::Gaussian, &plain), 0.0),
        ("dora", dora.clone(), 0.0),
        ("pissa", start(pissa, &plain), 1e-4),
        ("fast pissa", start(fast, &plain), 1e-4),
        ("pissa, rslora", start(pissa, &rslora), 1e-4),
        ("dora, pissa", start(pissa, &dora), 1e-4),
    ]
}

/// Moves everything that is trained.
fn disturb(model: &mut LanguageModel) -> usize {
    let mut moved = 0;
    model.visit_mut(&mut |p| {
        if p.is_trainable() {
            let values = p.to_vec().into_iter().enumerate();
            let values = values.map(|(i, x)| x * 1.1 + 0.03 * ((i % 7) as f32 - 3.0));
            p.set_data(values.collect(), &Device::flex());
            moved += 1;
        }
    });
    moved
}

#[test]
fn fresh_ones_change_nothing_and_trained_ones_are_merged_and_saved_on_the_same_base() {
    for name in [
        "llama",
        "phi3",
        "gpt2",
        "gpt-bigcode",
        "bloom-alibi",
        "mamba",
    ] {
        for (kind, config, allowed) in kinds() {
            let mut loaded = load(&fixture(name));
            let family = loaded.family().unwrap();
            let (plain, before) = (logits(&loaded.model), base_weights(&loaded.model));
            let adapter = Adapter::new(config.clone()).based_on(fixture(name).to_string_lossy());
            adapter.attach(&mut loaded.model, family, 5).unwrap();
            let difference = outputs::gap(&logits(&loaded.model), &plain);
            assert!(
                difference <= allowed,
                "{name}, {kind}: {difference} at first"
            );
            assert!(disturb(&mut loaded.model) > 4);
            let adapted = logits(&loaded.model);
            assert!(outputs::gap(&adapted, &plain) > 1e-3, "{name}, {kind}");
            assert_eq!(base_weights(&loaded.model), before, "{name}, {kind}");
            let scale = adapted.iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let mut merged = loaded.model.frozen();
            merged.merge_adapters().unwrap();
            let difference = outputs::gap(&logits(&merged), &adapted);
            assert!(
                difference < 1e-5 * scale,
                "{name}, {kind}: {difference} merged"
            );
            let saved = tempfile::tempdir().unwrap();
            adapter.save(&loaded.model, family, saved.path()).unwrap();
            let again = load(saved.path());
            let difference = outputs::gap(&logits(&again.model), &adapted);
            assert!(
                difference < 1e-5 * scale,
                "{name}, {kind}: {difference} loaded"
            );
            let twice = tempfile::tempdir().unwrap();
            let adapter = again.adapter.unwrap();
            adapter.save(&again.model, family, twice.path()).unwrap();
            assert_eq!(shapes(saved.path()), shapes(twice.path()), "{name}, {kind}");
        }
    }
}

fn shapes(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let file = TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
    let names = file.names();
    names
        .map(|name| (name.to_owned(), file.info(name).unwrap().shape.clone()))
        .collect()
}

#[test]
fn the_start_is_the_largest_part_of_the_weight() {
    // All of the weight where the rank is whole.
    let mut loaded = load(&fixture("llama"));
    let family = loaded.family().unwrap();
    let mut config = PeftConfig::new(24, 24.0, Targets::List(vec!["q_proj".into()]));
    config.initialisation = Initialisation::Pissa { passes: None };
    let weight = base_weights(&loaded.model);
    let query = "blocks.0.mixer.query";
    let weight = weight
        .iter()
        .find(|(name, _)| *name == format!("{query}.weight"));
    let weight = weight.unwrap().1.clone();
    Adapter::new(config)
        .attach(&mut loaded.model, family, 0)
        .unwrap();
    let mut product = Vec::new();
    loaded.model.visit_linears(&mut |map| {
        if map.name == query {
            let part = map.adapters.get("default").unwrap().low_rank().unwrap();
            let [down, up] = [&part.down, &part.up].map(|p| p.value::<2>().inner());
            product = up.matmul(down).into_data().try_into_vec::<f32>().unwrap();
        }
    });
    assert!(outputs::gap(&product, &weight) < 1e-5);
}

#[test]
fn bases_stay_in_their_files_format() {
    let source = load(&fixture("llama"));
    let saved = tempfile::tempdir().unwrap();
    folder::save(
        &source.model,
        saved.path(),
        Some(&source.config),
        Dtype::BF16,
    )
    .unwrap();
    for (kind, config, _) in kinds() {
        let mut loaded = load(saved.path());
        let family = loaded.family().unwrap();
        let stored = |model: &LanguageModel| {
            let parameters = model.parameters().into_iter();
            parameters.filter(|p| p.as_stored().is_some()).count()
        };
        let (before, plain) = (stored(&loaded.model), logits(&loaded.model));
        assert!(before > 20);
        let adapter = Adapter::new(config);
        adapter.attach(&mut loaded.model, family, 5).unwrap();
        assert_eq!(stored(&loaded.model), before, "{kind}");
        assert!(
            outputs::gap(&logits(&loaded.model), &plain) < 1e-4,
            "{kind}"
        );
        disturb(&mut loaded.model);
        let adapted = logits(&loaded.model);
        loaded.model.merge_adapters().unwrap();
        assert!(
            outputs::gap(&logits(&loaded.model), &adapted) < 1e-5,
            "{kind}"
        );
    }
}

#[test]
fn what_needs_a_layer_of_its_own_is_refused_for_experts_and_bare_routers() {
    for (name, targets) in [
        ("mixtral", Targets::AllLinear),
        ("mixtral", Targets::List(vec!["gate".into()])),
        ("jetmoe", Targets::AllLinear),
        ("granitemoe", Targets::List(vec!["input_linear".into()])),
    ] {
        for (change, said) in [(true, "DoRA needs"), (false, "PiSSA needs")] {
            let mut loaded = load(&fixture(name));
            let family = loaded.family().unwrap();
            let mut config = PeftConfig::new(2, 4.0, targets.clone());
            match change {
                true => config.use_dora = true,
                false => config.initialisation = Initialisation::Pissa { passes: None },
            }
            let refused = Adapter::new(config).attach(&mut loaded.model, family, 0);
            let error = refused.unwrap_err().to_string();
            assert!(
                error.starts_with(said) && error.contains("plain LoRA"),
                "{name}: {error}"
            );
            assert!(loaded.model.adapters().is_empty());
        }
    }
}

/// PEFT takes `layers_to_transform` and `layers_pattern` beside a list of names alone, and the pattern beside layers alone.
#[test]
fn a_choice_of_layers_is_saved_as_peft_opens_it() {
    let plain = PeftConfig::new(2, 4.0, Targets::AllLinear);
    let pattern = |text| Pattern::whole(text).unwrap();
    let layer = |text| vec![Pattern::layer(text).unwrap()];
    let of_layers = PeftConfig {
        layers_to_transform: Some(vec![1]),
        ..plain.clone()
    };
    let kinds = [
        ("layers", of_layers.clone()),
        (
            "layers and pattern",
            PeftConfig {
                layers_pattern: layer("layers|h"),
                ..of_layers.clone()
            },
        ),
        (
            "pattern alone",
            PeftConfig {
                layers_pattern: layer("layers|h"),
                ..plain.clone()
            },
        ),
        (
            "expression and layers",
            PeftConfig {
                target_modules: Targets::Regex(pattern(r".*(up_proj|c_fc|gate_up_proj|q_proj)")),
                ..of_layers.clone()
            },
        ),
        (
            "excluded",
            PeftConfig {
                exclude_modules: Some(Targets::Regex(pattern(r".*(down_proj|c_proj)"))),
                ..of_layers
            },
        ),
    ];
    for name in ["llama", "gpt2", "phi3"] {
        for (kind, config) in &kinds {
            let mut loaded = load(&fixture(name));
            let family = loaded.family().unwrap();
            let adapter = Adapter::new(config.clone()).based_on(fixture(name).to_string_lossy());
            adapter.attach(&mut loaded.model, family, 5).unwrap();
            disturb(&mut loaded.model);
            let folder = tempfile::tempdir().unwrap();
            adapter.save(&loaded.model, family, folder.path()).unwrap();
            let written = configuration(folder.path());
            let is_set = |key: &str| !written[key].is_null();
            let chooses = is_set("layers_to_transform") || is_set("layers_pattern");
            assert!(
                !chooses || written["target_modules"].is_array(),
                "{name}, {kind}: {written:?}"
            );
            assert!(
                !is_set("layers_pattern") || is_set("layers_to_transform"),
                "{name}, {kind}: {written:?}"
            );
            let again = load(folder.path());
            let difference = outputs::gap(&logits(&again.model), &logits(&loaded.model));
            assert!(difference < 1e-6, "{name}, {kind}: {difference}");
        }
    }
}
