//! BERT (arXiv 1810.04805): an encoder with norms over the sums, token types, a pooler, and a head that predicts masked
//! tokens.

use super::encoder_layout::{self, Switches, head_names};
use super::{Config, Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::spec::ModelSpec;
use serde_json::{Map, Value};

/// The registration of BERT.
pub const FAMILY: Family = Family {
    model_type: "bert",
    architecture: "BertForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &[
        "embeddings.position_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "bert.";

/// Of the authors' first code, which the multilingual models kept: nothing reads them.
const QUIET: &[&str] = &[
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
];

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(QUIET);
    encoder_layout::read(config, &FAMILY, &Switches::BERT)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    encoder_layout::write(spec, &FAMILY)
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "bert.embeddings.word_embeddings."),
        ("^positions.", "bert.embeddings.position_embeddings."),
        ("^token_types.", "bert.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "bert.embeddings.LayerNorm."),
        ("^pooler.", "bert.pooler.dense."),
        ("^classifier.dense.", "bert.pooler.dense."),
        ("^classifier.output.", "classifier."),
        ("^next_sentence.", "cls.seq_relationship."),
        ("^head_transform.", "cls.predictions.transform.dense."),
        ("^head_norm.", "cls.predictions.transform.LayerNorm."),
        ("^blocks.", "bert.encoder.layer."),
        (".mixer.output.", ".attention.output.dense."),
        (".mixer_norm.", ".attention.output.LayerNorm."),
        (".mixer.", ".attention.self."),
        (".channel.up.", ".intermediate.dense."),
        (".channel.down.", ".output.dense."),
        (".channel_norm.", ".output.LayerNorm."),
    ];
    let head = [
        "cls.predictions.decoder.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
    ];
    let names = [NAMES, &head_names(spec, head)].concat();
    encoder_layout::tensors(spec, PREFIX, &names)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::*;
    use crate::{
        pooling::Pooling,
        spec::{Problem, Subject},
    };
    use serde_json::json;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("bert");
        assert!(spec.headless && spec.pooler && spec.bidirectional && spec.final_norm.is_none());
        assert_eq!(
            (spec.token_types, spec.learned_positions()),
            (Some(2), Some(64))
        );
        assert!(changed("bert", json!({ "position_embedding_type": "relative_key" })).is_err());
        assert!(changed("bert", json!({ "is_decoder": true })).is_err());
    }

    #[test]
    fn what_stands_on_it_follows_from_the_architecture() {
        let of = |name: &str, more: Value| {
            let mut changes = json!({ "architectures": [name] });
            if let (Value::Object(changes), Value::Object(more)) = (&mut changes, more) {
                changes.extend(more);
            }
            changed("bert", changes)
        };
        let texts = of("BertForSequenceClassification", json!({})).unwrap();
        let classifier = texts.classifier.unwrap();
        assert!(texts.headless && !texts.pooler && !texts.head_bias);
        assert_eq!(
            (classifier.labels, classifier.subject, classifier.problem),
            (2, Subject::Texts(Pooling::First), Problem::OneClass)
        );
        assert_eq!(
            super::super::write_config(&texts).unwrap()["architectures"],
            json!(["BertForSequenceClassification"])
        );
        let labels = json!({ "id2label": { "0": "LABEL_0" } });
        let one = of("BertForSequenceClassification", labels.clone()).unwrap();
        assert_eq!(one.classifier.unwrap().problem, Problem::Regression);
        let tokens = of("BertForTokenClassification", labels).unwrap();
        let classifier = tokens.classifier.unwrap();
        assert_eq!(
            (classifier.subject, classifier.problem, classifier.dense),
            (Subject::Tokens, Problem::OneClass, None)
        );
        let odd = of(
            "BertForSequenceClassification",
            json!({ "problem_type": "ranking" }),
        );
        assert!(odd.unwrap_err().to_string().contains("regression"));
        let pretrained = of("BertForPreTraining", json!({})).unwrap();
        assert!(pretrained.pooler && pretrained.next_sentence && !pretrained.headless);
    }

    #[test]
    fn the_published_model_has_its_published_count() {
        let sizes = json!({
            "architectures": ["BertForMaskedLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 512, "vocab_size": 30522,
        });
        let spec = changed("bert", sizes).unwrap();
        assert_eq!(spec.parameter_count(), 109_514_298);
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        for name in [
            "cls.predictions.bias",
            "bert.encoder.layer.11.attention.self.query.weight",
        ] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
    }
}
