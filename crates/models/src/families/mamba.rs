//! Mamba (arXiv 2312.00752), in the layout of transformers, and Falcon-Mamba (2410.05355), which has norms without weights within its
//! layers.

use super::config::{CONTEXT_LIMIT, Config, INNER_LIMIT, LAYER_LIMIT, WIDTH_LIMIT};
use super::module_names::LeftOut;
use super::{Family, Frame, Fused, ModuleNames, TensorEntry, table, write_frame};
use crate::error::Result;
use crate::recurrent::{MambaSpec, RecurrentSpec};
use crate::spec::{Activation, BlockSpec, MixerSpec, ModelSpec, NormSpec};
use serde_json::{Map, Value, json};

/// The registration of Mamba.
pub const FAMILY: Family = Family {
    model_type: "mamba",
    architecture: "MambaForCausalLM",
    read,
    write,
    tensors,
    modules: ModuleNames::without(LEFT_OUT),
    prefix: "backbone.",
    ignored: &[],
};

/// The registration of Falcon-Mamba.
pub const FALCON: Family = Family {
    model_type: "falcon_mamba",
    architecture: "FalconMambaForCausalLM",
    read: read_falcon,
    write: write_falcon,
    tensors,
    modules: ModuleNames::without(LEFT_OUT),
    prefix: "backbone.",
    ignored: &[],
};

/// The key of what is added to the mean squares of Falcon-Mamba's inner norms.
const INNER_NORM: &str = "mixer_rms_eps";

/// Most taps of a convolution, and most numbers of state of a channel.
pub(super) const STATE_LIMIT: usize = 1 << 16;

/// Our own key for the length up to which a model without positions was trained.
const CONTEXT: &str = "max_position_embeddings";
/// That length where nothing is said of it; nothing in the model depends on it.
const UNBOUNDED: usize = 1 << 20;

/// How weights start in other libraries, and switches of theirs that change nothing of what is computed.
const IGNORED: &[&str] = &[
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_init_scheme",
    "time_step_floor",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    "use_mamba_kernels",
    "chunk_size",
    // Of the authors' own configuration, which the first files kept.
    "d_inner",
    "d_model",
    "fused_add_norm",
    "n_layer",
    "pad_vocab_size_multiple",
    "rms_norm",
    "ssm_cfg",
];

/// What Mamba and Mamba-2 share.
pub(super) struct Sizes {
    pub width: usize,
    pub inner: usize,
    pub taps: usize,
    pub states: usize,
    pub convolution_bias: bool,
    pub bias: bool,
}

impl Sizes {
    /// Reads the keys of both.
    pub fn read(config: &Config, states: usize) -> Result<Self> {
        config.ignore(IGNORED);
        let width = config.size("hidden_size", WIDTH_LIMIT)?;
        let expand = config.optional_size("expand", INNER_LIMIT)?.unwrap_or(2);
        // Falcon-Mamba was published with the two at odds.
        let inner = match config.optional_size("intermediate_size", INNER_LIMIT)? {
            Some(inner) => inner,
            None => width.saturating_mul(expand),
        };
        if inner > INNER_LIMIT {
            return Err(config.error(
                "expand",
                format!("{expand} times the width is more than {INNER_LIMIT}"),
            ));
        }
        require_silu(config)?;
        Ok(Self {
            width,
            inner,
            taps: read_taps(config, "conv_kernel")?,
            states: config
                .optional_size("state_size", STATE_LIMIT)?
                .unwrap_or(states),
            convolution_bias: config.flag_or("use_conv_bias", true)?,
            bias: config.flag_or("use_bias", false)?,
        })
    }

    /// As [`Sizes::read`], where channels of another number than `expand` gives are refused.
    pub fn read_expanded(config: &Config, states: usize) -> Result<Self> {
        let sizes = Self::read(config, states)?;
        let expand = config.optional_size("expand", INNER_LIMIT)?.unwrap_or(2);
        match sizes.inner == sizes.width.saturating_mul(expand) {
            true => Ok(sizes),
            false => Err(config.error(
                "intermediate_size",
                format!("expected {expand}, as expand is, times the width"),
            )),
        }
    }

    /// A layer of these sizes, with this norm within.
    pub fn layer(&self, config: &Config, norm: Option<NormSpec>) -> Result<MixerSpec> {
        Ok(MixerSpec::Recurrent(RecurrentSpec::Mamba(MambaSpec {
            inner: self.inner,
            states: self.states,
            rank: read_rank(config, "time_step_rank", self.width)?,
            taps: self.taps,
            convolution_bias: self.convolution_bias,
            bias: self.bias,
            norm,
        })))
    }

    /// Writes them.
    pub fn write(&self, spec: &ModelSpec, map: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        set("hidden_size", json!(self.width));
        set("num_hidden_layers", json!(spec.blocks.len()));
        set("layer_norm_epsilon", json!(spec.norm_epsilon()));
        set("expand", json!((self.inner / self.width.max(1)).max(1)));
        set("conv_kernel", json!(self.taps));
        set("state_size", json!(self.states));
        set("use_conv_bias", json!(self.convolution_bias));
        set("use_bias", json!(self.bias));
        set("hidden_act", json!("silu"));
        write_context(spec, map);
    }
}

/// The layers know no other nonlinearity.
pub(super) fn require_silu(config: &Config) -> Result<()> {
    match config.activation_or("hidden_act", Activation::Silu)? {
        Activation::Silu => Ok(()),
        _ => Err(config.error("hidden_act", "only silu is supported in this family")),
    }
}

/// Taps of a convolution, at least two.
pub(super) fn read_taps(config: &Config, key: &str) -> Result<usize> {
    match config.optional_size(key, STATE_LIMIT)?.unwrap_or(4) {
        1 => Err(config.error(key, "a convolution needs at least 2 taps")),
        taps => Ok(taps),
    }
}

/// The rank of step sizes: a number, or `auto`, a sixteenth of the width.
pub(super) fn read_rank(config: &Config, key: &str, width: usize) -> Result<usize> {
    match config.get(key) {
        Some(Value::String(text)) if text == "auto" => Ok(width.div_ceil(16)),
        None => Ok(width.div_ceil(16)),
        Some(_) => config.size(key, WIDTH_LIMIT),
    }
}

/// The length for which a model without positions was made.
pub(super) fn read_context(config: &Config) -> Result<usize> {
    Ok(config
        .optional_size(CONTEXT, CONTEXT_LIMIT)?
        .unwrap_or(UNBOUNDED))
}

/// Writes what [`read_context`] reads.
pub(super) fn write_context(spec: &ModelSpec, map: &mut Map<String, Value>) {
    if spec.context != UNBOUNDED {
        map.insert(CONTEXT.into(), json!(spec.context));
    }
}

/// The projection of the steps, which transformers reads past any adapter.
pub(super) const STEPS_LEFT_OUT: LeftOut = LeftOut {
    name: "dt_proj",
    reason: "transformers multiplies by its weight itself, past an adapter, which changes nothing there before it is merged",
};

/// What PEFT adapts in no Mamba.
pub(super) const OUTPUT_LEFT_OUT: LeftOut = LeftOut {
    name: "out_proj",
    reason: "PEFT refuses it in models of this kind and opens no folder that has one",
};

const LEFT_OUT: &[LeftOut] = &[STEPS_LEFT_OUT, OUTPUT_LEFT_OUT];

fn read(config: &Config) -> Result<ModelSpec> {
    let sizes = Sizes::read(config, 16)?;
    let mixer = sizes.layer(config, None)?;
    read_blocks(config, &FAMILY, sizes.width, mixer, true)
}

fn read_falcon(config: &Config) -> Result<ModelSpec> {
    let sizes = Sizes::read(config, 16)?;
    let epsilon = config.positive_or(INNER_NORM, 1e-6)?;
    let mixer = sizes.layer(config, Some(NormSpec::Scaled { epsilon }))?;
    read_blocks(config, &FALCON, sizes.width, mixer, true)
}

/// Equal blocks of a mixer alone.
pub(super) fn read_blocks(
    config: &Config,
    family: &Family,
    width: usize,
    mixer: MixerSpec,
    tied_by_default: bool,
) -> Result<ModelSpec> {
    let norm = NormSpec::rms(config.positive_or("layer_norm_epsilon", 1e-5)?);
    let blocks =
        vec![BlockSpec::mixer_alone(mixer, norm); config.size("num_hidden_layers", LAYER_LIMIT)?];
    let context = read_context(config)?;
    Frame {
        width,
        context,
        blocks,
        final_norm: Some(norm),
        tied_by_default,
    }
    .read(config, family)
}

/// The first block's layer, if it is of this family.
fn layer(spec: &ModelSpec) -> Option<&MambaSpec> {
    match spec.blocks.first().map(|block| &block.mixer) {
        Some(MixerSpec::Recurrent(RecurrentSpec::Mamba(layer))) => Some(layer),
        _ => None,
    }
}

fn write(spec: &ModelSpec) -> Map<String, Value> {
    write_as(spec, &FAMILY)
}

fn write_falcon(spec: &ModelSpec) -> Map<String, Value> {
    let mut map = write_as(spec, &FALCON);
    let epsilon = layer(spec)
        .and_then(|layer| layer.norm)
        .map(NormSpec::epsilon);
    map.insert(INNER_NORM.into(), json!(epsilon));
    map
}

fn write_as(spec: &ModelSpec, family: &Family) -> Map<String, Value> {
    let mut map = write_frame(spec, family);
    if let Some(layer) = layer(spec) {
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
        map.insert("intermediate_size".into(), json!(inner));
    }
    map
}

/// Names of layers within their module; `in_proj` has inputs, then gates.
pub(super) const LAYER_NAMES: &[(&str, &str)] = &[
    (".mixer.input.", ".mixer.in_proj."),
    (".mixer.convolution.", ".mixer.conv1d."),
    (".mixer.selection.", ".mixer.x_proj."),
    (".mixer.step.", ".mixer.dt_proj."),
    (".mixer.a_log", ".mixer.A_log"),
    (".mixer.skip", ".mixer.D"),
    (".mixer.output.", ".mixer.out_proj."),
];

/// Names around the layers.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("embedding.", "backbone.embeddings."),
    ("final_norm.", "backbone.norm_f."),
    ("head.", "lm_head."),
    ("blocks.", "backbone.layers."),
    (".mixer_norm.", ".norm."),
];

/// Inputs and gates in one tensor.
pub(super) const INPUT_GATE: Fused = Fused {
    parts: &[".mixer.input.", ".mixer.gate."],
    groups: 1,
};

fn tensors(spec: &ModelSpec) -> Vec<TensorEntry> {
    table(spec, &[NAMES, LAYER_NAMES].concat(), &[INPUT_GATE])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, fixture};
    use super::super::write_config;
    use super::*;

    #[test]
    fn reads_the_fixture() {
        let spec = fixture("mamba");
        let layer = layer(&spec).unwrap();
        assert_eq!(
            (layer.inner, layer.states, layer.rank, layer.taps),
            (48, 8, 4, 4)
        );
        assert!(spec.tied_head && spec.initializer_range == 0.1);
        let auto = changed("mamba", json!({ "time_step_rank": "auto" })).unwrap();
        assert_eq!(super::layer(&auto).unwrap().rank, 2);
        assert_eq!(write_config(&spec).unwrap()["expand"], 2);
    }

    #[test]
    fn falcons_have_norms_without_weights() {
        let spec = fixture("falcon-mamba");
        let norm = layer(&spec).unwrap().norm;
        assert_eq!(norm, Some(NormSpec::Scaled { epsilon: 0.001 }));
        // As it was published.
        let odd = changed("falcon-mamba", json!({ "expand": 16 })).unwrap();
        assert_eq!(layer(&odd), layer(&spec));
        assert!(
            spec.parameters()
                .iter()
                .all(|(name, _)| !name.contains("b_norm"))
        );
    }

    #[test]
    fn senseless_sizes_are_refused() {
        for (key, value) in [
            ("hidden_act", json!("relu")),
            ("conv_kernel", json!(1)),
            ("intermediate_size", json!(0)),
            ("time_step_rank", json!("often")),
            ("expand", json!(1e9)),
        ] {
            let error = changed("mamba", json!({ key: value }))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("key `{key}`")), "{error}");
        }
    }
}
