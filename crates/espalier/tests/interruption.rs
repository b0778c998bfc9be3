//! Runs that are asked to stop, that lose their folder, and that meet each other, through the real binary.
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
    time::{Duration, Instant},
};

/// Two stages, the first of which lasts.
const RECIPE: &str = r#"
output = "run"
[[stage]]
name = "first"
[stage.train]
objective = "pretrain"
data = { world = "g8", as = "text", limit = 48 }
new = { vocabulary = 300, width = 32, layers = 2, heads = 2, kv_heads = 1, inner = 64, context = 512 }
[stage.train.options]
steps = 80
batch = 4
length = 256
log_every = 1
checkpoint_every = 0
[[stage]]
name = "second"
[stage.evaluate]
model = "first"
data = { world = "g8", as = "text", split = "val", limit = 4 }
"#;

fn command(folder: &Path) -> Command {
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_espalier"));
    command
        .current_dir(folder)
        .args(["run", "recipe.toml"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A run that has logged some steps of its own.
fn under_way(folder: &Path) -> Child {
    let log = folder.join("run/01-first/metrics.jsonl");
    let logged = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    let before = logged();
    let mut child = command(folder).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while logged() < before + 3 {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(Instant::now() < deadline, "no step was logged");
        sleep(Duration::from_millis(1));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(sent.success());
}

/// Whether this process was started to live on without its terminal, as by `nohup`: children inherit that.
fn hang_up_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    ignored.is_some_and(|bits| bits & 1 == 1)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("run/01-first/model/model.safetensors")).unwrap()
}

#[test]
fn a_run_that_is_asked_to_stop_goes_on_to_the_same_weights() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(command(whole.path()).output().unwrap().status.success());
    let hang_up = (!hang_up_is_ignored()).then_some(("-HUP", 129));
    for (name, code) in [("-INT", 130), ("-TERM", 143)].into_iter().chain(hang_up) {
        let child = under_way(stopped.path());
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let text = said(&output);
        let words = ["stopped after step", "the same command goes on"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!stopped.path().join("run/01-first/model").exists());
    }
    let output = command(stopped.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("goes on after step"));
    assert_eq!(weights(stopped.path()), weights(whole.path()));
    let log = |folder: &Path| fs::read(folder.join("run/01-first/metrics.jsonl")).unwrap();
    assert_eq!(log(stopped.path()), log(whole.path()));
}

#[test]
fn a_signal_before_the_first_step_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let child = command(folder.path()).spawn().unwrap();
        let begun = folder.path().join("run/.lock");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !begun.exists() {
            assert!(Instant::now() < deadline, "the run did not begin");
            sleep(Duration::from_micros(100));
        }
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(
            said(&output).contains("the same command goes on"),
            "{}",
            said(&output)
        );
        fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
}

#[test]
fn a_folder_that_is_deleted_meanwhile_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let child = under_way(folder.path());
    fs::remove_dir_all(folder.path().join("run/01-first")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("metrics.jsonl"), "{}", said(&output));
}

#[test]
fn the_second_process_in_a_folder_is_told_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = under_way(folder.path());
    let second = command(folder.path()).output().unwrap();
    let owner = format!("process {} on ", first.id());
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains(&owner), "{}", said(&second));
    // A process that died has no lock.
    let third = command(folder.path()).output().unwrap();
    assert!(third.status.success(), "{}", said(&third));
}
