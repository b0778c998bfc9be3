//! M2M-100 (arXiv 2010.11125), which is NLLB's layout too: BART with norms before the mixers and after each stack, and with sines and
//! cosines counted from behind the number of the padding token.

use super::{
    Config, Family, ModuleNames,
    bart::{self, Switches},
};
use crate::error::Result;
use crate::spec::{Activation, ModelSpec, PositionSpec};
use serde_json::{Map, Value};

/// The registration of M2M-100.
pub const FAMILY: Family = Family {
    model_type: "m2m_100",
    architecture: "M2M100ForConditionalGeneration",
    read,
    write,
    tensors: bart::tensors,
    modules: ModuleNames {
        unread: Some("shared"),
        ..ModuleNames::OF_FILES
    },
    prefix: "model.",
    // Sines and cosines are computed.
    ignored: &[
        "embed_positions.weights",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ],
};

/// The padding token where the file has none.
const PADDING: u32 = 1;

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        positions: |_| PositionSpec::SinusoidalBehindPadding { padding: PADDING },
        embedding_norm: false,
        norms_before: true,
        logit_bias: false,
        activation: Activation::Relu,
        scaled: true,
        ..Switches::BART
    };
    let mut spec = bart::read(config, &FAMILY, &switches)?;
    let padding = spec.pad.unwrap_or(PADDING);
    let positions = Some(PositionSpec::SinusoidalBehindPadding { padding });
    spec.pad = Some(padding);
    spec.positions = positions;
    if let Some(encoder) = &mut spec.encoder {
        encoder.positions = positions;
    }
    Ok(spec)
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
    fn positions_are_counted_behind_the_padding() {
        let spec = fixture("m2m-100");
        let behind = |padding| Some(PositionSpec::SinusoidalBehindPadding { padding });
        assert_eq!(
            (spec.positions, spec.encoder.unwrap().positions),
            (behind(1), behind(1))
        );
        assert!(!spec.head_bias && spec.embedding_scale == 4.0);
        let other = changed("m2m-100", json!({ "pad_token_id": 3 })).unwrap();
        assert_eq!(other.positions, behind(3));
    }
}
