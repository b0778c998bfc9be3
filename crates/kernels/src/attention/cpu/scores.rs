//! Operations on a block of scores `[keys, queries]`: scale, soft cap, bias, mask, online softmax, and their gradients.

use std::ops::Range;

use super::Inputs;
use crate::simd::{exp, scaled, tanh, vectorised};

/// The widest panel of any kernel.
const WIDEST: usize = 32;

/// Some neighbouring queries of one head.
pub(super) struct Panel<'a> {
    /// Their positions among the queries.
    pub queries: Range<usize>,
    /// Lanes: queries, and padding that sees nothing.
    pub wide: usize,
    /// The keys that each lane sees.
    first: [i32; WIDEST],
    end: [i32; WIDEST],
    /// The keys that some lane sees, and the keys that every lane sees.
    some: Range<usize>,
    every: Range<usize>,
    scale: f32,
    softcap: f32,
    /// The head's biases, and the index of the one for the first lane and key 0.
    bias: Option<&'a [f32]>,
    origin: usize,
}

impl<'a> Panel<'a> {
    pub fn new(
        inputs: &Inputs<'a>,
        batch: usize,
        head: usize,
        queries: Range<usize>,
        wide: usize,
    ) -> Self {
        let (mut first, mut end) = ([0; WIDEST], [0; WIDEST]);
        let intervals = inputs.flash.mask.intervals(batch, queries.clone());
        for (lane, interval) in intervals.iter().enumerate() {
            (first[lane], end[lane]) = (interval.0 as i32, interval.1 as i32);
        }
        let all_first = intervals.iter().map(|i| i.0).max().unwrap_or(0) as usize;
        let all_end = intervals.iter().map(|i| i.1).min().unwrap_or(0) as usize;
        let every = if queries.len() == wide {
            all_first..all_end
        } else {
            0..0
        };
        Self {
            some: inputs.flash.mask.span(batch, queries.clone()),
            every,
            origin: queries.start + inputs.key.time - 1,
            queries,
            wide,
            first,
            end,
            scale: inputs.flash.options.scale as f32,
            softcap: inputs.flash.options.softcap.unwrap_or(0.0) as f32,
            bias: inputs.bias(head),
        }
    }

    /// Blocks of the keys that some query sees, on a grid of `size`.
    pub fn blocks(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let some = self.some.clone();
        (some.start / size * size..some.end)
            .step_by(size)
            .map(move |start| start..(start + size).min(some.end))
    }

    /// The biases of the lanes for one key.
    #[inline(always)]
    fn biases<const W: usize>(&self, key: usize) -> Option<[f32; W]> {
        let bias = self.bias?;
        let start = self.origin - key;
        let mut lanes = [0.0; W];
        match bias.get(start..start + W) {
            Some(all) => lanes.copy_from_slice(all),
            // Padding lanes may stand beyond the last distance.
            None => lanes
                .iter_mut()
                .zip(&bias[start..])
                .for_each(|(lane, bias)| *lane = *bias),
        }
        Some(lanes)
    }

    /// Scores of one key as the softmax sees them, and the slope of the soft cap.
    #[inline(always)]
    fn finish<const W: usize, const FUSED: bool>(
        &self,
        scores: &mut [f32; W],
        slopes: &mut [f32; W],
        key: usize,
    ) {
        scores.iter_mut().for_each(|score| *score *= self.scale);
        if self.softcap > 0.0 {
            for l in 0..W {
                let bent = tanh::<FUSED>(scores[l] / self.softcap);
                scores[l] = bent * self.softcap;
                slopes[l] = 1.0 - bent * bent;
            }
        }
        if let Some(bias) = self.biases::<W>(key) {
            for l in 0..W {
                scores[l] += bias[l];
            }
        }
        if !self.every.contains(&key) {
            let key = key as i32;
            for (l, score) in scores.iter_mut().enumerate() {
                let seen = (self.first[l] <= key) & (key < self.end[l]);
                *score = if seen { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}

/// The state of the softmax of a panel's queries.
pub(super) struct Softmax {
    largest: [f32; WIDEST],
    sums: [f32; WIDEST],
}

impl Softmax {
    /// Before the first key; a `sink` has its share from the start.
    pub fn new(sink: Option<f32>) -> Self {
        Self {
            largest: [sink.unwrap_or(f32::NEG_INFINITY); WIDEST],
            sums: [if sink.is_some() { 1.0 } else { 0.0 }; WIDEST],
        }
    }

    /// Writes a lane's mixed values divided by its denominator, and returns the log of that; a lane that saw nothing stays
    /// zero and gives negative infinity.
    pub fn write(&self, lane: usize, mixed: &[f32], out: &mut [f32]) -> f32 {
        let sum = self.sums[lane];
        if sum == 0.0 {
            return f32::NEG_INFINITY;
        }
        let inverse = sum.recip();
        scaled(out, mixed, inverse);
        self.largest[lane] + sum.ln()
    }
}

/// Calls a function for the panel's width.
macro_rules! by_width {
    ($wide:expr, $fused:ident, $function:ident($($argument:expr),*)) => {
        match $wide {
            8 => $function::<8, $fused>($($argument),*),
            16 => $function::<16, $fused>($($argument),*),
            _ => $function::<32, $fused>($($argument),*),
        }
    };
}

vectorised! {
    /// Scores become weights relative to the largest score so far; sums and mixed values follow.
    pub(super) fn online_softmax<const FUSED: bool>(wide: usize, scores: &mut [f32], panel: &Panel<'_>, start: usize, softmax: &mut Softmax, mixed: &mut [f32]) {
        by_width!(wide, FUSED, online_softmax_of(scores, panel, start, softmax, mixed))
    }
}

#[inline(always)]
fn online_softmax_of<const W: usize, const FUSED: bool>(
    scores: &mut [f32],
    panel: &Panel<'_>,
    start: usize,
    softmax: &mut Softmax,
    mixed: &mut [f32],
) {
    let (rows, mut now) = (scores.as_chunks_mut::<W>().0, [0.0; W]);
    now.copy_from_slice(&softmax.largest[..W]);
    let before = now;
    for (i, row) in rows.iter_mut().enumerate() {
        panel.finish::<W, FUSED>(row, &mut [0.0; W], start + i);
        for l in 0..W {
            // Written so that NaN is taken over and reaches the loss.
            now[l] = if now[l] > row[l] { now[l] } else { row[l] };
        }
    }
    let (mut keep, mut shift) = ([0.0; W], [0.0; W]);
    for l in 0..W {
        // A lane that has seen nothing yet is shifted by nothing: its weights are e^-inf.
        shift[l] = if now[l] == f32::NEG_INFINITY {
            0.0
        } else {
            now[l]
        };
        keep[l] = exp::<FUSED>(before[l] - shift[l]);
    }
    let mut sums = [0.0; W];
    for row in rows {
        for l in 0..W {
            row[l] = exp::<FUSED>(row[l] - shift[l]);
            sums[l] += row[l];
        }
    }
    for l in 0..W {
        softmax.sums[l] = softmax.sums[l] * keep[l] + sums[l];
        softmax.largest[l] = now[l];
    }
    // Before the first block there is nothing to keep.
    if before != [f32::NEG_INFINITY; W] && keep != [1.0; W] {
        mixed
            .as_chunks_mut::<W>()
            .0
            .iter_mut()
            .for_each(|row| multiply(row, &keep));
    }
}

/// `row *= factors`.
#[inline(always)]
fn multiply<const W: usize>(row: &mut [f32; W], factors: &[f32; W]) {
    let (row, factors) = (row.as_chunks_mut::<8>().0, factors.as_chunks::<8>().0);
    for (row, factors) in row.iter_mut().zip(factors) {
        *row = std::array::from_fn(|l| row[l] * factors[l]);
    }
}

vectorised! {
    /// Scores become weights, gradients of weights become gradients of scores before their scale.
    pub(super) fn gradients<const FUSED: bool>(wide: usize, scores: &mut [f32], of_scores: &mut [f32], panel: &Panel<'_>, start: usize, log_sums: &[f32], along: &[f32], of_bias: Option<&mut [f32]>) {
        by_width!(wide, FUSED, gradients_of(scores, of_scores, panel, start, log_sums, along, of_bias))
    }
}

#[inline(always)]
fn gradients_of<const W: usize, const FUSED: bool>(
    scores: &mut [f32],
    of_scores: &mut [f32],
    panel: &Panel<'_>,
    start: usize,
    log_sums: &[f32],
    along: &[f32],
    mut of_bias: Option<&mut [f32]>,
) {
    let (Some(log_sums), Some(along)) = (log_sums.first_chunk::<W>(), along.first_chunk::<W>())
    else {
        return;
    };
    let rows = scores
        .as_chunks_mut::<W>()
        .0
        .iter_mut()
        .zip(of_scores.as_chunks_mut::<W>().0);
    for (i, (scores, of_scores)) in rows.enumerate() {
        let mut slopes = [1.0; W];
        panel.finish::<W, FUSED>(scores, &mut slopes, start + i);
        for l in 0..W {
            scores[l] = exp::<FUSED>(scores[l] - log_sums[l]);
            of_scores[l] = scores[l] * (of_scores[l] - along[l]);
        }
        if let Some(of_bias) = &mut of_bias {
            let sums = &mut of_bias[panel.origin - (start + i)..];
            sums.iter_mut()
                .zip(&*of_scores)
                .for_each(|(sum, value)| *sum += value);
        }
        for l in 0..W {
            of_scores[l] *= slopes[l] * panel.scale;
        }
    }
}
