//! ALiBi (Train Short, Test Long, arXiv 2108.12409): each head's scores fall with the distance, at a slope of its own.
//!
//! Bias of a query and a key: `-slope (query - key)`. The slopes are fixed.

use burn::tensor::{Device, Tensor, TensorData};

/// The slopes of all heads, from `2^-(largest / heads)` down to `2^-largest`, for a power of two; otherwise those of the
/// power of two below, and then every other one of twice as many heads.
pub fn slopes(heads: usize, largest: f64) -> Vec<f32> {
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 }.max(1);
    let slope = |head: usize, of: usize| (2f64).powf(-largest * (head + 1) as f64 / of as f64) as f32;
    let first = (0..below).map(|head| slope(head, below));
    first.chain((0..).step_by(2).map(|head| slope(head, 2 * below))).take(heads).collect()
}

/// The biases by distance, `[heads, queries + keys - 1]`: element `query - key + keys - 1`, where the last query stands at
/// the last key.
pub fn bias(heads: usize, largest: f64, queries: usize, keys: usize, device: &Device) -> Tensor<2> {
    let distances = queries + keys - 1;
    let slopes = slopes(heads, largest);
    let row = |slope: &f32| (0..distances).map(move |index| -slope * (index as f32 + 1.0 - queries as f32)).collect();
    let values: Vec<f32> = slopes.iter().flat_map(|slope| -> Vec<f32> { row(slope) }).collect();
    Tensor::from_data(TensorData::new(values, [heads, distances]), &device.clone().inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_the_paper() {
        let powers = |exponents: &[i32]| -> Vec<f32> { exponents.iter().map(|e| 2f32.powi(-e)).collect() };
        assert_eq!(slopes(1, 8.0), powers(&[8]));
        assert_eq!(slopes(2, 8.0), powers(&[4, 8]));
        assert_eq!(slopes(4, 8.0), powers(&[2, 4, 6, 8]));
        assert_eq!(slopes(6, 8.0), powers(&[2, 4, 6, 8, 1, 3]));
        assert_eq!(slopes(8, 8.0), powers(&[1, 2, 3, 4, 5, 6, 7, 8]));
        let twelve = slopes(12, 8.0);
        assert_eq!(twelve[..8], slopes(8, 8.0));
        for (found, expected) in twelve[8..].iter().zip([0.70710677, 0.35355338, 0.17677668, 0.08838834]) {
            assert!((found - expected).abs() < 1e-7);
        }
    }

    #[test]
    fn the_bias_is_the_distance_times_the_slope() {
        // Two queries at positions 1 and 2 of three keys; element `query - key + 2`.
        let values = bias(1, 2.0, 2, 3, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
        // Distances of (query, key): (0, 2) -1, (0, 1) and (1, 2) 0, (0, 0) and (1, 1) 1, (1, 0) 2.
        assert_eq!(values, [0.25, 0.0, -0.25, -0.5]);
    }
}
