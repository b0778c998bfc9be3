//! The selective state-space scan of Mamba (arXiv 2312.00752, section 3.3).

mod backward;
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::{
    fused::{self, Side},
    linear::Group,
};

/// The inputs of a scan over `states` numbers a channel.
#[derive(Debug, Clone)]
pub struct SelectiveScan {
    /// `x`: `[batch, time, width]`.
    pub x: Tensor<3>,
    /// Step sizes before bias and softplus: `[batch, time, width]`.
    pub step: Tensor<3>,
    /// Added to the step sizes, `[width]`; zeros where absent.
    pub step_bias: Option<Tensor<1>>,
    /// `A`, not positive: `[width, states]`.
    pub transition: Tensor<2>,
    /// `B`: `[batch, time, states]`.
    pub input: Tensor<3>,
    /// `C`: `[batch, time, states]`.
    pub output: Tensor<3>,
    /// `D`: `[width]`.
    pub skip: Tensor<1>,
    /// The state before the first step, `[batch, states, width]`; zeros where absent.
    pub state: Option<Tensor<3>>,
    /// The group of the linear maps that read `x` as well, made [`Group::beside`] one other reader: the gradient of `x` is then
    /// one sum, in memory that is written once.
    pub readers: Option<Group>,
}

/// `dt = softplus(step_t + step_bias)`, `h_t = exp(dt A) h_{t-1} + dt B_t x_t`, `y_t = C_t h_t + D x_t` for every channel, with `states`
/// numbers each; returns `y`, `[batch, time, width]`, and the last state, `[batch, states, width]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::selective_scan::{SelectiveScan, selective_scan};
/// let ones = |time| Tensor::<3>::ones([1, time, 1], &Device::flex());
/// let scan = SelectiveScan {
///     x: ones(2),
///     step: ones(2) * 0.5413249, // whose softplus is 1
///     step_bias: None,
///     transition: Tensor::from_floats([[-0.6931472]], &Device::flex()), // a half remains of every state
///     input: ones(2),
///     output: ones(2),
///     skip: Tensor::zeros([1], &Device::flex()),
///     state: None,
///     readers: None,
/// };
/// let (y, state) = selective_scan(scan);
/// assert!((y.into_data().try_to_vec::<f32>().unwrap()[1] - 1.5).abs() < 1e-6);
/// assert!((state.into_scalar::<f32>() - 1.5).abs() < 1e-6);
/// ```
pub fn selective_scan(scan: SelectiveScan) -> (Tensor<3>, Tensor<3>) {
    let ([batch, _, width], [_, states]) = (scan.x.dims(), scan.transition.dims());
    let state = scan
        .state
        .clone()
        .unwrap_or_else(|| Tensor::zeros([batch, states, width], &scan.x.device().inner()));
    if !fused::on_host(&scan.x) {
        return reference::selective_scan(scan, state);
    }
    let side = Side::default();
    let operator = cpu::Scan {
        last: side.clone(),
        readers: scan.readers,
    };
    let SelectiveScan {
        x,
        step,
        step_bias,
        transition,
        input,
        output,
        skip,
        ..
    } = scan;
    let bias = step_bias.unwrap_or_else(|| Tensor::zeros([width], &x.device().inner()));
    let y = fused::eight(
        x, step, bias, transition, input, output, skip, state, operator,
    );
    let last = side.output(&y);
    (y, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        linear::Precision,
        recurrent::testing::{both, check, check_parts, tensor},
        testing::{Leaf, agree},
    };
    use proptest::prelude::*;

    fn shapes([batch, time, width, states]: [usize; 4]) -> Vec<Vec<usize>> {
        let (x, table, each) = (
            vec![batch, time, width],
            vec![width, states],
            vec![batch, time, states],
        );
        vec![
            x.clone(),
            x,
            table,
            each.clone(),
            each,
            vec![width],
            vec![batch, states, width],
            vec![width],
        ]
    }

    fn scan(t: &[Leaf]) -> SelectiveScan {
        SelectiveScan {
            x: t[0].get(),
            step: t[1].get::<3>() * 3.0,
            step_bias: Some(t[7].get()),
            transition: -(t[2].get::<2>() * 2.0).exp(),
            input: t[3].get(),
            output: t[4].get(),
            skip: t[5].get(),
            state: Some(t[6].get()),
            readers: None,
        }
    }

    /// By the formula, in f64: the outputs, then the last state.
    fn definition([batch, time, width, states]: [usize; 4], inputs: &[Vec<f64>]) -> Vec<f64> {
        let mut y = vec![0.0; batch * time * width];
        let mut h = inputs[6].clone();
        for (b, t, d) in (0..y.len()).map(|i| (i / (time * width), i / width % time, i % width)) {
            let row = b * time + t;
            let (x, raw) = (
                inputs[0][row * width + d],
                inputs[1][row * width + d] * 3.0 + inputs[7][d],
            );
            let dt = raw.exp().ln_1p();
            y[row * width + d] = inputs[5][d] * x;
            for n in 0..states {
                let h = &mut h[(b * states + n) * width + d];
                let a = -(inputs[2][d * states + n] * 2.0).exp();
                *h = (dt * a).exp() * *h + dt * inputs[3][row * states + n] * x;
                y[row * width + d] += inputs[4][row * states + n] * *h;
            }
        }
        y.extend(h);
        y
    }

    fn agree_with_reference(sizes: [usize; 4]) {
        let shapes = shapes(sizes);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        agree(
            &shapes,
            1e-5,
            |t| both(selective_scan(scan(t))),
            |t| both(reference::selective_scan(scan(t), t[6].get())),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..80, width in 1usize..70, states in 1usize..20) {
            agree_with_reference([batch, time, width, states]);
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..40, width in 1usize..4, states in 1usize..4) {
            let sizes = [2, time, width, states];
            let shapes = shapes(sizes);
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            check(&shapes, |t| both(selective_scan(scan(t))), |inputs| definition(sizes, inputs));
        }
    }

    #[test]
    fn several_groups_of_channels_agree_with_the_reference() {
        agree_with_reference([2, 35, 300, 3]);
    }

    /// A scan of `x` whose steps are a map of `x` too; that map and another one share a group with the scan, or none.
    fn with_readers(t: &[Leaf], shared: bool) -> Tensor<1> {
        let x: Tensor<3> = t[0].get();
        let (readers, apart) = (Group::beside(1, 2), || Group::new(1));
        let group = |_| if shared { readers.clone() } else { apart() };
        let step = group(0).linear(x.clone(), t[1].get(), None, Precision::F32);
        let other = group(1).linear(x.clone(), t[2].get(), None, Precision::F32);
        let (y, _) = selective_scan(SelectiveScan {
            x,
            step,
            step_bias: None,
            transition: -t[1].get::<2>().exp(),
            input: t[3].get(),
            output: t[4].get(),
            skip: t[5].get(),
            state: None,
            readers: shared.then_some(readers),
        });
        Tensor::cat(vec![y.reshape([-1]), other.reshape([-1])], 0)
    }

    #[test]
    fn readers_of_x_share_its_gradient() {
        for time in [1, 3, 40] {
            let (x, square, each) = ([2, time, 24], [24, 24], [2, time, 24]);
            let shapes: [&[usize]; 6] = [&x, &square, &square, &each, &each, &[24]];
            agree(
                &shapes,
                1e-5,
                |t| with_readers(t, true),
                |t| with_readers(t, false),
            );
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, 70] {
            check_parts([2, time, 40], |x, state| {
                let part = |columns: std::ops::Range<usize>| {
                    x.clone().slice([0..2, 0..x.dims()[1], columns])
                };
                selective_scan(SelectiveScan {
                    x: x.clone(),
                    step: x.clone() * 2.0,
                    step_bias: None,
                    transition: -tensor::<2>([40, 5], 3).exp(),
                    input: part(0..5),
                    output: part(5..10),
                    skip: tensor([40], 4),
                    state,
                    readers: None,
                })
            });
        }
    }
}
