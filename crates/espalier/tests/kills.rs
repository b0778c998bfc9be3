//! A few of the kills of `examples/kills.rs` on every run of the tests.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod kills_of_runs;
mod runs;

use espalier::data::random::Random;
use kills_of_runs::{KINDS, Whole};

/// Kills of a run of each kind.
const KILLS: usize = 3;

#[test]
fn runs_that_are_killed_end_with_the_same_files() {
    let mut random = Random::new(11);
    for kind in KINDS {
        let whole = Whole::of(kind, env!("CARGO_BIN_EXE_espalier").as_ref());
        let (kills, result) = whole.trial(KILLS, &mut random);
        if let Err((what, _)) = result {
            panic!("{} after {kills} kills: {what}", kind.name);
        }
    }
}
