//! What must hold of every objective that learns from preferences, through the real binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

mod runs;

const GROW: &str = r#"
output = "run"
[[stage]]
name = "grow"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 8 }
new = { vocabulary = 290, width = 16, layers = 2, heads = 2, kv_heads = 1, inner = 32, context = 256 }
[stage.train.options]
steps = 2
batch = 4
length = 96
"#;

const ALIGN: &str = r#"
output = "run"
[[stage]]
name = "align"
[stage.train]
model = "MODEL"
objective = OBJECTIVE
data = { world = "sentence/1", as = "preference", limit = 8 }
validation = { world = "sentence/1", as = "preference", split = "val", limit = 2 }
[stage.train.options]
steps = 8
batch = 4
length = 128
learning_rate = 1e-3
warmup = 0
schedule = "constant"
log_every = 1
checkpoint_every = 2
"#;

fn espalier(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command.current_dir(folder).args(arguments);
    command
}

fn succeeded(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// A small model, made once.
fn grown() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("grow.toml"), GROW).unwrap();
        let output = espalier(folder.path(), &["--quiet", "run", "grow.toml"]).output();
        succeeded(&output.unwrap());
        folder
    });
    folder.path().join("run/01-grow/model")
}

/// A run of the objective in a folder of its own.
struct Aligned(TempDir);

impl Aligned {
    fn command(&self, objective: &str, changes: &[&str]) -> Command {
        let recipe = ALIGN
            .replace("MODEL", &grown().to_string_lossy())
            .replace("OBJECTIVE", objective);
        fs::write(self.0.path().join("align.toml"), recipe).unwrap();
        let mut command = espalier(self.0.path(), &["run", "align.toml"]);
        command.args(changes);
        command
    }

    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn trained(objective: &str, changes: &[&str]) -> Self {
        let run = Self::new();
        succeeded(&run.command(objective, changes).output().unwrap());
        run
    }

    /// What a run says that is refused.
    fn refused(objective: &str, changes: &[&str]) -> String {
        let run = Self::new();
        let output = run.command(objective, changes).output().unwrap();
        assert!(!output.status.success(), "{objective}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn stage(&self) -> PathBuf {
        self.0.path().join("run/01-align")
    }

    /// The values of a key in the metrics log, in order.
    fn logged(&self, key: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.stage().join("metrics.jsonl")).unwrap();
        let value = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            line.get(key).and_then(Value::as_f64)
        };
        text.lines().filter_map(value).collect()
    }
}

fn near(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    assert!(!a.is_empty(), "{what}: nothing was logged");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{what}: {a} against {b}");
    }
}

/// Objectives whose policy is their reference in the first step, and what they cost then.
const AT_THE_START: &[(&str, f64)] = &[
    ("'dpo'", std::f64::consts::LN_2),
    ("{ dpo = { loss = 'hinge' } }", 1.0),
    ("{ dpo = { loss = 'ipo' } }", 25.0),
    ("{ dpo = { loss = 'ipo_raw' } }", 25.0),
    ("{ dpo = { loss = 'robust' } }", std::f64::consts::LN_2),
    ("{ dpo = { loss = 'cdpo' } }", std::f64::consts::LN_2),
    (
        "{ dpo = { loss = 'nca_pair' } }",
        2.0 * std::f64::consts::LN_2,
    ),
    (
        "{ dpo = { loss = 'bco_pair' } }",
        2.0 * std::f64::consts::LN_2,
    ),
    ("{ dpo = { loss = 'bco' } }", 2.0 * std::f64::consts::LN_2),
    ("{ dpo = { loss = 'sppo_hard' } }", 50.0),
    ("{ dpo = { loss = 'aot' } }", std::f64::consts::LN_2),
    (
        "{ dpo = { loss = 'aot_unpaired' } }",
        std::f64::consts::LN_2,
    ),
    ("{ dpo = { loss = 'apo_zero' } }", 1.0),
    ("{ dpo = { loss = 'apo_down' } }", 1.0),
    (
        "{ dpo = { loss = 'sigmoid_norm' } }",
        std::f64::consts::LN_2,
    ),
    (
        "{ dpo = { f_divergence = 'js_divergence', ld_alpha = 0.5 } }",
        std::f64::consts::LN_2,
    ),
    (
        "{ dpo = { reference = { moving = { every = 3 } } } }",
        std::f64::consts::LN_2,
    ),
    ("'kto'", 0.5),
    ("{ kto = { loss = 'apo_zero_unpaired' } }", 0.5),
];

#[test]
fn a_policy_that_is_its_reference_costs_what_is_known() {
    for (objective, expected) in AT_THE_START {
        let run = Aligned::trained(objective, &["steps=1", "validation=[]"]);
        // A sum of log-probabilities of a hundred tokens, twice, in f32.
        let tolerance = 1e-4 * expected;
        near(&run.logged("loss"), &[*expected], tolerance, objective);
        near(&run.logged("rewards/margins"), &[0.0], 1e-4, objective);
    }
}

#[test]
fn accumulation_equals_a_larger_batch() {
    for objective in [
        "{ dpo = { loss = { sigmoid = 1.0, sft = 0.5 }, ld_alpha = 0.5 } }",
        "{ dpo = { loss = 'exo_pair', weighting = true } }",
        "{ dpo = { loss = 'apo_down', reference = { moving = { every = 2, mix = 0.5 } } } }",
        "{ kto = { loss = 'apo_zero_unpaired', undesirable_weight = 1.33 } }",
        "'orpo'",
        "{ orpo = { nll_on = 'completion' } }",
        "'cpo'",
        "{ cpo = { loss = 'simpo', beta = 2.0, cpo_alpha = 0.5 } }",
    ] {
        let slow = ["learning_rate=1e-4", "steps=4"];
        let whole = Aligned::trained(objective, &[&slow[..], &["batch=8"]].concat());
        let cut = ["batch=2", "accumulation=4"];
        let parts = Aligned::trained(objective, &[&slow[..], &cut].concat());
        for key in ["loss", "gradient_norm", "rewards/chosen", "eval_loss"] {
            let (whole, parts) = (whole.logged(key), parts.logged(key));
            let scale = whole.iter().copied().map(f64::abs).fold(1.0, f64::max);
            near(&whole, &parts, 1e-5 * scale, &format!("{objective}, {key}"));
        }
    }
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    for objective in [
        "{ dpo = { loss = { sigmoid = 1.0, bco = 1.0, sft = 0.1 }, reference = { moving = { every = 3, mix = 0.5 } } } }",
        "{ kto = { reference = { moving = { every = 1, mix = 1.0 } } } }",
        "'kto'",
        "'orpo'",
        "{ cpo = { loss = 'simpo', beta = 2.0 } }",
    ] {
        // Slow enough to be killed in the middle.
        let steps = ["steps=40", "evaluate_every=5", "log_every=3"];
        let whole = Aligned::trained(objective, &steps);
        let killed = Aligned::new();
        let mut child = killed
            .command(objective, &steps)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let checkpoint = killed.stage().join("checkpoints/step-00000004");
        let deadline = Instant::now() + Duration::from_secs(120);
        while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "no checkpoint appeared");
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !killed.stage().join("model").exists(),
            "the run ended before it was killed"
        );
        succeeded(&killed.command(objective, &steps).output().unwrap());
        let (whole, killed) = (runs::files(whole.0.path()), runs::files(killed.0.path()));
        assert_eq!(runs::difference(&whole, &killed), None, "{objective}");
    }
}

#[test]
fn references_that_are_the_same_model_give_the_same_run() {
    let folder = format!(
        "{{ dpo = {{ reference = {{ folder = '{}' }} }} }}",
        grown().display()
    );
    let still = "{ dpo = { reference = { moving = { every = 1, mix = 0.0 } } } }";
    for change in [&[][..], &["stage.align.train.adapter=lora"]] {
        let start = Aligned::trained("'dpo'", change);
        let margins = start.logged("rewards/margins");
        assert!(margins.iter().any(|margin| *margin > 5e-3), "{margins:?}");
        let mut others = vec![folder.as_str(), still];
        if !change.is_empty() {
            others.push("{ dpo = { reference = 'without_adapter' } }");
        }
        for objective in others {
            let other = Aligned::trained(objective, change);
            for key in ["loss", "rewards/margins", "eval_loss"] {
                near(&start.logged(key), &other.logged(key), 1e-5, objective);
            }
        }
    }
}

#[test]
fn a_reference_that_is_replaced_in_every_step_leaves_no_reward() {
    let objective = "{ dpo = { reference = { moving = { every = 1, mix = 1.0 } } } }";
    for change in [&[][..], &["stage.align.train.adapter=lora"]] {
        let run = Aligned::trained(objective, change);
        near(&run.logged("loss"), &[2f64.ln(); 8], 1e-5, "loss");
        near(&run.logged("rewards/margins"), &[0.0; 8], 1e-4, "margins");
        let soft = "{ dpo = { reference = { moving = { every = 1, mix = 0.5 } } } }";
        let soft = Aligned::trained(soft, change).logged("rewards/margins");
        let start = Aligned::trained("'dpo'", change).logged("rewards/margins");
        let [soft, start] = [soft, start].map(|margins| *margins.last().unwrap());
        assert!(0.0 < soft && soft < start, "{soft} against {start}");
    }
}

/// Answers with verdicts, one a line.
fn verdicts(folder: &Path) -> PathBuf {
    let line = |i: u32| {
        let (answer, label) = [("yes it is", "true"), ("no", "0")][i as usize % 2];
        format!(
            "{{\"prompt\": \"Is {i} a number?\", \"completion\": \"{answer}\", \"label\": {label}}}\n"
        )
    };
    let path = folder.join("verdicts.jsonl");
    fs::write(&path, (0..9).map(line).collect::<String>()).unwrap();
    path
}

#[test]
fn answers_with_verdicts_are_learned_by_kto_and_refused_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!(
        "data=[{{ path = '{}' }}]",
        verdicts(folder.path()).display()
    );
    let run = Aligned::trained("'kto'", &[&data, "validation_share=0.3", "validation=[]"]);
    let chosen = run.logged("rewards/chosen");
    assert!(chosen.last().unwrap() > &0.0, "{chosen:?}");
    // The log of held-out data has it under a name of its own, once at the end.
    let [kl, held_out] = ["kl", "eval_kl"].map(|key| run.logged(key));
    assert_eq!((kl.len(), held_out.len()), (8, 1));
    assert!(kl.iter().chain(&held_out).all(|kl| *kl >= 0.0), "{kl:?}");
    for objective in ["'sft'", "'dpo'"] {
        let error = Aligned::refused(objective, &[&data, "validation=[]"]);
        assert!(
            error.contains("verdicts.jsonl:1: `label` is of no use here"),
            "{error}"
        );
    }
    let show = ["data", "show", "verdicts.jsonl", "--objective", "kto"];
    let output = espalier(folder.path(), &show).output().unwrap();
    succeeded(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("undesirable") && text.contains("yes it is"),
        "{text}"
    );
}

#[test]
fn what_does_not_suit_is_refused() {
    let chat = "data=[{ world = 'sentence/1', limit = 4 }]";
    for (objective, changes, part) in [
        (
            "'kto'",
            &["batch=1"][..],
            "`batch`: `kto` holds an answer against those",
        ),
        (
            "'kto'",
            &[chat],
            "`data`: `kto` learns from answers with a verdict",
        ),
        (
            "{ dpo = { reference = 'without_adapter' } }",
            &[],
            "`reference`: `without_adapter` needs a model with an adapter",
        ),
        (
            "{ dpo = { reference = { folder = 'nowhere' } } }",
            &[],
            "`nowhere` is not a folder",
        ),
        (
            "{ dpo = { loss = 'sigmoyd' } }",
            &[],
            "did you mean `sigmoid`?",
        ),
        (
            "{ dpo = { referense = 'none' } }",
            &[],
            "did you mean `reference`?",
        ),
        (
            "{ cpo = { simpo_gamma = 1.0 } }",
            &[],
            "`simpo_gamma`: only `simpo`",
        ),
    ] {
        let error = Aligned::refused(objective, changes);
        assert!(error.contains(part), "{objective}: {error}");
    }
}

#[test]
fn a_reference_with_other_tokens_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = GROW
        .replace("g8", "g1/1")
        .replace("vocabulary = 290", "vocabulary = 280");
    fs::write(folder.path().join("grow.toml"), recipe).unwrap();
    succeeded(
        &espalier(folder.path(), &["--quiet", "run", "grow.toml"])
            .output()
            .unwrap(),
    );
    let other = folder.path().join("run/01-grow/model");
    let objective = format!(
        "{{ dpo = {{ reference = {{ folder = '{}' }} }} }}",
        other.display()
    );
    let error = Aligned::refused(&objective, &[]);
    assert!(
        error.contains("has other tokens than the model that is trained"),
        "{error}"
    );
}

#[test]
fn prompts_that_leave_no_room_are_left_out_and_counted() {
    for (objective, records) in [("'dpo'", 8), ("'kto'", 8), ("'orpo'", 8), ("'cpo'", 8)] {
        let run = Aligned::new();
        let changes = ["length=24", "steps=1", "validation=[]"];
        let output = run.command(objective, &changes).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let expected = format!("of {records} records left out: no token of an answer is left");
        assert!(error.contains(&expected), "{objective}: {error}");
    }
}
