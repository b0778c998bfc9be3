//! The weighted average of RWKV-4 (arXiv 2305.13048, section 3.1): an attention whose weights decay with distance.

mod cpu;
pub mod reference;

use burn::tensor::{Tensor, TensorData};

use crate::fused::{self, Side};

/// The exponent of a state that has seen nothing. Finite, so that no difference of two is undefined.
const NOTHING: f32 = -1e30;

/// The inputs of the average.
#[derive(Debug, Clone)]
pub struct Wkv4 {
    /// `k`: `[batch, time, width]`.
    pub key: Tensor<3>,
    /// `v`: `[batch, time, width]`.
    pub value: Tensor<3>,
    /// `x` of the decay `exp(-exp(x))` a step: `[width]`.
    pub decay: Tensor<1>,
    /// `u`: `[width]`.
    pub bonus: Tensor<1>,
    /// The state before the first step, `[batch, 3, width]`; none seen where absent.
    pub state: Option<Tensor<3>>,
}

/// `y_t = (alpha_{t-1} + exp(u + k_t) v_t) / (beta_{t-1} + exp(u + k_t))`, then `alpha_t = exp(w) alpha_{t-1} + exp(k_t) v_t`
/// and `beta_t = exp(w) beta_{t-1} + exp(k_t)`, with `w = -exp(x)`, for every channel; returns `y`,
/// `[batch, time, width]`, and the last state, `[batch, 3, width]`.
///
/// A state holds `a`, `b` and `p` with `alpha = a exp(p)` and `beta = b exp(p)`, so that no key is too large. The gradient
/// of the last state is right for whatever depends on `alpha` and `beta` alone, as the next part of the sequence does.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::wkv4::{Wkv4, wkv4};
/// let device = Device::flex();
/// let (y, _) = wkv4(Wkv4 {
///     key: Tensor::zeros([1, 2, 1], &device),
///     value: Tensor::from_floats([[[1.0], [3.0]]], &device),
///     decay: Tensor::from_floats([-0.3665129], &device), // a half remains
///     bonus: Tensor::from_floats([0.5], &device),
///     state: None,
/// });
/// assert!((y.into_data().try_to_vec::<f32>().unwrap()[1] - 2.2449187).abs() < 1e-6);
/// ```
pub fn wkv4(wkv: Wkv4) -> (Tensor<3>, Tensor<3>) {
    let [batch, _, width] = wkv.value.dims();
    let state = wkv.state.clone().unwrap_or_else(|| {
        let values = (0..batch * 3 * width).map(|i| if i / width % 3 == 2 { NOTHING } else { 0.0 });
        Tensor::from_data(
            TensorData::new(values.collect(), [batch, 3, width]),
            &wkv.value.device().inner(),
        )
    });
    if !fused::on_host(&wkv.value) {
        return reference::wkv4(wkv, state);
    }
    let side = Side::default();
    let operator = cpu::Wkv { last: side.clone() };
    let y = fused::five(wkv.key, wkv.value, wkv.decay, wkv.bonus, state, operator);
    let last = side.output(&y);
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{check, check_parts, tensor, values},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    /// The inputs; the state's `b` is positive.
    fn inputs(t: &[Leaf]) -> Wkv4 {
        let state: Tensor<3> = t[4].get();
        let [batch, _, width] = state.dims();
        let part = |i: usize| state.clone().slice([0..batch, i..i + 1, 0..width]);
        let state = Tensor::cat(vec![part(0), part(1) * 0.5 + 1.0, part(2)], 1);
        let (key, decay) = (t[0].get::<3>() * 2.0, t[2].get::<1>() * 3.0);
        Wkv4 {
            key,
            value: t[1].get(),
            decay,
            bonus: t[3].get(),
            state: Some(state),
        }
    }

    /// The outputs of a sequence in two parts, so that the state's gradient takes part.
    fn in_parts(wkv: Wkv4, cut: usize, run: impl Fn(Wkv4) -> (Tensor<3>, Tensor<3>)) -> Tensor<1> {
        let [batch, time, width] = wkv.value.dims();
        let part = |x: &Tensor<3>, steps: std::ops::Range<usize>| {
            x.clone().slice([0..batch, steps, 0..width])
        };
        let of = |steps: std::ops::Range<usize>, state: Option<Tensor<3>>| {
            let (key, value) = (part(&wkv.key, steps.clone()), part(&wkv.value, steps));
            run(Wkv4 {
                key,
                value,
                state,
                ..wkv.clone()
            })
        };
        if cut == 0 || cut >= time {
            return of(0..time, wkv.state.clone()).0.reshape([-1]);
        }
        let (first, state) = of(0..cut, wkv.state.clone());
        Tensor::cat(vec![first, of(cut..time, Some(state)).0], 1).reshape([-1])
    }

    /// By the formula, in f64.
    fn definition([batch, time, width]: [usize; 3], inputs: &[Vec<f64>]) -> Vec<f64> {
        let mut y = vec![0.0; batch * time * width];
        for (b, c) in (0..batch * width).map(|i| (i / width, i % width)) {
            let state = |i: usize| inputs[4][(b * 3 + i) * width + c];
            let scale = state(2).exp();
            let (mut alpha, mut beta) = (state(0) * scale, (state(1) * 0.5 + 1.0) * scale);
            let (keep, bonus) = ((-(inputs[2][c] * 3.0).exp()).exp(), inputs[3][c]);
            for t in 0..time {
                let i = (b * time + t) * width + c;
                let (k, v) = (inputs[0][i] * 2.0, inputs[1][i]);
                let now = (bonus + k).exp();
                y[i] = (alpha + now * v) / (beta + now);
                (alpha, beta) = (keep * alpha + k.exp() * v, keep * beta + k.exp());
            }
        }
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 2usize..80, width in 1usize..70, cut in 0usize..80) {
            let x: &[usize] = &[batch, time, width];
            agree(&[x, x, &[width], &[width], &[batch, 3, width]], 1e-5,
                |t| in_parts(inputs(t), cut, wkv4),
                |t| {
                    let wkv = inputs(t);
                    let state = wkv.state.clone().unwrap();
                    reference::wkv4(wkv, state).0.reshape([-1])
                });
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..20, width in 1usize..4, cut in 0usize..9) {
            let x: &[usize] = &[2, time, width];
            check(&[x, x, &[width], &[width], &[2, 3, width]], |t| in_parts(inputs(t), cut, wkv4),
                |inputs| definition([2, time, width], inputs));
        }
    }

    #[test]
    fn keys_of_any_size_keep_their_balance() {
        let run = |shift: f32| {
            let key = (tensor::<3>([2, 70, 40], 1) + shift)
                .autodiff()
                .require_grad();
            let (decay, bonus, value) = (tensor([40], 3), tensor([40], 4), tensor([2, 70, 40], 2));
            let (y, _) = wkv4(Wkv4 {
                key: key.clone(),
                value,
                decay,
                bonus,
                state: None,
            });
            let gradients = (y.clone() * tensor([2, 70, 40], 5)).sum().backward();
            [values(y), values(key.grad(&gradients).unwrap())].concat()
        };
        let expected = run(0.0);
        for shift in [-500.0, 500.0] {
            // Exponents are rounded to 2^-16 there.
            for (found, expected) in run(shift).iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-3,
                    "{found} against {expected}"
                );
            }
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 150] {
            check_parts([2, time, 40], |x, state| {
                let (decay, bonus) = (tensor([40], 3), tensor([40], 4));
                wkv4(Wkv4 {
                    key: x.clone() * 3.0,
                    value: -x,
                    decay,
                    bonus,
                    state,
                })
            });
        }
    }
}
