//! Any text as a recipe, and as an override: an error or a recipe, never a panic.
#![no_main]

use espalier::recipe::{Recipe, document};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = document::parse::<Recipe>(text, "fuzzed", &[]);
    let known = "output = 'o'\n[[stage]]\nname = 's'\n[stage.train]\nmodel = 'm'\nobjective = 'sft'\ndata = 'd'\n";
    let _ = document::parse::<Recipe>(known, "known", &[text.to_owned()]);
});
