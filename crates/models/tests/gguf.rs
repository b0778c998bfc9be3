//! GGUF files that the `gguf` package wrote of the fixtures (`tests/fixtures/make/gguf_models.py`): they compute what the folders do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use espalier_data::gguf::{Metadata, TensorEntry, Value, header_bytes, read_header};
use espalier_models::{
    checkpoint::{
        Checkpoint, Dtype,
        gguf::{self, Importance, Mixture},
    },
    folder::{self, LoadedModel},
    model::Input,
    parameter::Parameters,
};
use half::f16;
use proptest::prelude::*;
use serde_json::json;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
const MODELS: [&str; 12] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "llama3-rope",
    "mamba",
    "mistral",
    "mixtral",
    "phi3",
    "qwen2",
    "qwen3",
];

fn file(name: &str) -> PathBuf {
    PathBuf::from(format!("{FIXTURES}/gguf/models/{name}.gguf"))
}

fn load(path: &Path) -> LoadedModel {
    folder::load(path, &Device::flex()).unwrap_or_else(|error| panic!("{error}"))
}

fn logits(loaded: &LoadedModel) -> Vec<f32> {
    // Longer than the windows of those that have some.
    let row = |shift: u32| (0..24).map(|i| (i * 7 + shift) % 31).collect::<Vec<u32>>();
    let input = Input::rows(&[row(1), row(4)]).unwrap();
    loaded
        .model
        .logits(&input)
        .unwrap()
        .into_data()
        .try_into_vec()
        .unwrap()
}

#[test]
fn files_compute_what_their_folders_do() {
    for name in MODELS {
        // What the files cannot say: a window of Mistral's, and a scale of the scores that is not of the heads' width.
        let changes = match name {
            "mistral" => json!({ "sliding_window": null }),
            "gemma3" => json!({ "query_pre_attn_scalar": 8 }),
            _ => json!({}),
        };
        let folder: PathBuf = format!("{FIXTURES}/{name}").into();
        let changes = changes.as_object().unwrap();
        let from_folder = folder::load_changed(&folder, changes, &Device::flex()).unwrap();
        let from_file = load(&file(name));
        let family = match name {
            // The files of Mistral say that they are LLaMA's.
            "mistral" => "llama",
            _ => from_folder.family().unwrap().model_type,
        };
        assert_eq!(from_file.family().unwrap().model_type, family);
        let (found, expected) = (logits(&from_file), logits(&from_folder));
        let gaps = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let gap = gaps.fold(0f32, f32::max);
        // One that was added to a norm, a logarithm of an exponential, and rotary factors in f32 cost a bit.
        let rounded = name.starts_with("gemma") || ["mamba", "llama3-rope"].contains(&name);
        assert!(gap <= if rounded { 1e-5 } else { 0.0 }, "{name}: {gap}");
        let ends = |loaded: &LoadedModel| loaded.model.spec().eos.clone();
        assert_eq!(ends(&from_file), ends(&from_folder), "{name}");
        assert_eq!(from_file.dtype, Dtype::F32);
    }
}

#[test]
fn weights_stay_in_the_file() {
    let bytes = std::fs::read(file("qwen3")).unwrap();
    let header = read_header(&bytes[..], bytes.len() as u64).unwrap();
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    for tensor in &header.tensors {
        let start = (header.data + tensor.offset) as usize;
        let count = tensor.axes.iter().product::<u64>() as usize;
        let numbers = bytes[start..start + 4 * count].as_chunks::<4>().0.iter();
        let halves =
            numbers.flat_map(|number| f16::from_f32(f32::from_le_bytes(*number)).to_le_bytes());
        tensors.push(TensorEntry {
            kind: 1,
            offset: data.len() as u64,
            ..tensor.clone()
        });
        data.extend(halves);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(
        &path,
        [header_bytes(&header.metadata, &tensors), data].concat(),
    )
    .unwrap();
    // A folder with nothing but the file is the model too.
    let loaded = load(folder.path());
    loaded.model.visit(&mut |parameter| {
        if parameter.shape().len() > 1 {
            let stored = parameter.as_stored().unwrap();
            assert!(stored.bytes().is_mapped(), "{}", parameter.name());
        }
    });
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.format_name(), "f16");
    let gap = logits(&loaded)
        .iter()
        .zip(logits(&load(&file("qwen3"))))
        .fold(0f32, |gap, (a, b)| gap.max((a - b).abs()));
    assert!(gap > 0.0 && gap < 1e-2, "{gap}");
}

/// A file that differs from that of a fixture.
fn changed(change: impl FnOnce(&mut Metadata, &mut Vec<TensorEntry>)) -> Vec<u8> {
    let bytes = std::fs::read(file("llama")).unwrap();
    let mut header = read_header(&bytes[..], bytes.len() as u64).unwrap();
    change(&mut header.metadata, &mut header.tensors);
    let mut file = header_bytes(&header.metadata, &header.tensors);
    file.extend(&bytes[header.data as usize..]);
    file
}

fn error(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    folder::load(&path, &Device::flex())
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

#[test]
fn hostile_files_are_told_what_is_wrong() {
    let set = |key: &'static str, value: Value| {
        changed(move |metadata, _| _ = metadata.insert(key.into(), value))
    };
    let tensor = |change: fn(&mut TensorEntry)| changed(move |_, tensors| change(&mut tensors[0]));
    let text = |text: &str| Value::Text(text.into());
    let cases = [
        (
            changed(|metadata, _| _ = metadata.remove("general.architecture")),
            "has no `general.architecture`",
        ),
        (
            set("general.architecture", text("llama5")),
            "`llama5`, which is not read",
        ),
        (
            set("llama.embedding_length", text("wide")),
            "`llama.embedding_length` is Text(\"wide\"); expected a whole number",
        ),
        (
            changed(|metadata, _| _ = metadata.remove("llama.block_count")),
            "lacks `llama.block_count`",
        ),
        (set("llama.attention.head_count", Value::U32(5)), "heads"),
        (
            set("llama.embedding_length", Value::U64(1 << 60)),
            "hidden_size",
        ),
        (
            set("llama.rope.scaling.type", text("sideways")),
            "by `sideways`, which is not read",
        ),
        (
            set("split.count", Value::U16(3)),
            "is one of 3 parts of a model",
        ),
        (
            tensor(|tensor| tensor.kind = 20),
            "has the type IQ4_NL, which is not read; F32, F16, Q4_0",
        ),
        (
            tensor(|tensor| tensor.kind = 999),
            "has the type 999, which is unknown here",
        ),
        (
            tensor(|tensor| tensor.kind = 8),
            "no whole blocks of 32 as Q8_0 needs them",
        ),
        (
            tensor(|tensor| tensor.offset = 1 << 40),
            "lies outside the file",
        ),
        (
            tensor(|tensor| tensor.offset = u64::MAX - 31),
            "lies outside the file",
        ),
        (
            tensor(|tensor| tensor.axes = vec![24, 1 << 40]),
            "lies outside the file",
        ),
        (
            tensor(|tensor| tensor.name = "blk.0.attn_bogus.weight".into()),
            "`blk.0.attn_bogus.weight` is none of the architecture",
        ),
        (
            changed(|_, tensors| _ = tensors.remove(1)),
            "has no tensor `token_embd.weight`",
        ),
    ];
    for (bytes, expected) in cases {
        let found = error(&bytes);
        assert!(found.contains(expected), "{expected}: {found}");
        assert!(found.contains("model.gguf"), "{found}");
    }
    let whole = changed(|_, _| {});
    assert!(error(&whole[..whole.len() - 500]).contains("lies outside the file"));
}

#[test]
fn models_may_be_spread_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(file("qwen2")).unwrap();
    let header = read_header(&bytes[..], bytes.len() as u64).unwrap();
    let size = |tensor: &TensorEntry| 4 * tensor.axes.iter().product::<u64>() as usize;
    let path = |part: u64| folder.path().join(format!("m-{part:05}-of-00002.gguf"));
    let half = header.tensors.len() / 2;
    for (part, tensors) in [(1, &header.tensors[..half]), (2, &header.tensors[half..])] {
        let mut metadata = if part == 1 {
            header.metadata.clone()
        } else {
            Metadata::new()
        };
        metadata.insert("split.no".into(), Value::U16(part as u16 - 1));
        metadata.insert("split.count".into(), Value::U16(2));
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let start = (header.data + tensor.offset) as usize;
            entries.push(TensorEntry {
                offset: data.len() as u64,
                ..tensor.clone()
            });
            data.extend(&bytes[start..start + size(tensor)]);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        std::fs::write(
            path(part),
            [header_bytes(&metadata, &entries), data].concat(),
        )
        .unwrap();
    }
    assert_eq!(logits(&load(&path(1))), logits(&load(&file("qwen2"))));
    let second = folder::load(&path(2), &Device::flex())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        second.contains("architecture") || second.contains("give the first"),
        "{second}"
    );
    std::fs::remove_file(path(2)).unwrap();
    let lacking = folder::load(&path(1), &Device::flex())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        lacking.contains("m-00002-of-00002.gguf is missing"),
        "{lacking}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn flipped_bits_never_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 1..5)) {
        let mut bytes = std::fs::read(file("llama")).unwrap();
        let header = read_header(&bytes[..], bytes.len() as u64).unwrap().data as usize;
        for (place, bit) in flips {
            bytes[place.index(header)] ^= 1 << bit;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let _ = folder::Description::read(&path);
    }
}

/// A model of a fixture, as it is written and read again.
fn again(name: &str, changes: serde_json::Value, mixture: Mixture) -> (LoadedModel, LoadedModel) {
    let source: PathBuf = format!("{FIXTURES}/{name}").into();
    let source =
        folder::load_changed(&source, changes.as_object().unwrap(), &Device::flex()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written.gguf");
    let tokenizer = gguf::no_tokenizer(source.model.spec());
    let bytes = gguf::write(
        &source.model,
        tokenizer,
        name,
        &path,
        mixture,
        &Importance::default(),
    )
    .unwrap();
    assert_eq!(bytes, std::fs::metadata(&path).unwrap().len(), "{name}");
    (load(&path), source)
}

#[test]
fn what_is_written_computes_the_same() {
    for name in MODELS {
        let changes = match name {
            "mistral" | "mixtral" => json!({ "sliding_window": null }),
            "gemma3" => json!({ "query_pre_attn_scalar": 8 }),
            _ => json!({}),
        };
        let (found, source) = again(name, changes.clone(), Mixture::F32);
        let gap = |other: &LoadedModel| {
            let gaps = logits(other)
                .into_iter()
                .zip(logits(&source))
                .map(|(a, b)| (a - b).abs());
            gaps.fold(0f32, f32::max)
        };
        let rounded = name.starts_with("gemma") || ["mamba", "llama3-rope"].contains(&name);
        assert!(
            gap(&found) <= if rounded { 1e-5 } else { 0.0 },
            "{name}: {}",
            gap(&found)
        );
        let (found, _) = again(name, changes, Mixture::Bf16);
        assert!(
            gap(&found) > 0.0 && gap(&found) < 0.2,
            "{name}: {}",
            gap(&found)
        );
    }
}

#[test]
fn what_a_file_cannot_say_is_refused() {
    let refused = |name: &str, changes: serde_json::Value| {
        let source: PathBuf = format!("{FIXTURES}/{name}").into();
        let source =
            folder::load_changed(&source, changes.as_object().unwrap(), &Device::flex()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written.gguf");
        let error = gguf::write(
            &source.model,
            Metadata::new(),
            name,
            &path,
            Mixture::F32,
            &Importance::default(),
        );
        assert!(!path.exists());
        error.unwrap_err().to_string()
    };
    assert!(
        refused("bloom-alibi", json!({}))
            .contains("models of the family `bloom` are not written; llama, mistral")
    );
    assert!(
        refused("mistral", json!({})).contains("a window of 8 tokens, which `llama` has not"),
        "{}",
        refused("mistral", json!({}))
    );
    assert!(refused("gemma3", json!({})).contains("llama.cpp multiplies by"));
}
