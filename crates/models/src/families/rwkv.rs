//! What the RWKV families share: the authors' files, which come without a configuration, and the keys that we give them.
//!
//! A file tells everything by the names and shapes of its tensors; from those [`bare`] makes the keys of a configuration. A
//! model that is saved has them in its `config.json`, so that the folder explains itself; loading does not need it.

use super::config::{Config, HEAD_LIMIT, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT};
use super::mamba::{read_context, write_context};
use super::{Family, Frame, TensorEntry, table, write_frame};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::recurrent::{RwkvChannelSpec, Share};
use crate::spec::{BlockSpec, ChannelSpec, MixerSpec, ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// Added to variances where nothing else is said.
pub(super) const EPSILON: f64 = 1e-5;
/// Deviation of fresh embeddings, which the first norm makes large.
pub(super) const EMBEDDING_RANGE: f64 = 1e-4;
/// The key of norms' epsilons.
const EPSILON_KEY: &str = "layer_norm_epsilon";

/// Sizes that all generations have.
pub(super) struct Sizes {
    pub width: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Sizes {
    /// Reads width and heads.
    pub fn read(config: &Config) -> Result<Self> {
        let width = config.size("hidden_size", WIDTH_LIMIT)?;
        let head_dim = config.size("head_size", HEAD_LIMIT)?;
        if !width.is_multiple_of(head_dim) {
            let reason =
                format!("heads of {head_dim} do not divide the width {width}; choose a divisor");
            return Err(config.error("head_size", reason));
        }
        Ok(Self {
            width,
            heads: width / head_dim,
            head_dim,
        })
    }
}

/// The channel mixer.
pub(super) fn read_channel(config: &Config, share: Share, receptance: bool) -> Result<ChannelSpec> {
    let inner = config.size("intermediate_size", INNER_LIMIT)?;
    Ok(ChannelSpec::Rwkv(RwkvChannelSpec {
        inner,
        share,
        receptance,
    }))
}

/// A model of blocks with the mixers that `mixer` gives by their number.
pub(super) fn read_model(
    config: &Config,
    family: &Family,
    width: usize,
    channel: ChannelSpec,
    mixer: impl Fn(usize) -> MixerSpec,
) -> Result<ModelSpec> {
    let norm = NormSpec::layer(config.positive_or(EPSILON_KEY, EPSILON)?);
    let layers = config.size("num_hidden_layers", LAYER_LIMIT)?;
    let blocks = (0..layers)
        .map(|i| BlockSpec::sequential(mixer(i), channel.clone(), norm))
        .collect();
    let context = read_context(config)?;
    // The last norm keeps the usual epsilon, whatever the others have.
    let final_norm = Some(NormSpec::layer(EPSILON));
    let spec = Frame {
        width,
        context,
        blocks,
        final_norm,
        tied_by_default: false,
    }
    .read(config, family)?;
    let initializer_range =
        config.positive_or("initializer_range", 0.5 * (width as f64).powf(-0.5))?;
    Ok(ModelSpec {
        embedding_norm: Some(norm),
        embedding_range: Some(EMBEDDING_RANGE),
        initializer_range,
        ..spec
    })
}

/// Writes what [`read_model`] and [`read_channel`] read.
pub(super) fn write_model(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("hidden_size", json!(spec.width));
    set("num_hidden_layers", json!(spec.blocks.len()));
    set(EPSILON_KEY, json!(spec.norm_epsilon()));
    if let Some(ChannelSpec::Rwkv(channel)) = spec.blocks.first().map(|block| &block.channel) {
        set("intermediate_size", json!(channel.inner));
    }
    write_context(spec, &mut map);
    map
}

/// The authors' names around the mixers.
const NAMES: &[(&str, &str)] = &[
    ("embedding.", "emb."),
    ("embedding_norm.", "blocks.0.ln0."),
    ("final_norm.", "ln_out."),
    (".mixer_norm.", ".ln1."),
    (".channel_norm.", ".ln2."),
    (".mixer.norm.", ".att.ln_x."),
    (".channel.key.", ".ffn.key."),
    (".channel.value.", ".ffn.value."),
    (".channel.receptance.", ".ffn.receptance."),
    (".mixer.receptance.", ".att.receptance."),
    (".mixer.key.", ".att.key."),
    (".mixer.value.", ".att.value."),
    (".mixer.gate.", ".att.gate."),
    (".mixer.output.", ".att.output."),
];

/// The tensors of a file of the authors; `names` are the mixers' own. Maps through a narrow middle are stored `[in, out]`.
pub(super) fn authors_table(spec: &ModelSpec, names: &[(&str, &str)]) -> Vec<TensorEntry> {
    let mut entries = table(spec, &[NAMES, names].concat(), &[]);
    for entry in &mut entries {
        let ours = &entry.parts[0];
        entry.transposed = ours.ends_with("_down.weight") || ours.ends_with("_up.weight");
    }
    entries
}

/// The keys that a file of the authors makes of its tensors; nothing where it is no such file.
///
/// # Errors
/// When the file is of a generation that is not known here, or its tensors do not belong together.
pub fn bare(checkpoint: &Checkpoint) -> Result<Option<Map<String, Value>>> {
    let file = Bare { checkpoint };
    let (Some([vocabulary, width]), Some(_)) =
        (file.shape("emb.weight"), file.first_block("att.key.weight"))
    else {
        return Ok(None);
    };
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    set("vocab_size", json!(vocabulary));
    set("hidden_size", json!(width));
    set("num_hidden_layers", json!(file.blocks()));
    set("intermediate_size", json!(file.rows("ffn.key.weight")?));
    // The authors' documents begin and end with token 0.
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        set(key, json!(0));
    }
    if file.has("att.r_k") {
        set("model_type", json!(super::rwkv7::FAMILY.model_type));
        set("head_size", json!(file.columns("att.r_k")?));
        set("decay_rank", json!(file.columns("att.w1")?));
        set("rate_rank", json!(file.columns("att.a1")?));
        set("gate_rank", json!(file.columns("att.g1")?));
        // The first block has no use for it.
        if let Some([_, rank]) = file.shape("blocks.1.att.v1") {
            set("value_rank", json!(rank));
        }
    } else if file.has("att.time_maa_w1") {
        set("model_type", json!(super::rwkv6::FAMILY.model_type));
        set("head_size", json!(file.columns("att.time_faaaa")?));
        set(
            "mix_rank",
            json!(file.columns("att.time_maa_w1")? / super::rwkv6::MIXES),
        );
        set("decay_rank", json!(file.columns("att.time_decay_w1")?));
    } else if file.has("att.time_faaaa") && file.has("att.time_mix_g") {
        set("model_type", json!(super::rwkv5::FAMILY.model_type));
        set("head_size", json!(file.columns("att.time_faaaa")?));
    } else if file.has("att.time_first") && !file.has("att.ln_x.weight") {
        set("model_type", json!(super::rwkv4::AUTHORS.model_type));
        set("attention_hidden_size", json!(file.rows("att.key.weight")?));
    } else {
        return Err(
            file.error("an RWKV of another generation than 4, 5.2, 6 (x060) and 7 (x070)".into())
        );
    }
    Ok(Some(map))
}

/// A file whose names are the authors'.
struct Bare<'a> {
    checkpoint: &'a Checkpoint,
}

impl Bare<'_> {
    fn shape(&self, name: &str) -> Option<[usize; 2]> {
        self.checkpoint.info(name)?.shape.clone().try_into().ok()
    }

    fn first_block(&self, name: &str) -> Option<[usize; 2]> {
        self.shape(&format!("blocks.0.{name}"))
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.info(&format!("blocks.0.{name}")).is_some()
    }

    fn rows(&self, name: &str) -> Result<usize> {
        self.first_block(name)
            .map(|[rows, _]| rows)
            .ok_or_else(|| self.no_matrix(name))
    }

    fn columns(&self, name: &str) -> Result<usize> {
        self.first_block(name)
            .map(|[_, columns]| columns)
            .ok_or_else(|| self.no_matrix(name))
    }

    fn no_matrix(&self, name: &str) -> Error {
        self.error(format!(
            "has RWKV's tensors but no matrix `blocks.0.{name}`; is the file whole?"
        ))
    }

    /// Blocks from the first on.
    fn blocks(&self) -> usize {
        (0..LAYER_LIMIT)
            .take_while(|i| {
                self.checkpoint
                    .info(&format!("blocks.{i}.ffn.key.weight"))
                    .is_some()
            })
            .count()
    }

    fn error(&self, reason: String) -> Error {
        Error::checkpoint(self.checkpoint.folder(), reason)
    }
}
