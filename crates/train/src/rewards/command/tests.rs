//! Tests of `command`.

use super::*;
use espalier_data::record::Message;
use serde_json::json;

/// What a program of the shell gives for these answers.
fn asked(program: &str, timeout: f64, answers: &[&str]) -> Result<Vec<Option<f64>>> {
    let run = ["sh", "-c", program].map(str::to_owned).to_vec();
    let mut reward = CommandReward::new(CommandOptions { run, timeout })?;
    score(&mut reward, answers)
}

fn score(reward: &mut CommandReward, answers: &[&str]) -> Result<Vec<Option<f64>>> {
    let (messages, record) = ([Message::user("how long?")], json!({"gold": 3}));
    let asked = |answer| Asked {
        messages: &messages,
        answer,
        tokens: 1,
        record: &record,
    };
    let answers: Vec<_> = answers.iter().copied().map(asked).collect();
    reward.score(&answers)
}

fn complaint(program: &str, timeout: f64) -> String {
    asked(program, timeout, &["a", "b"])
        .unwrap_err()
        .to_string()
}

#[test]
fn every_line_is_answered_by_one_process() {
    let program = r#"n=0; while read -r line; do n=$((n+1)); case "$line" in
        *'"completion":"none"'*) echo null;; *'"gold":3'*) echo "{\"reward\": $n}";; *) echo -1;; esac; done"#;
    let run = ["sh", "-c", program].map(str::to_owned).to_vec();
    let options = CommandOptions { run, timeout: 20.0 };
    let mut reward = CommandReward::new(options).unwrap();
    assert_eq!(
        score(&mut reward, &["x", "none", "y"]).unwrap(),
        [Some(1.0), None, Some(3.0)]
    );
    assert_eq!(score(&mut reward, &["z"]).unwrap(), [Some(4.0)]);
}

#[test]
fn more_than_a_pipe_holds_is_no_deadlock() {
    let long = "x".repeat(20_000);
    let answers = vec![long.as_str(); 40];
    let scores = asked("while read -r line; do echo ${#line}; done", 60.0, &answers).unwrap();
    assert!(scores.iter().all(|score| score.unwrap() > 20_000.0));
    assert_eq!(scores.len(), 40);
}

#[test]
fn a_program_that_fails_is_told_of_with_its_last_lines() {
    let crashed = complaint(
        "read -r line; echo 1; echo 'key error: gold' >&2; exit 3",
        20.0,
    );
    for words in [
        "exit status: 3",
        "answer 2 of 2",
        "its last lines:\nkey error: gold",
    ] {
        assert!(crashed.contains(words), "{crashed}");
    }
    let odd = complaint("while read -r line; do echo great; done", 20.0);
    assert!(odd.contains("printed \"great\" for answer 1 of 2"), "{odd}");
    assert!(odd.contains("nothing to its standard error"), "{odd}");
    let hung = complaint("echo thinking >&2; sleep 600", 0.3);
    assert!(hung.contains("within 0.3 seconds"), "{hung}");
    assert!(hung.ends_with("thinking"), "{hung}");
    let options = CommandOptions {
        run: vec!["no-such-program-here".into()],
        timeout: 1.0,
    };
    let missing = score(&mut CommandReward::new(options).unwrap(), &["a"]);
    let missing = missing.unwrap_err().to_string();
    assert!(
        missing.contains("`no-such-program-here` cannot be started"),
        "{missing}"
    );
}

#[test]
fn rewards_never_shift() {
    for program in [
        // A greeting, a line too many for each question, one long after the last answer of a batch.
        "echo 0; while read -r line; do echo 1; done",
        "while read -r line; do echo 1; sleep 0.1; echo 2; done",
        "while read -r line; do sleep 0.05; echo 1; echo 2; done",
        "read -r line; read -r line; echo 1; sleep 0.3; echo 2; sleep 0.2; echo 3; sleep 9",
    ] {
        let error = complaint(program, 20.0);
        assert!(error.contains("a line too many"), "{program}: {error}");
    }
    // A line too few.
    let error = complaint(
        "read -r line; while read -r line; do echo 1; done; sleep 9",
        0.4,
    );
    assert!(error.contains("no reward for answer 2 of 2"), "{error}");
    // What comes between two batches is of no question.
    let program = "read -r line; echo 1; (sleep 0.2; echo 5) & while read -r line; do echo 2; done";
    let run = ["sh", "-c", program].map(str::to_owned).to_vec();
    let options = CommandOptions { run, timeout: 20.0 };
    let mut reward = CommandReward::new(options).unwrap();
    assert_eq!(score(&mut reward, &["a"]).unwrap(), [Some(1.0)]);
    thread::sleep(Duration::from_millis(400));
    let error = score(&mut reward, &["b"]).unwrap_err().to_string();
    assert!(error.contains("printed \"5\" at answer 1 of 1"), "{error}");
}

#[test]
fn a_program_that_repeats_ids_is_held_to_them() {
    let of = |number: &str| {
        format!(
            r#"while read -r line; do id=${{line#*'"id":'}}; id=${{id%%[!0-9]*}}; echo "{{\"id\": $(({number})), \"reward\": $id}}"; done"#
        )
    };
    let run = ["sh", "-c", &of("id")].map(str::to_owned).to_vec();
    let options = CommandOptions { run, timeout: 20.0 };
    let mut reward = CommandReward::new(options).unwrap();
    assert_eq!(
        score(&mut reward, &["a", "b"]).unwrap(),
        [Some(0.0), Some(1.0)]
    );
    assert_eq!(score(&mut reward, &["c"]).unwrap(), [Some(2.0)]);
    let error = complaint(&of("id + 1"), 20.0);
    assert!(error.contains("of another question"), "{error}");
}

#[test]
fn senseless_options_are_refused() {
    for (run, timeout) in [
        (vec![], 1.0),
        (vec![String::new()], 1.0),
        (vec!["a".into()], 0.0),
    ] {
        assert!(CommandReward::new(CommandOptions { run, timeout }).is_err());
    }
}
