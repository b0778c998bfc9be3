//! Scaled dot-product attention with grouped key and value heads (arXiv 1706.03762, 2305.13245), in blocks with an online
//! softmax (FlashAttention, arXiv 2205.14135): memory is linear in the sequence.

mod cpu;
mod mask;
pub mod reference;

use burn::tensor::Tensor;

pub use self::mask::{Mask, MaskSpec};
use crate::host;

/// Attends: `softmax(scale * q k^T) v` over the keys that `mask` allows, the softmax in f32.
///
/// `query`: `[batch, queries, heads, head_dim]`; `key`, `value`: `[batch, keys, kv_heads, head_dim]` with `kv_heads`
/// dividing `heads`; query head `h` reads key head `h / (heads / kv_heads)`. `scale` is positive. Returns the shape of
/// `query`.
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: &Mask, scale: f64) -> Tensor<4> {
    match host::on_host(&query) {
        true => host::three(query, key, value, cpu::Flash { mask: mask.clone(), scale: scale as f32 }),
        false => {
            let bias = mask.bias(&query.device());
            reference::attention(query, key, value, bias, scale)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::agree;
    use burn::tensor::Device;
    use proptest::prelude::*;

    #[test]
    fn worked_example() {
        let device = Device::flex();
        let query = Tensor::<4>::from_floats([[[[1.0, 0.0]]]], &device);
        let key = Tensor::<4>::from_floats([[[[1.0, 0.0]], [[0.0, 1.0]]]], &device);
        let value = Tensor::<4>::from_floats([[[[10.0, 0.0]], [[20.0, 0.0]]]], &device);
        let mask = Mask::new(MaskSpec { batch: 1, queries: 1, keys: 2, window: None, segments: None });
        let output = attention(query, key, value, &mask, 0.5f64.sqrt());
        assert!((output.into_data().try_to_vec::<f32>().unwrap()[0] - 13.3024).abs() < 1e-4);
    }

    /// Compares with the reference; `segment` is the length of packed documents.
    fn check(
        batch: usize,
        [queries, past]: [usize; 2],
        [kv_heads, group]: [usize; 2],
        width: usize,
        window: Option<usize>,
        segment: Option<usize>,
    ) {
        let keys = queries + past;
        let segments: Option<Vec<u32>> =
            segment.map(|length| (0..batch * keys).map(|i| ((i % keys + i / keys) / length) as u32).collect());
        let mask = Mask::new(MaskSpec { batch, queries, keys, window, segments: segments.as_deref() });
        let shapes: [&[usize]; 3] = [
            &[batch, queries, kv_heads * group, width],
            &[batch, keys, kv_heads, width],
            &[batch, keys, kv_heads, width],
        ];
        agree(
            &shapes,
            1e-5,
            |t| attention(t[0].get(), t[1].get(), t[2].get(), &mask, 0.7).reshape([-1]),
            |t| reference::attention(t[0].get(), t[1].get(), t[2].get(), mask.bias(&Device::flex()), 0.7).reshape([-1]),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, queries in 1usize..40, past in 0usize..9, kv_heads in 1usize..3,
            group in 1usize..4, width in 1usize..20, window in proptest::option::of(1usize..20),
            segment in proptest::option::of(2usize..15)) {
            check(batch, [queries, past], [kv_heads, group], width, window, segment);
        }
    }

    #[test]
    fn several_blocks_of_queries_and_keys_agree_with_the_reference() {
        check(1, [300, 0], [1, 1], 8, None, None);
        check(2, [280, 5], [1, 2], 4, Some(100), None);
        check(1, [290, 0], [1, 1], 4, None, Some(70));
    }
}
