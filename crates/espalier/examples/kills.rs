//! Runs that are killed at random moments: `cargo run --release --example kills -- COUNT [SEED [KIND]]`, COUNT kills in all.
//! What differs afterwards is kept in `kills/`, one folder each.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a tool for developers may fail loudly"
)]

#[path = "../tests/kills_of_runs/mod.rs"]
mod kills_of_runs;
#[path = "../tests/runs/mod.rs"]
mod runs;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use espalier::data::random::Random;
use kills_of_runs::{KINDS, Whole};

/// Kills of one run: how it goes on from where it was going on.
const MOST_OF_ONE: usize = 4;

fn main() {
    let mut arguments = env::args().skip(1);
    let count: usize = arguments.next().and_then(|c| c.parse().ok()).unwrap_or(200);
    let seed: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(0);
    let wanted = arguments.next();
    let program = env::current_exe().unwrap();
    let program = program
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("espalier");
    let chosen = KINDS
        .iter()
        .filter(|kind| wanted.as_ref().is_none_or(|wanted| wanted == kind.name));
    let wholes: Vec<_> = chosen
        .map(|kind| (kind, Whole::of(kind, &program)))
        .collect();
    assert!(!wholes.is_empty(), "there is no such kind of run");
    let mut random = Random::new(seed);
    let (mut kills, mut found) = (0, 0);
    let mut turns = wholes.iter().cycle();
    while kills < count {
        let Some((kind, whole)) = turns.next() else {
            break;
        };
        let most = (1 + random.below(MOST_OF_ONE)).min(count - kills);
        let (killed, result) = whole.trial(most, &mut random);
        kills += killed;
        if let Err((what, folder)) = result {
            found += 1;
            let kept = PathBuf::from(format!("kills/{seed}-{kills}-{}", kind.name));
            println!("{} after {killed} kills: {what}", kept.display());
            fs::create_dir_all("kills").unwrap();
            fs::rename(folder.keep(), &kept).unwrap();
        }
    }
    println!("{kills} kills, {found} findings");
}
