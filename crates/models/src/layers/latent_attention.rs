//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, 2412.19437): keys and values of all heads are linear
//! maps of one narrow latent, and queries may be of another.
//!
//! `[c, r] = W_down x`, `[k, v] = W_up norm(c)`; a head's key is `[k, rotate(r)]` with one `r` for all heads, its query
//! `[q, rotate(q')]`. The cache holds `norm(c)` and `rotate(r)` alone; where there are earlier positions, queries and mixed values pass
//! through `W_up` in place of keys and values.

use burn::tensor::Tensor;
use espalier_kernels::{
    attention::{Options, attention},
    recomputable::Recomputable,
};

use super::{Builder, linear::Linear, norm::Norm};
use crate::{
    Result, parameter::parameters, spec::LatentAttentionSpec, stack::Context, state::KeyValues,
};

/// The mixer of one block.
#[derive(Debug, Clone)]
pub struct LatentAttention {
    spec: LatentAttentionSpec,
    query_latent: Option<QueryLatent>,
    query: Linear,
    latent: Linear,
    latent_norm: Norm,
    key_value: Linear,
    output: Linear,
}

parameters!(LatentAttention: query_latent, query, latent, latent_norm, key_value, output);

/// The latent that queries are made of.
#[derive(Debug, Clone)]
struct QueryLatent {
    down: Linear,
    norm: Norm,
}

parameters!(QueryLatent: down, norm);

impl LatentAttention {
    /// Builds `{name}.query`, `latent`, `latent_norm`, `key_value`, `output` and, where queries have a latent, `query_latent` and
    /// `query_norm`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &LatentAttentionSpec,
    ) -> Result<Self> {
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        let mut project = |part: &str, size, bias, deviation| {
            Linear::build(builder, &format!("{name}.{part}"), size, bias, deviation)
        };
        let queries = spec.heads * spec.key_dim();
        let latent = spec.latent + spec.rotary.dim;
        let down = spec
            .query_latent
            .map(|latent| project("query_latent", [latent, width], spec.bias, deviation))
            .transpose()?;
        let read = spec.query_latent.unwrap_or(width);
        let query = project("query", [queries, read], false, deviation)?;
        let latent = project("latent", [latent, width], spec.bias, deviation)?;
        let size = [spec.key_values(), spec.latent];
        let key_value = project("key_value", size, false, deviation)?;
        let output = project("output", [width, spec.values()], spec.bias, residual)?;
        let mut norm = |part: &str, width: usize| {
            Norm::build(builder, &format!("{name}.{part}"), width, spec.norm)
        };
        let query_latent = down
            .map(|down| {
                let norm = norm("query_norm", read)?;
                Result::Ok(QueryLatent { down, norm })
            })
            .transpose()?;
        Ok(Self {
            spec: spec.clone(),
            query_latent,
            query,
            latent,
            latent_norm: norm("latent_norm", spec.latent)?,
            key_value,
            output,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. With a cache, the new latents are added to it and the queries see all of
    /// them.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        cache: Option<&mut KeyValues>,
    ) -> Tensor<3> {
        let (query, latent) = self.project(x);
        let query = self.rotated_query(query, context);
        let latents = self.latents(latent, context);
        let earlier = cache.and_then(|cache| {
            let is_first = cache.length() == 0;
            let all = cache.append_latents(latents.clone());
            (!is_first).then_some(all)
        });
        let mixed = match earlier {
            Some(all) if self.key_value.adds_a_bias() => {
                let (key, value) = self.keys_and_values(all);
                self.attend([query, key, value], context)
            }
            Some(all) => self.over_latents(query, all, context),
            None => {
                let (key, value) = self.keys_and_values(latents);
                self.attend([query, key, value], context)
            }
        };
        let [batch, time, heads, value_dim] = mixed.dims();
        self.output
            .forward(mixed.reshape([batch, time, heads * value_dim]))
    }

    fn attend(&self, [query, key, value]: [Tensor<4>; 3], context: &Context) -> Tensor<4> {
        let options = Options {
            scale: self.spec.scale(),
            softcap: None,
            precision: context.precision,
        };
        attention(query, key, value, &context.mask, None, options)
    }

    /// Attends to the latents of earlier positions without making their keys and values: `q^T (W_k c) = (W_k^T q)^T c`, and
    /// `sum w (W_v c) = W_v (sum w c)`. To all heads the latents are keys and values alike.
    fn over_latents(&self, query: Tensor<4>, latents: Tensor<4>, context: &Context) -> Tensor<4> {
        let LatentAttentionSpec {
            heads,
            latent,
            plain_dim,
            value_dim,
            ..
        } = self.spec;
        let weight = self.key_value.adapted_weight();
        let weight = weight.reshape([heads, plain_dim + value_dim, latent]);
        let of_keys = weight.clone().narrow(1, 0, plain_dim);
        let of_values = weight.narrow(1, plain_dim, value_dim).swap_dims(1, 2);
        let plain = by_head(query.clone().narrow(3, 0, plain_dim), of_keys);
        let turning = query.narrow(3, plain_dim, self.spec.rotary.dim);
        let query = Tensor::cat(vec![plain, turning], 3);
        let value = latents.clone().narrow(3, 0, latent);
        by_head(self.attend([query, latents, value], context), of_values)
    }

    /// The queries `[batch, time, heads * key_dim]`, and the latent with the key's rotating channels behind it.
    fn project(&self, x: Recomputable<3>) -> (Tensor<3>, Tensor<3>) {
        match &self.query_latent {
            Some(QueryLatent { down, norm }) => {
                let [narrow, latent] = Linear::forward_all([down, &self.latent], x);
                (self.query.forward(norm.forward(narrow)), latent)
            }
            None => {
                let [query, latent] = Linear::forward_all([&self.query, &self.latent], x);
                (query, latent)
            }
        }
    }

    /// `[batch, time, heads, key_dim]`, with positions.
    fn rotated_query(&self, query: Tensor<3>, context: &Context) -> Tensor<4> {
        let [batch, time, _] = query.dims();
        let (plain, turning) = (self.spec.plain_dim, self.spec.rotary.dim);
        let query = query.reshape([batch, time, self.spec.heads, plain + turning]);
        let rotating = rotated(query.clone().narrow(3, plain, turning), context);
        Tensor::cat(vec![query.narrow(3, 0, plain), rotating], 3)
    }

    /// `[batch, time, 1, latent + turning]`: the latents after their norm, and the key's rotating channels, with positions.
    fn latents(&self, latent: Tensor<3>, context: &Context) -> Tensor<4> {
        let [batch, time, _] = latent.dims();
        let (width, turning) = (self.spec.latent, self.spec.rotary.dim);
        let shared = latent.clone().narrow(2, width, turning);
        let shared = rotated(shared.reshape([batch, time, 1, turning]), context);
        let latent = self.latent_norm.forward(latent.narrow(2, 0, width));
        Tensor::cat(vec![latent.reshape([batch, time, 1, width]), shared], 3)
    }

    /// Keys `[batch, time, heads, key_dim]` and values `[batch, time, heads, value_dim]`, made of latents.
    fn keys_and_values(&self, latents: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, time, _, _] = latents.dims();
        let LatentAttentionSpec {
            heads,
            latent,
            plain_dim,
            value_dim,
            ..
        } = self.spec;
        let turning = self.spec.rotary.dim;
        let shared = latents.clone().narrow(3, latent, turning);
        let latents: Tensor<3> = latents.narrow(3, 0, latent).reshape([batch, time, latent]);
        let both = self.key_value.forward(latents);
        let both = both.reshape([batch, time, heads, plain_dim + value_dim]);
        let key = both.clone().narrow(3, 0, plain_dim);
        let shared = shared.expand([batch, time, heads, turning]);
        let key = Tensor::cat(vec![key, shared], 3);
        (key, both.narrow(3, plain_dim, value_dim))
    }
}

/// Each head's rows `[batch, time, heads, in]` times its matrix of `[heads, in, out]`.
fn by_head(rows: Tensor<4>, matrices: Tensor<3>) -> Tensor<4> {
    rows.swap_dims(1, 2)
        .matmul(matrices.unsqueeze())
        .swap_dims(1, 2)
}

fn rotated(x: Tensor<4>, context: &Context) -> Tensor<4> {
    match &context.rotation {
        Some(rotation) => rotation.apply(x),
        None => x,
    }
}
