//! Activations and gates in one pass over memory, forward and backward.

use std::sync::{Arc, OnceLock};

use super::{Activation, Precision};
use crate::{
    bf16::{narrow, wide},
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh, fresh_with, piece},
    simd::{erf, exp, sigmoid, tanh, vectorised},
};
use burn_flex::FlexTensor;

/// `activation(x)`.
#[derive(Debug)]
pub(super) struct Plain(pub Activation);

/// `activation(gate) * up`.
#[derive(Debug)]
pub(super) struct Gated {
    activation: Activation,
    precision: Precision,
    factors: Arc<OnceLock<Factors>>,
}

/// Gate and up as the backward reads them.
#[derive(Debug)]
enum Factors {
    Whole([FlexTensor; 2]),
    /// In bf16.
    Rounded([Vec<u16>; 2], Vec<usize>),
}

impl Factors {
    /// The factors of `inputs`, and `activation(gate) * up`.
    fn new(
        inputs: &[FlexTensor; 2],
        activation: Activation,
        precision: Precision,
    ) -> (Self, FlexTensor) {
        let (shape, [gate, up]) = (dimensions(&inputs[0]), inputs.each_ref().map(contiguous));
        if precision == Precision::F32 {
            let factors = Self::Whole([gate, up]);
            let product = factors.product(activation);
            return (factors, product);
        }
        let count = slice(&gate).len();
        let piece = piece(count);
        let size = (count, piece);
        let ([y], halves) = fresh_with(
            [size],
            [size; 2],
            |i, [y], [of_gate, of_up]: [&mut [u16]; 2]| {
                narrow(of_gate, chunk(slice(&gate), piece, i));
                narrow(of_up, chunk(slice(&up), piece, i));
                gated_halves(activation, y, of_gate, of_up);
            },
        );
        (Self::Rounded(halves, shape.clone()), tensor(y, &shape))
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Whole([gate, _]) => dimensions(gate),
            Self::Rounded(_, shape) => shape.clone(),
        }
    }

    /// `activation(gate) * up`.
    fn product(&self, activation: Activation) -> FlexTensor {
        let shape = self.shape();
        let count = shape.iter().product();
        let piece = piece(count);
        let [y] = fresh([(count, piece)], |i, [y]| match self {
            Self::Whole([gate, up]) => gated(
                activation,
                y,
                chunk(slice(gate), piece, i),
                chunk(slice(up), piece, i),
            ),
            Self::Rounded([gate, up], _) => {
                gated_halves(activation, y, chunk(gate, piece, i), chunk(up, piece, i))
            }
        });
        tensor(y, &shape)
    }

    /// Gradients of gate and up.
    fn gradients(&self, activation: Activation, gradient: &FlexTensor) -> [Option<FlexTensor>; 2] {
        let shape = self.shape();
        let count = shape.iter().product();
        let piece = piece(count);
        let [of_gate, of_up] = fresh([(count, piece); 2], |i, [of_gate, of_up]| {
            let gradient = chunk(slice(gradient), piece, i);
            match self {
                Self::Whole([gate, up]) => {
                    let (gate, up) = (chunk(slice(gate), piece, i), chunk(slice(up), piece, i));
                    gated_backward(activation, of_gate, of_up, gate, up, gradient);
                }
                Self::Rounded([gate, up], _) => {
                    let (gate, up) = (chunk(gate, piece, i), chunk(up, piece, i));
                    gated_halves_backward(activation, of_gate, of_up, gate, up, gradient);
                }
            }
        });
        [Some(tensor(of_gate, &shape)), Some(tensor(of_up, &shape))]
    }
}

impl Gated {
    pub fn new(activation: Activation, precision: Precision) -> Self {
        Self {
            activation,
            precision,
            factors: Arc::default(),
        }
    }

    /// A function that recomputes the output, once the operator has run.
    pub fn remake(&self) -> impl Fn() -> FlexTensor + Send + Sync + 'static {
        let (activation, factors) = (self.activation, self.factors.clone());
        move || {
            factors.get().map_or_else(
                || tensor(Vec::new(), &[0]),
                |factors| factors.product(activation),
            )
        }
    }
}

impl FusedOperator<1> for Plain {
    fn forward(&self, [x]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let x = contiguous(x);
        let piece = piece(slice(&x).len());
        let [y] = fresh([(slice(&x).len(), piece)], |i, [y]| {
            plain(self.0, y, chunk(slice(&x), piece, i))
        });
        (tensor(y, &dimensions(&x)), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let x = contiguous(&given.inputs[0]);
        let piece = piece(slice(&x).len());
        let [of_x] = fresh([(slice(&x).len(), piece)], |i, [of_x]| {
            plain_backward(
                self.0,
                of_x,
                chunk(slice(&x), piece, i),
                chunk(slice(&given.gradient), piece, i),
            );
        });
        [Some(tensor(of_x, &dimensions(&x)))]
    }
}

impl FusedOperator<2> for Gated {
    fn forward(&self, inputs: &[FlexTensor; 2], _: [bool; 2]) -> (FlexTensor, Saved) {
        let (factors, product) = Factors::new(inputs, self.activation, self.precision);
        // An operator runs forward once.
        let _ = self.factors.set(factors);
        (product, Vec::new())
    }

    fn keeps_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, given: Given<2>, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        self.factors.get().map_or([None, None], |factors| {
            factors.gradients(self.activation, &given.gradient)
        })
    }
}

/// Runs `$body` with `$function` bound to the pair `(value, derivative)` of the chosen activation, one loop for each.
macro_rules! each {
    ($fused:ident, $kind:expr, $function:ident => $body:block) => {
        each!($fused, $kind, $function => $body; Silu silu, Gelu gelu, GeluTanh gelu_tanh, Relu relu, Relu2 relu2, QuickGelu quick_gelu,
            Sigmoid logistic, Tanh bent)
    };
    ($fused:ident, $kind:expr, $function:ident => $body:block; $($variant:ident $of:ident),+) => {
        match $kind {
            $(Activation::$variant => {
                let $function = $of::<$fused>;
                $body
            })+
        }
    };
}

vectorised! {
    pub(crate) fn plain<const FUSED: bool>(kind: Activation, y: &mut [f32], x: &[f32]) {
        each!(FUSED, kind, function => { y.iter_mut().zip(x).for_each(|(y, x)| *y = function(*x).0) })
    }
}

vectorised! {
    pub(crate) fn plain_backward<const FUSED: bool>(kind: Activation, of_x: &mut [f32], x: &[f32], gradient: &[f32]) {
        each!(FUSED, kind, function => {
            for ((of_x, x), gradient) in of_x.iter_mut().zip(x).zip(gradient) {
                *of_x = function(*x).1 * gradient;
            }
        })
    }
}

vectorised! {
    pub(crate) fn gated<const FUSED: bool>(kind: Activation, y: &mut [f32], gate: &[f32], up: &[f32]) {
        each!(FUSED, kind, function => {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = function(*gate).0 * up;
            }
        })
    }
}

vectorised! {
    fn gated_halves<const FUSED: bool>(kind: Activation, y: &mut [f32], gate: &[u16], up: &[u16]) {
        each!(FUSED, kind, function => {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = function(wide(*gate)).0 * wide(*up);
            }
        })
    }
}

vectorised! {
    pub(crate) fn gated_backward<const FUSED: bool>(kind: Activation, of_gate: &mut [f32], of_up: &mut [f32], gate: &[f32], up: &[f32], gradient: &[f32]) {
        each!(FUSED, kind, function => {
            let outputs = of_gate.iter_mut().zip(of_up);
            for ((((of_gate, of_up), gate), up), gradient) in outputs.zip(gate).zip(up).zip(gradient) {
                let (value, derivative) = function(*gate);
                *of_gate = derivative * up * gradient;
                *of_up = value * gradient;
            }
        })
    }
}

vectorised! {
    fn gated_halves_backward<const FUSED: bool>(kind: Activation, of_gate: &mut [f32], of_up: &mut [f32], gate: &[u16], up: &[u16], gradient: &[f32]) {
        each!(FUSED, kind, function => {
            let outputs = of_gate.iter_mut().zip(of_up);
            for ((((of_gate, of_up), gate), up), gradient) in outputs.zip(gate).zip(up).zip(gradient) {
                let (value, derivative) = function(wide(*gate));
                *of_gate = derivative * wide(*up) * gradient;
                *of_up = value * gradient;
            }
        })
    }
}

#[inline(always)]
fn silu<const FUSED: bool>(x: f32) -> (f32, f32) {
    let gate = sigmoid::<FUSED>(x);
    (x * gate, gate * (1.0 + x * (1.0 - gate)))
}

#[inline(always)]
fn quick_gelu<const FUSED: bool>(x: f32) -> (f32, f32) {
    let gate = sigmoid::<FUSED>(1.702 * x);
    (x * gate, gate * (1.0 + 1.702 * x * (1.0 - gate)))
}

#[inline(always)]
fn logistic<const FUSED: bool>(x: f32) -> (f32, f32) {
    let y = sigmoid::<FUSED>(x);
    (y, y * (1.0 - y))
}

#[inline(always)]
fn bent<const FUSED: bool>(x: f32) -> (f32, f32) {
    let y = tanh::<FUSED>(x);
    (y, 1.0 - y * y)
}

#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> (f32, f32) {
    let cumulative = 0.5 * (1.0 + erf::<FUSED>(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = exp::<FUSED>(-0.5 * x * x) * 0.398_942_3;
    (x * cumulative, cumulative + x * density)
}

#[inline(always)]
fn gelu_tanh<const FUSED: bool>(x: f32) -> (f32, f32) {
    const SCALE: f32 = 0.797_884_6;
    let bent = tanh::<FUSED>(SCALE * (x + 0.044_715 * x * x * x));
    let slope = SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
    (
        0.5 * x * (1.0 + bent),
        0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * slope,
    )
}

#[inline(always)]
fn relu<const FUSED: bool>(x: f32) -> (f32, f32) {
    // Written so that NaN stays NaN.
    (
        if x < 0.0 { 0.0 } else { x },
        if x > 0.0 { 1.0 } else { 0.0 },
    )
}

#[inline(always)]
fn relu2<const FUSED: bool>(x: f32) -> (f32, f32) {
    let positive = if x < 0.0 { 0.0 } else { x };
    (positive * positive, 2.0 * positive)
}
