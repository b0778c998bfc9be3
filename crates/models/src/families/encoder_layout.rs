//! The keys and tensor names that BERT and its kin share: an encoder with norms over the sums, positions in a table, and token types.

use super::config::{
    CONTEXT_LIMIT, Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT, activation_name,
};
use super::heads::{EncoderHeads, Task};
use super::{Family, Frame, TensorEntry, attention, even_head_dim, mlp, table, write_frame};
use crate::error::Result;
use crate::pooling::Pooling;
use crate::spec::{
    Activation, AttentionSpec, BlockSpec, ChannelSpec, ClassifierDenseSpec, HeadTransformSpec,
    MixerSpec, MlpSpec, ModelSpec, NormSpec, PositionSpec,
};
use serde_json::{Map, Value, json};

/// Most token types.
const TYPE_LIMIT: usize = 1 << 16;

/// Where the families differ.
pub(super) struct Switches {
    /// `hidden_act` where the file has none.
    pub activation: Activation,
    /// The nonlinearity before the head over masked tokens, where it is not that of the blocks.
    pub transform: Option<Activation>,
    /// The nonlinearity before classes of texts.
    pub classifier: Activation,
    /// Whether the model alone pools its first token.
    pub pooler: bool,
    /// Whether there are token types.
    pub token_types: bool,
    /// The padding token behind whose number positions are counted.
    pub counted_behind: Option<u32>,
}

impl Switches {
    /// Those of BERT.
    pub const BERT: Self = Self {
        activation: Activation::Gelu,
        transform: None,
        classifier: Activation::Tanh,
        pooler: true,
        token_types: true,
        counted_behind: None,
    };

    /// Those of RoBERTa and what follows it.
    pub fn roberta(config: &Config) -> Result<Self> {
        Ok(Self {
            transform: Some(Activation::Gelu),
            counted_behind: Some(config.token("pad_token_id")?.unwrap_or(1)),
            ..Self::BERT
        })
    }
}

/// Reads a configuration of `family`.
pub(super) fn read(config: &Config, family: &Family, switches: &Switches) -> Result<ModelSpec> {
    for key in ["is_decoder", "add_cross_attention"] {
        config.refuse(key)?;
    }
    if let Some(kind) = config
        .optional_text("position_embedding_type")?
        .filter(|kind| *kind != "absolute")
    {
        let reason =
            format!("positions of the kind `{kind}` are not supported yet; known is absolute");
        return Err(config.error("position_embedding_type", reason));
    }
    let width = config.size("hidden_size", WIDTH_LIMIT)?;
    let norm = NormSpec::layer(config.positive_or("layer_norm_eps", 1e-12)?);
    let activation = config.activation_or("hidden_act", switches.activation)?;
    let block = BlockSpec::post_norm(mixer(config, width)?, channel(config, activation)?, norm);
    let (context, positions) = positions(config, switches)?;
    let frame = Frame {
        width,
        context,
        blocks: vec![block; config.size("num_hidden_layers", LAYER_LIMIT)?],
        final_norm: None,
        tied_by_default: true,
    };
    let types = config
        .optional_size("type_vocab_size", TYPE_LIMIT)?
        .unwrap_or(2);
    let spec = frame.read_decoder(config, family)?;
    let spec = ModelSpec {
        pad: spec.pad.or(switches.counted_behind),
        positions: Some(positions),
        token_types: switches.token_types.then_some(types),
        embedding_norm: Some(norm),
        ..spec
    };
    let heads = EncoderHeads {
        transform: HeadTransformSpec {
            activation: switches.transform.unwrap_or(activation),
            norm,
            bias: true,
        },
        bias: true,
        text_dense: Some(ClassifierDenseSpec {
            activation: switches.classifier,
            norm: None,
            bias: true,
        }),
        token_dense: None,
        pooling: Pooling::First,
        pooler: switches.pooler,
    };
    heads.put_on(spec, config, family)
}

fn mixer(config: &Config, width: usize) -> Result<MixerSpec> {
    let heads = config.size("num_attention_heads", HEAD_LIMIT)?;
    let head_dim = even_head_dim(config, "num_attention_heads", width, heads)?;
    Ok(MixerSpec::Attention(AttentionSpec {
        qkv_bias: true,
        output_bias: true,
        ..AttentionSpec::plain(heads, heads, head_dim)
    }))
}

fn channel(config: &Config, activation: Activation) -> Result<ChannelSpec> {
    Ok(ChannelSpec::Mlp(MlpSpec {
        inner: config.size("intermediate_size", INNER_LIMIT)?,
        activation,
        bias: true,
        sub_norm: None,
    }))
}

/// How long a text may be, and the table of its positions.
fn positions(config: &Config, switches: &Switches) -> Result<(usize, PositionSpec)> {
    const KEY: &str = "max_position_embeddings";
    let rows = config.optional_size(KEY, CONTEXT_LIMIT)?.unwrap_or(512);
    let Some(padding) = switches.counted_behind else {
        let (count, offset) = (rows, 0);
        return Ok((rows, PositionSpec::Learned { count, offset }));
    };
    let count = rows.saturating_sub(padding as usize).saturating_sub(1);
    if count == 0 {
        let reason = format!("{rows} rows leave none behind that of the padding token {padding}");
        return Err(config.error(KEY, reason));
    }
    Ok((count, PositionSpec::LearnedBehindPadding { count, padding }))
}

/// Writes the keys that the families share.
pub(super) fn write(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    if spec.next_sentence {
        set(
            "architectures",
            json!([Task::Pretraining.architecture(family)]),
        );
    }
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.block_order().len()));
    let heads = spec.blocks.first().and_then(attention).map(|a| a.heads);
    set("num_attention_heads", json!(heads));
    if let Some(mlp) = spec.blocks.first().and_then(mlp) {
        set("intermediate_size", json!(mlp.inner));
        set("hidden_act", json!(activation_name(mlp.activation)));
    }
    set("layer_norm_eps", json!(spec.norm_epsilon()));
    let rows = spec.positions.and_then(PositionSpec::table_rows);
    set(
        "max_position_embeddings",
        json!(rows.unwrap_or(spec.context)),
    );
    if let Some(types) = spec.token_types {
        set("type_vocab_size", json!(types));
    }
    map
}

/// The tensors: one for each parameter, under the name that `names` makes of ours.
pub(super) fn tensors(spec: &ModelSpec, prefix: &str, names: &[(&str, &str)]) -> Vec<TensorEntry> {
    bare_where_alone(spec, prefix, table(spec, names, &[]))
}

/// Files of the model alone leave `prefix` out.
pub(super) fn bare_where_alone(
    spec: &ModelSpec,
    prefix: &str,
    mut entries: Vec<TensorEntry>,
) -> Vec<TensorEntry> {
    if Task::of(spec) == Task::Base {
        for entry in &mut entries {
            if let Some(bare) = entry.name.strip_prefix(prefix) {
                entry.name = bare.to_owned();
            }
        }
    }
    entries
}

/// The names of a head over the vocabulary: of a table of its own, of the bias where the table is the embedding's, and of the bias
/// where it is not.
pub(super) fn head_names<'a>(
    spec: &ModelSpec,
    [table, shared, own]: [&'a str; 3],
) -> [(&'static str, &'a str); 2] {
    let bias = if spec.tied_head { shared } else { own };
    [("^head.weight", table), ("^head.bias", bias)]
}

/// The name of the scores: `out_proj` behind a dense layer.
pub(super) fn scores_names(spec: &ModelSpec) -> [(&'static str, &'static str); 1] {
    let behind = spec.classifier.is_some_and(|c| c.dense.is_some());
    [(
        "^classifier.output.",
        if behind {
            "classifier.out_proj."
        } else {
            "classifier."
        },
    )]
}
