//! Hostile files and command lines for as long as asked: `cargo run --release --example torture -- MINUTES [SEED [KIND]]`.
//! What it finds is kept in `torture/`, one folder each, with the command line and what was said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a tool for developers may fail loudly"
)]

#[path = "../tests/mutations/mod.rs"]
mod mutations;

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mutations::{TARGETS, Torture, mutator::Mutator};

fn main() {
    let mut arguments = env::args().skip(1);
    let minutes: f64 = arguments
        .next()
        .and_then(|m| m.parse().ok())
        .unwrap_or(30.0);
    let seed: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let kind = arguments.next();
    let program = env::current_exe().unwrap();
    let program = program
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("espalier");
    let pickle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/pth/kinds.pth"
    );
    let torture = Torture::new(&program, pickle.as_ref());
    let mut mutator = Mutator::new(seed);
    let (started, mut runs, mut found) = (Instant::now(), 0usize, 0usize);
    while started.elapsed() < Duration::from_secs_f64(60.0 * minutes) {
        let number = mutator.below(TARGETS.len() + 4);
        let target = TARGETS.get(number);
        let name = target.map_or("command-line", |target| target.name);
        if kind.as_ref().is_some_and(|kind| kind != name) {
            continue;
        }
        let result = match target {
            Some(target) => torture.file(target, &mut mutator),
            None => torture.command_line(&mut mutator),
        };
        runs += 1;
        if let Err(finding) = result {
            found += 1;
            let kept = PathBuf::from(format!("torture/{seed}-{runs}-{name}"));
            println!(
                "{}: {} {:?}\n{}",
                kept.display(),
                finding.reason,
                finding.words,
                finding.said
            );
            fs::create_dir_all("torture").unwrap();
            if let Some(folder) = finding.folder {
                fs::rename(folder.keep(), &kept).unwrap();
            }
        }
    }
    println!("{runs} runs, {found} findings");
}
