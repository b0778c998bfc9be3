//! The gate of gpt-oss' experts (OpenAI, 2025): `g sigmoid(alpha g) (u + 1)`, with gates and inputs cut off.

use burn::tensor::{Tensor, activation::sigmoid};

use crate::spec::ClampedGate;

/// The hidden rows `[rows, inner]` of rows in which gates and inputs take turns, `[rows, 2 inner]`.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::{layers::clamped_gate::clamped, spec::ClampedGate};
/// let pairs = Tensor::<2>::from_floats([[9.0, -9.0, 0.0, 1.0]], &Device::flex());
/// let hidden = clamped(pairs, ClampedGate { alpha: 10.0, limit: 7.0 });
/// assert_eq!(hidden.into_data().try_to_vec::<f32>().unwrap(), [7.0 * -6.0, 0.0]);
/// ```
pub fn clamped(pairs: Tensor<2>, form: ClampedGate) -> Tensor<2> {
    let [rows, both] = pairs.dims();
    let pairs: Tensor<3> = pairs.reshape([rows, both / 2, 2]);
    let part = |number| -> Tensor<2> {
        let part = pairs.clone().narrow(2, number, 1);
        part.reshape([rows, both / 2])
    };
    let gate = part(0).clamp_max(form.limit);
    let input = part(1).clamp(-form.limit, form.limit);
    gate.clone() * sigmoid(gate * form.alpha) * (input + 1.0)
}
