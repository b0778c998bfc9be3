//! BiGS (arXiv 2212.10544): BERT's embedding and head around state spaces in both directions. Names are those of the
//! authors' PyTorch code, the keys of the configuration theirs and BERT's; `directions` is our own.

use super::config::{
    CONTEXT_LIMIT, Config, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::mamba::STATE_LIMIT;
use super::{Family, Frame, ModuleNames, TensorEntry, table, write_frame};
use crate::error::Result;
use crate::recurrent::{BigsSpec, RecurrentSpec};
use crate::spec::{
    Activation, BlockSpec, HeadTransformSpec, MixerSpec, ModelSpec, NormSpec, PositionSpec,
};
use serde_json::{Map, Value, json};

/// The registration of BiGS.
pub const FAMILY: Family = Family {
    model_type: "BiGS",
    architecture: "BiGSForMaskedLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "bigs.",
    ignored: &[
        "embeddings.position_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ],
};

/// Most token types.
const TYPE_LIMIT: usize = 1 << 16;
/// Our own key for a model that reads one way: `forward`, or `both`.
const DIRECTIONS: &str = "directions";

fn read(config: &Config) -> Result<ModelSpec> {
    config.ignore(&["pooler_type", "scaling", "pre_norm"]);
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-12)?);
    let activation = config.activation_or("hidden_act", Activation::Gelu)?;
    let both = match config.optional_text(DIRECTIONS)? {
        None | Some("both") => true,
        Some("forward") => false,
        Some(other) => {
            return Err(config.error(
                DIRECTIONS,
                format!("unknown `{other}`; known are both and forward"),
            ));
        }
    };
    let mixer = MixerSpec::Recurrent(RecurrentSpec::Bigs(BigsSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        modes: config.optional_size("num_ssm", STATE_LIMIT)?.unwrap_or(64),
        both,
        activation,
    }));
    let blocks =
        vec![BlockSpec::mixer_alone(mixer, norm); config.size("num_hidden_layers", LAYER_LIMIT)?];
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(512);
    let frame = Frame {
        width,
        context,
        blocks,
        final_norm: None,
        tied_by_default: true,
    };
    Ok(ModelSpec {
        bidirectional: true,
        positions: Some(PositionSpec::Learned {
            count: context,
            offset: 0,
        }),
        token_types: Some(
            config
                .optional_size("type_vocab_size", TYPE_LIMIT)?
                .unwrap_or(2),
        ),
        embedding_norm: Some(norm),
        head_transform: Some(HeadTransformSpec {
            activation,
            norm,
            bias: true,
        }),
        head_bias: true,
        ..frame.read_decoder(config, &FAMILY)?
    })
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set("layer_norm_eps", json!(spec.norm_epsilon()));
    set("max_position_embeddings", json!(spec.context));
    set("type_vocab_size", json!(spec.token_types));
    if let Some(MixerSpec::Recurrent(RecurrentSpec::Bigs(layer))) =
        spec.blocks.first().map(|block| &block.mixer)
    {
        set("intermediate_size", json!(layer.inner));
        set("num_ssm", json!(layer.modes));
        set("hidden_act", json!(activation_name(layer.activation)));
        set(
            DIRECTIONS,
            json!(if layer.both { "both" } else { "forward" }),
        );
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("^embedding.", "bigs.embeddings.word_embeddings."),
        ("^positions.", "bigs.embeddings.position_embeddings."),
        ("^token_types.", "bigs.embeddings.token_type_embeddings."),
        ("^embedding_norm.", "bigs.embeddings.LayerNorm."),
        ("^head_transform.", "cls.predictions.transform.dense."),
        ("^head_norm.", "cls.predictions.transform.LayerNorm."),
        ("^head.weight", "cls.predictions.decoder.weight"),
        ("^head.", "cls.predictions."),
        ("^blocks.", "bigs.encoder.layer."),
        (".mixer_norm.", ".LayerNorm."),
        (".mixer.value.", ".dv."),
        (".mixer.forward.", ".du_forward."),
        (".mixer.backward.", ".du_backward."),
        (".mixer.forward_mixed.", ".duc_forward."),
        (".mixer.backward_mixed.", ".duc_backward."),
        (".mixer.gate.", ".dol."),
        (".mixer.output.", ".do."),
        (".mixer.forward_space.", ".fs4."),
        (".mixer.backward_space.", ".bs4."),
        ("s4.real", "s4.kernel.A_re"),
        ("s4.imaginary", "s4.kernel.A_im"),
        ("s4.output", "s4.kernel.C"),
        ("s4.log_step", "s4.kernel.log_step"),
        ("s4.skip", "s4.D"),
    ];
    table(spec, NAMES, &[])
}

#[cfg(test)]
mod tests {
    use super::super::write_config;
    use super::*;
    use crate::{
        model::{Input, LanguageModel},
        source::Seed,
    };
    use burn::tensor::Device;
    use std::collections::BTreeMap;

    fn spec(directions: &str) -> ModelSpec {
        let text = json!({
            "architectures": [FAMILY.architecture], "model_type": "BiGS", "vocab_size": 32, "hidden_size": 16,
            "num_hidden_layers": 1, "intermediate_size": 24, "num_ssm": 8, "max_position_embeddings": 40,
            "initializer_range": 0.3, "directions": directions,
        });
        read(&Config::parse("config.json".as_ref(), &text.to_string()).unwrap()).unwrap()
    }

    fn values(model: &LanguageModel, input: &Input) -> Vec<f32> {
        model
            .hidden(input, None)
            .unwrap()
            .into_data()
            .try_into_vec::<f32>()
            .unwrap()
    }

    fn gap(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    #[test]
    fn what_is_written_is_read_back_with_the_authors_names() {
        let spec = spec("both");
        assert_eq!(write_config(&spec).unwrap()["num_ssm"], 8);
        let names: Vec<String> = tensors(&spec).into_iter().map(|entry| entry.name).collect();
        for name in [
            "bigs.encoder.layer.0.fs4.kernel.C",
            "bigs.encoder.layer.0.bs4.D",
            "bigs.encoder.layer.0.duc_backward.weight",
        ] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
        assert!(write_config(&self::spec("forward")).is_ok());
    }

    /// A model without positions, whose directions may be swapped.
    fn model(swapped: bool) -> LanguageModel {
        struct Swapped(Seed, bool);
        impl crate::source::ParameterSource for Swapped {
            fn parameter(
                &mut self,
                name: &str,
                shape: &[usize],
                initial: crate::source::Initial,
            ) -> Result<crate::source::Values> {
                let other = |name: &str| match name.contains("forward") {
                    true => name.replace("forward", "backward"),
                    false => name.replace("backward", "forward"),
                };
                if name == "positions.weight" {
                    return Ok(vec![0.0; shape.iter().product()].into());
                }
                self.0.parameter(
                    &if self.1 { other(name) } else { name.to_owned() },
                    shape,
                    initial,
                )
            }
        }
        LanguageModel::build(
            spec("both"),
            &mut Swapped(Seed(3), swapped),
            &Device::flex(),
        )
        .unwrap()
    }

    #[test]
    fn a_text_turned_around_is_seen_by_swapped_directions() {
        let ids: Vec<u32> = (3..20).collect();
        let turned: Vec<u32> = ids.iter().rev().copied().collect();
        let [plain, swapped] = [(false, ids), (true, turned)].map(|(swapped, ids)| {
            values(&model(swapped), &Input::rows(&[ids]).unwrap())
                .chunks(16)
                .map(<[f32]>::to_vec)
                .collect::<Vec<_>>()
        });
        let back: Vec<f32> = swapped.into_iter().rev().flatten().collect();
        assert!(gap(&plain.concat(), &back) < 1e-5);
    }

    #[test]
    fn padding_and_neighbours_change_nothing() {
        let model = model(false);
        let rows = [(3..12).collect::<Vec<u32>>(), (5..19).collect()];
        let alone: BTreeMap<usize, Vec<f32>> = rows
            .iter()
            .map(|row| {
                (
                    row.len(),
                    values(&model, &Input::rows(std::slice::from_ref(row)).unwrap()),
                )
            })
            .collect();
        let together = values(&model, &Input::padded(&rows));
        assert!(
            gap(&together[..9 * 16], &alone[&9]) < 1e-5
                && gap(&together[14 * 16..], &alone[&14]) < 1e-5
        );
        let packed = Input {
            ids: rows.concat(),
            batch: 1,
            positions: Some((0..9).chain(0..14).collect()),
            segments: Some([vec![1; 9], vec![2; 14]].concat()),
            ..Input::default()
        };
        let packed = values(&model, &packed);
        assert!(
            gap(&packed[..9 * 16], &alone[&9]) < 1e-5 && gap(&packed[9 * 16..], &alone[&14]) < 1e-5
        );
    }
}
