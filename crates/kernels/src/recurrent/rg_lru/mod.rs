//! The real-gated linear recurrent unit of Griffin (arXiv 2402.19427, section 2.4).

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use super::linear_scan::last;
use crate::fused;

/// `c` of the paper: how strongly the recurrence gate acts.
const STRENGTH: f32 = 8.0;

/// The square below which the slope of a square root is held, as the published models were trained.
const SMALLEST: f32 = 1e-6;

/// The inputs of the unit.
#[derive(Debug, Clone)]
pub struct RgLru<'a> {
    /// `x`: `[batch, time, width]`.
    pub x: Tensor<3>,
    /// The recurrence gate before its sigmoid: `[batch, time, width]`.
    pub recurrence_gate: Tensor<3>,
    /// The input gate before its sigmoid: `[batch, time, width]`.
    pub input_gate: Tensor<3>,
    /// The parameter whose softplus is the decay: `[width]`.
    pub decay: Tensor<1>,
    /// The state before the first step, `[batch, width]`; zeros where absent.
    pub state: Option<Tensor<2>>,
    /// Where a document starts, `[batch * time]` row by row; nowhere where absent.
    pub starts: Option<&'a [bool]>,
}

/// `a_t = exp(-8 sigmoid(recurrence_gate_t) softplus(decay))`, `h_t = a_t h_{t-1} + sqrt(1 - a_t^2)
/// sigmoid(input_gate_t) x_t`; at the start of a document `a_t` is 0 and the root 1. Returns `h`, `[batch, time, width]`,
/// and the last of it, `[batch, width]`, with which the next part of the sequence continues.
///
/// The slope of the root is bounded by 1000, as in the published implementation (arXiv 2402.19427, appendix A).
pub fn rg_lru(unit: RgLru<'_>) -> (Tensor<3>, Tensor<2>) {
    let [batch, _, width] = unit.x.dims();
    let state = unit
        .state
        .clone()
        .unwrap_or_else(|| Tensor::zeros([batch, width], &unit.x.device().inner()));
    let h = match fused::on_host(&unit.x) {
        true => {
            let operator = cpu::Unit {
                starts: unit.starts.map(<[bool]>::to_vec),
            };
            fused::five(
                unit.x,
                unit.recurrence_gate,
                unit.input_gate,
                unit.decay,
                state,
                operator,
            )
        }
        false => reference::rg_lru(unit, state),
    };
    (h.clone(), last(h))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{check, check_parts, tensor, values},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    fn unit<'a>(t: &[Leaf], starts: Option<&'a [bool]>) -> RgLru<'a> {
        RgLru {
            x: t[0].get(),
            recurrence_gate: t[1].get::<3>() * 2.0,
            input_gate: t[2].get(),
            decay: t[3].get::<1>() * 3.0 - 1.0,
            state: Some(t[4].get()),
            starts,
        }
    }

    fn starts(batch: usize, time: usize, length: Option<usize>) -> Option<Vec<bool>> {
        length.map(|length| {
            (0..batch * time)
                .map(|i| (i % time + i / time).is_multiple_of(length))
                .collect()
        })
    }

    /// By the formula, in f64.
    fn definition(
        [time, width]: [usize; 2],
        starts: Option<&[bool]>,
        inputs: &[Vec<f64>],
    ) -> Vec<f64> {
        let gate = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut h: Vec<f64> = Vec::new();
        for i in 0..inputs[0].len() {
            let (row, channel) = (i / width, i % width);
            let softplus = (inputs[3][channel] * 3.0 - 1.0).exp().ln_1p();
            let mut a = (-8.0 * gate(inputs[1][i] * 2.0) * softplus).exp();
            if starts.is_some_and(|starts| starts[row]) {
                a = 0.0;
            }
            let before = if row.is_multiple_of(time) {
                inputs[4][row / time * width + channel]
            } else {
                h[i - width]
            };
            h.push(a * before + (1.0 - a * a).sqrt() * gate(inputs[2][i]) * inputs[0][i]);
        }
        h
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..60, width in 1usize..70,
            length in proptest::option::of(1usize..20)) {
            let x: &[usize] = &[batch, time, width];
            let starts = starts(batch, time, length);
            agree(&[x, x, x, &[width], &[batch, width]], 1e-5,
                |t| rg_lru(unit(t, starts.as_deref())).0.reshape([-1]),
                |t| reference::rg_lru(unit(t, starts.as_deref()), t[4].get()).reshape([-1]));
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..9, width in 1usize..4,
            length in proptest::option::of(1usize..5)) {
            let x: &[usize] = &[2, time, width];
            let starts = starts(2, time, length);
            check(&[x, x, x, &[width], &[2, width]], |t| rg_lru(unit(t, starts.as_deref())).0.reshape([-1]),
                |inputs| definition([time, width], starts.as_deref(), inputs));
        }
    }

    fn of(
        x: Tensor<3>,
        state: Option<Tensor<2>>,
        starts: Option<&[bool]>,
    ) -> (Tensor<3>, Tensor<2>) {
        let decay = tensor([40], 3);
        rg_lru(RgLru {
            recurrence_gate: x.clone() * 2.0,
            input_gate: -x.clone(),
            x,
            decay,
            state,
            starts,
        })
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 70] {
            check_parts([2, time, 40], |x, state| of(x, state, None));
        }
    }

    #[test]
    fn packed_documents_are_what_they_are_alone() {
        let x: Tensor<3> = tensor([1, 12, 40], 1);
        let starts: Vec<bool> = (0..12).map(|t| t == 0 || t == 5).collect();
        let part = |from: usize, to: usize| x.clone().slice([0..1, from..to, 0..40]);
        let alone = Tensor::cat(
            vec![
                of(part(0, 5), None, Some(&starts[..5])).0,
                of(part(5, 12), None, Some(&starts[5..])).0,
            ],
            1,
        );
        let state = Some(tensor([1, 40], 9));
        assert_eq!(values(of(x.clone(), state, Some(&starts)).0), values(alone));
    }

    #[test]
    fn worked_example_and_the_bound_of_the_slope() {
        // Gates of one half and a softplus of ln 2: a = 2^-4.
        let zero = || Tensor::<3>::zeros([1, 1, 1], &burn::tensor::Device::flex());
        let one = |decay: f32, gate: f32| {
            let gate = (zero() + gate).autodiff().require_grad();
            let unit = RgLru {
                x: zero() + 2.0,
                recurrence_gate: gate.clone(),
                input_gate: zero(),
                decay: Tensor::from_floats([decay], &burn::tensor::Device::flex()),
                state: None,
                starts: None,
            };
            let (h, _) = rg_lru(unit);
            let gradients = h.clone().sum().backward();
            (
                h.into_scalar::<f32>(),
                gate.grad(&gradients).unwrap().into_scalar::<f32>(),
            )
        };
        assert!((one(0.0, 0.0).0 - 0.998_044_96).abs() < 1e-6);
        // A decay of nothing: the root is 0, its slope infinite, the gradient small and finite.
        let (h, gradient) = one(-25.0, 0.0);
        assert!(
            h.abs() < 1e-3 && gradient.is_finite() && gradient.abs() < 1e-3,
            "{h} {gradient}"
        );
    }
}
