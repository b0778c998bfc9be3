//! ELECTRA (arXiv 2003.10555): BERT whose embedding may be narrower than the model. The generator predicts masked tokens, the
//! discriminator says of every token whether it was replaced.

use super::config::{Config, WIDTH_LIMIT};
use super::encoder_layout::{self, Switches};
use super::heads::Task;
use super::{Family, ModuleNames, TensorEntry};
use crate::error::Result;
use crate::spec::{
    Activation, ClassifierDenseSpec, ClassifierSpec, EmbeddingProjectionSpec, ModelSpec, Problem,
    Subject,
};
use serde_json::{Map, Value, json};

/// The registration of ELECTRA.
pub const FAMILY: Family = Family {
    model_type: "electra",
    architecture: "ElectraForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: PREFIX,
    ignored: &["embeddings.position_ids", "generator_lm_head.weight"],
};

/// What stands before names in files that have a head.
const PREFIX: &str = "electra.";

fn read(config: &Config) -> Result<ModelSpec> {
    let switches = Switches {
        transform: Some(Activation::Gelu),
        classifier: Activation::Gelu,
        pooler: false,
        ..Switches::BERT
    };
    let spec = encoder_layout::read(config, &FAMILY, &switches)?;
    let outer = config
        .optional_size("embedding_size", WIDTH_LIMIT)?
        .unwrap_or(128);
    let narrow = Some(outer).filter(|outer| *outer != spec.width);
    let spec = ModelSpec {
        embedding_projection: narrow.map(EmbeddingProjectionSpec::behind_positions),
        ..spec
    };
    if Task::read(config, &FAMILY)? != Task::Pretraining {
        return Ok(spec);
    }
    let activation = config.activation_or("hidden_act", Activation::Gelu)?;
    Ok(ModelSpec {
        headless: true,
        head_transform: None,
        head_bias: false,
        pooler: false,
        next_sentence: false,
        classifier: Some(ClassifierSpec {
            labels: 1,
            subject: Subject::Tokens,
            dense: Some(ClassifierDenseSpec {
                activation,
                norm: None,
                bias: true,
            }),
            bias: true,
            problem: Problem::ManyClasses,
        }),
        ..spec
    })
}

/// Whether the model says of every token whether it was replaced.
fn is_discriminator(spec: &ModelSpec) -> bool {
    let replaced = |c: ClassifierSpec| c.subject == Subject::Tokens && c.dense.is_some();
    spec.classifier.is_some_and(replaced)
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = encoder_layout::write(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("embedding_size", json!(spec.outer_width()));
    if is_discriminator(spec) {
        set(
            "architectures",
            json!([Task::Pretraining.architecture(&FAMILY)]),
        );
        map.remove("id2label");
        map.remove("label2id");
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "electra.embeddings.word_embeddings."),
        ("^positions.", "electra.embeddings.position_embeddings."),
        ("^token_types.", "electra.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "electra.embeddings.LayerNorm."),
        ("^embedding_projection.", "electra.embeddings_project."),
        ("^head_transform.", "generator_predictions.dense."),
        ("^head_norm.", "generator_predictions.LayerNorm."),
        ("^head.", "generator_lm_head."),
        ("^blocks.", "electra.encoder.layer."),
        (".mixer.output.", ".attention.output.dense."),
        (".mixer_norm.", ".attention.output.LayerNorm."),
        (".mixer.", ".attention.self."),
        (".channel.up.", ".intermediate.dense."),
        (".channel.down.", ".output.dense."),
        (".channel_norm.", ".output.LayerNorm."),
    ];
    const DISCRIMINATOR: &[(&str, &str)] = &[
        ("^classifier.dense.", "discriminator_predictions.dense."),
        (
            "^classifier.output.",
            "discriminator_predictions.dense_prediction.",
        ),
    ];
    let scores = encoder_layout::scores_names(spec);
    let of_classes: &[(&str, &str)] = match is_discriminator(spec) {
        true => DISCRIMINATOR,
        false => &scores,
    };
    encoder_layout::tensors(spec, PREFIX, &[NAMES, of_classes].concat())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("electra");
        assert!(spec.outer_width() < spec.width && !spec.headless);
        let wide = changed("electra", json!({ "embedding_size": spec.width })).unwrap();
        assert_eq!(wide.embedding_projection, None);
    }

    #[test]
    fn the_discriminator_scores_every_token() {
        let architecture = json!({ "architectures": ["ElectraForPreTraining"] });
        let spec = changed("electra", architecture.clone()).unwrap();
        let classifier = spec.classifier.unwrap();
        assert_eq!(
            (classifier.labels, classifier.subject),
            (1, Subject::Tokens)
        );
        assert_eq!(
            write_config(&spec).unwrap()["architectures"],
            architecture["architectures"]
        );
        assert!(
            tensors(&spec)
                .iter()
                .any(|entry| entry.name == "discriminator_predictions.dense_prediction.weight")
        );
    }
}
