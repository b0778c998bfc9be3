//! The parameters that a [`ModelSpec`] asks for: their names, shapes and count; and the preset of a small LLaMA.
//!
//! These names are the crate's own; `families/` maps each family's checkpoint names to them. Every matrix is
//! `[out, in]`.

use crate::spec::{
    Activation, AttentionExpertsSpec, AttentionSpec, BlockSpec, ChannelSpec, ClassifierSpec,
    DepthPredictor, ExpertsSpec, MixerSpec, MlpSpec, ModelSpec, NormExtent, NormSpec, PositionSpec,
    RotaryScaling, RotarySpec,
};
use crate::spec_stack::StackSpec;

type Parameters = Vec<(String, Vec<usize>)>;

impl ModelSpec {
    /// A LLaMA of the given sizes with a tied head: RMSNorm, rotary positions, grouped queries and a gated SiLU layer.
    ///
    /// Heads are `width / heads` wide. Special tokens are left for the caller to set.
    pub fn llama(
        vocabulary: usize,
        width: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        inner: usize,
        context: usize,
    ) -> Self {
        let head_dim = width / heads.max(1);
        let norm = NormSpec::rms(1e-6);
        let scaling = RotaryScaling::None;
        let attention = AttentionSpec {
            rotary: Some(RotarySpec {
                dim: head_dim,
                theta: 10_000.0,
                interleaved: false,
                scaling,
            }),
            ..AttentionSpec::plain(heads, kv_heads, head_dim)
        };
        let channel = ChannelSpec::GatedMlp(MlpSpec {
            inner,
            activation: Activation::Silu,
            bias: false,
            sub_norm: None,
        });
        let block = BlockSpec::sequential(MixerSpec::Attention(attention), channel, norm);
        Self {
            family: "llama".into(),
            vocabulary,
            width,
            embedding_projection: None,
            context,
            positions: None,
            token_types: None,
            relative: None,
            blocks: vec![block; layers],
            block_order: None,
            final_norm: Some(norm),
            encoder: None,
            bidirectional: false,
            embedding_scale: 1.0,
            embedding_norm: None,
            headless: false,
            head_transform: None,
            tied_head: true,
            head_bias: false,
            head_bias_fixed: false,
            pooler: false,
            classifier: None,
            next_sentence: false,
            logit_scale: 1.0,
            logit_softcap: None,
            bits: None,
            router_losses: None,
            z_loss: 0.0,
            initializer_range: 0.02,
            embedding_range: None,
            bos: None,
            eos: Vec::new(),
            pad: None,
        }
    }

    /// Numbers in all parameters together; a tied head counts once.
    ///
    /// ```
    /// use espalier_models::spec::ModelSpec;
    /// // Per block: two norms of 8, queries and outputs of 64, keys and values of 32, three matrices of 8 x 16.
    /// let count = ModelSpec::llama(10, 8, 1, 2, 1, 16, 32).parameter_count();
    /// assert_eq!(count, 10 * 8 + (2 * 8 + 2 * 64 + 2 * 32 + 3 * 128) + 8);
    /// ```
    pub fn parameter_count(&self) -> u64 {
        let size = |shape: &[usize]| {
            shape
                .iter()
                .fold(1u64, |product, &axis| product.saturating_mul(axis as u64))
        };
        self.parameters()
            .iter()
            .fold(0, |total, (_, shape)| total.saturating_add(size(shape)))
    }

    /// The name and shape of every parameter, in the order of computation.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let outer = self.outer_width();
        let mut list = vec![("embedding.weight".to_owned(), vec![self.vocabulary, outer])];
        if let Some(encoder) = &self.encoder {
            stack_parameters(&mut list, "encoder.", &encoder.stack(), self.width);
        }
        stack_parameters(&mut list, "", &self.stack(), self.width);
        if self.pooler {
            linear(&mut list, "pooler", self.width, self.width, true);
        }
        if self.next_sentence {
            linear(&mut list, "next_sentence", 2, self.width, true);
        }
        if let Some(transform) = self.head_transform {
            linear(
                &mut list,
                "head_transform",
                outer,
                self.width,
                transform.bias,
            );
            norm(&mut list, "head_norm", transform.norm, outer);
        }
        if let Some(classifier) = self.classifier {
            classifier_parameters(&mut list, &classifier, self.hidden_width());
        }
        if !self.tied_head && !self.headless {
            linear(&mut list, "head", self.vocabulary, outer, false);
        }
        if self.head_bias && !self.headless {
            list.push(("head.bias".into(), self.head_bias_shape()));
        }
        list
    }

    /// The shape of the bias of a tied head, `[vocabulary]`; files have a fixed one as `[1, vocabulary]`.
    pub(crate) fn head_bias_shape(&self) -> Vec<usize> {
        if self.head_bias_fixed {
            vec![1, self.vocabulary]
        } else {
            vec![self.vocabulary]
        }
    }

    /// What is added to variances and mean squares, by the first block.
    pub fn norm_epsilon(&self) -> Option<f64> {
        let norm = |block: &BlockSpec| block.mixer_norm.or(block.channel_norm);
        self.blocks.first().and_then(norm).map(NormSpec::epsilon)
    }

    /// The numbers of the blocks in the order in which they are run.
    pub fn block_order(&self) -> Vec<usize> {
        let each_once = || (0..self.blocks.len()).collect();
        self.block_order.clone().unwrap_or_else(each_once)
    }
}

fn stack_parameters(list: &mut Parameters, prefix: &str, stack: &StackSpec<'_>, width: usize) {
    let (outer, projection) = (stack.added_width(width), stack.embedding_projection);
    let before = stack.leads_back().is_some();
    let name = format!("{prefix}embedding_projection");
    if let Some(projection) = projection.filter(|_| before) {
        linear(list, &name, width, projection.width, false);
    }
    let rows = stack.positions.and_then(PositionSpec::table_rows);
    list.extend(rows.map(|rows| (format!("{prefix}positions.weight"), vec![rows, outer])));
    if let Some(rows) = stack.token_types {
        list.push((format!("{prefix}token_types.weight"), vec![rows, outer]));
    }
    if let Some(relative) = stack.relative {
        let shape = vec![relative.rows, relative.heads];
        let names = relative.names(prefix, stack.blocks.len());
        list.extend(names.map(|name| (format!("{name}.weight"), shape.clone())));
    }
    if let Some(kind) = stack.embedding_norm {
        norm(list, &format!("{prefix}embedding_norm"), kind, outer);
    }
    if let Some(projection) = projection.filter(|_| !before) {
        linear(list, &name, width, projection.width, true);
    }
    for (number, block) in stack.blocks.iter().enumerate() {
        block_parameters(list, &format!("{prefix}blocks.{number}"), block, width);
    }
    if let Some(kind) = stack.final_norm {
        norm(list, &format!("{prefix}final_norm"), kind, width);
    }
    if let Some(outer) = stack.leads_back() {
        let name = format!("{prefix}output_projection");
        linear(list, &name, outer, width, false);
    }
}

fn classifier_parameters(list: &mut Parameters, spec: &ClassifierSpec, width: usize) {
    if let Some(dense) = spec.dense {
        linear(list, "classifier.dense", width, width, dense.bias);
        if let Some(kind) = dense.norm {
            norm(list, "classifier.norm", kind, width);
        }
    }
    linear(list, "classifier.output", spec.labels, width, spec.bias);
}

fn block_parameters(list: &mut Parameters, path: &str, block: &BlockSpec, width: usize) {
    if let Some(routing) = &block.routing {
        linear(list, &format!("{path}.depth.router"), 1, width, false);
        if routing.predictor == DepthPredictor::Mlp {
            linear(
                list,
                &format!("{path}.depth.predictor.up"),
                (width / 2).max(1),
                width,
                true,
            );
            linear(
                list,
                &format!("{path}.depth.predictor.down"),
                1,
                (width / 2).max(1),
                true,
            );
        }
    }
    if let Some(kind) = block.mixer_norm {
        norm(list, &format!("{path}.mixer_norm"), kind, width);
    }
    match &block.mixer {
        MixerSpec::Attention(attention) => {
            attention_parameters(list, &format!("{path}.mixer"), attention, width)
        }
        MixerSpec::AttentionExperts(attention) => {
            attention_experts_parameters(list, &format!("{path}.mixer"), attention, width);
        }
        MixerSpec::LatentAttention(attention) => {
            let named = |(name, shape): (&str, _)| (format!("{path}.mixer.{name}"), shape);
            list.extend(attention.parameters(width).into_iter().map(named));
        }
        MixerSpec::Recurrent(recurrent) => {
            let named = |(name, shape): (&str, _)| (format!("{path}.mixer.{name}"), shape);
            list.extend(recurrent.parameters(width).into_iter().map(named));
        }
    }
    let mut optional = |name: &str, kind: Option<NormSpec>| {
        if let Some(kind) = kind {
            norm(list, &format!("{path}.{name}"), kind, width);
        }
    };
    optional("mixer_output_norm", block.mixer_output_norm);
    optional("cross_norm", block.cross.as_ref().map(|cross| cross.norm));
    optional("channel_norm", block.channel_norm);
    optional("channel_output_norm", block.channel_output_norm);
    if let Some(cross) = &block.cross {
        attention_parameters(list, &format!("{path}.cross"), &cross.attention, width);
    }
    let path = format!("{path}.channel");
    match &block.channel {
        ChannelSpec::Mlp(mlp) => mlp_parameters(list, &path, mlp, width),
        ChannelSpec::GatedMlp(mlp) => {
            linear(list, &format!("{path}.gate"), mlp.inner, width, mlp.bias);
            mlp_parameters(list, &path, mlp, width);
        }
        ChannelSpec::SparseExperts(experts) => experts_parameters(list, &path, experts, width),
        ChannelSpec::MultiHeadExperts(spec) => {
            linear(list, &format!("{path}.multi_head"), width, width, true);
            experts_parameters(list, &path, &spec.experts, width / spec.heads.max(1));
            linear(list, &format!("{path}.merge"), width, width, true);
        }
        ChannelSpec::Rwkv(spec) => {
            list.extend(
                spec.parameters(width)
                    .into_iter()
                    .map(|(name, shape)| (format!("{path}.{name}"), shape)),
            );
        }
        ChannelSpec::None => {}
    }
}

fn experts_parameters(list: &mut Parameters, path: &str, spec: &ExpertsSpec, width: usize) {
    let (experts, inner) = (spec.router.experts, spec.expert.inner);
    let rows = if spec.gated {
        inner.saturating_mul(2)
    } else {
        inner
    };
    list.push((format!("{path}.router.weight"), vec![experts, width]));
    if spec.router.bias {
        list.push((format!("{path}.router.bias"), vec![experts]));
    }
    if spec.router.choice_bias {
        list.push((format!("{path}.router.choice_bias"), vec![experts]));
    }
    list.push((
        format!("{path}.experts.up.weight"),
        vec![experts, rows, width],
    ));
    if spec.expert.bias {
        list.push((format!("{path}.experts.up.bias"), vec![experts, rows]));
    }
    list.push((
        format!("{path}.experts.down.weight"),
        vec![experts, width, inner],
    ));
    if spec.expert.bias {
        list.push((format!("{path}.experts.down.bias"), vec![experts, width]));
    }
    if spec.output_bias {
        list.push((format!("{path}.bias"), vec![width]));
    }
    if let Some(shared) = &spec.shared {
        if spec.gated {
            let gate = format!("{path}.shared.gate");
            linear(list, &gate, shared.expert.inner, width, shared.expert.bias);
        }
        mlp_parameters(list, &format!("{path}.shared"), &shared.expert, width);
        if shared.weighed {
            linear(list, &format!("{path}.shared.weigher"), 1, width, false);
        }
    }
}

fn attention_experts_parameters(
    list: &mut Parameters,
    path: &str,
    spec: &AttentionExpertsSpec,
    width: usize,
) {
    let (experts, keys) = (
        spec.router.experts,
        spec.kv_heads.saturating_mul(spec.head_dim),
    );
    list.push((format!("{path}.router.weight"), vec![experts, width]));
    list.push((
        format!("{path}.experts.query.weight"),
        vec![experts, keys, width],
    ));
    linear(list, &format!("{path}.key"), keys, width, false);
    linear(list, &format!("{path}.value"), keys, width, false);
    list.push((
        format!("{path}.experts.output.weight"),
        vec![experts, width, keys],
    ));
    list.push((format!("{path}.bias"), vec![width]));
}

fn attention_parameters(
    list: &mut Parameters,
    path: &str,
    attention: &AttentionSpec,
    width: usize,
) {
    let queries = attention.heads.saturating_mul(attention.head_dim);
    let keys = attention.kv_heads.saturating_mul(attention.head_dim);
    for (name, rows) in [("query", queries), ("key", keys), ("value", keys)] {
        linear(
            list,
            &format!("{path}.{name}"),
            rows,
            width,
            attention.qkv_bias,
        );
    }
    linear(
        list,
        &format!("{path}.output"),
        width,
        queries,
        attention.output_bias,
    );
    if let Some(kind) = attention.sub_norm {
        norm(list, &format!("{path}.sub_norm"), kind, queries);
    }
    if attention.sinks {
        list.push((format!("{path}.sinks"), vec![attention.heads]));
    }
    if let Some(kind) = attention.qk_norm {
        for (name, heads) in [
            ("query_norm", attention.heads),
            ("key_norm", attention.kv_heads),
        ] {
            let (path, width) = (format!("{path}.{name}"), attention.head_dim);
            match attention.qk_norm_extent {
                NormExtent::Head => norm(list, &path, kind, width),
                NormExtent::AllHeads => norm(list, &path, kind, heads.saturating_mul(width)),
                NormExtent::OwnHead => {
                    list.push((format!("{path}.weight"), vec![heads, width]));
                }
            }
        }
    }
}

fn mlp_parameters(list: &mut Parameters, path: &str, mlp: &MlpSpec, width: usize) {
    linear(list, &format!("{path}.up"), mlp.inner, width, mlp.bias);
    linear(list, &format!("{path}.down"), width, mlp.inner, mlp.bias);
    if let Some(kind) = mlp.sub_norm {
        norm(list, &format!("{path}.sub_norm"), kind, mlp.inner);
    }
}

fn linear(list: &mut Parameters, path: &str, rows: usize, columns: usize, bias: bool) {
    list.push((format!("{path}.weight"), vec![rows, columns]));
    if bias {
        list.push((format!("{path}.bias"), vec![rows]));
    }
}

fn norm(list: &mut Parameters, path: &str, kind: NormSpec, width: usize) {
    if kind.has_weight() {
        list.push((format!("{path}.weight"), vec![width]));
    }
    if kind.has_bias() {
        list.push((format!("{path}.bias"), vec![width]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::{Config, gpt2};

    #[test]
    fn the_small_gpt2_has_its_published_count() {
        let text =
            r#"{"vocab_size":50257,"n_positions":1024,"n_embd":768,"n_layer":12,"n_head":12}"#;
        let spec =
            (gpt2::FAMILY.read)(&Config::parse("config.json".as_ref(), text).unwrap()).unwrap();
        assert_eq!(spec.parameter_count(), 124_439_808);
    }

    #[test]
    fn names_follow_the_computation() {
        let mut spec = ModelSpec::llama(10, 8, 1, 2, 1, 16, 32);
        spec.tied_head = false;
        let names: Vec<String> = spec
            .parameters()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "embedding.weight",
            "blocks.0.mixer_norm.weight",
            "blocks.0.mixer.query.weight",
            "blocks.0.mixer.key.weight",
            "blocks.0.mixer.value.weight",
            "blocks.0.mixer.output.weight",
            "blocks.0.channel_norm.weight",
            "blocks.0.channel.gate.weight",
            "blocks.0.channel.up.weight",
            "blocks.0.channel.down.weight",
            "final_norm.weight",
            "head.weight",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn senseless_sizes_do_not_panic() {
        let spec = ModelSpec::llama(usize::MAX, usize::MAX, 1, 0, 3, usize::MAX, 0);
        assert_eq!(spec.parameter_count(), u64::MAX);
    }
}
