//! GGUF files, the format of llama.cpp, as checkpoints of Hugging Face: tensors have the names and the order that the families know, and
//! the metadata becomes a `config.json` (`configuration.rs`).
//!
//! Rows stay in the file, in its format; a tensor whose rows the converters have reordered (LLaMA's queries and keys) is put in order in
//! memory of its own, in that format too. Nothing in a file is believed: see [`espalier_data::gguf`] for its header; here each tensor's
//! type is looked up and its bytes must lie within the file.

mod configuration;
mod kinds;
mod layouts;
mod metadata;
mod write;

use std::{collections::BTreeMap, ops::Range, path::Path};

use espalier_data::gguf::{self, Header, TensorEntry, Value};
use espalier_kernels::stored::{F32, Format, Stored, StoredBytes};
use memmap2::Mmap;
use serde_json::Map;

pub use self::{
    kinds::{KINDS, Kind},
    layouts::Layout,
    write::{Importance, Mixture, no_tokenizer, write},
};
use super::safetensors::{Place, TensorInfo};

/// Whether a file begins like one of GGUF.
pub(super) fn is_gguf(file: &[u8]) -> bool {
    gguf::is_gguf(file)
}

/// How a tensor of a file differs from that of Hugging Face's checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// The rows of the two halves of each of so many heads take turns.
    Halves(usize),
    /// One is added to every number.
    OneMore,
    /// It is `-e^x`.
    NegatedExponential,
    /// It lacks an axis of one in the middle.
    MiddleAxis,
}

/// How a tensor's numbers lie in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoding {
    pub format: &'static dyn Format,
    pub change: Change,
    /// Whether a matrix that the family stores `[in, out]` lies the other way round.
    pub upright: bool,
}

impl PartialEq for Encoding {
    fn eq(&self, other: &Self) -> bool {
        let is_same = self.format.name() == other.format.name();
        is_same && self.change == other.change && self.upright == other.upright
    }
}

impl Encoding {
    /// The tensor as Hugging Face's checkpoint has it.
    pub fn stored(&self, shape: &[usize], bytes: StoredBytes) -> Option<Stored> {
        let plain = || Stored::new(self.format, shape.to_vec(), bytes.clone());
        let changed = |change: fn(f32) -> f32| {
            let numbers = plain()?.expanded();
            let bytes: Vec<u8> = numbers
                .into_iter()
                .flat_map(|x| change(x).to_le_bytes())
                .collect();
            Stored::new(&F32, shape.to_vec(), bytes.into())
        };
        match self.change {
            Change::None | Change::MiddleAxis => plain(),
            Change::OneMore => changed(|x| x - 1.0),
            Change::NegatedExponential => changed(|x| (-x).ln()),
            Change::Halves(heads) => {
                // A bias has a number a row.
                let rows = *shape.first()?;
                let width = shape.iter().skip(1).product();
                let matrix = Stored::new(self.format, vec![rows, width], bytes.clone())?;
                let order = halves_of_turns(rows, heads)?;
                matrix.reordered(order)?.reshaped(shape.to_vec())
            }
        }
    }
}

/// For each row of heads whose halves stand one after the other, the row where they take turns.
fn halves_of_turns(rows: usize, heads: usize) -> Option<impl Fn(usize) -> usize + Sync> {
    let head = rows.checked_div(heads)?;
    let half = head / 2;
    let fits = head * heads == rows && 2 * half == head && half > 0;
    fits.then_some(move |row: usize| {
        let (place, inside) = (row / head * head, row % head);
        place + 2 * (inside % half) + inside / half
    })
}

/// What a file says and where its tensors lie.
#[derive(Debug)]
pub(super) struct Contents {
    pub header: Header,
    pub tensors: BTreeMap<String, Place>,
    /// Tensors that say something of rotary positions.
    factors: BTreeMap<&'static str, Range<usize>>,
}

/// The places of the tensors of `file`, under the names of Hugging Face's checkpoint. A shard behind the first has the metadata of that.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn parse(file: &[u8], first: Option<&Header>) -> Result<Contents, String> {
    let header = gguf::read_header(file, file.len() as u64).map_err(|error| error.to_string())?;
    let described = first.unwrap_or(&header);
    let layout = configuration::layout(described)?;
    let heads = configuration::heads(described)?;
    let (mut tensors, mut factors) = (BTreeMap::new(), BTreeMap::new());
    for entry in &header.tensors {
        let placed = place(entry, &header, file.len());
        let (kind, shape, bytes) =
            placed.map_err(|reason| format!("tensor `{}` {reason}", entry.name))?;
        if let Some(name) = layouts::FACTORS.iter().find(|name| **name == entry.name) {
            if kind.number != 0 {
                return Err(format!("tensor `{name}` is not in f32"));
            }
            factors.insert(*name, bytes);
            continue;
        }
        let theirs = layout.theirs(&entry.name).ok_or_else(|| {
            format!(
                "tensor `{}` is none of the architecture `{}`, as far as it is read here",
                entry.name, layout.architecture
            )
        })?;
        let encoding = Encoding {
            format: kind.format,
            change: layout.change(&entry.name, heads),
            upright: layout.upright,
        };
        for (name, shape, bytes) in parts(theirs, shape, bytes, encoding.change) {
            let info = TensorInfo {
                dtype: kind.dtype(),
                shape,
            };
            let place = Place {
                info,
                bytes,
                strided: None,
                encoding: Some(encoding),
            };
            tensors.insert(name, place);
        }
    }
    Ok(Contents {
        header,
        tensors,
        factors,
    })
}

/// The tensors of Hugging Face's checkpoint that one of the file is: the matrices of a stack of experts one by one.
fn parts(
    name: String,
    mut shape: Vec<usize>,
    bytes: Range<usize>,
    change: Change,
) -> Vec<(String, Vec<usize>, Range<usize>)> {
    if change == Change::MiddleAxis && shape.len() == 2 {
        shape.insert(1, 1);
    }
    let experts = match shape.first() {
        Some(experts) if name.contains("{}") && *experts > 0 => *experts,
        _ => return vec![(name, shape, bytes)],
    };
    let size = bytes.len() / experts;
    let part = |expert: usize| {
        let start = bytes.start + expert * size;
        let name = name.replace("{}", &expert.to_string());
        (name, shape[1..].to_vec(), start..start + size)
    };
    (0..experts).map(part).collect()
}

/// The type, the shape (rows first) and the bytes of a tensor.
fn place(
    entry: &TensorEntry,
    header: &Header,
    length: usize,
) -> Result<(Kind, Vec<usize>, Range<usize>), String> {
    let kind = Kind::of(entry.kind)?;
    let size = |axis: &u64| usize::try_from(*axis).map_err(|_| format!("is {axis} long"));
    let mut shape = entry
        .axes
        .iter()
        .rev()
        .map(size)
        .collect::<Result<Vec<_>, _>>()?;
    if shape.is_empty() {
        shape.push(1);
    }
    let width = shape.last().copied().unwrap_or(1);
    let rows: usize = shape.iter().rev().skip(1).product();
    let [block, _] = kind.format.block();
    let row = kind.format.row_bytes(width).ok_or_else(|| {
        format!(
            "has rows of {width} numbers, which are no whole blocks of {block} as {} needs them",
            kind.format.name().to_uppercase()
        )
    })?;
    let outside = || {
        format!(
            "lies outside the file of {length} bytes; it is cut short or damaged: download it again"
        )
    };
    let bytes = row.checked_mul(rows).ok_or_else(outside)?;
    let start = usize::try_from(header.data.checked_add(entry.offset).ok_or_else(outside)?)
        .map_err(|_| outside())?;
    let end = start.checked_add(bytes).ok_or_else(outside)?;
    if end > length {
        return Err(outside());
    }
    Ok((kind, shape, start..end))
}

impl Contents {
    /// The `config.json` that the file stands for.
    pub fn configuration(
        &self,
        map: &Mmap,
        has: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Map<String, serde_json::Value>, String> {
        let factors = |name: &str| -> Option<Vec<f64>> {
            let bytes = map.get(self.factors.get(name)?.clone())?;
            let floats = bytes.as_chunks::<4>().0.iter();
            Some(
                floats
                    .map(|bytes| f32::from_le_bytes(*bytes).into())
                    .collect(),
            )
        };
        configuration::configuration(&self.header, &factors, has)
    }

    /// The names of all files that the model is spread over, where this is the first of several.
    pub fn shards(&self, path: &Path) -> Result<Vec<String>, String> {
        let number = |key: &str| self.header.metadata.get(key).and_then(Value::as_u64);
        let count = number("split.count").unwrap_or(1);
        if count <= 1 {
            return Ok(Vec::new());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let end = format!("-00001-of-{count:05}.gguf");
        match (number("split.no").unwrap_or(0), name.strip_suffix(&end)) {
            (0, Some(stem)) if count < 1 << 16 => Ok((2..=count)
                .map(|i| format!("{stem}-{i:05}-of-{count:05}.gguf"))
                .collect()),
            _ => Err(format!(
                "is one of {count} parts of a model; give the first, whose name ends in `{end}`"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_that_take_turns_come_apart() {
        let order = halves_of_turns(8, 2).unwrap();
        let found: Vec<usize> = (0..8).map(order).collect();
        assert_eq!(found, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert!(halves_of_turns(9, 2).is_none() && halves_of_turns(6, 2).is_none());
        assert!(halves_of_turns(6, 0).is_none());
    }
}
