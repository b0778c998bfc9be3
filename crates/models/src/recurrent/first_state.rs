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
/// let first = FirstState::zeros("blocks.0.mixer", "default", &seen, &Device::flex());
/// assert_eq!(FirstState::rows([&first], 4).get("scan", [4, 6]).map(|part| part.dims()), Some([4, 6]));
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
    /// That of a layer which remembers nothing yet, as a part of the adapter of this name; `seen` is any state of this layer.
    pub fn zeros(layer: &str, adapter: &str, seen: &RecurrentState, device: &Device) -> Self {
        let part = |(name, part): (&str, &Tensor<2>)| {
            let size = part.dims()[1];
            let zeros = Tensor::zeros([size], &device.clone().inner());
            let full_name = format!("{layer}.adapter.{adapter}.{name}");
            Part {
                name: name.to_owned(),
                value: Parameter::new(full_name, vec![size], zeros).of_adapter(adapter),
            }
        };
        Self {
            parts: seen.parts().map(part).collect(),
        }
    }

    /// The parts by name, each `[size]`.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.parts
            .iter()
            .map(|part| (part.name.as_str(), &part.value))
    }

    /// The state of a batch before its first tokens: the sum of all `first` states.
    pub fn rows<'a>(first: impl IntoIterator<Item = &'a Self>, batch: usize) -> RecurrentState {
        let mut state = RecurrentState::default();
        for Part { name, value } in first.into_iter().flat_map(|first| &first.parts) {
            let rows = value.value::<1>().unsqueeze::<2>().repeat_dim(0, batch);
            let rows = match state.get(name, [batch, value.len()]) {
                Some(sum) => sum + rows,
                None => rows,
            };
            state.set(name, rows);
        }
        state
    }
}
