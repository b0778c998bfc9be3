//! The diagonal state-space layer S4D (arXiv 2206.11893) with one kernel for all channels, as BiGS uses it (arXiv
//! 2212.10544): a long convolution whose kernel is a sum of decaying oscillations.

mod cpu;
pub mod reference;

use burn::tensor::{Int, Tensor};

use super::long_convolution::long_convolution;
use crate::fused::{self, Side};

/// Steps of a chunk, inside which the kernel is a matrix; older steps come through the state.
const CHUNK: usize = 128;

/// The inputs of the layer with `modes` oscillations.
#[derive(Debug, Clone)]
pub struct S4d {
    /// `x`: `[batch, time, width]`.
    pub x: Tensor<3>,
    /// Real parts of `A`, held at most -0.0001: `[modes]`.
    pub real: Tensor<1>,
    /// Imaginary parts of `A`: `[modes]`.
    pub imaginary: Tensor<1>,
    /// `C`, real and imaginary parts: `[modes, 2]`.
    pub output: Tensor<2>,
    /// `ln dt`: `[1]`.
    pub log_step: Tensor<1>,
    /// `D`: `[1]`.
    pub skip: Tensor<1>,
    /// The state before the first step, real parts of all modes, then imaginary ones: `[batch, 2 * modes, width]`; zeros
    /// where absent.
    pub state: Option<Tensor<3>>,
}

/// `y_t = sum_j K_j x_{t-j} + D x_t` with `K_j = Re(sum_n C_n (exp(dt A_n) - 1) / A_n exp(j dt A_n))`, the zero-order hold
/// of `A` and an input of ones; returns `y`, `[batch, time, width]`, and the last state, `[batch, 2 * modes, width]`.
///
/// The state is `h_t = exp(dt A) h_{t-1} + x_t`. The sequence is computed in chunks, inside which the kernel is a matrix;
/// before them stands the state: some products of matrices, as many for each step however long the sequence.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_kernels::recurrent::s4d::{S4d, s4d};
/// let one = |value: f32| Tensor::<1>::from_floats([value], &Device::flex());
/// let (y, _) = s4d(S4d {
///     x: Tensor::from_floats([[[1.0], [0.0]]], &Device::flex()),
///     real: one(-0.5),
///     imaginary: one(0.0),
///     output: Tensor::from_floats([[1.0, 0.0]], &Device::flex()),
///     log_step: one(0.1f32.ln()),
///     skip: one(0.0),
///     state: None,
/// });
/// let y = y.into_data().try_to_vec::<f32>().unwrap();
/// assert!((y[0] - 0.09754115).abs() < 1e-7 && (y[1] / y[0] - 0.951229).abs() < 1e-5);
/// ```
pub fn s4d(s4d: S4d) -> (Tensor<3>, Tensor<3>) {
    let [batch, time, width] = s4d.x.dims();
    let modes = s4d.real.dims()[0];
    let state = s4d.state.clone();
    let state =
        state.unwrap_or_else(|| Tensor::zeros([batch, 2 * modes, width], &s4d.x.device().inner()));
    if !fused::on_host(&s4d.x) {
        return reference::s4d(s4d, state);
    }
    let tables = Tables::new(&s4d, time.min(CHUNK));
    let side = Side::default();
    let operator = cpu::Convolution { last: side.clone() };
    let y = fused::five(
        s4d.x,
        tables.kernel,
        tables.read,
        tables.powers,
        state,
        operator,
    );
    let last = side.output(&y);
    (y, last)
}

/// The outputs of [`s4d`] without a state, by Fourier transforms, as S4D's authors compute them. On a CPU the chunks are faster
/// at every length (`docs/log.md`), so that the layers use those.
pub fn s4d_by_fourier(s4d: S4d) -> Tensor<3> {
    let time = s4d.x.dims()[1];
    let kernel = Tables::new(&s4d, time).kernel.reshape([1, time]);
    long_convolution(s4d.x, kernel)
}

/// The matrices of a chunk of `steps`. Complex numbers of all modes lie side by side, real parts first.
struct Tables {
    /// `K`, with `D` in its first element: `[steps]`.
    kernel: Tensor<1>,
    /// The contribution of a state to the outputs after it: `[steps, 2 * modes]`.
    read: Tensor<2>,
    /// `exp(j dt A)` for `j` from 0: `[steps + 1, 2 * modes]`.
    powers: Tensor<2>,
}

/// Weights of the modes, `C (exp(dt A) - 1) / A`, and `dt A`, as real and imaginary parts of `[1, modes]`.
struct Modes {
    weight: [Tensor<2>; 2],
    exponent: [Tensor<2>; 2],
}

impl Modes {
    fn new(s4d: &S4d) -> Self {
        let modes = s4d.real.dims()[0];
        let row = |x: Tensor<1>| x.reshape([1, modes]);
        let (real, imaginary) = (
            row(s4d.real.clone()).clamp_max(-1e-4),
            row(s4d.imaginary.clone()),
        );
        let dt = s4d.log_step.clone().exp().reshape([1, 1]);
        let exponent = [real.clone() * dt.clone(), imaginary.clone() * dt];
        let size = exponent[0].clone().exp();
        let top = [
            size.clone() * exponent[1].clone().cos() - 1.0,
            size * exponent[1].clone().sin(),
        ];
        let square = real.clone() * real.clone() + imaginary.clone() * imaginary.clone();
        let held = [
            (top[0].clone() * real.clone() + top[1].clone() * imaginary.clone()) / square.clone(),
            (top[1].clone() * real - top[0].clone() * imaginary) / square,
        ];
        let part = |i: usize| {
            s4d.output
                .clone()
                .slice([0..modes, i..i + 1])
                .reshape([1, modes])
        };
        Self {
            weight: product([part(0), part(1)], held),
            exponent,
        }
    }
}

/// The product of complex numbers.
fn product([a, b]: [Tensor<2>; 2], [c, d]: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
    [a.clone() * c.clone() - b.clone() * d.clone(), a * d + b * c]
}

impl Tables {
    fn new(s4d: &S4d, steps: usize) -> Self {
        let Modes { weight, exponent } = Modes::new(s4d);
        let modes = s4d.real.dims()[0];
        let count = Tensor::<1, Int>::arange(0..steps as i64 + 1, &s4d.x.device().inner());
        let count = count.float().reshape([steps + 1, 1]);
        let (size, angle) = (
            exponent[0].clone() * count.clone(),
            exponent[1].clone() * count,
        );
        let powers = [
            size.clone().exp() * angle.clone().cos(),
            size.exp() * angle.sin(),
        ];
        let [real, imaginary] = product(powers.clone(), weight);
        let rows = |x: &Tensor<2>, first: usize| x.clone().slice([first..first + steps, 0..modes]);
        let first = Tensor::cat(
            vec![
                s4d.skip.clone(),
                Tensor::zeros([steps - 1], &s4d.x.device().inner()),
            ],
            0,
        );
        let first = if steps == 1 { s4d.skip.clone() } else { first };
        Self {
            kernel: rows(&real, 0).sum_dim(1).reshape([steps]) + first,
            read: Tensor::cat(vec![rows(&real, 1), -rows(&imaginary, 1)], 1),
            powers: Tensor::cat(powers.to_vec(), 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recurrent::testing::{both, check, check_parts, tensor},
        testing::{Leaf, agree},
    };
    use burn::tensor::Device;
    use proptest::prelude::*;

    /// The layer, whose last three parameters are constant where they are not among the inputs.
    fn layer(t: &[Leaf]) -> S4d {
        let modes = t[1].get::<2>().dims()[0];
        let parameter = |i: usize, length: usize| {
            t.get(i)
                .map_or_else(|| tensor([length], i as u64), Leaf::get)
        };
        S4d {
            x: t[0].get(),
            real: parameter(4, modes) * 0.4 - 0.6,
            imaginary: parameter(5, modes) * 3.0,
            output: t[1].get::<2>() * 0.2,
            log_step: parameter(6, 1) - 1.5,
            skip: t[2].get(),
            state: Some(t[3].get()),
        }
    }

    fn with_shapes([batch, time, width, modes]: [usize; 4], run: impl FnOnce(&[&[usize]])) {
        let (x, state) = ([batch, time, width], [batch, 2 * modes, width]);
        run(&[&x, &[modes, 2], &[1], &state, &[modes], &[modes], &[1]]);
    }

    /// With the gradients of the first inputs.
    fn agree_with_reference(sizes: [usize; 4], inputs: usize) {
        with_shapes(sizes, |shapes| {
            let reference = |t: &[Leaf]| both(reference::s4d(layer(t), t[3].get()));
            agree(&shapes[..inputs], 1e-5, |t| both(s4d(layer(t))), reference);
        });
    }

    /// A complex number.
    type Complex = [f64; 2];

    fn times(a: Complex, b: Complex) -> Complex {
        [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
    }

    /// By the recurrence, in f64: the outputs, then the last state.
    fn definition([batch, time, width, modes]: [usize; 4], inputs: &[Vec<f64>]) -> Vec<f64> {
        let (mut y, mut last) = (
            vec![0.0; batch * time * width],
            vec![0.0; batch * 2 * modes * width],
        );
        let dt = (inputs[6][0] - 1.5).exp();
        for (b, c) in (0..batch * width).map(|i| (i / width, i % width)) {
            for n in 0..modes {
                let a: Complex = [inputs[4][n] * 0.4 - 0.6, inputs[5][n] * 3.0];
                let size = (dt * a[0]).exp();
                let power = [size * (dt * a[1]).cos(), size * (dt * a[1]).sin()];
                let square = a[0] * a[0] + a[1] * a[1];
                let held = times([power[0] - 1.0, power[1]], [a[0] / square, -a[1] / square]);
                let weight = times([inputs[1][2 * n] * 0.2, inputs[1][2 * n + 1] * 0.2], held);
                let at = |part: usize| (b * 2 * modes + part * modes + n) * width + c;
                let mut h = [inputs[3][at(0)], inputs[3][at(1)]];
                for t in 0..time {
                    let i = (b * time + t) * width + c;
                    h = times(power, h);
                    h[0] += inputs[0][i];
                    y[i] += times(weight, h)[0]
                        + if n == 0 {
                            inputs[2][0] * inputs[0][i]
                        } else {
                            0.0
                        };
                }
                (last[at(0)], last[at(1)]) = (h[0], h[1]);
            }
        }
        y.extend(last);
        y
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn agrees_with_the_reference(batch in 1usize..3, time in 1usize..60, width in 1usize..40, modes in 1usize..9) {
            // The gradients of the other parameters are single numbers in which thousands of terms may cancel; they are
            // compared in f64 below, and with numbers where they do not.
            agree_with_reference([batch, time, width, modes], 4);
        }

        #[test]
        fn agrees_with_the_formula_in_f64(time in 1usize..20, width in 1usize..4, modes in 1usize..4) {
            let sizes = [2, time, width, modes];
            with_shapes(sizes, |shapes| check(shapes, |t| both(s4d(layer(t))), |inputs| definition(sizes, inputs)));
        }
    }

    #[test]
    fn several_chunks_and_groups_agree_with_the_reference() {
        agree_with_reference([1, 2 * CHUNK + 5, 3, 4], 6);
        agree_with_reference([2, 9, 300, 2], 6);
    }

    #[test]
    fn fourier_transforms_give_the_same() {
        for time in [1, 7, CHUNK, 2 * CHUNK + 1] {
            with_shapes([3, time, 20, 4], |shapes| {
                let plain = |t: &[Leaf]| S4d {
                    state: None,
                    ..layer(t)
                };
                let operator = |t: &[Leaf]| {
                    s4d_by_fourier(plain(t)).reshape([-1]) + t[3].get::<3>().sum() * 0.0
                };
                agree(&shapes[..4], 1e-5, operator, |t| {
                    s4d(plain(t)).0.reshape([-1]) + t[3].get::<3>().sum() * 0.0
                });
            });
        }
    }

    #[test]
    fn parts_join_and_the_future_is_unseen() {
        for time in [1, 9, CHUNK + 20] {
            check_parts([2, time, 10], |x, state| {
                let device = Device::flex();
                let (real, imaginary) = (tensor::<1>([4], 2) * 0.2 - 0.5, tensor([4], 3) * 5.0);
                let (log_step, skip) = (
                    Tensor::from_floats([-1.0], &device),
                    Tensor::from_floats([0.3], &device),
                );
                s4d(S4d {
                    x,
                    real,
                    imaginary,
                    output: tensor([4, 2], 5),
                    log_step,
                    skip,
                    state,
                })
            });
        }
    }
}
