//! Pegasus (arXiv 1912.08777): BART with norms before the mixers and after each stack, and with Marian's positions.

use super::{
    Config, Family,
    bart::{self, Switches},
};
use crate::error::Result;
use crate::spec::{ModelSpec, PositionSpec};
use serde_json::{Map, Value};

/// The registration of Pegasus.
pub const FAMILY: Family = Family {
    model_type: "pegasus",
    architecture: "PegasusForConditionalGeneration",
    read,
    write,
    tensors: bart::tensors,
    prefix: "",
    // Sines and cosines are computed.
    ignored: &[
        "embed_positions.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        positions: |_| PositionSpec::Sinusoidal { interleaved: false },
        embedding_norm: false,
        norms_before: true,
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
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("pegasus");
        assert_eq!(
            spec.positions,
            Some(PositionSpec::Sinusoidal { interleaved: false })
        );
        assert!(spec.final_norm.is_some() && spec.embedding_norm.is_none());
        // The published files say so.
        let published = json!({ "normalize_before": true, "add_final_layer_norm": true, "normalize_embedding": false });
        assert_eq!(changed("pegasus", published).unwrap(), spec);
    }
}
