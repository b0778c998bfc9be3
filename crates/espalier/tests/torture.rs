//! A little of the torture of `examples/torture.rs` on every run of the tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod mutations;

use mutations::{Finding, TARGETS, Torture, mutator::Mutator};

/// Changes of each kind.
const CHANGES: usize = 12;

#[test]
fn no_input_panics_hangs_or_takes_the_memory() {
    let pickle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/pth/kinds.pth"
    );
    let torture = Torture::new(env!("CARGO_BIN_EXE_espalier").as_ref(), pickle.as_ref());
    let mut mutator = Mutator::new(7);
    let loud = |name: &str, result: Result<(), Finding>| {
        if let Err(finding) = result {
            panic!(
                "{name}: {} {:?}\n{}",
                finding.reason, finding.words, finding.said
            );
        }
    };
    for _ in 0..CHANGES {
        for target in TARGETS {
            loud(target.name, torture.file(target, &mut mutator));
        }
        for _ in 0..4 {
            loud("command line", torture.command_line(&mut mutator));
        }
    }
}
