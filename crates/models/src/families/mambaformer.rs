//! MambaFormer (arXiv 2402.04248): a block of Mamba in the place of positions, then attention and Mamba in turns, each mixer a
//! block of its own. No weights were published; the configuration's keys and the tensors' names are our own, after the paper.
//!
//! `layer_types` lists other orders, such as those of the parents: `["mamba", "mamba"]`, or `["attention", "attention"]` with
//! `learned_positions`.

use super::config::{CONTEXT_LIMIT, Config, HEAD_LIMIT, LAYER_LIMIT};
use super::mamba::{INPUT_GATE, LAYER_NAMES, Sizes};
use super::{
    Family, Frame, Fused, ModuleNames, QUERY_KEY_VALUE, TensorEntry, attention, even_head_dim,
    table, write_frame,
};
use crate::error::Result;
use crate::recurrent::{MambaSpec, RecurrentSpec};
use crate::spec::{AttentionSpec, BlockSpec, MixerSpec, ModelSpec, NormSpec, PositionSpec};
use serde_json::{Map, Value, json};

/// The registration of MambaFormer.
pub const FAMILY: Family = Family {
    model_type: "mambaformer",
    architecture: "MambaFormerForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::OF_FILES,
    prefix: "backbone.",
    ignored: &[],
};

const KINDS: &str = "layer_types";
const POSITIONS: &str = "learned_positions";

/// The paper's order: Mamba, then attention and Mamba in turns.
fn is_attention(layer: usize) -> bool {
    layer % 2 == 1
}

fn read(config: &Config) -> Result<ModelSpec> {
    let sizes = Sizes::read(config, 16)?;
    let heads = config
        .optional_size("num_attention_heads", HEAD_LIMIT)?
        .unwrap_or(8);
    let head_dim = even_head_dim(config, "num_attention_heads", sizes.width, heads)?;
    let attention = MixerSpec::Attention(AttentionSpec {
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
    });
    let mamba = sizes.layer(config, None)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let block = |attends: &bool| {
        BlockSpec::mixer_alone(
            if *attends {
                attention.clone()
            } else {
                mamba.clone()
            },
            norm,
        )
    };
    let blocks = read_kinds(config)?.iter().map(block).collect();
    let context = config
        .optional_size("max_position_embeddings", CONTEXT_LIMIT)?
        .unwrap_or(2048);
    let frame = Frame {
        width: sizes.width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default: false,
    };
    let learned = config.flag_or(POSITIONS, false)?;
    let positions = learned.then_some(PositionSpec::Learned {
        count: context,
        offset: 0,
    });
    Ok(ModelSpec {
        positions,
        ..frame.read(config, &FAMILY)?
    })
}

/// Which blocks have attention: as listed, or in the paper's order.
fn read_kinds(config: &Config) -> Result<Vec<bool>> {
    let count = config.optional_size("num_hidden_layers", LAYER_LIMIT)?;
    let Some(kinds) = config.optional_texts(KINDS)? else {
        return Ok((0..config.size("num_hidden_layers", LAYER_LIMIT)?)
            .map(is_attention)
            .collect());
    };
    if kinds.is_empty()
        || kinds.len() > LAYER_LIMIT
        || count.is_some_and(|count| count != kinds.len())
    {
        return Err(config.error(
            KINDS,
            format!(
                "{} kinds of layers, but num_hidden_layers says otherwise",
                kinds.len()
            ),
        ));
    }
    let kind = |kind: &&str| match *kind {
        "attention" => Ok(true),
        "mamba" => Ok(false),
        other => Err(config.error(
            KINDS,
            format!("unknown `{other}`; known are mamba and attention"),
        )),
    };
    kinds.iter().map(kind).collect()
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_frame(spec, &FAMILY);
    let kinds: Vec<bool> = spec
        .blocks
        .iter()
        .map(|block| attention(block).is_some())
        .collect();
    let mamba = spec.blocks.iter().find_map(|block| match &block.mixer {
        MixerSpec::Recurrent(RecurrentSpec::Mamba(layer)) => Some(layer),
        _ => None,
    });
    if let Some(layer) = mamba {
        let MambaSpec {
            inner,
            states,
            rank,
            taps,
            convolution_bias,
            bias,
            ..
        } = *layer;
        Sizes {
            width: spec.width,
            inner,
            taps,
            states,
            convolution_bias,
            bias,
        }
        .write(spec, &mut map);
        map.insert("time_step_rank".into(), json!(rank));
    }
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(kinds.len()));
    set("layer_norm_epsilon", json!(spec.norm_epsilon()));
    set("max_position_embeddings", json!(spec.context));
    if let Some(attention) = spec.blocks.iter().find_map(attention) {
        set("num_attention_heads", json!(attention.heads));
    }
    if spec.positions.is_some() {
        set(POSITIONS, json!(true));
    }
    if !kinds
        .iter()
        .enumerate()
        .all(|(layer, attends)| *attends == is_attention(layer))
    {
        let names: Vec<&str> = kinds
            .iter()
            .map(|attends| if *attends { "attention" } else { "mamba" })
            .collect();
        set(KINDS, json!(names));
    }
    map
}

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    const NAMES: &[(&str, &str)] = &[
        ("embedding.", "backbone.embeddings."),
        ("^positions.", "backbone.positions."),
        ("final_norm.", "backbone.norm_f."),
        ("head.", "lm_head."),
        ("blocks.", "backbone.layers."),
        (".mixer_norm.", ".norm."),
        (".mixer.query.", ".mixer.qkv_proj."),
    ];
    table(
        spec,
        &[NAMES, LAYER_NAMES].concat(),
        &[
            INPUT_GATE,
            Fused {
                parts: QUERY_KEY_VALUE,
                groups: 1,
            },
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::super::write_config;
    use super::*;
    use crate::{
        model::{Input, LanguageModel},
        source::Seed,
        state::SequenceState,
    };
    use burn::tensor::Device;

    fn read(more: Value) -> Result<ModelSpec> {
        let mut map = json!({
            "model_type": "mambaformer", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 5,
            "num_attention_heads": 2, "state_size": 4, "max_position_embeddings": 40, "initializer_range": 0.3,
        });
        map.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        super::read(&Config::parse("config.json".as_ref(), &map.to_string()).unwrap())
    }

    fn kinds(spec: &ModelSpec) -> String {
        spec.blocks
            .iter()
            .map(|block| if attention(block).is_some() { 'A' } else { 'M' })
            .collect()
    }

    #[test]
    fn the_papers_order_and_its_parents() {
        let spec = read(json!({})).unwrap();
        assert_eq!(kinds(&spec), "MAMAM");
        assert!(write_config(&spec).unwrap().get(KINDS).is_none());
        let own = json!({ "layer_types": ["mamba", "mamba"], "num_hidden_layers": 2 });
        let parent = read(own.clone()).unwrap();
        assert_eq!(kinds(&parent), "MM");
        assert_eq!(write_config(&parent).unwrap()[KINDS], own["layer_types"]);
        let attending = json!({ "layer_types": ["attention"], "num_hidden_layers": 1, "learned_positions": true });
        assert!(write_config(&read(attending).unwrap()).is_ok());
        assert!(read(json!({ "layer_types": ["mamba"] })).is_err());
        assert!(
            read(json!({ "layer_types": ["mamba", "rnn", "mamba", "mamba", "mamba"] })).is_err()
        );
    }

    #[test]
    fn a_cached_pass_equals_the_whole_one() {
        let model =
            LanguageModel::build(read(json!({})).unwrap(), &mut Seed(1), &Device::flex()).unwrap();
        let ids: Vec<u32> = (2..23).collect();
        let whole = model
            .logits(&Input::rows(std::slice::from_ref(&ids)).unwrap())
            .unwrap();
        let mut state = SequenceState::new(model.spec());
        for (start, end) in [(0, 7), (7, 8), (8, 15), (15, 21)] {
            let hidden = model
                .hidden(
                    &Input::rows(&[ids[start..end].to_vec()]).unwrap(),
                    Some(&mut state),
                )
                .unwrap();
            let gap = model.head(hidden) - whole.clone().narrow(1, start, end - start);
            assert!(gap.abs().max().into_scalar::<f32>() < 1e-5);
        }
    }
}
