//! What a sequence leaves in memory while it is read and continued.

use crate::spec::{BlockSpec, ChannelSpec, MixerSpec, ModelSpec};

impl ModelSpec {
    /// Bytes of keys and values, or latents, in f32 that a token leaves.
    pub fn cache_per_token(&self) -> u64 {
        let numbers = |block: &BlockSpec| match &block.mixer {
            MixerSpec::Attention(attention) => {
                2 * attention.kv_heads as u64 * attention.remembered_width() as u64
            }
            MixerSpec::AttentionExperts(attention) => {
                2 * attention.kv_heads as u64 * attention.head_dim as u64
            }
            MixerSpec::LatentAttention(attention) => attention.remembered() as u64,
            MixerSpec::Recurrent(_) => 0,
        };
        let blocks = self.blocks.iter().map(numbers);
        blocks.fold(0, u64::saturating_add).saturating_mul(4)
    }

    /// Bytes in f32 that a sequence leaves behind however long it is.
    pub fn state_size(&self) -> u64 {
        let mixer = |block: &BlockSpec| match &block.mixer {
            MixerSpec::Recurrent(recurrent) => recurrent.state_size(self.width),
            MixerSpec::Attention(_)
            | MixerSpec::AttentionExperts(_)
            | MixerSpec::LatentAttention(_) => 0,
        };
        let shifted = |block: &BlockSpec| match block.channel {
            ChannelSpec::Rwkv(_) => self.width,
            _ => 0,
        };
        let numbers = |block: &BlockSpec| (mixer(block) + shifted(block)) as u64;
        let blocks = self.blocks.iter().map(numbers);
        blocks.fold(0, u64::saturating_add).saturating_mul(4)
    }
}
