//! Linear maps whose weights have three values (BitNet b1.58, arXiv 2402.17764) or two (BitNet, arXiv 2310.11453), and whose inputs
//! have eight bits.
//!
//! ```text
//! inputs, a row at a time   s = 127 / max(max |x|, 1e-5)      X = clamp(round(x s), -128, 127)
//! ternary, all of a weight  g = max(mean |W|, 1e-5)           T = clamp(round(W / g), -1, 1)
//! binary                    g = mean |W|                      T = sign(W - mean W), of zero -1
//! output                    y = (X T^T) g / s
//! ```
//!
//! Rounding is to even. The products `X T^T` are whole numbers below 2^24 and thus exact in f32, whether they are summed in f32, of
//! factors in bf16, or in integers: a weight that is trained and one that is packed give the same bits. Gradients pass both roundings
//! as they are (straight-through, arXiv 1308.3432). Inputs are rounded a token at a time in training too, where the first paper takes
//! one scale for a whole tensor, and they are not shifted to be positive before activations.

mod cpu;
mod dots;
pub mod reference;
mod rounding;

use std::{fmt, str::FromStr};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    fused,
    matmul::Precision,
    recomputable::Recomputable,
    stored::{Stored, Ternary},
    weight::Weight,
};

/// The values that a weight is rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightBits {
    /// -g, 0 and g: 1.58 bits.
    Ternary,
    /// -g and g: one bit.
    Binary,
}

impl WeightBits {
    /// A weight `[rows, width]` rounded and packed, two bits a number; nothing where the sizes do not fit.
    ///
    /// ```
    /// use espalier_kernels::one_bit::WeightBits;
    /// let weight = [0.9, -0.1, 0.3, -1.2, 0.05, 0.6, -0.4, 0.02];
    /// let packed = WeightBits::Ternary.packed([2, 4], &weight).ok_or("eight numbers")?;
    /// let signs: Vec<f32> = packed.expanded().iter().map(|x| (x / 0.44625).round()).collect();
    /// assert_eq!(signs, [1.0, 0.0, 1.0, -1.0, 0.0, 1.0, -1.0, 0.0]);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn packed(self, shape: [usize; 2], weight: &[f32]) -> Option<Stored> {
        let (units, scale) = rounding::weight(self, weight);
        let codes: Vec<u8> = units.iter().map(|unit| (unit + 1.0) as u8).collect();
        Ternary::packed(shape, &codes, scale)
    }
}

impl fmt::Display for WeightBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ternary => "ternary",
            Self::Binary => "binary",
        })
    }
}

impl FromStr for WeightBits {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ternary" => Ok(Self::Ternary),
            "binary" => Ok(Self::Binary),
            _ => Err("expected `ternary` (-1, 0 and 1) or `binary` (-1 and 1)".into()),
        }
    }
}

/// The product of rounded inputs with a weight that is rounded for it.
///
/// `x`: `[.., in]`, `weight`: `[out, in]`, in f32; returns `[.., out]`. The two products of the backward run in `precision`, the
/// forward is exact.
pub fn bit_linear<const D: usize>(
    x: impl Into<Recomputable<D>>,
    weight: Tensor<2>,
    bits: WeightBits,
    precision: Precision,
) -> Tensor<D> {
    let (x, remake) = x.into().into_parts();
    match fused::on_host(&x) {
        true => {
            let operator = cpu::BitLinear {
                bits,
                precision,
                remake,
            };
            fused::two(x, weight, operator)
        }
        false => reference::bit_linear(x, weight, bits),
    }
}

/// As [`bit_linear`] with a packed weight `[out, in]`, to the same bits; it has no gradient.
pub fn packed_linear<const D: usize>(
    x: impl Into<Recomputable<D>>,
    weight: &Stored,
    precision: Precision,
) -> Tensor<D> {
    let x = x.into().into_tensor();
    match (fused::on_host(&x), Ternary::units(weight)) {
        (true, Some(units)) => {
            let operator = cpu::PackedLinear {
                weight: weight.clone(),
                units,
                precision,
            };
            fused::one(x, operator)
        }
        _ => {
            let device = x.device();
            reference::linear_of_rounded(x, Weight::Stored(weight.clone()).into_tensor(&device))
        }
    }
}

#[cfg(test)]
mod tests;
