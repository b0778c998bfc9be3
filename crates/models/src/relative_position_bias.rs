//! T5's relative positions (arXiv 1910.10683): each head learns a bias for each bucket of distances; near distances have
//! a bucket each, far ones share them on a logarithmic scale. All blocks of a stack add the same biases, or each its own.

use burn::tensor::Tensor;
use espalier_kernels::embedding::embedding;

use crate::{
    Result,
    layers::Builder,
    parameter::{Parameter, parameters},
    source::Initial,
    spec::RelativePositionSpec,
};

/// The biases of a stack, or of one of its blocks.
#[derive(Debug, Clone)]
pub struct RelativePositionBias {
    spec: RelativePositionSpec,
    bidirectional: bool,
    table: Parameter,
}

parameters!(RelativePositionBias: table);

impl RelativePositionBias {
    /// Builds `{name}.weight`, `[rows, heads]`.
    ///
    /// # Errors
    /// When the source lacks the weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        spec: RelativePositionSpec,
        bidirectional: bool,
    ) -> Result<Self> {
        let (shape, initial) = (
            vec![spec.rows, spec.heads],
            Initial::Normal(builder.deviation),
        );
        let table = builder.parameter(format!("{name}.weight"), shape, initial)?;
        Ok(Self {
            spec,
            bidirectional,
            table,
        })
    }

    /// The biases by distance, `[heads, queries + keys - 1]`: element `query - key + keys - 1`, where the last query
    /// stands at the last key.
    pub fn forward(&self, queries: usize, keys: usize) -> Tensor<2> {
        let after = |index: usize| queries as i64 - 1 - index as i64;
        let buckets: Vec<u32> = (0..queries + keys - 1)
            .map(|i| bucket(after(i), self.spec, self.bidirectional))
            .collect();
        embedding(self.table.value(), &buckets).swap_dims(0, 1)
    }
}

/// The bucket of a key that stands `after` its query (before it, where negative).
fn bucket(after: i64, spec: RelativePositionSpec, bidirectional: bool) -> u32 {
    let (count, first) = match bidirectional {
        true => (
            spec.buckets / 2,
            if after > 0 { spec.buckets / 2 } else { 0 },
        ),
        false => (spec.buckets, 0),
    };
    let distance = if bidirectional {
        after.unsigned_abs()
    } else {
        (-after).max(0) as u64
    } as usize;
    let exact = count / 2;
    let within = match distance < exact {
        true => distance,
        false => {
            // In f32, as the reference rounds it.
            let ratio = (distance as f32 / exact.max(1) as f32).ln()
                / (spec.max_distance as f32 / exact.max(1) as f32).ln();
            (exact + (ratio * (count - exact) as f32) as usize).min(count - 1)
        }
    };
    (first + within) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: RelativePositionSpec = RelativePositionSpec {
        buckets: 32,
        rows: 32,
        max_distance: 128,
        heads: 1,
        per_block: false,
    };

    #[test]
    fn buckets_of_the_reference_library() {
        let after = [
            (0, 0),
            (1, 17),
            (7, 23),
            (8, 24),
            (11, 24),
            (12, 25),
            (15, 25),
            (16, 26),
            (22, 26),
            (23, 27),
            (31, 27),
            (32, 28),
            (45, 28),
            (46, 29),
            (63, 29),
            (64, 30),
            (90, 30),
            (91, 31),
            (500, 31),
        ];
        for (distance, expected) in after {
            assert_eq!(
                bucket(distance, SPEC, true),
                expected,
                "key {distance} after the query"
            );
            if distance > 0 {
                assert_eq!(
                    bucket(-distance, SPEC, true),
                    expected - 16,
                    "key {distance} before the query"
                );
            }
        }
        for distance in 0u32..=15 {
            assert_eq!(
                bucket(-i64::from(distance), SPEC, false),
                distance,
                "every near distance has its own"
            );
        }
        let causal = [
            (16, 16),
            (22, 18),
            (23, 18),
            (31, 21),
            (32, 21),
            (45, 23),
            (46, 24),
            (63, 26),
            (64, 26),
            (90, 29),
            (91, 29),
            (127, 31),
            (500, 31),
        ];
        for (distance, expected) in causal {
            assert_eq!(
                bucket(-distance, SPEC, false),
                expected,
                "distance {distance}"
            );
        }
        assert_eq!(bucket(5, SPEC, false), 0);
    }
}
