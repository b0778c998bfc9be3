//! Every registered objective trains, is measured on held-out data, and logs nothing but what it is registered with.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{collections::BTreeSet, fs};

use burn::tensor::Device;
use espalier_data::encode::{Example, Pair};
use espalier_models::{
    families::{self, Config},
    model::LanguageModel,
    source::Seed,
    spec::ModelSpec,
};
use espalier_train::{
    batch::Sample,
    metrics,
    objectives::{OBJECTIVES, ObjectiveOptions, registry::Registered, symbols::Symbols},
    options::TrainOptions,
    trainer::{self, Run},
};
use serde_json::{Value, json};

const VOCABULARY: usize = 24;

fn decoder(bidirectional: bool) -> ModelSpec {
    let mut spec = ModelSpec::llama(VOCABULARY, 8, 2, 2, 1, 16, 32);
    spec.bidirectional = bidirectional;
    spec
}

fn encoder_decoder() -> ModelSpec {
    let text = json!({
        "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1,
        "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0
    });
    let config = Config::parse("config.json".as_ref(), &text.to_string()).unwrap();
    (families::family(&config).unwrap().read)(&config).unwrap()
}

fn spec(objective: &str) -> ModelSpec {
    match objective {
        "seq2seq" | "span_corruption" | "infilling" => encoder_decoder(),
        "mlm" | "mntp" | "simcse" => decoder(true),
        _ => decoder(false),
    }
}

fn samples(objective: &str) -> Vec<Sample> {
    let example = |i: u32, last: u32| {
        let ids = vec![5 + i, 6, 7 + i, 8, 9, last];
        Example::new(ids, vec![false, false, false, true, true, true])
    };
    let sample = |i: u32| match objective {
        "dpo" => Sample::pair(&Pair {
            chosen: example(i, 11),
            rejected: example(i, 12),
        }),
        _ => Sample::example(&example(i, 10)),
    };
    (0..6).map(sample).collect()
}

/// The names in the log of a short run, without the prefix of held-out data.
fn logged(name: &str) -> BTreeSet<String> {
    let symbols = Symbols {
        mask: Some(3),
        sentinels: vec![20, 21, 22],
        vocabulary: VOCABULARY,
        decoder_start: Some(0),
        eos: Some(1),
        ..Symbols::default()
    };
    let options: ObjectiveOptions = serde_json::from_value(json!({ name: {} })).unwrap();
    let mut objective = options.build(&symbols).unwrap();
    let mut model = LanguageModel::build(spec(name), &mut Seed(1), &Device::flex()).unwrap();
    model.set_trainable(|_| true);
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: samples(name),
        validation: samples(name),
        options: TrainOptions {
            steps: Some(3),
            batch: 3,
            learning_rate: 1e-2,
            dropout: 0.1,
            log_every: 1,
            ..TrainOptions::default()
        },
        folder: folder.path().to_owned(),
        fingerprint: String::new(),
        interrupted: || false,
    };
    let outcome = trainer::train(run, &mut |_| {}).unwrap();
    assert!(outcome.validation_loss.is_some_and(f64::is_finite));
    let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    let keys = |line: &str| -> Vec<String> {
        let line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        line.keys().cloned().collect()
    };
    log.lines()
        .flat_map(keys)
        .map(|key| key.trim_start_matches("eval_").to_owned())
        .collect()
}

#[test]
fn every_objective_trains_and_logs_what_it_is_registered_with() {
    for Registered {
        name, metrics: own, ..
    } in OBJECTIVES
    {
        let logged = logged(name);
        let own = own.iter().map(|metric| metric.name);
        let missing: Vec<_> = own.filter(|metric| !logged.contains(*metric)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?} never came");
        let registered = OBJECTIVES.iter().find(|objective| objective.name == *name);
        let known = metrics::descriptions(registered.unwrap().metrics).map(|metric| metric.name);
        let known: BTreeSet<&str> = known.chain(["step", "tokens"]).collect();
        let unknown: Vec<_> = logged
            .iter()
            .filter(|key| !known.contains(key.as_str()))
            .collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?} is not registered");
    }
}
