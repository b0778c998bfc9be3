//! Mistral (arXiv 2310.06825): LLaMA with a sliding window on every layer, where the file has one.

use super::llama_layout::{self, IGNORED, PREFIX, Switches, layers, tensors};
use super::{Config, Family, ModuleNames, attention, config::CONTEXT_LIMIT, layer_types};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value, json};

/// The registration of Mistral.
pub const FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: IGNORED,
};

/// The window of the first release, which files of that time may leave out.
const DEFAULT_WINDOW: usize = 4096;

fn read(config: &Config) -> Result<ModelSpec> {
    let absent = !config.contains("sliding_window");
    let window = config
        .optional_size("sliding_window", CONTEXT_LIMIT)?
        .or(absent.then_some(DEFAULT_WINDOW));
    layer_types::check_uniform(config, layers(config)?, window)?;
    let switches = Switches {
        windows: vec![window; layers(config)?],
        ..Switches::plain(config, 131_072)?
    };
    llama_layout::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = llama_layout::write(spec, &FAMILY);
    let window = spec
        .blocks
        .first()
        .and_then(attention)
        .and_then(|attention| attention.window);
    map.insert("sliding_window".into(), json!(window));
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    fn windows(spec: &ModelSpec) -> Vec<Option<usize>> {
        spec.blocks
            .iter()
            .map(|block| attention(block).unwrap().window)
            .collect()
    }

    #[test]
    fn the_window_is_on_every_layer() {
        assert_eq!(windows(&fixture("mistral")), [Some(8); 3]);
        let none = changed("mistral", json!({ "sliding_window": null })).unwrap();
        assert_eq!(windows(&none), [None; 3]);
        assert_eq!(write_config(&none).unwrap()["sliding_window"], Value::Null);
    }

    #[test]
    fn an_absent_window_is_that_of_the_first_release() {
        let mut map = write_config(&fixture("mistral")).unwrap();
        map.remove("sliding_window");
        let spec = read(&Config::from_map("config.json".as_ref(), map)).unwrap();
        assert_eq!(windows(&spec), [Some(4096); 3]);
    }
}
