//! What a recurrent layer remembers.

use burn::tensor::{Int, Tensor, TensorData};

/// A few named parts, whose sizes do not depend on how long the sequence is. Without parts it is the state before the first
/// token.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use espalier_models::recurrent::RecurrentState;
/// let mut state = RecurrentState::default();
/// assert!(state.get("scan", [1, 2, 3]).is_none());
/// state.set("scan", Tensor::<3>::ones([1, 2, 3], &Device::flex()));
/// assert_eq!(state.get("scan", [1, 2, 3]).map(|part| part.dims()), Some([1, 2, 3]));
/// ```
#[derive(Debug, Clone, Default)]
pub struct RecurrentState {
    /// Each `[batch, size]`.
    parts: Vec<(String, Tensor<2>)>,
}

impl RecurrentState {
    /// Whether it is the state before the first token.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// A part in its shape, whose first axis is the batch; nothing before the first token.
    pub fn get<const D: usize>(&self, name: &str, shape: [usize; D]) -> Option<Tensor<D>> {
        let (_, part) = self.parts.iter().find(|(known, _)| known == name)?;
        Some(part.clone().reshape(shape))
    }

    /// Remembers a part, whose first axis is the batch.
    pub fn set<const D: usize>(&mut self, name: &str, part: Tensor<D>) {
        let batch = part.dims()[0].max(1);
        let size = part.dims().iter().product::<usize>() / batch;
        let part = part.reshape([batch, size]);
        match self.parts.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = part,
            None => self.parts.push((name.into(), part)),
        }
    }

    /// The parts by name, each `[batch, size]`.
    pub fn parts(&self) -> impl Iterator<Item = (&str, &Tensor<2>)> {
        self.parts.iter().map(|(name, part)| (name.as_str(), part))
    }

    /// The state whose row `i` is this one's row `rows[i]`.
    #[must_use]
    pub fn selected(&self, rows: &[usize]) -> Self {
        let pick = |(name, part): &(String, Tensor<2>)| {
            let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
            let data = TensorData::new(rows.clone(), [rows.len()]);
            (
                name.clone(),
                part.clone()
                    .select(0, Tensor::<1, Int>::from_data(data, &part.device())),
            )
        };
        Self {
            parts: self.parts.iter().map(pick).collect(),
        }
    }
}
