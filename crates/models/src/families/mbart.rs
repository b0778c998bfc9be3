//! mBART (arXiv 2001.08210): BART with norms before the mixers and after each stack, and with languages named by the last token of
//! a text, with which the decoder is trained to start.

use super::{
    Config, Family, ModuleNames,
    bart::{self, Switches},
};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value};

/// The registration of mBART.
pub const FAMILY: Family = Family {
    model_type: "mbart",
    architecture: "MBartForConditionalGeneration",
    read,
    write,
    tensors: bart::tensors,
    modules: ModuleNames {
        unread: Some("shared"),
        ..ModuleNames::OF_FILES
    },
    prefix: "model.",
    ignored: bart::FAMILY.ignored,
};

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        norms_before: true,
        starts_with_last: true,
        ..Switches::BART
    };
    bart::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    bart::write(spec, &FAMILY)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use serde_json::json;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mbart");
        let encoder = spec.encoder.as_ref().unwrap();
        assert!(spec.final_norm.is_some() && encoder.final_norm.is_some());
        assert!(encoder.starts_with_last && encoder.decoder_start == 5);
        let published = json!({
            "decoder_start_token_id": null, "normalize_before": true, "normalize_embedding": true, "add_final_layer_norm": true,
        });
        let spec = changed("mbart", published).unwrap();
        assert_eq!(spec.encoder.unwrap().decoder_start, 0);
        assert!(changed("mbart", json!({ "normalize_before": false })).is_err());
    }
}
