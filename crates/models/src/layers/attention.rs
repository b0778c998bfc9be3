//! Softmax attention with grouped heads, rotary positions, windows and a cache.

use burn::tensor::Tensor;
use espalier_kernels::{
    attention::{Options, attention, attention_with_sinks},
    recomputable::Recomputable,
};

use super::{Builder, head_norm::HeadNorm, linear::Linear, norm::Norm};
use crate::{
    Result,
    parameter::{Parameter, parameters},
    source::Initial,
    spec::AttentionSpec,
    stack::Context,
    state::KeyValues,
};

/// The attention mixer of one block.
#[derive(Debug, Clone)]
pub struct Attention {
    spec: AttentionSpec,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    sub_norm: Option<Norm>,
    query_norm: Option<HeadNorm>,
    key_norm: Option<HeadNorm>,
    sinks: Option<Parameter>,
}

parameters!(Attention: query, key, value, output, sub_norm, sinks, query_norm, key_norm);

impl Attention {
    /// Builds `{name}.query`, `key`, `value`, `output` and, where the spec has them, `sub_norm`, `sinks` `[heads]`, `query_norm` and `key_norm`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &AttentionSpec,
    ) -> Result<Self> {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let mut project = |part: &str, size, bias, deviation| {
            Linear::build(builder, &format!("{name}.{part}"), size, bias, deviation)
        };
        // Scores of fresh weights are alike whether their factor stands in the attention or, as in T5, in the weights.
        let query_deviation = deviation * (spec.head_dim as f64).powf(-0.5) / spec.scale;
        let query = project("query", [queries, width], spec.qkv_bias, query_deviation)?;
        let key = project("key", [keys, width], spec.qkv_bias, deviation)?;
        let value = project("value", [keys, width], spec.qkv_bias, deviation)?;
        let output = project("output", [width, queries], spec.output_bias, residual)?;
        let sub_norm = spec
            .sub_norm
            .map(|kind| Norm::build(builder, &format!("{name}.sub_norm"), queries, kind))
            .transpose()?;
        let sinks = match spec.sinks {
            true => {
                let (name, shape) = (format!("{name}.sinks"), vec![spec.heads]);
                Some(builder.parameter(name, shape, Initial::Zeros)?)
            }
            false => None,
        };
        let mut norm = |part: &str, heads: usize| {
            let (name, size) = (format!("{name}.{part}"), [heads, spec.head_dim]);
            spec.qk_norm
                .map(|norm| HeadNorm::build(builder, &name, size, norm, spec.qk_norm_extent))
                .transpose()
        };
        let query_norm = norm("query_norm", spec.heads)?;
        let key_norm = norm("key_norm", spec.kv_heads)?;
        Ok(Self {
            spec: spec.clone(),
            query,
            key,
            value,
            output,
            sub_norm,
            query_norm,
            key_norm,
            sinks,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. With a cache, the new keys and values are added to it
    /// and the queries see all of them.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        cache: Option<&mut KeyValues>,
    ) -> Tensor<3> {
        let [query, key, value] = Linear::forward_all([&self.query, &self.key, &self.value], x);
        let [batch, time, _] = query.dims();
        let mut query = self.split(query, self.spec.heads);
        let mut key = self.split(key, self.spec.kv_heads);
        let mut value = self.split(value, self.spec.kv_heads);
        if let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) {
            (query, key) = (query_norm.forward(query), key_norm.forward(key));
        }
        if let Some(clip) = self.spec.clip {
            [query, key, value] = [query, key, value].map(|x| x.clamp(-clip, clip));
        }
        if let Some(rotation) = &context.rotation {
            (query, key) = (rotation.apply(query), rotation.apply(key));
        }
        if let Some(bias) = &context.key_bias {
            [query, key, value] = bias.extend(query, key, value);
        }
        if let Some(cache) = cache {
            (key, value) = cache.append(key, value);
        }
        let options = Options {
            scale: self.spec.scale,
            softcap: self.spec.softcap,
            precision: context.precision,
        };
        let mask = &context.mask;
        let mixed = match &self.sinks {
            Some(sinks) => attention_with_sinks(query, key, value, mask, sinks.value(), options),
            None => attention(query, key, value, mask, context.bias.clone(), options),
        };
        let mixed = if context.key_bias.is_some() {
            mixed.narrow(3, 0, self.spec.head_dim)
        } else {
            mixed
        };
        let mixed = mixed.reshape([batch, time, self.spec.heads * self.spec.head_dim]);
        self.output.forward(match &self.sub_norm {
            Some(norm) => norm.forward(mixed),
            None => mixed,
        })
    }

    /// `[batch, time, heads * head_dim]` to `[batch, time, heads, head_dim]`.
    fn split(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, time, _] = x.dims();
        x.reshape([batch, time, heads, self.spec.head_dim])
    }
}
