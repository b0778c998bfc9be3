//! Linear attention with decay per channel and a matrix as state: RWKV-5 and RWKV-6 (arXiv 2404.05892, section 4).
//!
//! Computed by chunks of a few steps, which turns most of it into products with the state: that is then read and written once
//! a chunk instead of once a step.

mod backward;
mod chunk;
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::fused::{self, Side};

/// The inputs of heads with `keys` rows and `values` columns of state.
#[derive(Debug, Clone)]
pub struct Wkv6 {
    /// `r`: `[batch, time, heads * keys]`.
    pub receptance: Tensor<3>,
    /// `k`: `[batch, time, heads * keys]`.
    pub key: Tensor<3>,
    /// `v`: `[batch, time, heads * values]`.
    pub value: Tensor<3>,
    /// `x` of the decay `exp(-exp(x))`: `[batch, time, heads * keys]`, or `[1, 1, heads * keys]` for one that is the same
    /// always, as in RWKV-5.
    pub decay: Tensor<3>,
    /// `u`: `[heads, keys]`.
    pub bonus: Tensor<2>,
    /// The state before the first step, `[batch, heads, keys, values]`; zeros where absent.
    pub state: Option<Tensor<4>>,
}

/// `y_t = r_t (S_{t-1} + (u k_t) v_t^T)`, then `S_t = diag(exp(-exp(x_t))) S_{t-1} + k_t v_t^T`, for every head; returns
/// `y`, `[batch, time, heads * values]`, and the last state, `[batch, heads, keys, values]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::wkv6::{Wkv6, wkv6};
/// let ones = || Tensor::<3>::ones([1, 2, 1], &Device::flex());
/// let (y, state) = wkv6(Wkv6 {
///     receptance: ones(),
///     key: ones(),
///     value: ones(),
///     decay: ones() * -0.3665129, // a half remains
///     bonus: Tensor::from_floats([[2.0]], &Device::flex()),
///     state: None,
/// });
/// let y = y.into_data().try_to_vec::<f32>().unwrap();
/// assert!((y[0] - 2.0).abs() < 1e-6 && (y[1] - 3.0).abs() < 1e-6);
/// assert!((state.into_scalar::<f32>() - 1.5).abs() < 1e-6);
/// ```
pub fn wkv6(wkv: Wkv6) -> (Tensor<3>, Tensor<4>) {
    let ([batch, _, wide], [heads, keys]) = (wkv.value.dims(), wkv.bonus.dims());
    let shape = [batch, heads, keys, wide / heads];
    let state = wkv
        .state
        .clone()
        .unwrap_or_else(|| Tensor::zeros(shape, &wkv.value.device().inner()));
    if !fused::on_host(&wkv.value) {
        return reference::wkv6(wkv, state);
    }
    let side = Side::default();
    let operator = cpu::Wkv { last: side.clone() };
    let Wkv6 {
        receptance,
        key,
        value,
        decay,
        bonus,
        ..
    } = wkv;
    let y = fused::six(receptance, key, value, decay, bonus, state, operator);
    let last = side.output(&y);
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{both, check, check_parts, tensor, values},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    /// Batch, time, heads, keys, values.
    type Sizes = [usize; 5];

    fn shapes([batch, time, heads, keys, values]: Sizes, constant: bool) -> Vec<Vec<usize>> {
        let (by_key, by_value) = (
            vec![batch, time, heads * keys],
            vec![batch, time, heads * values],
        );
        let decay = if constant {
            vec![1, 1, heads * keys]
        } else {
            by_key.clone()
        };
        vec![
            by_key.clone(),
            by_key,
            by_value,
            decay,
            vec![heads, keys],
            vec![batch, heads, keys, values],
        ]
    }

    fn inputs(t: &[Leaf]) -> Wkv6 {
        Wkv6 {
            receptance: t[0].get(),
            key: t[1].get(),
            value: t[2].get(),
            decay: t[3].get::<3>() * 3.0 - 1.0,
            bonus: t[4].get(),
            state: Some(t[5].get()),
        }
    }

    fn with_shapes(sizes: Sizes, constant: bool, run: impl FnOnce(&[&[usize]])) {
        let shapes = shapes(sizes, constant);
        run(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    fn agree_with_reference(sizes: Sizes, constant: bool) {
        with_shapes(sizes, constant, |shapes| {
            agree(
                shapes,
                1e-5,
                |t| both(wkv6(inputs(t))),
                |t| both(reference::wkv6(inputs(t), t[5].get())),
            );
        });
    }

    /// By the formula, in f64: the outputs, then the last state.
    fn definition([batch, time, heads, keys, values]: Sizes, inputs: &[Vec<f64>]) -> Vec<f64> {
        let (mut y, mut s) = (vec![0.0; batch * time * heads * values], inputs[5].clone());
        let constant = inputs[3].len() == heads * keys;
        for (b, t, h) in
            (0..batch * time * heads).map(|i| (i / (time * heads), i / heads % time, i % heads))
        {
            let row = (b * time + t) * heads + h;
            for (i, j) in (0..keys * values).map(|i| (i / values, i % values)) {
                let s = &mut s[((b * heads + h) * keys + i) * values + j];
                let [r, k] = [0, 1].map(|n| inputs[n][row * keys + i]);
                let v = inputs[2][row * values + j];
                let x = inputs[3][if constant {
                    h * keys + i
                } else {
                    row * keys + i
                }] * 3.0
                    - 1.0;
                y[row * values + j] += r * (*s + inputs[4][h * keys + i] * k * v);
                *s = (-x.exp()).exp() * *s + k * v;
            }
        }
        y.extend(s);
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..80, heads in 1usize..3, keys in 1usize..40,
            values in 1usize..40, constant: bool) {
            agree_with_reference([batch, time, heads, keys, values], constant);
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..20, keys in 1usize..4, values in 1usize..4, constant: bool) {
            let sizes = [2, time, 2, keys, values];
            with_shapes(sizes, constant, |shapes| {
                check(shapes, |t| both(wkv6(inputs(t))), |inputs| definition(sizes, inputs));
            });
        }
    }

    #[test]
    fn a_step_and_several_chunks_agree_with_the_reference() {
        agree_with_reference([1, 1, 2, 3, 5], false);
        agree_with_reference([1, 150, 1, 64, 64], false);
        // Several heads in a task, the last one with fewer.
        agree_with_reference([2, 40, 9, 3, 5], false);
        agree_with_reference([2, 40, 9, 3, 5], true);
    }

    #[test]
    fn what_forgets_at_once_has_gradients() {
        let x = tensor::<3>([1, 20, 6], 1).autodiff().require_grad();
        let decay = tensor::<3>([1, 20, 6], 2)
            .mul_scalar(200.0)
            .autodiff()
            .require_grad();
        let (receptance, key, value) = (x.clone(), x.clone() * 0.7, x.clone() * 2.0);
        let wkv = Wkv6 {
            receptance,
            key,
            value,
            decay: decay.clone(),
            bonus: tensor([2, 3], 3),
            state: None,
        };
        let gradients = wkv6(wkv).0.sum().backward();
        for found in [x.grad(&gradients), decay.grad(&gradients)] {
            assert!(values(found.unwrap()).iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 150] {
            check_parts([2, time, 40], |x, state| {
                wkv6(Wkv6 {
                    receptance: x.clone(),
                    key: x.clone() * 0.7,
                    value: -x.clone(),
                    decay: x * 2.0 - 1.0,
                    bonus: tensor([4, 10], 3),
                    state,
                })
            });
        }
    }
}
