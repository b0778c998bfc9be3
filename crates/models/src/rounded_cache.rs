//! Keys and values that are remembered in fewer bits: bf16, or eight bits in blocks of 32 (Q8_0).
//!
//! A position is one row over all heads, rounded when it comes. For a step of a block the rows are expanded to f32 and let go again, so that
//! what stays is the rounded rows and, for a moment, one block's in f32.

use std::{fmt, str::FromStr};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_kernels::{
    readback::ReadFloats,
    stored::{Bf16, Q8_0, Quantise, Stored},
};

use crate::{
    Error, Result,
    families::attention,
    spec::{MixerSpec, ModelSpec},
};

/// How keys and values are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheFormat {
    /// As they are.
    #[default]
    F32,
    /// The upper half of f32: half of the memory.
    Bf16,
    /// Eight bits with a scale for 32 numbers: a little more than a quarter.
    Q8_0,
}

impl CacheFormat {
    const ALL: [(&'static str, Self); 3] = [
        ("f32", Self::F32),
        ("bf16", Self::Bf16),
        ("q8_0", Self::Q8_0),
    ];

    /// How rows are rounded; nothing where they are not.
    pub(crate) fn rounding(self) -> Option<&'static dyn Quantise> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(&Bf16),
            Self::Q8_0 => Some(&Q8_0),
        }
    }

    /// Checks that a model's keys and values can be remembered so.
    ///
    /// # Errors
    /// When a row is no whole blocks, or an attention remembers something else.
    pub fn check(self, spec: &ModelSpec) -> Result<()> {
        let Some(format) = self.rounding() else {
            return Ok(());
        };
        let latent = |mixer: &MixerSpec| {
            matches!(
                mixer,
                MixerSpec::LatentAttention(_) | MixerSpec::AttentionExperts(_)
            )
        };
        if spec.blocks.iter().any(|block| latent(&block.mixer)) {
            return Err(Error::Invalid(format!(
                "the cache is kept in {self} for plain attention alone; choose f32"
            )));
        }
        let width =
            |attention: &crate::spec::AttentionSpec| attention.kv_heads * attention.head_dim;
        let odd = spec.blocks.iter().filter_map(attention).map(width);
        match odd
            .into_iter()
            .find(|width| format.row_bytes(*width).is_none())
        {
            Some(width) => Err(Error::Invalid(format!(
                "the cache cannot be kept in {self}: the {width} numbers of a position are no whole blocks of 32; choose bf16"
            ))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(_, format)| format == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

impl FromStr for CacheFormat {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format).ok_or_else(|| {
            format!(
                "expected one of {}",
                Self::ALL.map(|(name, _)| name).join(", ")
            )
        })
    }
}

/// The rows of one block's keys, or of its values.
#[derive(Debug, Clone)]
pub(crate) struct RoundedRows {
    format: &'static dyn Quantise,
    /// Heads, and the width of one.
    size: [usize; 2],
    /// For each text its positions, one after another.
    texts: Vec<Vec<u8>>,
    device: Device,
}

impl RoundedRows {
    /// No positions of as many texts as `like`, `[batch, time, heads, width]`, has.
    pub fn empty(format: &'static dyn Quantise, like: &Tensor<4>) -> Self {
        let [batch, _, heads, width] = like.dims();
        Self {
            format,
            size: [heads, width],
            texts: vec![Vec::new(); batch],
            device: like.device(),
        }
    }

    /// Adds positions, `[batch, time, heads, width]`, behind the first `known`.
    pub fn append(&mut self, new: Tensor<4>, known: usize) {
        let time = new.dims()[1];
        let [heads, width] = self.size;
        let size = self.format.row_bytes(heads * width).unwrap_or(0);
        let numbers = new.inner().floats();
        let texts = numbers.chunks_exact((time * heads * width).max(1));
        for (text, numbers) in self.texts.iter_mut().zip(texts) {
            text.resize((known + time) * size, 0);
            let rows = text[known * size..].chunks_exact_mut(size.max(1));
            for (row, numbers) in rows.zip(numbers.chunks_exact((heads * width).max(1))) {
                self.format.quantise_row(numbers, None, row);
            }
        }
    }

    /// All positions in f32, `[batch, time, heads, width]`.
    pub fn expanded(&self) -> Tensor<4> {
        let [heads, width] = self.size;
        let size = self.format.row_bytes(heads * width).unwrap_or(0).max(1);
        let time = self.texts.first().map_or(0, |text| text.len() / size);
        let mut numbers = Vec::with_capacity(self.texts.len() * time * heads * width);
        for text in &self.texts {
            let shape = vec![time, heads * width];
            let stored = Stored::new(self.format, shape, text.clone().into());
            numbers.extend(stored.map(|stored| stored.expanded()).unwrap_or_default());
        }
        let data = TensorData::new(numbers, [self.texts.len(), time, heads, width]);
        Tensor::from_data(data, &self.device.clone().inner())
    }

    /// The texts that `rows` name.
    pub fn selected(&self, rows: &[usize]) -> Self {
        let text = |row: &usize| self.texts.get(*row).cloned().unwrap_or_default();
        Self {
            texts: rows.iter().map(text).collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_in_order_and_rounded() {
        let device = Device::flex();
        let values = |shift: f32| -> Vec<f32> {
            (0..2 * 3 * 32).map(|i| (i as f32 + shift).sin()).collect()
        };
        let tensor =
            |shift| Tensor::<4>::from_data(TensorData::new(values(shift), [2, 3, 1, 32]), &device);
        for (format, bound) in [(CacheFormat::Bf16, 0.004), (CacheFormat::Q8_0, 0.005)] {
            let mut rows = RoundedRows::empty(format.rounding().unwrap(), &tensor(0.0));
            rows.append(tensor(0.0), 0);
            rows.append(tensor(0.5), 3);
            let all = rows.expanded();
            assert_eq!(all.dims(), [2, 6, 1, 32]);
            let expected = Tensor::cat(vec![tensor(0.0), tensor(0.5)], 1);
            let gap = (all - expected.clone()).abs().max().into_scalar::<f32>();
            assert!(gap > 0.0 && gap < bound, "{format}: {gap}");
            let picked = rows.selected(&[1, 1, 0]).expanded();
            assert_eq!(picked.dims()[0], 3);
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!(
            "f8".parse::<CacheFormat>()
                .unwrap_err()
                .contains("f32, bf16, q8_0")
        );
    }
}
