//! The attention mask: for each query, the interval of keys that it may see.
//!
//! Causal order, windows, packed documents and padding are all intervals, so the mask of a whole batch is two numbers a
//! query, and whole blocks of forbidden keys are skipped without being looked at.

use std::{ops::Range, sync::Arc};

use burn::tensor::{Device, Tensor, TensorData};

/// The description from which a [`Mask`] is made.
#[derive(Debug, Clone, Copy)]
pub struct MaskSpec<'a> {
    /// Rows of the batch.
    pub batch: usize,
    /// New positions, whose queries are computed.
    pub queries: usize,
    /// All positions, cached ones first; query `i` stands at position `keys - queries + i`.
    pub keys: usize,
    /// Whether a query sees no later keys than its own.
    pub causal: bool,
    /// A query sees keys less than this far from its own, in each direction that it looks: this many of them, itself
    /// included, where it is causal.
    pub window: Option<usize>,
    /// Segment of every position, `[batch * keys]`, in runs of equal numbers; a query sees its own run only. One run
    /// when absent.
    pub segments: Option<&'a [u32]>,
}

/// The intervals of keys that the queries of a batch may see.
#[derive(Debug, Clone)]
pub struct Mask {
    /// First key and the key after the last, for each query of each row; one row stands for all where they are alike.
    intervals: Arc<Vec<(u32, u32)>>,
    queries: usize,
    keys: usize,
    rows: usize,
}

/// The bias of a forbidden key. Finite, so that no row can turn into NaN; far below any score, so that it vanishes.
const FORBIDDEN: f32 = -1e30;

impl Mask {
    /// Builds the mask of `spec`.
    pub fn new(spec: MaskSpec<'_>) -> Self {
        let rows = if spec.segments.is_some() {
            spec.batch
        } else {
            1
        };
        let mut intervals = Vec::with_capacity(rows * spec.queries);
        for row in 0..rows {
            let same = |a: &usize, b: &usize| {
                spec.segments
                    .is_none_or(|s| s[row * spec.keys + a] == s[row * spec.keys + b])
            };
            let positions: Vec<usize> = (0..spec.keys).collect();
            for run in positions.chunk_by(same) {
                let (run, run_end) = (run[0], run[0] + run.len());
                for key in run.max(spec.keys - spec.queries)..run_end {
                    let window = spec.window.unwrap_or(spec.keys);
                    let end = if spec.causal {
                        key + 1
                    } else {
                        run_end.min(key + window)
                    };
                    intervals.push((run.max((key + 1).saturating_sub(window)) as u32, end as u32));
                }
            }
        }
        Self {
            intervals: Arc::new(intervals),
            queries: spec.queries,
            keys: spec.keys,
            rows,
        }
    }

    /// The mask of cross-attention: all queries of a row see the same keys, from the first number of the row's pair to
    /// before the second. One pair a row, or one for all.
    pub fn cross(queries: usize, keys: usize, seen: &[(u32, u32)]) -> Self {
        let intervals = seen
            .iter()
            .flat_map(|pair| std::iter::repeat_n(*pair, queries))
            .collect();
        Self {
            intervals: Arc::new(intervals),
            queries,
            keys,
            rows: seen.len(),
        }
    }

    /// The mask of texts that are seen as a whole, as in [`Mask::cross`], or up to a distance less than `window` in each
    /// direction. The last query stands at the last key.
    pub fn both_ways(
        queries: usize,
        keys: usize,
        seen: &[(u32, u32)],
        window: Option<usize>,
    ) -> Self {
        let Some(window) = window else {
            return Self::cross(queries, keys, seen);
        };
        let near = |(first, end): &(u32, u32)| -> Vec<(u32, u32)> {
            let interval = |key: usize| {
                let nearest = (key + 1).saturating_sub(window) as u32;
                let last = key.saturating_add(window).min(keys) as u32;
                (nearest.max(*first), last.min(*end))
            };
            (keys - queries..keys).map(interval).collect()
        };
        Self {
            intervals: Arc::new(seen.iter().flat_map(near).collect()),
            queries,
            keys,
            rows: seen.len(),
        }
    }

    /// All keys that some of the queries see.
    pub(super) fn span(&self, row: usize, queries: Range<usize>) -> Range<usize> {
        let seen = self
            .intervals(row, queries)
            .iter()
            .filter(|(first, end)| first < end);
        let (first, end) = seen.fold((u32::MAX, 0), |all, interval| {
            (all.0.min(interval.0), all.1.max(interval.1))
        });
        first.min(end) as usize..end as usize
    }

    /// The keys that some queries of a row may see, one interval each.
    pub(super) fn intervals(&self, row: usize, queries: Range<usize>) -> &[(u32, u32)] {
        let row = if self.rows == 1 { 0 } else { row };
        &self.intervals[row * self.queries + queries.start..row * self.queries + queries.end]
    }

    /// 0 where a query may look and a very negative number elsewhere: `[batch or 1, 1, queries, keys]`.
    pub(super) fn bias(&self, device: &Device) -> Tensor<4> {
        let row = |(first, end): &(u32, u32)| {
            let allowed = *first..*end;
            (0..self.keys as u32).map(move |key| {
                if allowed.contains(&key) {
                    0.0
                } else {
                    FORBIDDEN
                }
            })
        };
        let bias: Vec<f32> = self.intervals.iter().flat_map(row).collect();
        let data = TensorData::new(bias, [self.rows, 1, self.queries, self.keys]);
        Tensor::from_data(data, &device.clone().inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(spec: MaskSpec<'_>) -> Vec<bool> {
        let bias = Mask::new(spec).bias(&Device::flex());
        bias.into_data()
            .try_to_vec::<f32>()
            .unwrap()
            .iter()
            .map(|b| *b == 0.0)
            .collect()
    }

    #[test]
    fn masks_follow_the_one_rule() {
        let free = |queries, keys| MaskSpec {
            batch: 1,
            queries,
            keys,
            causal: true,
            window: None,
            segments: None,
        };
        assert_eq!(allowed(free(2, 3)), [true, true, false, true, true, true]);
        let window = MaskSpec {
            window: Some(1),
            ..free(2, 2)
        };
        assert_eq!(allowed(window), [true, false, false, true]);
        let segments = [1, 1, 2];
        let packed = MaskSpec {
            segments: Some(&segments),
            ..free(3, 3)
        };
        assert_eq!(
            allowed(packed),
            [true, false, false, true, true, false, false, false, true]
        );
        let both = MaskSpec {
            causal: false,
            ..packed
        };
        assert_eq!(
            allowed(both),
            [true, true, false, true, true, false, false, false, true]
        );
        let near = MaskSpec {
            causal: false,
            window: Some(2),
            ..free(3, 3)
        };
        assert_eq!(
            allowed(near),
            [true, true, false, true, true, true, false, true, true]
        );
        let near = Mask::both_ways(3, 3, &[(0, 2)], Some(2));
        assert_eq!(*near.intervals, [(0, 2), (0, 2), (1, 2)]);
        let bias = Mask::cross(2, 3, &[(0, 2), (1, 3)])
            .bias(&Device::flex())
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        let seen: Vec<bool> = bias.iter().map(|b| *b == 0.0).collect();
        assert_eq!(
            seen,
            [
                true, true, false, true, true, false, false, true, true, false, true, true
            ]
        );
    }
}
