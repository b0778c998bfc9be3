//! Learning from one's own answers through the real binary: rewards by a command that fails in every way, answers in the run's folder and
//! its report, and memory over many steps.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;

/// A model that is grown, and learns from its answers. `OBJECTIVE` and `STEPS` are filled in.
const RECIPE: &str = r#"
output = "run"
[defaults.train.options]
batch = 2
length = 96
learning_rate = 1e-3
log_every = 2
checkpoint_every = 0
[[stage]]
name = "grow"
[stage.train]
objective = "sft"
data = { world = "addition", limit = 16 }
new = { vocabulary = 290, width = 24, layers = 2, heads = 2, kv_heads = 1, inner = 40, context = 256 }
options = { steps = 3 }
[[stage]]
name = "reinforce"
[stage.train]
model = "grow"
objective.OBJECTIVE
data = { world = "addition", limit = 12 }
options = { steps = STEPS }
"#;

fn command(folder: &Path, objective: &str, steps: usize) -> Command {
    let recipe = RECIPE.replace("OBJECTIVE", objective);
    let recipe = recipe.replace("STEPS", &steps.to_string());
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .args(["run", "recipe.toml"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// GRPO with this table of rewards.
fn grpo(rewards: &str) -> String {
    format!(
        "grpo = {{ num_generations = 2, rollout = {{ rewards = [{rewards}], max_completion_length = 6 }} }}"
    )
}

/// GRPO whose rewards come from a script in the run's folder.
fn by_script(folder: &Path, script: &str, timeout: f64) -> String {
    fs::write(folder.join("reward.sh"), script).unwrap();
    grpo(&format!(
        "{{ command = {{ run = [\"sh\", \"reward.sh\"], timeout = {timeout} }} }}"
    ))
}

#[test]
fn a_command_that_fails_is_told_of_and_nothing_is_lost() {
    // Each is fine for two steps of four answers.
    let fine = "n=0; while read -r line; do n=$((n+1)); [ $n -gt 8 ] && break; echo 0.5; done; ";
    for (then, timeout, words) in [
        (
            "echo 'Traceback: KeyError' >&2; exit 7",
            30.0,
            ["exit status: 7", "Traceback: KeyError"],
        ),
        (
            "echo looks good; sleep 60",
            30.0,
            ["printed \"looks good\" for answer 1 of 4", "where a number"],
        ),
        (
            "echo waiting for the server >&2; sleep 60",
            0.5,
            [
                "no reward for answer 1 of 4 within 0.5 seconds",
                "waiting for the server",
            ],
        ),
        (
            "exec 1>&-; sleep 60",
            30.0,
            [
                "closed its output before answer 1 of 4",
                "nothing to its standard error",
            ],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let objective = by_script(folder.path(), &format!("{fine}{then}"), timeout);
        let output = command(folder.path(), &objective, 5).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        for words in words {
            assert!(said(&output).contains(words), "{words}: {}", said(&output));
        }
        let stage = folder.path().join("run/02-reinforce");
        assert!(stage.join("checkpoints/step-00000002").is_dir(), "{then}");
        assert!(!stage.join("model").exists());
        // What the first stage left is there, and the run goes on behind the two steps: the command fails in the fifth then.
        let output = command(folder.path(), &objective, 5).output().unwrap();
        assert!(
            said(&output).contains("goes on after step 2"),
            "{}",
            said(&output)
        );
        assert!(stage.join("checkpoints/step-00000004").is_dir());
    }
}

#[test]
fn the_commands_file_is_part_of_what_a_stage_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let script = "while read -r line; do echo ${#line}; done";
    let objective = by_script(folder.path(), script, 30.0);
    let run = || said(&command(folder.path(), &objective, 2).output().unwrap());
    assert!(run().contains("report: "));
    assert!(run().contains("02 reinforce: done before"));
    by_script(folder.path(), &format!("{script} # other"), 30.0);
    let again = run();
    assert!(again.contains("01 grow: done before"), "{again}");
    assert!(
        again.contains("report: ") && !again.contains("02 reinforce: done before"),
        "{again}"
    );
}

#[test]
fn answers_and_rewards_are_kept_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let objective = grpo("\"world\", { length = { target = 4 } }, { length = { target = 9 } }");
    let output = command(folder.path(), &objective, 4).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let samples = folder.path().join("run/02-reinforce/samples.jsonl");
    let samples = fs::read_to_string(samples).unwrap();
    let lines: Vec<Value> = samples
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // Two answers to the first prompt of each logged step.
    let steps: Vec<&Value> = lines.iter().map(|line| &line["step"]).collect();
    assert_eq!(steps, [2, 2, 4, 4]);
    for line in &lines {
        let sources = ["world", "length", "length-2"];
        let of_source = |name: &str| line["rewards"][name].as_f64().unwrap();
        let sum: f64 = sources.into_iter().map(of_source).sum();
        assert_eq!(line["reward"].as_f64().unwrap(), sum);
        assert!(line["prompt"].as_str().unwrap().ends_with('='));
    }
    let report = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    for words in [
        "reinforce, step 2: reward",
        "reward against distance from the reference",
        "reward by source",
        "rewards/length-2/mean",
    ] {
        assert!(report.contains(words), "{words}");
    }
}

#[test]
fn prompts_of_a_file_bring_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let line = |gold: usize| format!("{{\"prompt\": \"1+{gold}=\", \"gold\": {gold}}}\n");
    let lines: String = (0..6).map(line).collect();
    fs::write(folder.path().join("asked.jsonl"), lines).unwrap();
    let script =
        r#"while read -r line; do gold=${line##*'"gold":'}; echo "${gold%%[!0-9]*}"; done"#;
    let objective = by_script(folder.path(), script, 30.0);
    let mut command = command(folder.path(), &objective, 3);
    let output = command
        .arg("stage.reinforce.train.data=asked.jsonl")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let samples = fs::read_to_string(folder.path().join("run/02-reinforce/samples.jsonl")).unwrap();
    // Two answers to a prompt of each logged step, of which the last is one.
    assert_eq!(samples.lines().count(), 4, "{samples}");
    for line in samples.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let gold = line["reward"].as_f64().unwrap();
        assert_eq!(line["prompt"], format!("1+{gold}="));
    }
}

/// Resident memory in KiB.
fn resident(child: &Child) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays_flat_over_three_hundred_steps() {
    let rollout =
        "rollout = { rewards = [{ length = { target = 3 } }], max_completion_length = 6 }";
    for objective in [
        format!("grpo = {{ num_generations = 4, num_iterations = 2, {rollout} }}"),
        format!("rloo = {{ {rollout} }}"),
        format!("online_dpo = {{ {rollout} }}"),
        format!("ppo = {{ num_ppo_epochs = 2, {rollout} }}"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path(), &objective, 300);
        let mut child = command
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = folder.path().join("run/02-reinforce/metrics.jsonl");
        let step = || fs::read_to_string(&log).map_or(0, |log| 2 * log.lines().count());
        // Of the steps before and after the hundredth.
        let mut peaks = [0, 0];
        while child.try_wait().unwrap().is_none() {
            let at = step();
            if let Some(memory) = resident(&child).filter(|_| at > 30) {
                let peak = &mut peaks[usize::from(at > 100)];
                *peak = memory.max(*peak);
            }
            sleep(Duration::from_millis(2));
        }
        assert!(child.wait().unwrap().success(), "{objective}");
        let [early, late] = peaks;
        assert!(early > 0 && late > 0, "{objective}: {peaks:?}");
        assert!(
            late < early + early / 10,
            "{objective}: {early} -> {late} KiB"
        );
    }
}
