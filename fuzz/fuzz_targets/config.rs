//! Any text as a `config.json`: an error, or a specification that can be described and written, never a panic.
#![no_main]

use std::path::Path;

use espalier::models::families::{config::Config, family, write_config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = Config::parse(Path::new("config.json"), text) else {
        return;
    };
    let Ok(spec) = family(&config).and_then(|family| (family.read)(&config)) else {
        return;
    };
    let _ = spec.parameter_count();
    let _ = write_config(&spec);
});
