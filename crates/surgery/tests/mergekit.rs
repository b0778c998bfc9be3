//! Every merge of the fixtures beside mergekit's: tensors to 1e-6, configurations exactly. `tests/fixtures/merges` was made by mergekit 0.1.5.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::fs;
use std::path::{Path, PathBuf};

use espalier_models::checkpoint::Checkpoint;
use espalier_surgery::merge::{Options, Summary, merge, recipe};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn merged(text: &str, out: &Path, memory: Option<u64>) -> Result<Summary, espalier_surgery::Error> {
    let root = fixtures();
    let options = Options {
        resolve: &|path| Ok(root.join(path)),
        memory,
        seed: 0,
        shard_bytes: u64::MAX,
        progress: &|_, _| (),
        stop: &|| false,
        finish: &|_, _| Ok(()),
    };
    merge(
        &recipe::parse(text, Path::new("merge.yaml"))?,
        out,
        &options,
    )
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// The largest difference between tensors that two folders must have alike.
fn difference(found: &Path, expected: &Path) -> f32 {
    let (found, expected) = (
        Checkpoint::open(found).unwrap(),
        Checkpoint::open(expected).unwrap(),
    );
    assert!(found.names().eq(expected.names()));
    let mut largest = 0.0f32;
    for name in expected.names() {
        assert_eq!(found.info(name), expected.info(name), "{name}");
        let pair = [&found, &expected].map(|one| one.read_f32(name, None).unwrap());
        for (a, b) in pair[0].iter().zip(&pair[1]) {
            largest = largest.max((a - b).abs());
        }
    }
    largest
}

#[test]
fn every_fixture_is_mergekits() {
    let mut merges = 0;
    for entry in fs::read_dir(fixtures().join("merges")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(folder.join("merge.yaml")) else {
            continue;
        };
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        merged(&text, &out, None).unwrap();
        let largest = difference(&out, &folder);
        assert!(largest < 1e-6, "{}: {largest}", folder.display());
        assert_eq!(config(&out), config(&folder), "{}", folder.display());
        assert_eq!(
            fs::read_to_string(out.join("mergekit_config.yml")).unwrap(),
            text
        );
        assert!(
            fs::read_to_string(out.join("README.md"))
                .unwrap()
                .contains("```yaml")
        );
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        merges += 1;
    }
    assert!(merges >= 8, "{merges}");
}

const PAIR: &str = "models:\n  - model: merges/a\n    parameters: {weight: 0.6, density: 0.5}\n  - model: merges/b\n    parameters: {weight: 0.4, density: 0.7}\n";

fn pair(method: &str, rest: &str) -> String {
    format!("{PAIR}merge_method: {method}\nbase_model: merges/base\n{rest}")
}

#[test]
fn random_merges_are_their_seeds() {
    for method in ["dare_ties", "dare_linear", "della", "della_linear"] {
        let place = tempfile::tempdir().unwrap();
        let (one, two) = (place.path().join("one"), place.path().join("two"));
        let first = merged(&pair(method, ""), &one, None).unwrap();
        // Tensors one by one instead of all at once.
        merged(&pair(method, ""), &two, Some(97 << 20)).unwrap();
        assert_eq!(difference(&one, &two), 0.0, "{method}");
        assert!(first.differences.iter().all(|d| d.distance > 0.0));
    }
}

#[test]
fn every_method_runs_and_names_what_it_lacks() {
    let place = tempfile::tempdir().unwrap();
    for (method, rest) in [
        ("multislerp", ""),
        ("karcher", ""),
        ("sce", "parameters: {select_topk: 0.5}\n"),
        ("breadcrumbs_ties", ""),
        ("nuslerp", "parameters: {nuslerp_flatten: false}\n"),
        ("model_stock", "parameters: {filter_wise: true}\n"),
    ] {
        let out = place.path().join(method);
        let summary = merged(&pair(method, rest), &out, None).unwrap();
        assert_eq!(summary.parameters, 16_920, "{method}");
    }
    for (method, rest, said) in [
        (
            "nearswap",
            "parameters: {t: 1}\n",
            "exactly 1 models besides the base",
        ),
        ("arcee_fusion", "", "exactly 1 models besides the base"),
        ("passthrough", "", "exactly 1 models"),
    ] {
        let error = merged(&pair(method, rest), &place.path().join("no"), None);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let one = |method: &str, rest: &str| {
        format!(
            "models: [{{model: merges/a}}]\nbase_model: merges/base\nmerge_method: {method}\n{rest}"
        )
    };
    let error = merged(&one("nearswap", ""), &place.path().join("no"), None);
    assert!(error.unwrap_err().to_string().contains("`t` says nothing"));
    merged(
        &one("nearswap", "parameters: {t: 0.01}\n"),
        &place.path().join("near"),
        None,
    )
    .unwrap();
    merged(&one("arcee_fusion", ""), &place.path().join("fusion"), None).unwrap();
}

#[test]
fn documents_use_each_others_output() {
    let place = tempfile::tempdir().unwrap();
    let text = "models: [{model: half, parameters: {weight: 1}}]\nmerge_method: linear\n---\nname: half\nmodels:\n  - {model: merges/a, parameters: {weight: 0.6}}\n  - {model: merges/b, parameters: {weight: 0.4}}\nmerge_method: linear\ndtype: float32\n";
    let out = place.path().join("out");
    merged(text, &out, None).unwrap();
    assert!(difference(&out, &fixtures().join("merges/linear")) < 1e-6);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}

#[test]
fn what_does_not_fit_is_told_before_anything_is_written() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let refused = |text: &str| {
        let error = merged(text, &out, None).unwrap_err().to_string();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{error}");
        error
    };
    let other = format!(
        "{}merge_method: linear\n",
        PAIR.replace("merges/b", "qwen3")
    );
    let other = refused(&other);
    assert!(other.contains("`architectures`"), "{other}");
    let range = refused(
        "slices:\n- sources:\n  - {model: merges/a, layer_range: [0, 9]}\nmerge_method: passthrough\n",
    );
    assert!(
        range.starts_with("merge.yaml:3: `layer_range`: 0..9 of merges/a, which has 3 blocks"),
        "{range}"
    );
    let weight = refused("models: [{model: merges/a}]\nmerge_method: linear\n");
    assert!(
        weight.contains("`weight` of merges/a says nothing"),
        "{weight}"
    );
    let room = merged(&pair("ties", ""), &out, Some(96 << 20))
        .unwrap_err()
        .to_string();
    assert!(room.contains("raise `--memory`"), "{room}");
}
