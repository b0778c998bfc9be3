//! Scaled dot-product attention with grouped key and value heads (arXiv 1706.03762, 2305.13245).
//!
//! One rule decides what a query may see: keys of its own segment, not after it, inside its window. Packed documents,
//! left padding and caches are all that rule.

use burn::tensor::{Device, Tensor, TensorData, activation::softmax};

/// What a query may see, as a bias on the scores.
#[derive(Debug, Clone)]
pub struct Mask {
    /// 0 where allowed, very negative elsewhere: `[batch or 1, 1, queries, keys]`; none where everything is allowed.
    bias: Option<Tensor<4>>,
}

/// The bias of a forbidden key. Finite, so that no row can turn into NaN; far below any score, so that it vanishes.
const FORBIDDEN: f32 = -1e30;

/// The description from which a [`Mask`] is made.
#[derive(Debug, Clone, Copy)]
pub struct MaskSpec<'a> {
    /// Rows of the batch.
    pub batch: usize,
    /// New positions, whose queries are computed.
    pub queries: usize,
    /// All positions, cached ones first; query `i` stands at position `keys - queries + i`.
    pub keys: usize,
    /// Each query sees this many keys, itself included.
    pub window: Option<usize>,
    /// Segment of every position, `[batch * keys]`; a query sees its own segment only. One segment when absent.
    pub segments: Option<&'a [u32]>,
}

impl Mask {
    /// Builds the mask of `spec` on `device`.
    pub fn new(spec: MaskSpec<'_>, device: &Device) -> Self {
        let unbounded = spec.window.is_none_or(|window| window >= spec.keys);
        if spec.queries == 1 && unbounded && spec.segments.is_none() {
            return Self { bias: None };
        }
        let rows = if spec.segments.is_some() { spec.batch } else { 1 };
        let mut bias = Vec::with_capacity(rows * spec.queries * spec.keys);
        for row in 0..rows {
            for query in spec.keys - spec.queries..spec.keys {
                bias.extend((0..spec.keys).map(|key| if spec.allows(row, query, key) { 0.0 } else { FORBIDDEN }));
            }
        }
        let data = TensorData::new(bias, [rows, 1, spec.queries, spec.keys]);
        Self { bias: Some(Tensor::from_data(data, device)) }
    }
}

impl MaskSpec<'_> {
    fn allows(&self, row: usize, query: usize, key: usize) -> bool {
        let causal = key <= query && self.window.is_none_or(|window| query - key < window);
        causal && self.segments.is_none_or(|s| s[row * self.keys + query] == s[row * self.keys + key])
    }
}

/// Attends: `softmax(scale * q k^T + mask) v`, the softmax in f32.
///
/// `query`: `[batch, heads, queries, head_dim]`; `key`, `value`: `[batch, kv_heads, keys, head_dim]` with `kv_heads`
/// dividing `heads`; query head `h` reads key head `h / (heads / kv_heads)`. Returns the shape of `query`.
pub fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, mask: &Mask, scale: f64) -> Tensor<4> {
    let [batch, heads, queries, width] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let group = heads / kv_heads;
    let scores = (query * scale).reshape([batch, kv_heads, group * queries, width]).matmul(key.swap_dims(2, 3));
    let scores = scores.reshape([batch, heads, queries, keys]);
    let scores = match &mask.bias {
        Some(bias) => scores + bias.clone(),
        None => scores,
    };
    let weights = softmax(scores, 3).reshape([batch, kv_heads, group * queries, keys]);
    weights.matmul(value).reshape([batch, heads, queries, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(queries: usize, keys: usize) -> MaskSpec<'static> {
        MaskSpec { batch: 1, queries, keys, window: None, segments: None }
    }

    fn allowed(spec: MaskSpec<'_>) -> Vec<bool> {
        let device = Device::flex();
        let bias = Mask::new(spec, &device).bias.unwrap();
        bias.into_data().try_to_vec::<f32>().unwrap().iter().map(|b| *b == 0.0).collect()
    }

    #[test]
    fn worked_example() {
        let device = Device::flex();
        let query = Tensor::<4>::from_floats([[[[1.0, 0.0]]]], &device);
        let key = Tensor::<4>::from_floats([[[[1.0, 0.0], [0.0, 1.0]]]], &device);
        let value = Tensor::<4>::from_floats([[[[10.0, 0.0], [20.0, 0.0]]]], &device);
        let output = attention(query, key, value, &Mask::new(free(1, 2), &device), 0.5f64.sqrt());
        assert!((output.into_data().try_to_vec::<f32>().unwrap()[0] - 13.3024).abs() < 1e-4);
    }

    #[test]
    fn masks_follow_the_one_rule() {
        assert_eq!(allowed(free(2, 3)), [true, true, false, true, true, true]);
        let window = MaskSpec { window: Some(1), ..free(2, 2) };
        assert_eq!(allowed(window), [true, false, false, true]);
        let segments = [1, 1, 2];
        let packed = MaskSpec { segments: Some(&segments), ..free(3, 3) };
        assert_eq!(allowed(packed), [true, false, false, true, true, false, false, false, true]);
    }

    #[test]
    fn grouped_heads_equal_repeated_heads() {
        let device = Device::flex();
        let random = |heads| Tensor::<4>::random([2, heads, 5, 4], burn::tensor::Distribution::Default, &device);
        let (query, key, value) = (random(4), random(2), random(2));
        let repeat = |x: Tensor<4>| Tensor::cat((0..4).map(|h| x.clone().narrow(1, h / 2, 1)).collect(), 1);
        let mask = Mask::new(free(5, 5), &device);
        let grouped = attention(query.clone(), key.clone(), value.clone(), &mask, 0.5);
        let repeated = attention(query, repeat(key), repeat(value), &mask, 0.5);
        let gap = (grouped - repeated).abs().max().into_scalar::<f32>();
        assert!(gap < 1e-6, "{gap}");
    }
}
