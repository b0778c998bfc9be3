//! Attention of decoder tokens to the encoder's output (arXiv 1706.03762, section 3.2.3). Its keys and values are computed once
//! for a source and cached.

use burn::tensor::Tensor;
use espalier_kernels::{
    attention::{Options, attention},
    recomputable::Recomputable,
};

use super::{Builder, linear::Linear};
use crate::{
    Result,
    parameter::parameters,
    spec::AttentionSpec,
    stack::{Context, Memory},
};

/// Keys and values of a source, each `[batch, source time, kv_heads, head_dim]`.
pub type SourceKeys = [Tensor<4>; 2];

/// The cross-attention of one block.
#[derive(Debug, Clone)]
pub struct CrossAttention {
    spec: AttentionSpec,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

parameters!(CrossAttention: query, key, value, output);

impl CrossAttention {
    /// Builds `{name}.query`, `key`, `value` and `output`.
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
        let query_deviation = deviation * (spec.head_dim as f64).powf(-0.5) / spec.scale;
        let mut project = |part: &str, size, bias, deviation| {
            Linear::build(builder, &format!("{name}.{part}"), size, bias, deviation)
        };
        Ok(Self {
            query: project("query", [queries, width], spec.qkv_bias, query_deviation)?,
            key: project("key", [keys, width], spec.qkv_bias, deviation)?,
            value: project("value", [keys, width], spec.qkv_bias, deviation)?,
            output: project("output", [width, queries], spec.output_bias, residual)?,
            spec: spec.clone(),
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. Where the memory has no hidden states, `cache` holds what
    /// was made of them; zeros come back where neither is there.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        memory: &Memory,
        context: &Context,
        cache: Option<&mut Option<SourceKeys>>,
    ) -> Tensor<3> {
        let query = self.query.forward(x);
        let [batch, time, _] = query.dims();
        let query = query.reshape([batch, time, self.spec.heads, self.spec.head_dim]);
        let fresh = memory.hidden.clone().map(|hidden| self.keys(hidden));
        let keys = match (fresh, cache) {
            (Some(fresh), Some(cache)) => Some(cache.insert(fresh).clone()),
            (fresh, Some(cache)) => fresh.or_else(|| cache.clone()),
            (fresh, None) => fresh,
        };
        let options = Options {
            scale: self.spec.scale,
            softcap: self.spec.softcap,
            precision: context.precision,
        };
        let mixed = match keys {
            Some([key, value]) => attention(query, key, value, &memory.mask, None, options),
            None => query * 0.0,
        };
        self.output
            .forward(mixed.reshape([batch, time, self.spec.heads * self.spec.head_dim]))
    }

    /// Keys and values of the encoder's output `[batch, source time, width]`.
    fn keys(&self, hidden: Tensor<3>) -> SourceKeys {
        let [batch, time, _] = hidden.dims();
        let shape = [batch, time, self.spec.kv_heads, self.spec.head_dim];
        Linear::forward_all([&self.key, &self.value], hidden).map(|x| x.reshape(shape))
    }
}
