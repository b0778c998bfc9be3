//! Marian: the first Transformer (arXiv 1706.03762) as published translation models have it: BART's layout with sines and
//! cosines for positions, and an embedding scaled by the root of the width.

use super::config::{Config, VOCABULARY_LIMIT};
use super::{
    Family, ModuleNames,
    bart::{self, Switches},
};
use crate::error::Result;
use crate::spec::{ModelSpec, PositionSpec};
use serde_json::{Map, Value, json};

/// The registration of Marian.
pub const FAMILY: Family = Family {
    model_type: "marian",
    architecture: "MarianMTModel",
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
        "embed_positions.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ],
};

fn read(config: &Config) -> Result<ModelSpec> {
    let vocabulary = config.size("vocab_size", VOCABULARY_LIMIT)?;
    if config
        .optional_size("decoder_vocab_size", VOCABULARY_LIMIT)?
        .is_some_and(|size| size != vocabulary)
    {
        return Err(config.error(
            "decoder_vocab_size",
            "another one than vocab_size is not supported yet",
        ));
    }
    if !config.flag_or("share_encoder_decoder_embeddings", true)? {
        let reason = "separate embeddings of encoder and decoder are not supported yet";
        return Err(config.error("share_encoder_decoder_embeddings", reason));
    }
    let switches = Switches {
        positions: |_| PositionSpec::Sinusoidal { interleaved: false },
        embedding_norm: false,
        ..Switches::BART
    };
    bart::read(config, &FAMILY, &switches)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = bart::write(spec, &FAMILY);
    map.insert("decoder_vocab_size".into(), json!(spec.vocabulary));
    map.insert("share_encoder_decoder_embeddings".into(), json!(true));
    map
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("marian-vanilla");
        assert_eq!(
            spec.positions,
            Some(PositionSpec::Sinusoidal { interleaved: false })
        );
        assert!(
            (spec.embedding_scale - 24f64.sqrt()).abs() < 1e-12 && spec.embedding_norm.is_none()
        );
        assert!(
            changed(
                "marian-vanilla",
                json!({ "share_encoder_decoder_embeddings": false })
            )
            .is_err()
        );
    }
}
