//! Linear attention with a generalised delta rule, by which a new value replaces the old one under its key: RWKV-7 (arXiv
//! 2503.14456, section 3).

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::fused::{self, Side};

/// The inputs of heads with a state of `values` rows and `keys` columns.
#[derive(Debug, Clone)]
pub struct Wkv7 {
    /// `r`: `[batch, time, heads * keys]`.
    pub receptance: Tensor<3>,
    /// `ln w`, not positive: `[batch, time, heads * keys]`.
    pub log_decay: Tensor<3>,
    /// `k`: `[batch, time, heads * keys]`.
    pub key: Tensor<3>,
    /// `v`: `[batch, time, heads * values]`.
    pub value: Tensor<3>,
    /// `a`, the key whose value is removed: `[batch, time, heads * keys]`.
    pub removal: Tensor<3>,
    /// `b`, the key under which it is removed: `[batch, time, heads * keys]`.
    pub replacement: Tensor<3>,
    /// How many heads the channels form.
    pub heads: usize,
    /// The state before the first step, `[batch, heads, values, keys]`; zeros where absent.
    pub state: Option<Tensor<4>>,
}

/// `S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T`, then `y_t = S_t r_t`, for every head; returns `y`,
/// `[batch, time, heads * values]`, and the last state, `[batch, heads, values, keys]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::wkv7::{Wkv7, wkv7};
/// // The second value replaces the first under the same key.
/// let ones = || Tensor::<3>::ones([1, 2, 1], &Device::flex());
/// let (y, _) = wkv7(Wkv7 {
///     receptance: ones(),
///     log_decay: ones() * 0.0,
///     key: ones(),
///     value: Tensor::from_floats([[[5.0], [7.0]]], &Device::flex()),
///     removal: -ones(),
///     replacement: ones(),
///     heads: 1,
///     state: None,
/// });
/// assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [5.0, 7.0]);
/// ```
pub fn wkv7(wkv: Wkv7) -> (Tensor<3>, Tensor<4>) {
    let ([batch, _, by_key], [_, _, by_value]) = (wkv.key.dims(), wkv.value.dims());
    let shape = [batch, wkv.heads, by_value / wkv.heads, by_key / wkv.heads];
    let state = wkv
        .state
        .clone()
        .unwrap_or_else(|| Tensor::zeros(shape, &wkv.value.device().inner()));
    if !fused::on_host(&wkv.value) {
        return reference::wkv7(wkv, state);
    }
    let side = Side::default();
    let operator = cpu::Wkv { last: side.clone() };
    let Wkv7 {
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        ..
    } = wkv;
    let y = fused::seven(
        receptance,
        log_decay,
        key,
        value,
        removal,
        replacement,
        state,
        operator,
    );
    let last = side.output(&y);
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{both, check, check_parts},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    /// Batch, time, heads, keys, values.
    type Sizes = [usize; 5];

    /// The inputs, with removal keys scaled so that the state stays of the size of its inputs.
    fn inputs(t: &[Leaf], heads: usize) -> Wkv7 {
        let removal: Tensor<3> = t[4].get();
        let keys = removal.dims()[2] / heads;
        Wkv7 {
            receptance: t[0].get(),
            log_decay: t[1].get::<3>() * 0.5 - 0.5,
            key: t[2].get(),
            value: t[3].get(),
            removal: removal / keys as f64,
            replacement: t[5].get(),
            heads,
            state: Some(t[6].get()),
        }
    }

    fn with_shapes([batch, time, heads, keys, values]: Sizes, run: impl FnOnce(&[&[usize]])) {
        let (k, v): ([usize; 3], [usize; 3]) =
            ([batch, time, heads * keys], [batch, time, heads * values]);
        run(&[&k, &k, &k, &v, &k, &k, &[batch, heads, values, keys]]);
    }

    fn agree_with_reference(sizes: Sizes) {
        let heads = sizes[2];
        with_shapes(sizes, |shapes| {
            let state = |t: &[Leaf]| t[6].get();
            agree(
                shapes,
                1e-5,
                |t| both(wkv7(inputs(t, heads))),
                |t| both(reference::wkv7(inputs(t, heads), state(t))),
            );
        });
    }

    /// By the formula, in f64: the outputs, then the last state.
    fn definition([batch, time, heads, keys, values]: Sizes, inputs: &[Vec<f64>]) -> Vec<f64> {
        let (mut y, mut s) = (Vec::new(), inputs[6].clone());
        for (b, t, h, j) in (0..batch * time * heads * values).map(|i| {
            (
                i / (time * heads * values),
                i / (heads * values) % time,
                i / values % heads,
                i % values,
            )
        }) {
            let row = (b * time + t) * heads + h;
            let of = |n: usize| &inputs[n][row * keys..(row + 1) * keys];
            let start = ((b * heads + h) * values + j) * keys;
            let s = &mut s[start..start + keys];
            let removed: f64 = s.iter().zip(of(4)).map(|(s, a)| s * a / keys as f64).sum();
            for (i, s) in s.iter_mut().enumerate() {
                let w = (of(1)[i] * 0.5 - 0.5).exp();
                *s = *s * w + removed * of(5)[i] + inputs[3][row * values + j] * of(2)[i];
            }
            y.push(s.iter().zip(of(0)).map(|(s, r)| s * r).sum());
        }
        y.extend(s);
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..70, heads in 1usize..3, keys in 1usize..40,
            values in 1usize..40) {
            agree_with_reference([batch, time, heads, keys, values]);
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..12, keys in 1usize..4, values in 1usize..4) {
            let sizes = [2, time, 2, keys, values];
            with_shapes(sizes, |shapes| {
                check(shapes, |t| both(wkv7(inputs(t, 2))), |inputs| definition(sizes, inputs));
            });
        }
    }

    #[test]
    fn a_step_and_several_chunks_agree_with_the_reference() {
        agree_with_reference([1, 1, 2, 3, 5]);
        agree_with_reference([1, 100, 1, 64, 64]);
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 100] {
            check_parts([2, time, 40], |x, state| {
                wkv7(Wkv7 {
                    receptance: x.clone(),
                    log_decay: -x.clone().abs(),
                    key: x.clone() * 0.7,
                    value: -x.clone(),
                    removal: x.clone() * -0.1,
                    replacement: x,
                    heads: 4,
                    state,
                })
            });
        }
    }
}
