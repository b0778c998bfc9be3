//! Mixture of attention heads (MoA, arXiv 2210.05144; JetMoE, 2404.07413): query and output projections are experts, keys
//! and values are shared by all of them.
//!
//! Each of a token's choices gives it one query head for every key head, and the same choice and weight serve the output:
//! `y = sum_e w_e W_out^e attention(W_q^e x, K, V) + b`. The cache holds keys and values once a token.

use burn::tensor::Tensor;
use espalier_kernels::{
    attention::{Options, attention},
    linear::add_bias,
    recomputable::Recomputable,
};

use super::{Builder, expert_linear::ExpertLinear, linear::Linear, router::Router};
use crate::{
    Result,
    auxiliary_losses::{SideSpec, Sides},
    parameter::{Parameter, parameters},
    source::Initial,
    spec::AttentionExpertsSpec,
    stack::Context,
    state::KeyValues,
};

/// The mixer of one block.
#[derive(Debug, Clone)]
pub struct AttentionExperts {
    spec: AttentionExpertsSpec,
    router: Router,
    query: ExpertLinear,
    key: Linear,
    value: Linear,
    output: ExpertLinear,
    bias: Parameter,
}

parameters!(AttentionExperts: router, query, key, value, output, bias);

impl AttentionExperts {
    /// Builds `{name}.router`, `{name}.experts.query.weight` `[experts, kv_heads * head_dim, width]`, `{name}.key`,
    /// `{name}.value`, `{name}.experts.output.weight` `[experts, width, kv_heads * head_dim]` and `{name}.bias`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &AttentionExpertsSpec,
    ) -> Result<Self> {
        let (experts, keys) = (spec.router.experts, spec.kv_heads * spec.head_dim);
        let (deviation, residual) = (builder.deviation, builder.residual_deviation);
        // The reference's balance loss has the router twice: once for the queries, once for the outputs.
        let router =
            Router::build(builder, &format!("{name}.router"), width, &spec.router)?.counted(2);
        let name_of = |part: &str| format!("{name}.experts.{part}");
        let query = ExpertLinear::build(
            builder,
            &name_of("query"),
            [experts, keys, width],
            1,
            deviation,
        )?;
        let output = ExpertLinear::build(
            builder,
            &name_of("output"),
            [experts, width, keys],
            1,
            residual,
        )?;
        let key = Linear::build(
            builder,
            &format!("{name}.key"),
            [keys, width],
            false,
            deviation,
        )?;
        let value = Linear::build(
            builder,
            &format!("{name}.value"),
            [keys, width],
            false,
            deviation,
        )?;
        let bias = builder.parameter(format!("{name}.bias"), vec![width], Initial::Zeros)?;
        Ok(Self {
            spec: spec.clone(),
            router,
            query,
            key,
            value,
            output,
            bias,
        })
    }

    /// What the layer says of tokens.
    pub fn side(&self) -> SideSpec {
        self.router.side(1)
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. With a cache, the new keys and values are added to it and the
    /// queries see all of them.
    pub fn forward(
        &self,
        x: Recomputable<3>,
        context: &Context,
        cache: Option<&mut KeyValues>,
        sides: &mut Sides,
    ) -> Tensor<3> {
        // The router is one more map of `x`, the query experts read it too.
        let maps = self.router.readers();
        let ([key, value], readers) =
            Linear::forward_beside(1, maps, [&self.key, &self.value], x.clone());
        let [batch, time, _] = key.dims();
        let (routing, weights) =
            self.router
                .forward(x.clone(), &readers, [batch, time], context, sides);
        let (heads, head_dim, active) = (self.spec.kv_heads, self.spec.head_dim, routing.active());
        // The query heads of one key head have to be neighbours.
        let query = self
            .query
            .forward(x.into_tensor(), &routing, [1, heads], readers);
        let mut query = query.reshape([batch, time, heads * active, head_dim]);
        let [mut key, mut value] = [key, value].map(|x| x.reshape([batch, time, heads, head_dim]));
        if let Some(rotation) = &context.rotation {
            (query, key) = (rotation.apply(query), rotation.apply(key));
        }
        if let Some(cache) = cache {
            (key, value) = cache.append(key, value);
        }
        let options = Options {
            scale: self.spec.scale,
            softcap: None,
            precision: context.precision,
        };
        let mixed = attention(query, key, value, &context.mask, None, options);
        let mixed = mixed.reshape([batch * time * active, heads * head_dim]);
        let y = self.output.summed(mixed, weights, &routing, heads);
        let y = add_bias(y, self.bias.value());
        let width = y.dims()[1];
        y.reshape([batch, time, width])
    }
}
