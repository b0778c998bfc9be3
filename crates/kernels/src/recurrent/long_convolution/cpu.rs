//! The convolution on host memory. Two sequences of a batch are the parts of one complex number, and channels lie side by
//! side.
//!
//! With hats for transforms: `y^ = k^ x^`, `dx^ = conj(k^) dy^`, `dk^ = sum conj(x^) dy^`; of the last sum over pairs of
//! sequences the real part is the gradient.

use std::ops::Range;

use burn_flex::FlexTensor;

use super::{
    super::sequence::{Sequence, readable},
    fourier::{LANES, Transform, multiply},
};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{DisjointRows, for_chunks, for_each, zeros},
};

/// The operator over the sequence and the kernels.
#[derive(Debug)]
pub(super) struct LongConvolution;

struct Inputs<'a> {
    x: Sequence<'a>,
    kernel: &'a [f32],
    /// One, or as many as channels.
    kernels: usize,
    transform: Transform,
}

impl<'a> Inputs<'a> {
    fn new(x: &'a FlexTensor, kernel: &'a FlexTensor) -> Self {
        let (x, shape) = (Sequence::new(x), dimensions(kernel));
        let transform = Transform::new(x.time + shape[1].min(x.time) - 1);
        Self {
            x,
            kernel: slice(kernel),
            kernels: shape[0],
            transform,
        }
    }

    /// The kernels' elements.
    fn length(&self) -> usize {
        self.kernel.len() / self.kernels
    }

    /// Elements that reach an output.
    fn taps(&self) -> usize {
        self.length().min(self.x.time)
    }

    fn groups(&self) -> usize {
        self.x.width.div_ceil(LANES)
    }

    fn channels(&self, group: usize) -> Range<usize> {
        group * LANES..((group + 1) * LANES).min(self.x.width)
    }

    /// The pairs of sequences.
    fn pairs(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        (0..self.x.batch).step_by(2).map(|first| [first, first + 1])
    }

    /// The transform of the kernels of a group.
    fn spectrum(&self, channels: Range<usize>) -> Vec<f32> {
        let mut rows = self.transform.rows();
        for (lane, channel) in channels.enumerate() {
            let kernel = &self.kernel[channel % self.kernels * self.length()..][..self.taps()];
            rows.chunks_exact_mut(2 * LANES)
                .zip(kernel)
                .for_each(|(row, value)| row[lane] = *value);
        }
        self.transform.forward(&mut rows);
        rows
    }

    /// The transform of two sequences.
    fn transformed(
        &self,
        of: &Sequence<'_>,
        pair: [usize; 2],
        channels: &Range<usize>,
    ) -> Vec<f32> {
        let mut rows = self.transform.rows();
        for (t, row) in rows.chunks_exact_mut(2 * LANES).take(of.time).enumerate() {
            for (part, batch) in row.chunks_exact_mut(LANES).zip(pair) {
                if batch < of.batch {
                    part[..channels.len()].copy_from_slice(&of.row(batch, t)[channels.clone()]);
                }
            }
        }
        self.transform.forward(&mut rows);
        rows
    }

    /// `of` convolved with the kernels, or correlated where the `sign` of the kernels' imaginary parts is turned.
    #[allow(unsafe_code)]
    fn filtered(&self, of: &Sequence<'_>, sign: f32) -> Vec<f32> {
        let mut out = zeros(of.len());
        let out_rows = DisjointRows::new(&mut out, of.width);
        let shared = (self.kernels == 1).then(|| self.spectrum(0..LANES));
        for_each(self.groups(), |group| {
            let channels = self.channels(group);
            let own = if shared.is_none() {
                self.spectrum(channels.clone())
            } else {
                Vec::new()
            };
            let spectrum = shared.as_ref().unwrap_or(&own);
            for pair in self.pairs() {
                let mut rows = self.transformed(of, pair, &channels);
                multiply(&mut rows, spectrum, sign);
                self.transform.backward(&mut rows);
                for (t, row) in rows.chunks_exact(2 * LANES).take(of.time).enumerate() {
                    for (part, batch) in row
                        .chunks_exact(LANES)
                        .zip(pair)
                        .filter(|(_, batch)| *batch < of.batch)
                    {
                        // SAFETY: each step of a group's channels comes once.
                        let out = unsafe { out_rows.part(batch * of.time + t, channels.clone()) };
                        out.copy_from_slice(&part[..channels.len()]);
                    }
                }
            }
        });
        out
    }

    /// The gradient of the kernels.
    fn of_kernel(&self, gradient: &Sequence<'_>) -> Vec<f32> {
        let taps = self.taps();
        let mut by_channel = vec![0.0; self.groups() * LANES * taps];
        for_chunks([(&mut by_channel[..], LANES * taps)], |group, [out]| {
            let channels = self.channels(group);
            let mut sums = self.transform.rows();
            for pair in self.pairs() {
                let mut rows = self.transformed(gradient, pair, &channels);
                multiply(&mut rows, &self.transformed(&self.x, pair, &channels), -1.0);
                sums.iter_mut()
                    .zip(rows)
                    .for_each(|(sum, value)| *sum += value);
            }
            self.transform.backward(&mut sums);
            for (lane, out) in out.chunks_exact_mut(taps).enumerate() {
                out.iter_mut()
                    .zip(sums.chunks_exact(2 * LANES))
                    .for_each(|(out, row)| *out = row[lane]);
            }
        });
        let mut of_kernel = vec![0.0; self.kernel.len()];
        for (channel, values) in by_channel.chunks_exact(taps).take(self.x.width).enumerate() {
            let out = &mut of_kernel[channel % self.kernels * self.length()..];
            out.iter_mut()
                .zip(values)
                .for_each(|(out, value)| *out += value);
        }
        of_kernel
    }
}

impl FusedOperator<2> for LongConvolution {
    fn forward(&self, [x, kernel]: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let (x, kernel) = (readable(x), contiguous(kernel));
        let inputs = Inputs::new(&x, &kernel);
        (
            tensor(inputs.filtered(&inputs.x, 1.0), &inputs.x.shape()),
            Vec::new(),
        )
    }

    fn backward(&self, given: Given<2>, wanted: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let (x, kernel) = (readable(&given.inputs[0]), contiguous(&given.inputs[1]));
        let (inputs, gradient) = (Inputs::new(&x, &kernel), Sequence::new(&given.gradient));
        let of_x = wanted[0].then(|| tensor(inputs.filtered(&gradient, -1.0), &gradient.shape()));
        let of_kernel =
            wanted[1].then(|| tensor(inputs.of_kernel(&gradient), &dimensions(&kernel)));
        [of_x, of_kernel]
    }
}
