//! The convolution by chunks of time. With `T` the matrix of the kernel, `E` that of reading and `P` the powers of a chunk,
//! the last first: `Y = T X + E H`, and the next state is `lambda^steps H + P^T X`, where the first product is complex.
//!
//! Backwards, with `G` the gradient of the state after the chunk: `dX = T^T dY + P G`, `dE = dY H^T`, `dP = X G^T`,
//! `dK_j = sum_i (dY X^T)_{i, i-j}`, `d(lambda^steps) = conj(H) G` summed over channels, and before the chunk
//! `G <- conj(lambda^steps) G + E^T dY`.

use std::ops::Range;

use super::super::{
    channel_block::summed,
    sequence::{Sequence, readable},
};
use crate::{
    fused::{FusedOperator, Given, Saved, Side, contiguous, dimensions, slice, tensor},
    linear::Precision,
    matmul::{How, Matrix, Threads, product},
    parallel::{DisjointRows, for_chunks, for_each},
    simd::{dot, vectorised},
};
use burn_flex::FlexTensor;

/// The operator over x, kernel, read, powers and state; the last state leaves by the side.
#[derive(Debug)]
pub(super) struct Convolution {
    pub last: Side,
}

/// Channels of a task. Fixed, so that sums over channels do not depend on the number of threads.
const COLUMNS: usize = 256;
/// All products here: inside tasks.
const HOW: How = How {
    precision: Precision::F32,
    threads: Threads::One,
};

struct Inputs<'a> {
    x: Sequence<'a>,
    kernel: &'a [f32],
    read: &'a [f32],
    powers: &'a [f32],
    state: Sequence<'a>,
}

impl<'a> Inputs<'a> {
    fn prepared([x, kernel, read, powers, state]: &[FlexTensor; 5]) -> [FlexTensor; 5] {
        [
            readable(x),
            contiguous(kernel),
            contiguous(read),
            contiguous(powers),
            readable(state),
        ]
    }

    fn new([x, kernel, read, powers, state]: &'a [FlexTensor; 5]) -> Self {
        let (x, state) = (Sequence::new(x), Sequence::new(state));
        Self {
            x,
            kernel: slice(kernel),
            read: slice(read),
            powers: slice(powers),
            state,
        }
    }

    /// Numbers of a state for each channel: twice the modes.
    fn states(&self) -> usize {
        self.state.time
    }

    fn chunks(&self) -> usize {
        self.x.time.div_ceil(self.kernel.len())
    }

    /// The steps of a chunk.
    fn chunk(&self, chunk: usize) -> Range<usize> {
        chunk * self.kernel.len()..((chunk + 1) * self.kernel.len()).min(self.x.time)
    }

    fn groups(&self) -> usize {
        self.x.width.div_ceil(COLUMNS)
    }

    /// The sequence and the channels of a task.
    fn place(&self, task: usize) -> (usize, Range<usize>) {
        let first = task % self.groups() * COLUMNS;
        (
            task / self.groups(),
            first..(first + COLUMNS).min(self.x.width),
        )
    }

    /// The contribution of a state to the outputs of as many steps.
    fn read(&self, steps: usize) -> Matrix<'a> {
        Matrix::new(self.read, steps, self.states())
    }

    fn power(&self, steps: usize) -> &'a [f32] {
        &self.powers[steps * self.states()..(steps + 1) * self.states()]
    }

    /// The kernel as a matrix, and the powers in falling order, for a chunk of some steps.
    fn matrices(&self, steps: usize) -> (Vec<f32>, Vec<f32>) {
        let mut toeplitz = vec![0.0; steps * steps];
        for (i, row) in toeplitz.chunks_exact_mut(steps).enumerate() {
            row[..i + 1]
                .iter_mut()
                .zip(self.kernel[..i + 1].iter().rev())
                .for_each(|(out, value)| *out = *value);
        }
        (
            toeplitz,
            (0..steps)
                .rev()
                .flat_map(|i| self.power(i).iter().copied())
                .collect(),
        )
    }

    /// A chunk's channels of a sequence.
    fn part(
        sequence: &Sequence<'a>,
        batch: usize,
        steps: Range<usize>,
        columns: &Range<usize>,
    ) -> Matrix<'a> {
        sequence.matrix(batch, steps, columns.clone())
    }

    /// Some channels of a state, `[states, columns]`.
    fn gather(&self, out: &mut [f32], state: &Sequence<'_>, batch: usize, columns: &Range<usize>) {
        for (i, out) in out.chunks_exact_mut(columns.len()).enumerate() {
            out.copy_from_slice(&state.row(batch, i)[columns.clone()]);
        }
    }

    /// Outputs, last states, and where asked the states before every chunk.
    #[allow(unsafe_code)]
    fn forward(&self, keep: bool) -> [Vec<f32>; 3] {
        let ([batches, time, width], states, chunks) =
            (self.x.shape(), self.states(), self.chunks());
        let (mut y, mut last) = (vec![0.0; self.x.len()], vec![0.0; self.state.len()]);
        let mut kept = vec![
            0.0;
            if keep {
                batches * chunks * states * width
            } else {
                0
            }
        ];
        let (y_rows, last_rows) = (
            DisjointRows::new(&mut y, width),
            DisjointRows::new(&mut last, width),
        );
        let kept_rows = DisjointRows::new(&mut kept, width);
        let tables = self.tables();
        for_each(batches * self.groups(), |task| {
            let (batch, columns) = self.place(task);
            let mut h = vec![0.0; states * columns.len()];
            self.gather(&mut h, &self.state, batch, &columns);
            let mut out = vec![0.0; self.kernel.len() * columns.len()];
            for chunk in 0..chunks {
                let steps = self.chunk(chunk);
                let (toeplitz, falling) = &tables[usize::from(steps.len() < self.kernel.len())];
                if keep {
                    for (i, h) in h.chunks_exact(columns.len()).enumerate() {
                        // SAFETY: each chunk of a task's channels comes once.
                        let row = unsafe {
                            kept_rows.part((batch * chunks + chunk) * states + i, columns.clone())
                        };
                        row.copy_from_slice(h);
                    }
                }
                let (count, x) = (
                    steps.len(),
                    Self::part(&self.x, batch, steps.clone(), &columns),
                );
                let out = &mut out[..count * columns.len()];
                product(out, Matrix::new(toeplitz, count, count), x, false, HOW);
                product(
                    out,
                    self.read(count),
                    Matrix::new(&h, states, columns.len()),
                    true,
                    HOW,
                );
                for (t, out) in steps.zip(out.chunks_exact(columns.len())) {
                    // SAFETY: each step of a task's channels comes once.
                    unsafe { y_rows.part(batch * time + t, columns.clone()) }.copy_from_slice(out);
                }
                turn(&mut h, self.power(count), columns.len(), 1.0);
                product(
                    &mut h,
                    Matrix::new(falling, count, states).transposed(),
                    x,
                    true,
                    HOW,
                );
            }
            for (i, h) in h.chunks_exact(columns.len()).enumerate() {
                // SAFETY: each task has channels of its own.
                unsafe { last_rows.part(batch * states + i, columns.clone()) }.copy_from_slice(h);
            }
        });
        [y, last, kept]
    }

    /// Matrices of a whole chunk and of the last one.
    fn tables(&self) -> [(Vec<f32>, Vec<f32>); 2] {
        let last = self.chunk(self.chunks().saturating_sub(1)).len();
        [self.matrices(self.kernel.len()), self.matrices(last)]
    }

    /// Gradients of all inputs.
    fn backward(
        &self,
        kept: &[f32],
        gradient: &Sequence<'_>,
        of_last: Option<&Sequence<'_>>,
    ) -> [Vec<f32>; 5] {
        let (width, states, length) = (self.x.width, self.states(), self.kernel.len());
        let (mut of_x, mut of_state) = (vec![0.0; self.x.len()], vec![0.0; self.state.len()]);
        let sizes = [length, length * states, (length + 1) * states];
        let tasks = self.x.batch * self.groups();
        let [mut of_kernel, mut of_read, mut of_powers] = sizes.map(|size| vec![0.0; tasks * size]);
        {
            let tables = self.tables();
            let (x_rows, state_rows) = (
                DisjointRows::new(&mut of_x, width),
                DisjointRows::new(&mut of_state, width),
            );
            let buffers = [
                (&mut of_kernel[..], sizes[0]),
                (&mut of_read, sizes[1]),
                (&mut of_powers, sizes[2]),
            ];
            for_chunks(buffers, |task, sums| {
                let (batch, columns) = self.place(task);
                let mut of_h = vec![0.0; states * columns.len()];
                if let Some(of_last) = of_last {
                    self.gather(&mut of_h, of_last, batch, &columns);
                }
                let task = Task {
                    inputs: self,
                    kept,
                    gradient,
                    tables: &tables,
                    x_rows: &x_rows,
                    batch,
                    columns,
                };
                task.run(&mut of_h, sums, &state_rows);
            });
        }
        let [of_kernel, of_read, of_powers] = [(of_kernel, 0), (of_read, 1), (of_powers, 2)]
            .map(|(parts, i)| summed(&parts, sizes[i]));
        [of_x, of_kernel, of_read, of_powers, of_state]
    }
}

struct Task<'a> {
    inputs: &'a Inputs<'a>,
    kept: &'a [f32],
    gradient: &'a Sequence<'a>,
    tables: &'a [(Vec<f32>, Vec<f32>); 2],
    x_rows: &'a DisjointRows<'a>,
    batch: usize,
    columns: Range<usize>,
}

#[allow(unsafe_code)]
impl Task<'_> {
    /// All chunks, the last first; the sums are the gradients of kernel, read and powers.
    fn run(
        &self,
        of_h: &mut [f32],
        [of_kernel, of_read, of_powers]: [&mut [f32]; 3],
        state_rows: &DisjointRows<'_>,
    ) {
        let (inputs, states, wide) = (self.inputs, self.inputs.states(), self.columns.len());
        let longest = inputs.kernel.len();
        let (mut out, mut pairs) = (vec![0.0; longest * wide], vec![0.0; longest * longest]);
        let mut of_falling = vec![0.0; longest * states];
        for chunk in (0..inputs.chunks()).rev() {
            let steps = inputs.chunk(chunk);
            let (count, (toeplitz, falling)) = (
                steps.len(),
                &self.tables[usize::from(steps.len() < longest)],
            );
            let x = Inputs::part(&inputs.x, self.batch, steps.clone(), &self.columns);
            let dy = Inputs::part(self.gradient, self.batch, steps.clone(), &self.columns);
            let start = (self.batch * inputs.chunks() + chunk) * states * inputs.x.width
                + self.columns.start;
            let h = Matrix::strided(&self.kept[start..], states, wide, inputs.x.width);
            let g = Matrix::new(of_h, states, wide);
            let out = &mut out[..count * wide];
            product(
                out,
                Matrix::new(toeplitz, count, count).transposed(),
                dy,
                false,
                HOW,
            );
            product(out, Matrix::new(falling, count, states), g, true, HOW);
            for (t, out) in steps.zip(out.chunks_exact(wide)) {
                // SAFETY: each step of a task's channels comes once.
                let row = unsafe {
                    self.x_rows
                        .part(self.batch * inputs.x.time + t, self.columns.clone())
                };
                row.copy_from_slice(out);
            }
            let pairs = &mut pairs[..count * count];
            product(pairs, dy, x.transposed(), false, HOW);
            for (i, row) in pairs.chunks_exact(count).enumerate() {
                of_kernel
                    .iter_mut()
                    .zip(row[..i + 1].iter().rev())
                    .for_each(|(sum, value)| *sum += value);
            }
            product(
                &mut of_read[..count * states],
                dy,
                h.transposed(),
                true,
                HOW,
            );
            let of_falling = &mut of_falling[..count * states];
            product(of_falling, x, g.transposed(), false, HOW);
            for (i, row) in of_falling.chunks_exact(states).rev().enumerate() {
                of_powers[i * states..(i + 1) * states]
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, value)| *sum += value);
            }
            turned(
                &mut of_powers[count * states..(count + 1) * states],
                &self.kept[start..],
                inputs.x.width,
                of_h,
                wide,
            );
            turn(of_h, inputs.power(count), wide, -1.0);
            product(of_h, inputs.read(count).transposed(), dy, true, HOW);
        }
        for (i, of_h) in of_h.chunks_exact(wide).enumerate() {
            // SAFETY: each task has channels of its own.
            let row = unsafe { state_rows.part(self.batch * states + i, self.columns.clone()) };
            row.copy_from_slice(of_h);
        }
    }
}

vectorised! {
    /// Multiplies a state by the powers, whose imaginary parts are taken times `sign`.
    fn turn(h: &mut [f32], powers: &[f32], width: usize, sign: f32) {
        let (reals, imaginaries) = h.split_at_mut(powers.len() / 2 * width);
        let (cosines, sines) = powers.split_at(powers.len() / 2);
        let rows = reals.chunks_exact_mut(width).zip(imaginaries.chunks_exact_mut(width));
        for ((reals, imaginaries), (cosine, sine)) in rows.zip(cosines.iter().zip(sines)) {
            let sine = sign * sine;
            for (real, imaginary) in reals.iter_mut().zip(imaginaries) {
                (*real, *imaginary) = (cosine * *real - sine * *imaginary, sine * *real + cosine * *imaginary);
            }
        }
    }
}

vectorised! {
    /// Adds the gradient of the powers that turned the state `h`, whose rows lie `stride` apart.
    fn turned(of_powers: &mut [f32], h: &[f32], stride: usize, of_h: &[f32], width: usize) {
        let modes = of_powers.len() / 2;
        for n in 0..modes {
            let [real, imaginary] = [n, n + modes].map(|i| &h[i * stride..][..width]);
            let [of_real, of_imaginary] = [n, n + modes].map(|i| &of_h[i * width..][..width]);
            of_powers[n] += dot(of_real, real) + dot(of_imaginary, imaginary);
            of_powers[n + modes] += dot(of_imaginary, real) - dot(of_real, imaginary);
        }
    }
}

impl FusedOperator<5> for Convolution {
    fn forward(&self, inputs: &[FlexTensor; 5], wanted: [bool; 5]) -> (FlexTensor, Saved) {
        let tensors = Inputs::prepared(inputs);
        let inputs = Inputs::new(&tensors);
        let [y, last, kept] = inputs.forward(wanted.contains(&true));
        self.last.put(tensor(last, &dimensions(&tensors[4])));
        (tensor(y, &inputs.x.shape()), vec![kept])
    }

    fn backward(&self, given: Given<5>, _: [bool; 5]) -> [Option<FlexTensor>; 5] {
        let tensors = Inputs::prepared(&given.inputs);
        let of_last = self.last.gradient().map(|gradient| readable(&gradient));
        let of_last = of_last.as_ref().map(Sequence::new);
        let found = Inputs::new(&tensors).backward(
            &given.saved[0],
            &Sequence::new(&given.gradient),
            of_last.as_ref(),
        );
        let mut shapes = tensors.iter().map(dimensions);
        found.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
    }
}
