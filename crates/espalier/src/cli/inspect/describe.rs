//! A specification in words and numbers.

use espalier_models::{
    families::config::activation_name,
    spec::{
        AttentionExpertsSpec, AttentionSpec, BlockSpec, ChannelSpec, ExpertsSpec,
        LatentAttentionSpec, MixerSpec, MlpSpec, ModelSpec, RotaryScaling, RotarySpec,
    },
};

use crate::units;

/// Vocabulary, width and context.
pub fn sizes(spec: &ModelSpec) -> String {
    let head = if spec.tied_head {
        "head tied to the embedding"
    } else {
        "a head of its own"
    };
    let positions = spec
        .learned_positions()
        .map(|count| format!(", {count} learned positions"))
        .unwrap_or_default();
    let sight = if spec.bidirectional {
        ", every token sees the whole text"
    } else {
        ""
    };
    format!(
        "vocabulary {}, width {}, context {}{positions}, {head}{sight}",
        spec.vocabulary, spec.width, spec.context
    )
}

/// All parameters, and what of them is in the embedding and in a block.
pub fn parameters(spec: &ModelSpec) -> String {
    let (all, embedding) = (spec.parameter_count(), embedding(spec));
    let blocks = per_block(spec);
    let block = match (blocks.iter().min(), blocks.iter().max()) {
        (Some(least), Some(most)) if least == most => {
            format!(", {} in each block", units::count(*most))
        }
        (Some(least), Some(most)) => format!(
            ", {} to {} in each block",
            units::count(*least),
            units::count(*most)
        ),
        _ => String::new(),
    };
    let active = spec.active_parameter_count();
    let active = match active < all as f64 {
        true => format!(
            ", {} active for the mean token",
            units::count(active as u64)
        ),
        false => String::new(),
    };
    format!(
        "{} ({all}): {} in the embedding{block}{active}",
        units::count(all),
        units::count(embedding)
    )
}

/// Parameters of the embedding table.
pub fn embedding(spec: &ModelSpec) -> u64 {
    (spec.vocabulary as u64).saturating_mul(spec.outer_width() as u64)
}

/// Parameters of every block.
pub fn per_block(spec: &ModelSpec) -> Vec<u64> {
    let mut counts = vec![0u64; spec.blocks.len()];
    for (name, shape) in spec.parameters() {
        let number = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        if let Some(count) = number.and_then(|number| counts.get_mut(number)) {
            *count = count.saturating_add(product(&shape));
        }
    }
    counts
}

/// Parameters of adapters of this rank on every matrix of the blocks.
pub fn low_rank_parameters(spec: &ModelSpec, rank: u64) -> u64 {
    let gated = |block: &BlockSpec| match &block.channel {
        ChannelSpec::SparseExperts(experts) => experts.gated && experts.clamped.is_none(),
        ChannelSpec::MultiHeadExperts(spec) => spec.experts.gated,
        _ => false,
    };
    let gated = spec.blocks.iter().any(gated);
    let matrix = |(name, shape): &(String, Vec<usize>)| match shape[..] {
        _ if !name.starts_with("blocks.")
            || name.contains("router.")
            || name.ends_with(".bias") =>
        {
            0
        }
        [rows, columns] => (rows as u64).saturating_add(columns as u64),
        // Gates and inputs of an expert have an adapter each.
        [experts, rows, columns] if name.contains(".experts.") => {
            let parts = if gated && name.contains(".experts.up.") {
                2
            } else {
                1
            };
            (rows as u64)
                .saturating_add(parts * columns as u64)
                .saturating_mul(experts as u64)
        }
        _ => 0,
    };
    spec.parameters()
        .iter()
        .map(matrix)
        .fold(0, u64::saturating_add)
        .saturating_mul(rank)
}

fn product(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(1, |product, axis| product.saturating_mul(*axis as u64))
}

/// What mixes along time.
pub fn mixer(mixer: &MixerSpec) -> String {
    match mixer {
        MixerSpec::Attention(mixer) => attention(mixer),
        MixerSpec::AttentionExperts(mixer) => attention_experts(mixer),
        MixerSpec::LatentAttention(mixer) => latent_attention(mixer),
        MixerSpec::Recurrent(mixer) => mixer.describe(),
    }
}

/// What mixes along width.
pub fn channel(channel: &ChannelSpec) -> String {
    match channel {
        ChannelSpec::Mlp(mlp) => feed_forward("MLP", mlp),
        ChannelSpec::GatedMlp(mlp) => feed_forward("gated MLP", mlp),
        ChannelSpec::SparseExperts(spec) => experts(spec),
        ChannelSpec::MultiHeadExperts(spec) => {
            format!("in {} parts {}", spec.heads, experts(&spec.experts))
        }
        ChannelSpec::Rwkv(spec) => {
            let gate = if spec.receptance { "gated, " } else { "" };
            format!("MLP {} ({gate}relu2), with the token before", spec.inner)
        }
        ChannelSpec::None => "nothing".into(),
    }
}

fn experts(spec: &ExpertsSpec) -> String {
    let kind = if spec.gated { "gated MLP" } else { "MLP" };
    format!(
        "{} of {} experts: {}",
        spec.router.active,
        spec.router.experts,
        feed_forward(kind, &spec.expert)
    )
}

fn attention_experts(spec: &AttentionExpertsSpec) -> String {
    let rotary = spec
        .rotary
        .as_ref()
        .map(|positions| format!(", {}", rotary(positions)))
        .unwrap_or_default();
    let (active, experts) = (spec.router.active, spec.router.experts);
    format!(
        "attention with {active} of {experts} experts over {} heads of {}{rotary}",
        spec.kv_heads, spec.head_dim
    )
}

fn latent_attention(spec: &LatentAttentionSpec) -> String {
    let bias = if spec.bias { ", biases" } else { "" };
    format!(
        "latent attention {} heads of {} and {}, latent {}, {}{bias}",
        spec.heads,
        spec.key_dim(),
        spec.value_dim,
        spec.latent,
        rotary(&spec.rotary)
    )
}

/// Heads, positions, windows and biases.
pub fn attention(attention: &AttentionSpec) -> String {
    let heads = match attention.heads == attention.kv_heads {
        true => attention.heads.to_string(),
        false => format!("{}/{}", attention.heads, attention.kv_heads),
    };
    let rotary = attention
        .rotary
        .as_ref()
        .map(|positions| format!(", {}", rotary(positions)))
        .unwrap_or_default();
    let window = attention
        .window
        .map(|keys| format!(", window {keys}"))
        .unwrap_or_default();
    let alibi = if attention.alibi.is_some() {
        ", ALiBi"
    } else {
        ""
    };
    let softcap = attention
        .softcap
        .map(|softcap| format!(", soft cap {softcap}"))
        .unwrap_or_default();
    let norm = if attention.qk_norm.is_some() {
        ", normed queries and keys"
    } else {
        ""
    };
    let bias = if attention.qkv_bias { ", biases" } else { "" };
    let sinks = if attention.sinks { ", sinks" } else { "" };
    format!(
        "attention {heads} heads of {}{rotary}{alibi}{window}{softcap}{norm}{bias}{sinks}",
        attention.head_dim
    )
}

fn rotary(rotary: &RotarySpec) -> String {
    let scaling = match &rotary.scaling {
        RotaryScaling::None => String::new(),
        RotaryScaling::Dynamic { factor, .. } => format!(" dynamic {factor} x"),
        RotaryScaling::LongRope {
            original_context, ..
        } => format!(" LongRoPE beyond {original_context}"),
        RotaryScaling::Linear { factor } => format!(" interpolated {factor} x"),
        RotaryScaling::Llama3 { factor, .. } => format!(" stretched {factor} x as in LLaMA 3.1"),
        RotaryScaling::Yarn { factor, .. } => format!(" YaRN {factor} x"),
    };
    format!("rotary {}{scaling}", rotary.theta)
}

fn feed_forward(kind: &str, mlp: &MlpSpec) -> String {
    let bias = if mlp.bias { " with biases" } else { "" };
    format!(
        "{kind} {} {}{bias}",
        mlp.inner,
        activation_name(mlp.activation)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_shapes() {
        // Per block: two norms of 8, queries and outputs of 8 x 8, keys and values of 4 x 8, three matrices of 8 x 16.
        let spec = ModelSpec::llama(10, 8, 2, 2, 1, 16, 32);
        assert_eq!(per_block(&spec), [16 + 128 + 64 + 384; 2]);
        assert_eq!(
            embedding(&spec) + 2 * per_block(&spec)[0] + 8,
            spec.parameter_count()
        );
        // Two blocks, keys and values, one head of 4, four bytes.
        assert_eq!(spec.cache_per_token(), 2 * 2 * 4 * 4);
        // Per block: (8 + 8) twice, (4 + 8) twice, (8 + 16) three times.
        assert_eq!(low_rank_parameters(&spec, 3), 3 * 2 * (32 + 24 + 72));
    }
}
