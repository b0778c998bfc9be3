//! ALiBi (Train Short, Test Long, arXiv 2108.12409): each head's scores fall with the distance, at a slope of its own.
//!
//! Bias of a query and a key: `-slope (query - key)`. The slopes are fixed. Falcon adds `slope key` instead, which is the same
//! under the softmax but for its rounding to bf16, and so depends on where the text begins.

use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;

/// The slopes of all heads, from `2^-(largest / heads)` down to `2^-largest`, for a power of two; otherwise those of the
/// power of two below, and then every other one of twice as many heads.
pub fn slopes(heads: usize, largest: f64) -> Vec<f32> {
    let below = if heads.is_power_of_two() {
        heads
    } else {
        heads.next_power_of_two() / 2
    }
    .max(1);
    let slope =
        |head: usize, of: usize| (2f64).powf(-largest * (head + 1) as f64 / of as f64) as f32;
    let first = (0..below).map(|head| slope(head, below));
    first
        .chain((0..).step_by(2).map(|head| slope(head, 2 * below)))
        .take(heads)
        .collect()
}

/// The biases by distance, `[heads, queries + keys - 1]`: element `query - key + keys - 1`, where the last query stands at
/// the last key.
pub fn bias(heads: usize, largest: f64, queries: usize, keys: usize, device: &Device) -> Tensor<2> {
    let distances = queries + keys - 1;
    let slopes = slopes(heads, largest);
    let row = |slope: &f32| {
        (0..distances)
            .map(move |index| -slope * (index as f32 + 1.0 - queries as f32))
            .collect()
    };
    let values: Vec<f32> = slopes
        .iter()
        .flat_map(|slope| -> Vec<f32> { row(slope) })
        .collect();
    Tensor::from_data(
        TensorData::new(values, [heads, distances]),
        &device.clone().inner(),
    )
}

/// Falcon's biases, as further channels of heads: keys carry them, and queries say with a one which of them is theirs.
#[derive(Debug, Clone)]
pub struct KeyBias {
    /// `[batch, time, kv_heads, heads / kv_heads]`.
    keys: Tensor<4>,
    /// `[1, 1, heads, heads / kv_heads]`.
    queries: Tensor<4>,
}

impl KeyBias {
    /// The biases of `heads` query heads for keys at `positions`, in `batch` rows.
    pub fn new(
        [heads, kv_heads]: [usize; 2],
        largest: f64,
        positions: &[u32],
        batch: usize,
        device: &Device,
    ) -> Self {
        let (group, time) = (heads / kv_heads.max(1), positions.len() / batch.max(1));
        let slopes: Vec<bf16> = slopes(heads, largest)
            .into_iter()
            .map(bf16::from_f32)
            .collect();
        let position = |position: &u32| bf16::from_f32(*position as f32);
        let bias = |position: bf16| slopes.iter().map(move |slope| (*slope * position).to_f32());
        let keys: Vec<f32> = positions.iter().map(position).flat_map(bias).collect();
        let own = |head: usize| {
            (0..group).map(move |channel| f32::from(u8::from(head % group == channel)))
        };
        let queries: Vec<f32> = (0..heads).flat_map(own).collect();
        let tensor = |values, shape: [usize; 4]| {
            Tensor::from_data(TensorData::new(values, shape), &device.clone().inner())
        };
        Self {
            keys: tensor(keys, [batch, time, kv_heads, group]),
            queries: tensor(queries, [1, 1, heads, group]),
        }
    }

    /// Queries, keys and values, `[batch, time, heads or kv_heads, head_dim]`, with `heads / kv_heads` further channels; those
    /// of the values are zeros.
    pub fn extend(&self, query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> [Tensor<4>; 3] {
        let [batch, time, heads, _] = query.dims();
        let group = self.queries.dims()[3];
        let zeros = self.keys.zeros_like();
        let queries = self.queries.clone().expand([batch, time, heads, group]);
        let join = |x: Tensor<4>, further| Tensor::cat(vec![x, further], 3);
        [
            join(query, queries),
            join(key, self.keys.clone()),
            join(value, zeros),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::s;

    #[test]
    fn key_biases_are_rounded_and_found_by_their_heads() {
        let device = Device::flex();
        let bias = KeyBias::new([4, 2], 2.0, &[3, 300], 1, &device);
        let x = |heads| Tensor::<4>::zeros([1, 2, heads, 4], &device);
        let [query, key, value] = bias.extend(x(4), x(2), x(2));
        assert_eq!(
            (query.dims(), key.dims(), value.dims()),
            ([1, 2, 4, 6], [1, 2, 2, 6], [1, 2, 2, 6])
        );
        let score = |head: usize, at: usize| {
            let query = query.clone().slice(s![0, 0, head, ..]).reshape([6]);
            let key = key.clone().slice(s![0, at, head / 2, ..]).reshape([6]);
            (query * key).sum().into_scalar::<f32>()
        };
        // Slopes 2^-0.5, 2^-1, 2^-1.5 and 2^-2; in bf16 0.70703, 0.5, 0.35352 and 0.25, and products with 8 bits.
        let expected = [[2.125, 212.0], [1.5, 150.0], [1.0625, 106.0], [0.75, 75.0]];
        for (head, expected) in expected.into_iter().enumerate() {
            assert_eq!([score(head, 0), score(head, 1)], expected, "head {head}");
        }
    }

    #[test]
    fn slopes_of_the_paper() {
        let powers =
            |exponents: &[i32]| -> Vec<f32> { exponents.iter().map(|e| 2f32.powi(-e)).collect() };
        assert_eq!(slopes(1, 8.0), powers(&[8]));
        assert_eq!(slopes(2, 8.0), powers(&[4, 8]));
        assert_eq!(slopes(4, 8.0), powers(&[2, 4, 6, 8]));
        assert_eq!(slopes(6, 8.0), powers(&[2, 4, 6, 8, 1, 3]));
        assert_eq!(slopes(8, 8.0), powers(&[1, 2, 3, 4, 5, 6, 7, 8]));
        let twelve = slopes(12, 8.0);
        assert_eq!(twelve[..8], slopes(8, 8.0));
        for (found, expected) in twelve[8..]
            .iter()
            .zip([0.70710677, 0.35355338, 0.17677668, 0.08838834])
        {
            assert!((found - expected).abs() < 1e-7);
        }
    }

    #[test]
    fn the_bias_is_the_distance_times_the_slope() {
        // Two queries at positions 1 and 2 of three keys; element `query - key + 2`.
        let values = bias(1, 2.0, 2, 3, &Device::flex())
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        // Distances of (query, key): (0, 2) -1, (0, 1) and (1, 2) 0, (0, 0) and (1, 1) 1, (1, 0) 2.
        assert_eq!(values, [0.25, 0.0, -0.25, -0.5]);
    }
}
