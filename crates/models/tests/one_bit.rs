//! Weights of 1.58 bits and of one: transformers' files, training through the rounding, packed folders out and in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod fixture_lists;

use std::{fs, path::Path};

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use espalier_models::{
    checkpoint::{Dtype, Elements, TensorFile, TensorPlan, TensorWriter},
    folder::{self, LoadedModel},
    layout,
    model::{Input, LanguageModel},
    packing::packed,
    parameter::Parameters,
    source::Seed,
    spec::{ModelSpec, WeightBits},
};
use fixture_lists::fixture;
use serde_json::{Map, Value, json};

const FILES: [&str; 3] = ["bitnet-online", "bitnet-offline", "bitnet-bitlinear"];

fn load(folder: &Path) -> LoadedModel {
    folder::load(folder, &Device::flex()).unwrap()
}

fn outputs(name: &str) -> TensorFile {
    TensorFile::open(&fixture(name).join("outputs.safetensors")).unwrap()
}

fn ids(file: &TensorFile, tensor: &str) -> Vec<Vec<u32>> {
    let width = file.info(tensor).unwrap().shape[1];
    let all = file.read_i64(tensor).unwrap();
    let row = |row: &[i64]| row.iter().map(|id| *id as u32).collect();
    all.chunks(width).map(row).collect()
}

fn logits(model: &LanguageModel, input: &Input) -> Vec<f32> {
    let logits = model.logits(input).unwrap();
    logits.inner().into_data().try_into_vec().unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    gaps.fold(0.0, f32::max)
}

fn sample() -> Input {
    Input::rows(&[vec![1, 7, 9, 11, 4], vec![1, 8, 3, 3, 9]]).unwrap()
}

/// A small model of a family with such weights.
fn fresh(bits: WeightBits) -> LanguageModel {
    let spec = ModelSpec {
        bits: Some(bits),
        ..ModelSpec::llama(40, 24, 2, 4, 2, 44, 32)
    };
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
}

#[test]
fn files_of_transformers_give_its_logits_and_continuations() {
    for name in FILES {
        let (model, file) = (load(&fixture(name)).model, outputs(name));
        assert_eq!(model.spec().bits, Some(WeightBits::Ternary));
        let input = Input::rows(&ids(&file, "input_ids")).unwrap();
        let expected = file.read_f32("logits", None).unwrap();
        let found = gap(&logits(&model, &input), &expected);
        assert!(found < 1e-4, "{name}: {found}");
        // The greedy token at every place of the continuation, its own words before it.
        let continued = &ids(&file, "generated")[0];
        let start = ids(&file, "input_ids")[0].len();
        let rows = Input::rows(std::slice::from_ref(continued)).unwrap();
        let all = logits(&model, &rows);
        let scores = all.chunks(model.spec().vocabulary);
        // The end is not among them: so many were asked for.
        let open = |id: &usize| !model.spec().eos.contains(&(*id as u32));
        let best = |row: &[f32]| {
            let ids = (0..row.len()).filter(open);
            ids.max_by(|a, b| row[*a].total_cmp(&row[*b]))
        };
        let greedy: Vec<u32> = scores.map(|row| best(row).unwrap() as u32).collect();
        assert_eq!(
            greedy[start - 1..continued.len() - 1],
            continued[start..],
            "{name}"
        );
    }
}

#[test]
fn gradients_pass_the_rounding_as_in_transformers() {
    let name = FILES[0];
    let (mut model, file) = (load(&fixture(name)).model, outputs(name));
    let family = load(&fixture(name)).family().unwrap();
    model.set_trainable(|_| true);
    let rows = ids(&file, "input_ids");
    let logits = model.logits(&Input::rows(&rows).unwrap()).unwrap();
    let [batch, time, vocabulary] = logits.dims();
    let targets: Vec<i64> = rows
        .iter()
        .flat_map(|row| row[1..].iter().map(|id| i64::from(*id)))
        .collect();
    let count = targets.len();
    let targets =
        Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &logits.device());
    let scores = logits
        .narrow(1, 0, time - 1)
        .reshape([batch * (time - 1), vocabulary]);
    let loss = log_softmax(scores, 1).gather(1, targets).mean().neg();
    let expected = file.read_f32("loss", None).unwrap()[0];
    assert!((loss.clone().into_scalar::<f32>() - expected).abs() < 1e-4);
    let gradients = loss.backward();
    let gradient = |parameter: &espalier_models::parameter::Parameter| {
        let leaf = parameter.leaf().unwrap();
        leaf.grad(&gradients).unwrap()
    };
    let mut seen = 0;
    for tensor in layout::stored_tensors(&model, family) {
        let found = tensor.assemble(&gradient);
        let expected = file
            .read_f32(&format!("grad.{}", tensor.name), None)
            .unwrap();
        assert!(gap(&found, &expected) < 1e-4, "{}", tensor.name);
        assert!(expected.iter().any(|x| x.abs() > 1e-4), "{}", tensor.name);
        seen += 1;
    }
    assert!(seen > 20);
}

#[test]
fn what_is_trained_computes_as_what_is_packed() {
    for bits in [WeightBits::Ternary, WeightBits::Binary] {
        let mut model = fresh(bits);
        let frozen = logits(&model, &sample());
        let (pack, count) = packed(&model).unwrap();
        assert_eq!(count, 2 * 7);
        assert_eq!(logits(&pack, &sample()), frozen);
        model.set_trainable(|_| true);
        assert_eq!(logits(&model, &sample()), frozen);
        // And they are not the weights as they are.
        let plain = ModelSpec {
            bits: None,
            ..model.spec().clone()
        };
        let plain = LanguageModel::build(plain, &mut Seed(3), &Device::flex()).unwrap();
        assert!(gap(&logits(&plain, &sample()), &frozen) > 1e-3);
    }
}

/// A weight that changes is rounded anew.
#[test]
fn packed_weights_follow_their_weight() {
    let mut model = fresh(WeightBits::Ternary);
    let before = logits(&model, &sample());
    model.visit_mut(&mut |parameter| {
        if parameter.name().ends_with("up.weight") {
            parameter.update(|flat| flat.flip([0]));
        }
    });
    let after = logits(&model, &sample());
    assert!(gap(&before, &after) > 1e-4);
    model.set_trainable(|_| true);
    assert_eq!(logits(&model, &sample()), after);
}

#[test]
fn models_are_saved_and_read_as_they_are() {
    for bits in [WeightBits::Ternary, WeightBits::Binary] {
        let (model, folder) = (fresh(bits), tempfile::tempdir().unwrap());
        let [online, offline] = ["online", "offline"].map(|name| folder.path().join(name));
        let expected = logits(&model, &sample());
        folder::save(&model, &online, None, Dtype::F32).unwrap();
        let again = load(&online).model;
        assert_eq!(again.spec(), model.spec());
        assert_eq!(logits(&again, &sample()), expected);
        let (pack, _) = packed(&again).unwrap();
        folder::save(&pack, &offline, None, Dtype::F32).unwrap();
        let again = load(&offline);
        assert_eq!(again.model.spec(), model.spec());
        assert_eq!(logits(&again.model, &sample()), expected);
        let config: Map<String, Value> =
            serde_json::from_str(&fs::read_to_string(offline.join("config.json")).unwrap())
                .unwrap();
        assert_eq!(
            config["quantization_config"]["quantization_mode"],
            "offline"
        );
        let file = TensorFile::open(&offline.join("model.safetensors")).unwrap();
        let info = file.info("model.layers.1.mlp.up_proj.weight").unwrap();
        assert_eq!((info.dtype, &info.shape[..]), (Dtype::U8, &[11, 24][..]));
        // A second time, over the configuration that was read.
        let third = folder.path().join("third");
        folder::save(&again.model, &third, Some(&again.config), Dtype::F32).unwrap();
        assert_eq!(logits(&load(&third).model, &sample()), expected);
    }
}

#[test]
fn a_model_becomes_one_of_rounded_weights_by_a_key() {
    let changes = json!({ "bits": "ternary" });
    let changes = changes.as_object().unwrap();
    let changed = folder::load_changed(&fixture("llama"), changes, &Device::flex()).unwrap();
    assert_eq!(changed.model.spec().bits, Some(WeightBits::Ternary));
    let plain = load(&fixture("llama")).model;
    assert!(
        gap(
            &logits(&plain, &sample()),
            &logits(&changed.model, &sample())
        ) > 1e-2
    );
    let folder = tempfile::tempdir().unwrap();
    folder::save(
        &changed.model,
        folder.path(),
        Some(&changed.config),
        Dtype::F32,
    )
    .unwrap();
    let again = load(folder.path());
    assert!(!again.config.contains_key("bits"));
    assert_eq!(
        logits(&again.model, &sample()),
        logits(&changed.model, &sample())
    );
}

#[test]
fn what_cannot_be_packed_says_why() {
    let plain = load(&fixture("llama")).model;
    let error = packed(&plain).unwrap_err().to_string();
    assert!(error.contains("would destroy it"), "{error}");
    // GPT-2's files hold three maps in one tensor.
    let changes = json!({ "bits": "ternary" });
    let changes = changes.as_object().unwrap();
    let fused = folder::load_changed(&fixture("gpt2"), changes, &Device::flex()).unwrap();
    let (pack, _) = packed(&fused.model).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = folder::save(&pack, folder.path(), None, Dtype::F32).unwrap_err();
    assert!(error.to_string().contains("several linear maps"), "{error}");
    assert!(!folder.path().join("model.safetensors").exists());
}

/// What is said of the fixture's folder with another configuration, and the tensors that are kept.
fn broken(config: impl FnOnce(&mut Map<String, Value>), kept: impl Fn(&str) -> bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("bitnet-offline");
    let text = fs::read_to_string(source.join("config.json")).unwrap();
    let mut map: Map<String, Value> = serde_json::from_str(&text).unwrap();
    config(&mut map);
    let path = folder.path().join("config.json");
    fs::write(path, Value::Object(map).to_string()).unwrap();
    let file = TensorFile::open(&source.join("model.safetensors")).unwrap();
    let plan = |name: &str| {
        let info = file.info(name).unwrap();
        TensorPlan {
            name: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
        }
    };
    let plans = file.names().filter(|name| kept(name)).map(plan).collect();
    let writer = TensorWriter::new(plans).unwrap();
    let path = folder.path().join("model.safetensors");
    writer
        .write_file(&path, |name| Ok(Elements::Bytes(file.bytes(name)?)))
        .unwrap();
    let error = folder::load(folder.path(), &Device::flex()).unwrap_err();
    error.to_string()
}

#[test]
fn damaged_folders_say_what_is_wrong() {
    let all = |_: &str| true;
    let without = broken(|map| drop(map.remove("quantization_config")), all);
    assert!(without.contains("linear_class"), "{without}");
    let unscaled = |name: &str| !name.ends_with("up_proj.weight_scale");
    let missing = broken(|_| {}, unscaled);
    assert!(missing.contains("needs its scale"), "{missing}");
    let wide = broken(
        |map| drop(map.insert("intermediate_size".into(), json!(80))),
        all,
    );
    assert!(
        wide.contains("[72, 32]") || wide.contains("[80, 32]"),
        "{wide}"
    );
}
