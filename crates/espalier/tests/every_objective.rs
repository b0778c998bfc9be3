//! Objectives by ways to tune, the table of LLaMA-Factory's users, through the real binary: every cell takes five steps, is killed on the
//! way, goes on to the same bits, and what it leaves is loaded again. A further objective is one more line.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod runs;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use runs::{difference, files};
use serde_json::Value;

/// Ways to tune, as keys of a train stage.
const WAYS: [(&str, &str); 4] = [
    ("full", ""),
    ("freeze", "freeze = { layers = 1 }"),
    ("lora", "adapter = { lora = { rank = 2, dropout = 0.1 } }"),
    (
        "qlora",
        "quantise = 'nf4'\nadapter = { lora = { rank = 2 } }",
    ),
];

/// What adapters drop, as it stands among their keys.
const DROPOUT: &str = ", dropout = 0.1";

/// A column of the table: an objective and its data.
struct Column {
    objective: &'static str,
    data: &'static str,
    /// What an evaluation stage measures of what is left.
    measured: &'static str,
    /// Whether a step is the same however it is cut into forward batches.
    sums: bool,
}

const TEXTS: &str = "{ world = 'g8', as = 'text', limit = 6 }";
const CHATS: &str = "{ world = 'sentence/1', limit = 6 }";
const PAIRS: &str = "{ world = 'sentence/1', as = 'preference', limit = 6 }";
const SUMS: &str = "{ world = 'addition', limit = 6 }";
const LIKELIHOOD: &str = "data = { world = 'g8', as = 'text', split = 'val', limit = 2 }";
const PREFERENCES: &str =
    "preferences = { world = 'sentence/1', as = 'preference', split = 'val', limit = 2 }";

/// One test for each column.
macro_rules! columns {
    ($($name:ident: ($objective:expr, $data:expr, $measured:expr, $sums:expr),)+) => {
        mod table {
            $(#[test]
            fn $name() {
                use super::*;
                check(&Column {
                    objective: $objective,
                    data: $data,
                    measured: $measured,
                    sums: $sums,
                });
            })+
        }
    };
}

columns! {
    pretrain: ("'pretrain'", TEXTS, LIKELIHOOD, true),
    sft: ("'sft'", CHATS, LIKELIHOOD, true),
    sft_weighed: ("{ sft = { loss = 'dft', turns = 'last' } }", CHATS, LIKELIHOOD, true),
    dpo: ("'dpo'", PAIRS, PREFERENCES, true),
    kto: ("{ kto = { beta = 0.2 } }", PAIRS, PREFERENCES, false),
    orpo: ("'orpo'", PAIRS, PREFERENCES, true),
    simpo: ("{ cpo = { loss = 'simpo' } }", PAIRS, PREFERENCES, true),
    reward: ("{ reward = { center_rewards_coefficient = 0.01 } }", PAIRS, PREFERENCES, true),
    process_reward: (
        "'process_reward'",
        "{ world = 'g1/2', as = 'steps', limit = 6 }",
        "labels = { world = 'g1/2', as = 'steps', split = 'val', limit = 2 }",
        true
    ),
    classify: (
        "'classify'",
        "{ world = 'topics/8', as = 'label', limit = 24 }",
        "labels = { world = 'topics/8', as = 'label', split = 'val', limit = 2 }",
        true
    ),
    distill: (
        "{ distill = { teacher = 'base', beta = 0.5, cross_entropy = 0.1 } }",
        CHATS,
        LIKELIHOOD,
        true
    ),
    distill_on_policy: (
        "{ distill = { teacher = 'base', on_policy = 0.5, max_new_tokens = 6 } }",
        CHATS,
        LIKELIHOOD,
        false
    ),
    // Against itself all that tells targets apart is rounding.
    selective: ("{ selective = { reference = 'base', ratio = 0.5 } }", TEXTS, LIKELIHOOD, false),
    selective_of_rows: (
        "{ selective = { select = 'high_loss', ratio = 0.5, scope = 'sequence' } }",
        TEXTS,
        LIKELIHOOD,
        true
    ),
    grpo: (
        "{ grpo = { num_generations = 2, rollout = { rewards = ['world'], max_completion_length = 6 } } }",
        SUMS,
        LIKELIHOOD,
        false
    ),
    rloo: (
        "{ rloo = { num_generations = 2, num_iterations = 2, rollout = { rewards = ['world'], max_completion_length = 6 } } }",
        SUMS,
        LIKELIHOOD,
        false
    ),
    online_dpo: (
        "{ online_dpo = { rollout = { rewards = ['world', { length = { target = 3 } }], max_completion_length = 6 } } }",
        SUMS,
        LIKELIHOOD,
        false
    ),
    ppo: (
        "{ ppo = { rollout = { rewards = ['world'], max_completion_length = 6 } } }",
        SUMS,
        LIKELIHOOD,
        false
    ),
}

/// A base, the objective by every way on it, and an evaluation of what each leaves.
fn recipe(column: &Column) -> String {
    let mut recipe = r#"
output = "run"
[defaults.train.options]
steps = 5
batch = 2
length = 256
learning_rate = 1e-3
log_every = 1
checkpoint_every = 2
[[stage]]
name = "base"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 12 }
new = { vocabulary = 290, width = 64, layers = 2, heads = 2, kv_heads = 1, inner = 128, context = 256 }
"#
    .to_owned();
    for (way, keys) in WAYS {
        // Who compares the policy with the one that wrote the answers takes none.
        let keys = match column.data == SUMS {
            true => keys.replace(DROPOUT, ""),
            false => keys.to_owned(),
        };
        let Column {
            objective,
            data,
            measured,
            ..
        } = column;
        recipe.push_str(&format!(
            "[[stage]]\nname = '{way}'\n[stage.train]\nmodel = 'base'\nobjective = {objective}\ndata = {data}\nvalidation = {data}\n{keys}\n\
             [[stage]]\nname = '{way}-measured'\n[stage.evaluate]\nmodel = '{way}'\n{measured}\n"
        ));
    }
    recipe
}

fn run(folder: &Path, recipe: &str, fault: Option<String>, overrides: &[&str]) -> Output {
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .env("RAYON_NUM_THREADS", "1")
        .args(["--quiet", "run", "recipe.toml"])
        .args(overrides);
    if let Some(fault) = fault {
        command.env("ESPALIER_FAULT", fault);
    }
    command.output().unwrap()
}

fn check(column: &Column) {
    let recipe = recipe(column);
    let whole = tempfile::tempdir().unwrap();
    succeeded(&run(whole.path(), &recipe, None, &[]));
    goes_on(&recipe, whole.path());
    if column.sums {
        is_cut_as_one_likes(&recipe);
    }
}

fn succeeded(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// Processes that die at one of their changes to the disk, each a few later, until the run is done: it ends as the one left alone.
fn goes_on(recipe: &str, whole: &Path) {
    let killed = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    loop {
        let fault = format!("kill:{}", 11 + 9 * deaths);
        if run(killed.path(), recipe, Some(fault), &[])
            .status
            .success()
        {
            break;
        }
        deaths += 1;
        assert!(deaths < 40, "the run does not come to its end");
    }
    assert!(deaths > 2, "{deaths} deaths say little");
    let different = difference(&files(whole), &files(killed.path()));
    assert_eq!(different, None, "{}", killed.keep().display());
}

/// The first step's loss and gradient, of a batch at once and of one sample after the other.
fn is_cut_as_one_likes(recipe: &str) {
    let first = |cut: [&str; 2]| -> Vec<[f64; 2]> {
        let folder = tempfile::tempdir().unwrap();
        let steps = "defaults.train.options.steps=1";
        let dropout = "stage.lora.train.adapter.lora.dropout=0.0";
        let overrides = [cut[0], cut[1], steps, dropout];
        succeeded(&run(folder.path(), recipe, None, &overrides));
        let stages = WAYS.iter().enumerate();
        let of_stage = |(number, (way, _)): (usize, &(&str, &str))| {
            let log = format!("run/{:02}-{way}/metrics.jsonl", 2 * number + 2);
            let log = fs::read_to_string(folder.path().join(log)).unwrap();
            let line: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
            ["loss", "gradient_norm"].map(|key| line[key].as_f64().unwrap())
        };
        stages.map(of_stage).collect()
    };
    let whole = first([
        "defaults.train.options.batch=4",
        "defaults.train.options.accumulation=1",
    ]);
    let parts = first([
        "defaults.train.options.batch=1",
        "defaults.train.options.accumulation=4",
    ]);
    for (whole, parts) in whole.iter().zip(&parts) {
        for (a, b) in whole.iter().zip(parts) {
            assert!((a - b).abs() < 2e-5 * a.abs().max(1.0), "{a} against {b}");
        }
    }
}
