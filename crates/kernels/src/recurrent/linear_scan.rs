//! The first-order linear recurrence `h_t = a_t h_{t-1} + b_t`, channel by channel: the core of gated recurrences without a
//! matrix state (arXiv 1709.04057).

use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use super::{
    channel_block::{self, ChannelBlock, LANES, Tasks, channels},
    last_steps,
    sequence::{Sequence, readable},
};
use crate::{
    fused::{self, FusedOperator, Given, Saved, contiguous, slice, tensor},
    parallel::{FreshRows, for_each},
    simd::vectorised,
};

/// `h_t = a_t h_{t-1} + b_t`; and the last `h`, with which the next part of the sequence continues.
///
/// `a`, `b`: `[batch, time, width]`, `state`: `[batch, width]`, `h` before the first step, zeros where absent. Returns the
/// shapes of `b` and `state`. An `a_t` of zero forgets all before, as at the start of a document.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::linear_scan::linear_scan;
/// let one = || Tensor::<3>::ones([1, 3, 1], &Device::flex());
/// let (h, last) = linear_scan(one() * 0.5, one(), None);
/// assert_eq!(h.into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.5, 1.75]);
/// assert_eq!(last.into_scalar::<f32>(), 1.75);
/// ```
pub fn linear_scan(a: Tensor<3>, b: Tensor<3>, state: Option<Tensor<2>>) -> (Tensor<3>, Tensor<2>) {
    let [batch, _, width] = b.dims();
    let state = state.unwrap_or_else(|| Tensor::zeros([batch, width], &b.device().inner()));
    let h = match fused::on_host(&b) {
        true => fused::three(a, b, state, Scan),
        false => reference(a, b, state),
    };
    (h.clone(), last(h))
}

/// The last step, `[batch, width]`.
pub(super) fn last(h: Tensor<3>) -> Tensor<2> {
    let [batch, _, width] = h.dims();
    last_steps(h, 1).reshape([batch, width])
}

/// The definition in Burn operations.
pub fn reference(a: Tensor<3>, b: Tensor<3>, state: Tensor<2>) -> Tensor<3> {
    let [batch, time, width] = b.dims();
    let mut h = state.unsqueeze_dim::<3>(1);
    let mut all = Vec::with_capacity(time);
    for t in 0..time {
        let row = |x: &Tensor<3>| x.clone().slice([0..batch, t..t + 1, 0..width]);
        h = row(&a) * h + row(&b);
        all.push(h.clone());
    }
    Tensor::cat(all, 1)
}

/// The operator over a, b and the state. With `q` the gradient of the state, backwards in time: `q += dh_t`, `db = q`,
/// `da = q h_{t-1}`, `q <- a_t q`.
#[derive(Debug)]
struct Scan;

vectorised! {
    fn advance(h: &mut ChannelBlock, out: &mut [f32], a: &[f32], b: &[f32]) {
        let (a, b, before) = (channel_block::load(a), channel_block::load(b), *h);
        *h = channels!(l => a[l] * before[l] + b[l]);
        channel_block::store(out, h);
    }
}

vectorised! {
    fn retreat(q: &mut ChannelBlock, of_a: &mut [f32], of_b: &mut [f32], a: &[f32], before: &[f32], gradient: &[f32]) {
        let (a, before, gradient) = (channel_block::load(a), channel_block::load(before), channel_block::load(gradient));
        let later = *q;
        let now = channels!(l => later[l] + gradient[l]);
        channel_block::store(of_b, &now);
        channel_block::store(of_a, &channels!(l => now[l] * before[l]));
        *q = channels!(l => now[l] * a[l]);
    }
}

#[allow(unsafe_code)]
impl FusedOperator<3> for Scan {
    fn forward(&self, [a, b, state]: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        let (a, b, state) = (readable(a), readable(b), contiguous(state));
        let (a, b, state) = (Sequence::new(&a), Sequence::new(&b), slice(&state));
        let (time, width) = (b.time, b.width);
        let rows = FreshRows::new(b.len(), width);
        let tasks = Tasks::new(b.batch, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let start = &state[batch * width..(batch + 1) * width];
            let mut h: Vec<ChannelBlock> = group
                .clone()
                .map(|block| channel_block::block(start, block))
                .collect();
            for t in 0..time {
                for (h, block) in h.iter_mut().zip(group.clone()) {
                    let columns = channel_block::columns(width, block);
                    // SAFETY: each step of a vector of channels comes once.
                    let out = unsafe { rows.part(batch * time + t, columns.clone()) };
                    advance(
                        h,
                        out,
                        &a.row(batch, t)[columns.clone()],
                        &b.row(batch, t)[columns],
                    );
                }
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        (tensor(unsafe { rows.whole() }, &b.shape()), Vec::new())
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [a, _, state] = &given.inputs;
        let (a, state, h) = (
            readable(a),
            contiguous(state),
            given.output.as_ref().map(contiguous),
        );
        let (a, h, gradient) = (
            Sequence::new(&a),
            h.as_ref().map_or(&[][..], slice),
            slice(&given.gradient),
        );
        let (time, width, shape) = (a.time, a.width, a.shape());
        let [a_rows, b_rows] = [0; 2].map(|_| FreshRows::new(a.len(), width));
        let state_rows = FreshRows::new(a.batch * width, width);
        let tasks = Tasks::new(a.batch, width);
        for_each(tasks.count(), |task| {
            let (batch, group) = tasks.place(task);
            let mut q = vec![[0.0; LANES]; group.len()];
            for t in (0..time).rev() {
                let row = batch * time + t;
                let before = if t == 0 {
                    &slice(&state)[batch * width..]
                } else {
                    &h[(row - 1) * width..]
                };
                for (q, block) in q.iter_mut().zip(group.clone()) {
                    let columns = channel_block::columns(width, block);
                    // SAFETY: each step of a vector of channels comes once.
                    let (of_a, of_b) = unsafe {
                        (
                            a_rows.part(row, columns.clone()),
                            b_rows.part(row, columns.clone()),
                        )
                    };
                    let gradient = &gradient[row * width..][columns.clone()];
                    retreat(
                        q,
                        of_a,
                        of_b,
                        &a.row(batch, t)[columns.clone()],
                        &before[columns],
                        gradient,
                    );
                }
            }
            for (q, block) in q.iter().zip(group) {
                // SAFETY: each vector of channels comes once in a sequence.
                channel_block::store(
                    unsafe { state_rows.part(batch, channel_block::columns(width, block)) },
                    q,
                );
            }
        });
        // SAFETY: the tasks took every step of every vector of channels.
        let [of_a, of_b, of_state] =
            unsafe { [a_rows, b_rows, state_rows].map(|rows| rows.whole()) };
        [
            Some(tensor(of_a, &shape)),
            Some(tensor(of_b, &shape)),
            Some(tensor(of_state, &[a.batch, width])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{check, check_parts},
        testing::agree,
    };
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..60, width in 1usize..70) {
            let shapes: [&[usize]; 3] = [&[batch, time, width], &[batch, time, width], &[batch, width]];
            agree(&shapes, 1e-5, |t| linear_scan(t[0].get(), t[1].get(), Some(t[2].get())).0.reshape([-1]),
                |t| reference(t[0].get(), t[1].get(), t[2].get()).reshape([-1]));
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..9, width in 1usize..4) {
            let shapes: [&[usize]; 3] = [&[2, time, width], &[2, time, width], &[2, width]];
            check(&shapes, |t| linear_scan(t[0].get(), t[1].get(), Some(t[2].get())).0.reshape([-1]), |inputs| {
                let mut h: Vec<f64> = Vec::new();
                for i in 0..inputs[1].len() {
                    let (batch, first) = (i / (time * width), i % (time * width) < width);
                    let before = if first { inputs[2][batch * width + i % width] } else { h[i - width] };
                    h.push(inputs[0][i] * before + inputs[1][i]);
                }
                h
            });
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 70] {
            check_parts([2, time, 40], |x, state| {
                linear_scan(x.clone().abs(), x, state)
            });
        }
    }
}
