//! What a file says of its model: keys of llama.cpp, from a specification. What a file cannot say is refused, so that nobody computes another
//! model.

use std::collections::BTreeMap;

use espalier_data::gguf::{Metadata, Value};

use super::layouts::Layout;
use crate::{
    Error, Result,
    families::{attention, mlp},
    recurrent::RecurrentSpec,
    spec::{
        AttentionSpec, ChannelSpec, MixerSpec, ModelSpec, NormSpec, PositionSpec, RotaryScaling,
    },
};

/// Keys, and tensors that say something of rotary positions.
#[derive(Debug)]
pub struct Described {
    /// The metadata of the model, its tokenizer left out.
    pub metadata: Metadata,
    /// Numbers in f32 by the tensor's name.
    pub factors: BTreeMap<&'static str, Vec<f32>>,
}

/// What a file in which most tensors have this type says; `file_type` is llama.cpp's number for the mixture.
///
/// # Errors
/// When llama.cpp has no architecture for the family, or none of its files can say what the specification does.
pub fn model_metadata(spec: &ModelSpec, name: &str, file_type: u32) -> Result<Described> {
    if let Some(bits) = spec.bits {
        return Err(Error::Invalid(format!(
            "weights of this model are rounded to {bits} values when they multiply, which llama.cpp would not do; save it as a folder"
        )));
    }
    let layout = layout(spec)?;
    let mut writer = Writer {
        architecture: layout.architecture,
        metadata: Metadata::new(),
        factors: BTreeMap::new(),
    };
    writer.general("architecture", Value::Text(layout.architecture.into()));
    writer.general("name", Value::Text(name.into()));
    writer.general("file_type", Value::U32(file_type));
    writer.general("quantization_version", Value::U32(2));
    writer.size("block_count", spec.blocks.len());
    writer.size("embedding_length", spec.width);
    writer.size("vocab_size", spec.vocabulary);
    writer.size("context_length", spec.context);
    match layout.family {
        "mamba" => writer.mamba(spec)?,
        _ => writer.attention(spec, layout.family)?,
    }
    Ok(Described {
        metadata: writer.metadata,
        factors: writer.factors,
    })
}

/// The layout of the files of a specification's family.
///
/// # Errors
/// When there is none.
pub fn layout(spec: &ModelSpec) -> Result<&'static Layout> {
    Layout::of_family(&spec.family).ok_or_else(|| {
        let known: Vec<&str> = super::layouts::LAYOUTS
            .iter()
            .map(|layout| layout.family)
            .collect();
        refused(format!(
            "models of the family `{}` are not written; {} are",
            spec.family,
            known.join(", ")
        ))
    })
}

fn refused(reason: impl Into<String>) -> Error {
    Error::Invalid(format!("as a GGUF file: {}", reason.into()))
}

struct Writer {
    architecture: &'static str,
    metadata: Metadata,
    factors: BTreeMap<&'static str, Vec<f32>>,
}

impl Writer {
    fn general(&mut self, key: &str, value: Value) {
        self.metadata.insert(format!("general.{key}"), value);
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata
            .insert(format!("{}.{key}", self.architecture), value);
    }

    fn size(&mut self, key: &str, size: usize) {
        self.set(key, Value::U32(size as u32));
    }

    fn number(&mut self, key: &str, number: f64) {
        self.set(key, Value::F32(number as f32));
    }

    fn mamba(&mut self, spec: &ModelSpec) -> Result<()> {
        let first = spec.blocks.first().map(|block| &block.mixer);
        let Some(MixerSpec::Recurrent(RecurrentSpec::Mamba(mamba))) = first else {
            return Err(refused("its blocks are not Mamba's"));
        };
        self.size("ssm.conv_kernel", mamba.taps);
        self.size("ssm.inner_size", mamba.inner);
        self.size("ssm.state_size", mamba.states);
        self.size("ssm.time_step_rank", mamba.rank);
        self.size("feed_forward_length", 0);
        self.size("attention.head_count", 0);
        self.number(
            "attention.layer_norm_rms_epsilon",
            spec.norm_epsilon().unwrap_or(1e-5),
        );
        Ok(())
    }

    fn attention(&mut self, spec: &ModelSpec, family: &str) -> Result<()> {
        let all: Vec<&AttentionSpec> = spec.blocks.iter().filter_map(attention).collect();
        let first = all.first().filter(|_| all.len() == spec.blocks.len());
        let first = *first.ok_or_else(|| refused("not all of its blocks have attention"))?;
        let same = |a: &AttentionSpec| {
            (a.heads, a.kv_heads, a.head_dim) == (first.heads, first.kv_heads, first.head_dim)
        };
        if !all.iter().all(|attention| same(attention)) {
            return Err(refused("its layers have heads of several sizes"));
        }
        self.size("attention.head_count", first.heads);
        self.size("attention.head_count_kv", first.kv_heads);
        self.size("attention.key_length", first.head_dim);
        self.size("attention.value_length", first.head_dim);
        self.norm(spec);
        self.feed_forward(spec, family)?;
        self.scale(spec, first, family)?;
        self.windows(&all, family)?;
        if let Some(cap) = first.softcap {
            self.only(family, "gemma2", "a cap on the scores")?;
            self.number("attn_logit_softcapping", cap);
        }
        if let Some(cap) = spec.logit_softcap {
            if !["gemma2", "gemma3_text"].contains(&family) {
                return Err(refused("its logits have a cap"));
            }
            self.number("final_logit_softcapping", cap);
        }
        if first.clip.is_some() || first.alibi.is_some() || first.sinks || spec.logit_scale != 1.0 {
            return Err(refused(
                "its attention or its logits have a part that the architecture has not",
            ));
        }
        match spec.positions {
            Some(PositionSpec::Learned { .. }) if family == "gpt2" => Ok(()),
            None => self.rotary(&all, family),
            _ => Err(refused("its positions are not those of the architecture")),
        }
    }

    fn only(&self, family: &str, expected: &str, what: &str) -> Result<()> {
        match family == expected {
            true => Ok(()),
            false => Err(refused(format!(
                "it has {what}, which `{}` has not",
                self.architecture
            ))),
        }
    }

    fn norm(&mut self, spec: &ModelSpec) {
        let key = match spec.final_norm {
            Some(NormSpec::RmsNorm { .. }) => "attention.layer_norm_rms_epsilon",
            _ => "attention.layer_norm_epsilon",
        };
        self.number(key, spec.norm_epsilon().unwrap_or(1e-5));
    }

    fn feed_forward(&mut self, spec: &ModelSpec, family: &str) -> Result<()> {
        let first = spec.blocks.first();
        if let Some(ChannelSpec::SparseExperts(experts)) = first.map(|block| &block.channel) {
            self.size("expert_count", experts.router.experts);
            self.size("expert_used_count", experts.router.active);
            self.size("feed_forward_length", experts.expert.inner);
            self.size("expert_feed_forward_length", experts.expert.inner);
            return Ok(());
        }
        let inner = |block| mlp(block).map(|mlp| mlp.inner);
        let width = first.and_then(inner).filter(|_| family != "mixtral");
        match width {
            Some(width) if spec.blocks.iter().all(|block| inner(block) == Some(width)) => {
                self.size("feed_forward_length", width);
                Ok(())
            }
            _ => Err(refused("its feed-forward layers are not all of one size")),
        }
    }

    /// llama.cpp computes the factor on the scores by itself.
    fn scale(&self, spec: &ModelSpec, first: &AttentionSpec, family: &str) -> Result<()> {
        let largest = (family == "gemma2" && spec.blocks.len() == 46)
            || (family == "gemma3_text" && spec.blocks.len() == 62);
        let divisor = if largest {
            spec.width / first.heads.max(1)
        } else {
            first.head_dim
        };
        let expected = (divisor as f64).powf(-0.5);
        match (first.scale - expected).abs() < 1e-9 {
            true => Ok(()),
            false => Err(refused(format!(
                "its scores are multiplied by {}, where llama.cpp multiplies by {expected}",
                first.scale
            ))),
        }
    }

    fn windows(&mut self, all: &[&AttentionSpec], family: &str) -> Result<()> {
        let slides: Vec<bool> = all
            .iter()
            .map(|attention| attention.window.is_some())
            .collect();
        let window = all.iter().find_map(|attention| attention.window);
        let uniform = all
            .iter()
            .all(|attention| attention.window.is_none_or(|own| Some(own) == window));
        let Some(window) = window else {
            return Ok(());
        };
        let fits = match family {
            "gemma2" => slides
                .iter()
                .enumerate()
                .all(|(layer, slides)| *slides == (layer % 2 == 0)),
            "gemma3_text" => true,
            "phi3" => slides.iter().all(|slides| *slides),
            _ => false,
        };
        // A window as wide as the context hides nothing.
        if family == "mistral" || family == "mixtral" || (family == "phi3" && !uniform) {
            return Err(refused(format!(
                "it has a window of {window} tokens, which `{}` has not; `config` with `sliding_window = null` leaves it out, which computes the same for shorter texts",
                self.architecture
            )));
        }
        if !fits || !uniform {
            return Err(refused("its windows are not those of the architecture"));
        }
        self.size("attention.sliding_window", window);
        if family == "gemma3_text" {
            let pattern = slides.into_iter().map(Value::Bool).collect();
            self.set("attention.sliding_window_pattern", Value::List(7, pattern));
        }
        Ok(())
    }

    fn rotary(&mut self, all: &[&AttentionSpec], family: &str) -> Result<()> {
        let of = |sliding: bool| {
            let mut all = all
                .iter()
                .filter(|attention| attention.window.is_some() == sliding);
            all.find_map(|attention| attention.rotary.as_ref())
        };
        let wide = of(false).or(of(true));
        let wide = wide.ok_or_else(|| refused("it has no rotary positions"))?;
        if wide.interleaved {
            return Err(refused("its rotary positions turn neighbours"));
        }
        let same = |attention: &&AttentionSpec| {
            attention.rotary.as_ref() == Some(wide)
                || (family == "gemma3_text" && attention.rotary.as_ref() == of(true))
        };
        if !all.iter().all(same) {
            return Err(refused("its layers have several rotary positions"));
        }
        self.size("rope.dimension_count", wide.dim);
        self.number("rope.freq_base", wide.theta);
        if family == "gemma3_text" {
            let local = of(true).map_or(1e4, |rotary| rotary.theta);
            self.number("rope.freq_base_swa", local);
        }
        let half = wide.dim / 2;
        match &wide.scaling {
            RotaryScaling::None => {}
            RotaryScaling::Linear { factor } => {
                self.set("rope.scaling.type", Value::Text("linear".into()));
                self.number("rope.scaling.factor", *factor);
            }
            RotaryScaling::Yarn {
                factor,
                original_context,
                attention_factor,
                ..
            } => {
                let usual = 0.1 * factor.ln() + 1.0;
                self.set("rope.scaling.type", Value::Text("yarn".into()));
                self.number("rope.scaling.factor", *factor);
                self.size("rope.scaling.original_context_length", *original_context);
                self.number("rope.scaling.attn_factor", attention_factor / usual);
            }
            RotaryScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let divisor = |i: usize| {
                    let wave =
                        std::f64::consts::TAU * wide.theta.powf(2.0 * i as f64 / wide.dim as f64);
                    let waves = *original_context as f64 / wave;
                    let share = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let share = share.clamp(0.0, 1.0);
                    (1.0 / ((1.0 - share) / factor + share)) as f32
                };
                self.factors
                    .insert("rope_freqs.weight", (0..half).map(divisor).collect());
            }
            RotaryScaling::LongRope {
                short,
                long,
                original_context,
                attention_factor,
            } => {
                let single = |list: &[f64]| list.iter().map(|x| *x as f32).collect();
                self.factors
                    .insert("rope_factors_short.weight", single(short));
                self.factors
                    .insert("rope_factors_long.weight", single(long));
                self.size("rope.scaling.original_context_length", *original_context);
                self.number("rope.scaling.attn_factor", *attention_factor);
            }
            RotaryScaling::Dynamic { .. } => {
                return Err(refused(
                    "its rotary positions grow with the text (dynamic NTK), which llama.cpp has not",
                ));
            }
        }
        Ok(())
    }
}
