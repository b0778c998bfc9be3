//! Objectives that learn from the policy's own answers, each through the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    path::Path,
};

use burn::tensor::Device;
use espalier_data::{
    record::Message,
    tokenizer::{BpeOptions, Tokenizer},
};
use espalier_models::{
    adapter::Adapter,
    checkpoint::{PeftConfig, peft_config::Targets},
    families::{self, Config},
    model::LanguageModel,
    source::Seed,
    spec::ModelSpec,
};
use espalier_train::{
    Result,
    batch::Sample,
    objectives::{Objective, ObjectiveOptions, online::rollout, symbols::Symbols},
    options::TrainOptions,
    plan::check_lengths,
    trainer::{self, Event, Outcome, Run},
};
use serde_json::{Map, Value, json};

/// Every objective, so that answers serve more than one step where that is possible.
fn objectives(reward: &Value) -> Vec<(&'static str, Value)> {
    let rollout = json!({ "rewards": [reward], "max_completion_length": 4 });
    let mut moving = rollout.clone();
    moving["reference"] = json!({ "moving": { "every": 3, "mix": 0.5 } });
    vec![
        (
            "grpo",
            json!({ "rollout": rollout, "num_generations": 4, "num_iterations": 2, "beta": 0.04 }),
        ),
        (
            "grpo",
            json!({ "rollout": moving, "num_generations": 2, "beta": 0.1 }),
        ),
        (
            "rloo",
            json!({ "rollout": rollout, "num_generations": 3, "steps_per_generation": 2 }),
        ),
        ("online_dpo", json!({ "rollout": rollout })),
        (
            "ppo",
            json!({ "rollout": rollout, "num_ppo_epochs": 2, "num_mini_batches": 2, "kl_target": 1.0 }),
        ),
        (
            "ppo",
            json!({ "rollout": rollout, "num_ppo_epochs": 1, "critic": "head", "critic_warmup": 2 }),
        ),
    ]
}

fn tokenizer() -> Tokenizer {
    let options = BpeOptions {
        vocabulary: 259,
        ..BpeOptions::default()
    };
    Tokenizer::train_byte_level_bpe(std::iter::empty(), &options).unwrap()
}

fn built(name: &str, options: &Value) -> Box<dyn Objective> {
    let options: ObjectiveOptions = serde_json::from_value(json!({ name: options })).unwrap();
    options.check().unwrap();
    let mut objective = options.build(&Symbols::default()).unwrap();
    objective.equip(&tokenizer(), &Device::flex()).unwrap();
    objective
}

fn model() -> LanguageModel {
    let vocabulary = tokenizer().vocabulary_size();
    let mut spec = ModelSpec::llama(vocabulary, 16, 2, 2, 1, 32, 32);
    spec.initializer_range = 0.2;
    let mut model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
    model.set_trainable(|_| true);
    model
}

fn prompts() -> Vec<Sample> {
    let prompt = |number: usize| {
        let text = format!("{number}+");
        let ids = tokenizer()
            .encode_ids(&text[..1 + number % 2], false)
            .unwrap();
        rollout::prompt(ids, &[Message::user(text)], &json!({ "number": number }))
    };
    (0..10).map(prompt).collect()
}

fn run(
    folder: &Path,
    objective: &mut dyn Objective,
    options: TrainOptions,
    events: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    run_of(model(), folder, objective, options, events)
}

fn run_of(
    model: LanguageModel,
    folder: &Path,
    objective: &mut dyn Objective,
    options: TrainOptions,
    events: &mut dyn FnMut(&Event),
) -> Result<Outcome> {
    let run = Run {
        model,
        objective,
        samples: prompts(),
        validation: prompts()[..2].to_vec(),
        options,
        folder: folder.to_owned(),
        fingerprint: "online".into(),
        interrupted: || false,
    };
    trainer::train(run, events)
}

fn options() -> TrainOptions {
    TrainOptions {
        steps: Some(9),
        batch: 4,
        accumulation: 2,
        learning_rate: 1e-2,
        // Checkpoints fall between two lines of the log.
        log_every: 3,
        evaluate_every: 4,
        checkpoint_every: 2,
        ..TrainOptions::default()
    }
}

fn vectors(model: &LanguageModel) -> Vec<Vec<f32>> {
    model.parameters().iter().map(|p| p.to_vec()).collect()
}

/// Everything that a run ends with: weights, the objective's own, and both logs.
fn end(folder: &Path, name: &str, of: &Value) -> (Vec<Vec<f32>>, Vec<Vec<f32>>, [String; 2]) {
    let mut objective = built(name, of);
    let outcome = run(folder, objective.as_mut(), options(), &mut |_| {}).unwrap();
    let mut own = Vec::new();
    for (_, part) in objective.parameters() {
        part.visit(&mut |p| own.push(p.to_vec()));
    }
    let logs = ["metrics.jsonl", "samples.jsonl"];
    let logs = logs.map(|log| fs::read_to_string(folder.join(log)).unwrap());
    (vectors(&outcome.model), own, logs)
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    for (name, of) in objectives(&json!({ "regex": { "pattern": "[a-m]" } })) {
        let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let expected = end(whole.path(), name, &of);
        for after in [1, 3, 6, 9] {
            let stop = &mut |event: &Event| match event {
                Event::Step { step, .. } if *step == after => panic_any(after),
                _ => {}
            };
            let mut objective = built(name, &of);
            let run = AssertUnwindSafe(|| run(parts.path(), objective.as_mut(), options(), stop));
            assert_eq!(catch_unwind(run).unwrap_err().downcast_ref(), Some(&after));
        }
        assert!(expected == end(parts.path(), name, &of), "{name}: {of}");
        let [metrics, samples] = expected.2;
        for key in [
            "\"reward\"",
            "\"rewards/regex/mean\"",
            "\"objective/kl\"",
            "\"eval_reward\"",
        ] {
            assert!(metrics.contains(key), "{name}: {key} in {metrics}");
        }
        let steps: Vec<Value> = lines(&samples)
            .iter()
            .map(|line| line["step"].clone())
            .collect();
        assert!(
            steps.contains(&3.into()) && steps.contains(&9.into()),
            "{samples}"
        );
    }
}

fn lines(text: &str) -> Vec<Map<String, Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The metrics of a run, a line each.
fn logged(
    name: &str,
    of: &Value,
    options: TrainOptions,
) -> (LanguageModel, Vec<Map<String, Value>>) {
    let folder = tempfile::tempdir().unwrap();
    let mut objective = built(name, of);
    let outcome = run(folder.path(), objective.as_mut(), options, &mut |_| {}).unwrap();
    let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    (outcome.model, lines(&log))
}

#[test]
fn equal_rewards_leave_the_parameters_unmoved() {
    let rollout =
        json!({ "rewards": [{ "regex": { "pattern": "" } }], "max_completion_length": 4 });
    for (name, of) in [
        ("grpo", json!({ "rollout": rollout, "num_generations": 3 })),
        (
            "grpo",
            json!({ "rollout": rollout, "num_generations": 3, "loss_type": "cispo", "scale_rewards": "batch" }),
        ),
        (
            "grpo",
            json!({ "rollout": rollout, "num_generations": 3, "loss_type": "sapo" }),
        ),
        ("rloo", json!({ "rollout": rollout, "beta": 0 })),
        ("online_dpo", json!({ "rollout": rollout })),
    ] {
        let (trained, log) = logged(name, &of, options());
        assert!(vectors(&trained) == vectors(&model()), "{name}: {of}");
        if name != "online_dpo" {
            assert_eq!(log[0]["frac_reward_zero_std"], 1.0, "{name}");
        }
    }
}

#[test]
fn the_first_step_on_fresh_answers_has_ratios_of_one() {
    let reward = json!({ "length": { "target": 2 } });
    let rollout = json!({ "rewards": [reward], "max_completion_length": 5, "temperature": 0.7 });
    let of = json!({ "rollout": rollout, "num_ppo_epochs": 1 });
    let every_step = TrainOptions {
        log_every: 1,
        ..options()
    };
    let (_, log) = logged("ppo", &of, every_step.clone());
    let mut steps = log.iter().filter(|line| line.contains_key("val/ratio"));
    assert!(steps.clone().count() == 9);
    assert!(steps.all(|line| line["val/ratio"] == 1.0 && line["policy/approxkl_avg"] == 0.0));
    // Before the first step the policy is its reference.
    assert_eq!(log[0]["objective/kl"], 0.0);
    assert_eq!(log[0]["kl"], 0.0);
    let of = json!({ "rollout": rollout, "num_ppo_epochs": 3 });
    let (_, log) = logged("ppo", &of, every_step);
    let moved = log
        .iter()
        .filter(|line| line.get("val/ratio").is_some_and(|ratio| *ratio != 1.0));
    assert_eq!(moved.count(), 6);
}

#[test]
fn every_objective_finds_what_is_rewarded() {
    for (name, mut of) in objectives(&json!({ "length": { "target": 1 } })) {
        if !of["rollout"]["reference"].is_null() {
            // Few answers, held by a reference that follows: a matter of resuming.
            continue;
        }
        of["rollout"]["max_completion_length"] = 6.into();
        let long = TrainOptions {
            steps: Some(60),
            batch: 10,
            accumulation: 1,
            log_every: 6,
            evaluate_every: 0,
            checkpoint_every: 0,
            learning_rate: 2e-2,
            ..options()
        };
        let (_, log) = logged(name, &of, long);
        let reward = |line: &Map<String, Value>| line["reward"].as_f64().unwrap();
        let (first, last) = (reward(&log[0]), reward(&log[9]));
        assert!(last > first + 1.5, "{name}: {first} -> {last}");
        let kl = log[9]["objective/kl"].as_f64().unwrap();
        assert!(kl > 0.1, "{name}: {kl}");
    }
}

/// A reward that fails once, after so many answers, and works when it is started again.
fn breaks_once(folder: &Path, after: usize) -> Value {
    let marker = folder.join("broke");
    let program = format!(
        "n=0; while read -r line; do n=$((n+1)); \
         if [ $n -gt {after} ] && [ ! -e \"$0\" ]; then touch \"$0\"; echo 'no memory left' >&2; exit 1; fi; \
         case \"$line\" in *'\"completion\":\"'[a-m]*) echo 1;; *) echo 0;; esac; done"
    );
    json!({ "command": { "run": ["sh", "-c", program, marker.to_string_lossy()] } })
}

/// Runs to the end, again where a reward fails; gives the error and the step after which it went on.
fn end_after_failure(
    folder: &Path,
    name: &str,
    of: &Value,
) -> (String, Option<usize>, Vec<Vec<f32>>, [String; 2]) {
    let mut objective = built(name, of);
    let failed = run(folder, objective.as_mut(), options(), &mut |_| {});
    let error = failed.unwrap_err().to_string();
    let (mut objective, mut resumed) = (built(name, of), None);
    let outcome = run(folder, objective.as_mut(), options(), &mut |event| {
        if let Event::Resumed(step) = event {
            resumed = Some(*step);
        }
    });
    let logs = ["metrics.jsonl", "samples.jsonl"];
    let logs = logs.map(|log| fs::read_to_string(folder.join(log)).unwrap());
    (error, resumed, vectors(&outcome.unwrap().model), logs)
}

#[test]
fn a_reward_that_failed_and_is_asked_again_changes_nothing() {
    let ppo = |reward: Value| {
        let rollout = json!({ "rewards": [reward], "max_completion_length": 4 });
        json!({ "rollout": rollout, "num_ppo_epochs": 1, "kl_target": 0.5, "kl_horizon": 4.0 })
    };
    // In the second batch of the third step, whose first has been answered: 8 answers a step, the last of a pass 2, and
    // 2 of the evaluation after the fourth; then in that evaluation.
    for (after, step) in [(8 + 2 + 4, 2), (8 + 2 + 8 + 2, 4)] {
        let [broken, whole] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let reward = breaks_once(broken.path(), after);
        let (error, resumed, weights, logs) = end_after_failure(broken.path(), "ppo", &ppo(reward));
        assert!(error.ends_with("no memory left"), "{error}");
        assert_eq!(resumed, Some(step));
        let (expected, _, expected_logs) = end(
            whole.path(),
            "ppo",
            &ppo(breaks_once(whole.path(), usize::MAX >> 1)),
        );
        assert!(weights == expected, "after {after} answers");
        assert_eq!(logs, expected_logs);
    }
}

#[test]
fn a_critic_that_warms_up_trains_nothing_of_the_policy() {
    let vocabulary = tokenizer().vocabulary_size();
    let text = json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": vocabulary, "hidden_size": 16,
        "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": true, "router_aux_loss_coef": 0.5,
        "max_position_embeddings": 32
    });
    let config = Config::parse("config.json".as_ref(), &text.to_string()).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    let fresh = || {
        let mut model = LanguageModel::build(spec.clone(), &mut Seed(3), &Device::flex()).unwrap();
        model.set_trainable(|_| true);
        model
    };
    let rollout = json!({ "rewards": [{ "length": { "target": 2 } }], "max_completion_length": 4 });
    for critic in ["head", "model"] {
        for (warmup, still) in [(3, true), (2, false)] {
            let of = json!({ "rollout": rollout, "num_ppo_epochs": 1, "critic": critic, "critic_warmup": warmup });
            let three = TrainOptions {
                steps: Some(3),
                ..options()
            };
            let (folder, mut objective) = (tempfile::tempdir().unwrap(), built("ppo", &of));
            let trained = run_of(
                fresh(),
                folder.path(),
                objective.as_mut(),
                three,
                &mut |_| {},
            );
            let moved = vectors(&trained.unwrap().model) != vectors(&fresh());
            assert_eq!(moved, !still, "{critic}, {warmup} steps");
            let log = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
            assert!(log.contains("\"aux_loss\""), "{log}");
        }
    }
}

#[test]
fn what_disturbs_the_policy_is_refused() {
    let rollout = json!({ "rewards": [{ "length": { "target": 2 } }], "max_completion_length": 4 });
    let refused = |model: &LanguageModel, options: &TrainOptions| {
        let objective = built("grpo", &json!({ "rollout": rollout }));
        let checked = trainer::check(model, objective.as_ref(), &prompts(), options);
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    };
    assert_eq!(refused(&model(), &options()), "");
    let dropout = TrainOptions {
        dropout: 0.1,
        ..options()
    };
    assert!(refused(&model(), &dropout).starts_with("`dropout`: `grpo` compares"));
    let noise = TrainOptions {
        embedding_noise: 5.0,
        ..options()
    };
    assert!(refused(&model(), &noise).starts_with("`embedding_noise`: `grpo` compares"));
    let adapted = |share: f64| {
        let mut model = model();
        let config = PeftConfig {
            dropout: share,
            ..PeftConfig::new(2, 4.0, Targets::AllLinear)
        };
        let family = families::by_name("llama").unwrap();
        Adapter::new(config).attach(&mut model, family, 0).unwrap();
        model
    };
    assert_eq!(refused(&adapted(0.0), &options()), "");
    assert!(refused(&adapted(0.1), &options()).starts_with("`dropout`: `grpo` compares"));
}

#[test]
fn prompts_whose_answers_go_beyond_the_learned_positions_are_found() {
    let text = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": tokenizer().vocabulary_size(), "n_embd": 8,
        "n_layer": 1, "n_head": 2, "n_positions": 6
    });
    let config = Config::parse("config.json".as_ref(), &text.to_string()).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
    let checked = |longest: usize| {
        let rollout =
            json!({ "rewards": [{ "length": { "target": 2 } }], "max_completion_length": longest });
        let objective = built("rloo", &json!({ "rollout": rollout }));
        let checked = check_lengths(&model, objective.as_ref(), &prompts());
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    };
    // Prompts have one token or two.
    assert_eq!(checked(4), "");
    assert_eq!(
        checked(5),
        "`max_completion_length`: 5 of 10 prompts go with an answer of 5 tokens beyond the 6 positions that the model has learned, \
         the longest to 7; lower it, or `length`"
    );
}

#[test]
fn a_reward_that_fails_leaves_a_checkpoint() {
    // Breaks in the seventh step.
    let program = "n=0; while read -r line; do n=$((n+1)); [ $n -gt 40 ] && { echo 'no memory left' >&2; exit 1; }; echo 1; done";
    let reward = json!({ "command": { "run": ["sh", "-c", program] } });
    let rollout = json!({ "rewards": [reward], "max_completion_length": 3 });
    let of = json!({ "rollout": rollout, "num_generations": 2 });
    let folder = tempfile::tempdir().unwrap();
    let without_checkpoints = || TrainOptions {
        batch: 4,
        accumulation: 1,
        checkpoint_every: 0,
        evaluate_every: 0,
        ..options()
    };
    let mut objective = built("grpo", &of);
    let error = run(
        folder.path(),
        objective.as_mut(),
        without_checkpoints(),
        &mut |_| {},
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("`command`") && error.ends_with("no memory left"),
        "{error}"
    );
    let mut resumed = None;
    let mut objective = built("grpo", &of);
    run(
        folder.path(),
        objective.as_mut(),
        without_checkpoints(),
        &mut |event| {
            if let Event::Resumed(step) = event {
                resumed = Some(*step);
            }
        },
    )
    .unwrap();
    assert_eq!(resumed, Some(6));
}
