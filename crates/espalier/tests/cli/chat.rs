//! Conversations, of one prompt or line by line.

use std::io::Write;
use std::process::Stdio;

use super::generation::generating;
use super::{command, err, espalier, json, model, out};

#[test]
fn chat_answers_once_or_line_by_line() {
    let once = espalier(&[
        "chat",
        model(),
        "--prompt",
        "two and three?",
        "--max-new-tokens",
        "4",
        "--json",
    ]);
    assert_eq!(once.status.code(), Some(0), "{}", err(&once));
    assert_eq!(json(&once)["role"], "assistant");
    let mut child = command(&[
        "chat",
        model(),
        "--json",
        "--max-new-tokens",
        "4",
        "--quiet",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"hello\n/reset\n/system be brief\nagain\n/quit\nnever\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), out(&output).lines().count()),
        (Some(0), 2)
    );
}

#[test]
fn a_full_context_forgets_the_oldest() {
    let mut child = command(&["chat", model(), "--json", "--max-new-tokens", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all("one two three four\n".repeat(4).as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 4);
    assert!(
        err(&output).contains("the oldest exchange is left out"),
        "{}",
        err(&output)
    );
    let long = espalier(&["chat", model(), "--prompt", &"word ".repeat(80)]);
    assert_eq!(long.status.code(), Some(1));
    assert!(
        err(&long).contains("the model's context 64; shorten it"),
        "{}",
        err(&long)
    );
}

#[test]
fn one_line_that_is_too_long_does_not_end_a_chat() {
    let mut child = command(&["chat", model(), "--max-new-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = format!("hello\n{}\nstill here?\n", "word ".repeat(80));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(out(&output).lines().count() >= 2, "{}", out(&output));
    assert!(
        err(&output).contains("the model's context 64; shorten it")
            && err(&output).contains("without an answer: 1 of the lines, the first of them line 2"),
        "{}",
        err(&output)
    );
    // Nothing that was said before is forgotten for it.
    let before = err(&output);
    let before = before.split("shorten it").next().unwrap();
    assert!(!before.contains("left out"), "{before}");
}

#[test]
fn beams_that_the_model_asks_for_are_told_of() {
    let model = generating(r#"{"num_beams": 3}"#);
    let path = model.path().to_str().unwrap();
    let chat = ["chat", path, "--prompt", "hello", "--max-new-tokens", "2"];
    let output = espalier(&chat);
    assert!(output.status.success(), "{}", err(&output));
    assert!(
        err(&output).contains("`num_beams` = 3 counts for `espalier generate`"),
        "{}",
        err(&output)
    );
    let quiet = espalier(&[&["--quiet"], &chat[..]].concat());
    assert_eq!(err(&quiet), "");
}
