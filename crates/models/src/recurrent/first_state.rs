//! The state from which a recurrent layer starts a text, where it is trained (state tuning, as RWKV's authors do it).

use burn::tensor::{Device, Tensor};

use super::RecurrentState;
use crate::parameter::{Parameter, parameters};

/// A trained state before the first token, one for all texts.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::recurrent::{FirstState, RecurrentState};
/// let mut seen = RecurrentState::default();
/// seen.set("scan", Tensor::<2>::ones([1, 6], &Device::flex()));
/// let first = FirstState::zeros("blocks.0.mixer", &seen, &Device::flex());
/// assert_eq!(first.rows(4).get("scan", [4, 6]).map(|part| part.dims()), Some([4, 6]));
/// ```
#[derive(Debug, Clone)]
pub struct FirstState {
    parts: Vec<Part>,
}

parameters!(FirstState: parts);

/// A part of the state by its name, `[size]`.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    value: Parameter,
}

parameters!(Part: value);

impl FirstState {
    /// That of a layer which remembers nothing yet; `seen` is any state of this layer.
    pub fn zeros(layer: &str, seen: &RecurrentState, device: &Device) -> Self {
        let part = |(name, part): (&str, &Tensor<2>)| {
            let size = part.dims()[1];
            let zeros = Tensor::zeros([size], &device.clone().inner());
            Part {
                name: name.to_owned(),
                value: Parameter::new(format!("{layer}.adapter.{name}"), vec![size], zeros),
            }
        };
        Self {
            parts: seen.parts().map(part).collect(),
        }
    }

    /// The state of a batch before its first tokens.
    pub fn rows(&self, batch: usize) -> RecurrentState {
        let mut state = RecurrentState::default();
        for Part { name, value } in &self.parts {
            state.set(
                name,
                value.value::<1>().unsqueeze::<2>().repeat_dim(0, batch),
            );
        }
        state
    }
}
