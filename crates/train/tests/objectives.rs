//! Every registered objective trains, is measured on held-out data, and logs nothing but what it is registered with.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{collections::BTreeSet, fs, sync::OnceLock};

use burn::tensor::Device;
use espalier_data::{
    encode::{Example, Pair},
    packing::{Strategy, pack},
    readers::Wanted,
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_models::{
    checkpoint::Dtype,
    families::{self, Config},
    folder,
    model::LanguageModel,
    pooling::Pooling,
    source::Seed,
    spec::{ClassifierSpec, ModelSpec, Problem, Subject},
};
use espalier_train::{
    batch::Sample,
    metrics,
    objectives::{
        OBJECTIVES, Objective, ObjectiveOptions, PackedRows, online::rollout, registry::Registered,
        symbols::Symbols,
    },
    options::TrainOptions,
    plan::{check_lengths, plan},
    trainer::{self, Event, Run},
};
use serde_json::{Value, json};
use tempfile::TempDir;

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

/// A decoder that gives classes.
fn classifier(labels: usize, subject: Subject) -> ModelSpec {
    let problem = match labels {
        1 => Problem::Regression,
        _ => Problem::OneClass,
    };
    ModelSpec {
        headless: true,
        pad: Some(0),
        classifier: Some(ClassifierSpec {
            labels,
            subject,
            dense: None,
            bias: false,
            problem,
        }),
        ..decoder(false)
    }
}

fn spec(objective: &str) -> ModelSpec {
    match objective {
        "reward" => classifier(1, Subject::Texts(Pooling::Last)),
        "classify" => classifier(3, Subject::Texts(Pooling::Last)),
        "process_reward" => classifier(2, Subject::Tokens),
        "seq2seq" | "span_corruption" | "infilling" => encoder_decoder(),
        "mlm" | "mntp" | "simcse" => decoder(true),
        _ => decoder(false),
    }
}

/// Whether an objective asks for prompts alone.
fn asks(objective: &str) -> bool {
    OBJECTIVES
        .iter()
        .any(|known| known.name == objective && known.wanted == Wanted::Prompts)
}

fn samples(objective: &str) -> Vec<Sample> {
    if asks(objective) {
        let prompt = |i: u32| rollout::prompt(vec![5 + i, 6, 7], &[], &Value::Null);
        return (0..6).map(prompt).collect();
    }
    let example = |i: u32, last: u32| {
        let ids = vec![5 + i, 6, 7 + i, 8, 9, last];
        Example::new(ids, vec![false, false, false, true, true, true])
    };
    let sample = |i: u32| match objective {
        "dpo" | "orpo" | "cpo" | "reward" => Sample::pair(&Pair {
            margin: 0.25,
            chosen: example(i, 11),
            rejected: example(i, 12),
        }),
        "kto" => Sample::judged(&example(i, 11), i.is_multiple_of(2)),
        "classify" => Sample::labelled(&[5 + i, 6, 7], &[], &[f64::from(i % 3)]),
        "process_reward" => Sample::labelled(&[5 + i, 6, 7], &[0, 2], &[1.0, f64::from(i % 2)]),
        _ => Sample::example(&example(i, 10)),
    };
    (0..6).map(sample).collect()
}

/// A model's folder, for objectives that read another model.
fn another() -> String {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let spec = decoder(false);
        let model = LanguageModel::build(spec, &mut Seed(2), &Device::flex()).unwrap();
        folder::save(&model, folder.path(), None, Dtype::F32).unwrap();
        folder
    });
    folder.path().to_string_lossy().into_owned()
}

/// The options that an objective cannot do without.
fn needed(name: &str) -> Value {
    match name {
        "distill" => json!({ "teacher": another() }),
        "selective" => json!({ "reference": another() }),
        _ => json!({}),
    }
}

/// An objective with its options, and a fresh model that suits it.
fn built(name: &str, mut options: Value) -> (Box<dyn Objective>, LanguageModel) {
    if asks(name) {
        options["rollout"] =
            json!({ "rewards": [{ "length": { "target": 3 } }], "max_completion_length": 4 });
    }
    let symbols = Symbols {
        mask: Some(3),
        sentinels: vec![20, 21, 22],
        vocabulary: VOCABULARY,
        decoder_start: Some(0),
        eos: Some(1),
        ..Symbols::default()
    };
    let options: ObjectiveOptions = serde_json::from_value(json!({ name: options })).unwrap();
    let mut model = LanguageModel::build(spec(name), &mut Seed(1), &Device::flex()).unwrap();
    model.set_trainable(|_| true);
    let mut objective = options.build(&symbols).unwrap();
    let bytes = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &bytes).unwrap();
    objective.equip(&tokenizer, &Device::flex()).unwrap();
    (objective, model)
}

/// The names in the log of a short run, without the prefix of held-out data.
fn logged(name: &str) -> BTreeSet<String> {
    let (mut objective, model) = built(name, needed(name));
    let options = TrainOptions {
        steps: Some(3),
        batch: 4,
        learning_rate: 1e-2,
        // Who compares the policy with itself takes none.
        dropout: if asks(name) { 0.0 } else { 0.1 },
        log_every: 1,
        ..TrainOptions::default()
    };
    let planned = plan(&model, objective.as_ref(), &samples(name), &options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: samples(name),
        validation: samples(name),
        options,
        folder: folder.path().to_owned(),
        fingerprint: String::new(),
        interrupted: || false,
    };
    let outcome = trainer::train(run, &mut |_| {}).unwrap();
    assert!(outcome.validation_loss.is_some_and(f64::is_finite));
    // How long answers become, nobody knows before.
    if !asks(name) {
        assert_eq!(planned.tokens, outcome.tokens, "{name}: planned and used");
    }
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

/// A run of one step that learns nothing: its loss, and its held-out loss on the same samples.
fn measured(name: &str, options: Value, samples: Vec<Sample>, cut: [usize; 2]) -> (f64, f64) {
    let (mut objective, model) = built(name, options);
    let folder = tempfile::tempdir().unwrap();
    let [batch, accumulation] = cut;
    let run = Run {
        model,
        objective: objective.as_mut(),
        samples: samples.clone(),
        validation: samples,
        options: TrainOptions {
            batch,
            accumulation,
            learning_rate: 0.0,
            ..TrainOptions::default()
        },
        folder: folder.path().to_owned(),
        fingerprint: String::new(),
        interrupted: || false,
    };
    let mut losses = Vec::new();
    let outcome = trainer::train(run, &mut |event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    });
    assert_eq!(losses.len(), 1, "one pass is one step");
    (losses[0], outcome.unwrap().validation_loss.unwrap())
}

#[test]
fn every_term_of_dpo_is_a_mean_over_the_step_however_it_is_cut() {
    let answer = |length: u32, last: u32| {
        let ids: Vec<u32> = [5, 6]
            .into_iter()
            .chain(7..7 + length)
            .chain([last])
            .collect();
        let targets = (0..ids.len()).map(|place| place >= 2).collect();
        Example::new(ids, targets)
    };
    let pair = |length| {
        Sample::pair(&Pair {
            margin: 0.0,
            chosen: answer(length, 11),
            rejected: answer(2, 12),
        })
    };
    let samples: Vec<Sample> = [1, 9, 3, 2, 6].map(pair).to_vec();
    let options = json!({ "loss": { "sigmoid": 1.0, "sft": 1.0 } });
    let (whole, held_out) = measured("dpo", options.clone(), samples.clone(), [5, 1]);
    // The model is its own reference: ln 2, and the mean over all tokens of the better answers.
    let chosen = |sample: &Sample| Sample::new(vec![sample.rows[0].clone()]);
    let better: Vec<Sample> = samples.iter().map(chosen).collect();
    let (likelihood, _) = measured("sft", json!({}), better, [5, 1]);
    assert!((whole - 2f64.ln() - likelihood).abs() < 1e-5, "{whole}");
    assert!((held_out - whole).abs() < 1e-5, "{held_out}");
    for cut in [[1, 5], [2, 3], [1, 16]] {
        let (parts, held_out) = measured("dpo", options.clone(), samples.clone(), cut);
        assert!((parts - whole).abs() < 1e-5, "{cut:?}: {parts}");
        assert!((held_out - whole).abs() < 1e-5, "{cut:?}: {held_out}");
    }
}

#[test]
fn packed_rows_have_the_loss_of_their_texts_or_are_refused() {
    for Registered {
        name, packed_rows, ..
    } in OBJECTIVES
    {
        let texts = [vec![5, 6, 7, 8], vec![9, 10, 11], vec![12, 13]];
        let examples = texts.map(|ids: Vec<u32>| {
            let targets = vec![true; ids.len()];
            Example::new(ids, targets)
        });
        let rows = pack(&examples, 9, Strategy::BestFit);
        assert_eq!(rows.len(), 1);
        let packed: Vec<Sample> = rows.into_iter().map(|row| Sample::new(vec![row])).collect();
        match packed_rows {
            PackedRows::Apart => {
                // All is asked for, so that nothing depends on what is drawn.
                let options = match *name {
                    "mlm" | "mntp" => json!({ "probability": 1.0, "masked": 1.0, "random": 0.0 }),
                    name => needed(name),
                };
                let apart = examples.iter().map(Sample::example).collect();
                let (apart, _) = measured(name, options.clone(), apart, [3, 1]);
                let (packed, _) = measured(name, options, packed, [3, 1]);
                assert!((apart - packed).abs() < 1e-5, "{name}: {apart} {packed}");
            }
            PackedRows::Refused => {
                let (mut objective, model) = built(name, json!({}));
                let folder = tempfile::tempdir().unwrap();
                let run = Run {
                    model,
                    objective: objective.as_mut(),
                    samples: packed,
                    validation: Vec::new(),
                    options: TrainOptions {
                        dropout: 0.1,
                        ..TrainOptions::default()
                    },
                    folder: folder.path().to_owned(),
                    fingerprint: String::new(),
                    interrupted: || false,
                };
                let error = trainer::train(run, &mut |_| {}).unwrap_err().to_string();
                assert!(error.starts_with("`packing`: "), "{name}: {error}");
            }
        }
    }
}

/// A teacher is in memory as long as the run, and asked of every token; a reference that stays is gone before the first step.
#[test]
fn teachers_and_references_are_planned() {
    let planned = |name: &str, options: Value| {
        let (objective, model) = built(name, options);
        let options = TrainOptions::default();
        let planned = plan(&model, objective.as_ref(), &samples(name), &options).unwrap();
        (planned, objective, model)
    };
    let (alone, _, model) = planned("sft", json!({}));
    let (taught, distill, _) = planned("distill", needed("distill"));
    let own: usize = model.parameters().iter().map(|p| p.bytes()).sum();
    assert_eq!(distill.kept_bytes(&model), own as u64);
    assert_eq!(taught.memory, alone.memory + own as u64);
    let pass = 2.0 * model.spec().active_parameter_count();
    assert_eq!(distill.other_passes(&model).each, pass);
    let (_, selective, _) = planned("selective", needed("selective"));
    assert_eq!(selective.kept_bytes(&model), 0);
    let passes = selective.other_passes(&model);
    assert_eq!([passes.once, passes.each], [pass, 0.0]);
    let (_, blind, _) = planned("selective", json!({ "select": "high_loss" }));
    assert_eq!(blind.other_passes(&model).once, 0.0);
}

#[test]
fn what_a_student_writes_is_planned_and_has_room() {
    let options = |share: f64| {
        let mut options = needed("distill");
        options["on_policy"] = json!(share);
        options["max_new_tokens"] = json!(9);
        options
    };
    let counted = |share: f64| {
        let (objective, model) = built("distill", options(share));
        let plan = plan(
            &model,
            objective.as_ref(),
            &samples("distill"),
            &TrainOptions::default(),
        );
        plan.unwrap().tokens
    };
    // Six texts of six tokens, three of them the prompt.
    let [never, half, always] = [0.0, 0.5, 1.0].map(counted);
    assert_eq!([never.real, never.learned], [36, 18]);
    assert_eq!([half.real, half.learned], [54, 36]);
    assert_eq!([always.real, always.learned], [72, 54]);
    let text = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY, "n_embd": 8, "n_layer": 1,
        "n_head": 2, "n_positions": 11
    });
    let config = Config::parse("config.json".as_ref(), &text.to_string()).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
    let checked = |share: f64| {
        let (objective, _) = built("distill", options(share));
        check_lengths(&model, objective.as_ref(), &samples("distill"))
    };
    checked(0.0).unwrap();
    let error = checked(0.5).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "`max_new_tokens`: 6 of 6 prompts go with an answer of 9 tokens beyond the 11 positions"
        ),
        "{error}"
    );
}

#[test]
fn texts_beyond_the_learned_positions_are_found_before_training() {
    let text = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY, "n_embd": 8, "n_layer": 1,
        "n_head": 2, "n_positions": 6
    });
    let config = Config::parse("config.json".as_ref(), &text.to_string()).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
    let (objective, _) = built("pretrain", json!({}));
    let of_length = |length| Sample::example(&Example::new(vec![3; length], vec![true; length]));
    let fitting = [of_length(6), of_length(2)];
    check_lengths(&model, objective.as_ref(), &fitting).unwrap();
    let long = [of_length(6), of_length(9), of_length(7)];
    let error = check_lengths(&model, objective.as_ref(), &long).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`length`: 2 of 3 samples are longer than the 6 positions that the model has learned, the longest has 9 tokens; set \
         `length = 6`, which keeps their beginning, or shorten them"
    );
}
