//! The scan of Mamba-2, state space duality (arXiv 2405.21060, section 6): one decay a head, so that a chunk of time is a
//! few matrix products.

mod backward;
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::fused::{self, Side};

/// The inputs of heads of `width` channels with `states` numbers each.
#[derive(Debug, Clone)]
pub struct Ssd {
    /// `x`: `[batch, time, heads * width]`.
    pub x: Tensor<3>,
    /// Step sizes, not negative: `[batch, time, heads]`.
    pub step: Tensor<3>,
    /// `A`, not positive: `[heads]`.
    pub transition: Tensor<1>,
    /// `B`: `[batch, time, groups * states]`; head `h` reads group `h / (heads / groups)`.
    pub input: Tensor<3>,
    /// `C`: `[batch, time, groups * states]`.
    pub output: Tensor<3>,
    /// `D`: `[heads]`.
    pub skip: Tensor<1>,
    /// Number of groups of `B` and `C`.
    pub groups: usize,
    /// The state before the first step, `[batch, heads, width, states]`; zeros where absent.
    pub state: Option<Tensor<4>>,
}

/// `S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T`, `y_t = S_t C_t + D x_t` for every head; returns `y`,
/// `[batch, time, heads * width]`, and the last state, `[batch, heads, width, states]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::ssd::{Ssd, ssd};
/// let ones = || Tensor::<3>::ones([1, 2, 1], &Device::flex());
/// let (y, state) = ssd(Ssd {
///     x: ones(),
///     step: ones(),
///     transition: Tensor::from_floats([-0.6931472], &Device::flex()), // a half remains
///     input: ones(),
///     output: ones(),
///     skip: Tensor::zeros([1], &Device::flex()),
///     groups: 1,
///     state: None,
/// });
/// assert!((y.into_data().try_to_vec::<f32>().unwrap()[1] - 1.5).abs() < 1e-6);
/// assert!((state.into_scalar::<f32>() - 1.5).abs() < 1e-6);
/// ```
pub fn ssd(ssd: Ssd) -> (Tensor<3>, Tensor<4>) {
    let ([batch, _, wide], [heads]) = (ssd.x.dims(), ssd.transition.dims());
    let shape = [batch, heads, wide / heads, ssd.input.dims()[2] / ssd.groups];
    let state = ssd
        .state
        .clone()
        .unwrap_or_else(|| Tensor::zeros(shape, &ssd.x.device().inner()));
    if !fused::on_host(&ssd.x) {
        return reference::ssd(ssd, state);
    }
    let side = Side::default();
    let operator = cpu::Scan { last: side.clone() };
    let Ssd {
        x,
        step,
        transition,
        input,
        output,
        skip,
        ..
    } = ssd;
    let y = fused::seven(x, step, transition, input, output, skip, state, operator);
    let last = side.output(&y);
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{both, check, check_parts, tensor},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    /// Batch, time, groups, heads of a group, width of a head, states.
    type Sizes = [usize; 6];

    fn inputs(t: &[Leaf], groups: usize) -> Ssd {
        Ssd {
            x: t[0].get(),
            step: t[1].get::<3>() * 0.5 + 0.6,
            transition: -(t[2].get::<1>() * 0.5).exp(),
            input: t[3].get(),
            output: t[4].get(),
            skip: t[5].get(),
            groups,
            state: Some(t[6].get()),
        }
    }

    fn with_shapes(
        [batch, time, groups, each, width, states]: Sizes,
        run: impl FnOnce(&[&[usize]]),
    ) {
        let heads = groups * each;
        let table: &[usize] = &[batch, time, groups * states];
        let (x, state) = ([batch, time, heads * width], [batch, heads, width, states]);
        run(&[
            &x,
            &[batch, time, heads],
            &[heads],
            table,
            table,
            &[heads],
            &state,
        ]);
    }

    fn agree_with_reference(sizes: Sizes) {
        let groups = sizes[2];
        with_shapes(sizes, |shapes| {
            agree(
                shapes,
                1e-5,
                |t| both(ssd(inputs(t, groups))),
                |t| both(reference::ssd(inputs(t, groups), t[6].get())),
            );
        });
    }

    /// By the formula, in f64: the outputs, then the last state.
    fn definition(
        [batch, time, groups, each, width, states]: Sizes,
        inputs: &[Vec<f64>],
    ) -> Vec<f64> {
        let (mut y, mut s, heads) = (Vec::new(), inputs[6].clone(), groups * each);
        for (b, t, h, p) in (0..batch * time * heads * width).map(|i| {
            (
                i / (time * heads * width),
                i / (heads * width) % time,
                i / width % heads,
                i % width,
            )
        }) {
            let row = b * time + t;
            let dt = inputs[1][row * heads + h] * 0.5 + 0.6;
            let keep = (dt * -(inputs[2][h] * 0.5).exp()).exp();
            let x = inputs[0][(row * heads + h) * width + p];
            let mut sum = inputs[5][h] * x;
            for n in 0..states {
                let s = &mut s[((b * heads + h) * width + p) * states + n];
                let column = (row * groups + h / each) * states + n;
                *s = keep * *s + dt * x * inputs[3][column];
                sum += *s * inputs[4][column];
            }
            y.push(sum);
        }
        y.extend(s);
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..150, groups in 1usize..3, each in 1usize..7,
            width in 1usize..20, states in 1usize..20) {
            agree_with_reference([batch, time, groups, each, width, states]);
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..12, each in 1usize..4, width in 1usize..4, states in 1usize..4) {
            let sizes = [2, time, 2, each, width, states];
            with_shapes(sizes, |shapes| {
                check(shapes, |t| both(ssd(inputs(t, 2))), |inputs| definition(sizes, inputs));
            });
        }
    }

    #[test]
    fn a_step_and_several_chunks_agree_with_the_reference() {
        agree_with_reference([1, 1, 1, 2, 5, 7]);
        agree_with_reference([1, 130, 1, 2, 64, 32]);
    }

    #[test]
    fn strong_decays_stay_finite() {
        let ones = |width: usize| Tensor::<3>::ones([1, 100, width], &burn::tensor::Device::flex());
        let x = ones(4).autodiff().require_grad();
        let (transition, skip) = (tensor::<1>([2], 1) * 0.0 - 200.0, tensor::<1>([2], 1) * 0.0);
        let step = ones(2).autodiff().require_grad();
        let scan = Ssd {
            x: x.clone(),
            step: step.clone(),
            transition,
            input: ones(3),
            output: ones(3),
            skip,
            groups: 1,
            state: None,
        };
        let (y, _) = ssd(scan);
        let gradients = y.clone().sum().backward();
        // Nothing remains of any step: the output is the sum over states of dt x B C.
        let all = |x: Tensor<3>| x.into_data().try_into_vec::<f32>().unwrap();
        assert!(all(y).iter().all(|y| *y == 3.0));
        assert!(all(x.grad(&gradients).unwrap()).iter().all(|g| *g == 3.0));
        assert!(
            all(step.grad(&gradients).unwrap())
                .iter()
                .all(|g| *g == 6.0)
        );
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 150] {
            check_parts([2, time, 48], |x, state| {
                let part = |columns: std::ops::Range<usize>| {
                    x.clone().slice([0..2, 0..x.dims()[1], columns])
                };
                ssd(Ssd {
                    x: x.clone(),
                    step: part(0..6).abs(),
                    transition: -tensor::<1>([6], 3).exp(),
                    input: part(6..16),
                    output: part(16..26),
                    skip: tensor([6], 4),
                    groups: 2,
                    state,
                })
            });
        }
    }
}
