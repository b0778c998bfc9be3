//! RoBERTa (arXiv 1907.11692), and CamemBERT and XLM-RoBERTa, which are RoBERTa by other names: BERT whose positions are counted from
//! behind the number of the padding token.

use super::encoder_layout::{self, Switches, head_names};
use super::{Config, Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value};

/// The registration of RoBERTa.
pub const FAMILY: Family = family(
    "roberta",
    "RobertaForMaskedLM",
    |config| read(config, &FAMILY),
    |spec| encoder_layout::write(spec, &FAMILY),
);

/// The registration of CamemBERT.
pub const CAMEMBERT: Family = family(
    "camembert",
    "CamembertForMaskedLM",
    |config| read(config, &CAMEMBERT),
    |spec| encoder_layout::write(spec, &CAMEMBERT),
);

/// The registration of XLM-RoBERTa.
pub const XLM_ROBERTA: Family = family(
    "xlm-roberta",
    "XLMRobertaForMaskedLM",
    |config| read(config, &XLM_ROBERTA),
    |spec| encoder_layout::write(spec, &XLM_ROBERTA),
);

/// What stands before names in files that have a head.
const PREFIX: &str = "roberta.";

const fn family(
    model_type: &'static str,
    architecture: &'static str,
    read: fn(&Config) -> Result<ModelSpec>,
    write: fn(&ModelSpec) -> Map<String, Value>,
) -> Family {
    Family {
        model_type,
        architecture,
        read,
        write,
        tensors,
        modules: ModuleNames::OF_FILES,
        prefix: PREFIX,
        ignored: &[
            "embeddings.position_ids",
            "lm_head.decoder.weight",
            "lm_head.decoder.bias",
        ],
    }
}

fn read(config: &Config, family: &Family) -> Result<ModelSpec> {
    encoder_layout::read(config, family, &Switches::roberta(config)?)
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "roberta.embeddings.word_embeddings."),
        ("^positions.", "roberta.embeddings.position_embeddings."),
        ("^token_types.", "roberta.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "roberta.embeddings.LayerNorm."),
        ("^pooler.", "roberta.pooler.dense."),
        ("^classifier.dense.", "classifier.dense."),
        ("^head_transform.", "lm_head.dense."),
        ("^head_norm.", "lm_head.layer_norm."),
        ("^blocks.", "roberta.encoder.layer."),
        (".mixer.output.", ".attention.output.dense."),
        (".mixer_norm.", ".attention.output.LayerNorm."),
        (".mixer.", ".attention.self."),
        (".channel.up.", ".intermediate.dense."),
        (".channel.down.", ".output.dense."),
        (".channel_norm.", ".output.LayerNorm."),
    ];
    let head = [
        "lm_head.decoder.weight",
        "lm_head.bias",
        "lm_head.decoder.bias",
    ];
    let names = [
        NAMES,
        &head_names(spec, head),
        &encoder_layout::scores_names(spec),
    ]
    .concat();
    encoder_layout::tensors(spec, PREFIX, &names)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use crate::spec::PositionSpec;
    use serde_json::json;

    #[test]
    fn positions_stand_behind_the_padding() {
        let spec = fixture("roberta");
        let rows = spec.positions.unwrap().table_rows().unwrap();
        let expected = PositionSpec::LearnedBehindPadding {
            count: rows - 2,
            padding: 1,
        };
        assert_eq!((spec.positions, spec.context), (Some(expected), rows - 2));
        assert!(
            changed("roberta", json!({ "max_position_embeddings": 2 }))
                .unwrap_err()
                .to_string()
                .contains("max_position_embeddings")
        );
    }

    #[test]
    fn the_published_model_has_its_published_count() {
        let sizes = json!({
            "architectures": ["RobertaForMaskedLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 514, "vocab_size": 50265, "type_vocab_size": 1,
        });
        assert_eq!(
            changed("roberta", sizes).unwrap().parameter_count(),
            124_697_433
        );
    }
}
