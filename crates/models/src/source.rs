//! Where a model's weights come from: a seed, or a checkpoint.

use std::{collections::HashMap, ops::Range};

use espalier_data::random::{Random, fnv};
use espalier_kernels::stored::{Mxfp4, Stored};

use crate::{
    Error, Result,
    checkpoint::{
        Checkpoint,
        bitnet::{self, ScaleForm},
        bitsandbytes, gptq,
    },
    families::{Family, TensorEntry},
    layout::row_shape,
    spec::ModelSpec,
};

/// How a weight starts when nothing is known of it.
#[derive(Debug, Clone)]
pub enum Initial {
    /// Normal with this standard deviation.
    Normal(f64),
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Even between minus this and this.
    Uniform(f64),
    /// A matrix whose rows, or columns if they are fewer, are perpendicular and of this length.
    Orthogonal(f64),
    /// Each drawn so.
    Draw(fn(&mut Random) -> f64),
    /// These.
    Values(Vec<f32>),
}

/// The values of one weight as a source has them.
///
/// ```
/// use espalier_models::source::Values;
/// assert_eq!(Values::from(vec![1.0, 2.0]).into_floats(), [1.0, 2.0]);
/// ```
#[derive(Debug, Clone)]
pub enum Values {
    /// In row-major order.
    Floats(Vec<f32>),
    /// Rows as a file holds them, in the shape that was asked for.
    Stored(Stored),
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self::Floats(values)
    }
}

impl Values {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Stored(stored) => stored.shape().iter().product(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All in f32, in row-major order; the pages of a mapped file are given back.
    pub fn into_floats(self) -> Vec<f32> {
        match self {
            Self::Floats(values) => values,
            Self::Stored(stored) => {
                let values = stored.expanded();
                stored.bytes().release();
                values
            }
        }
    }
}

/// Gives a model its weights one at a time, so that building peaks at the model and one tensor.
pub trait ParameterSource {
    /// The values of our parameter `name`; `shape` is what the model expects.
    ///
    /// # Errors
    /// When the source has no such weight or another shape.
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values>;

    /// The weight of a linear map, which a source may round.
    ///
    /// # Errors
    /// As [`ParameterSource::parameter`].
    fn linear(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        self.parameter(name, shape, initial)
    }
}

/// Fresh weights. Each tensor has its own stream, so one weight's values do not depend on the others.
#[derive(Debug, Clone, Copy)]
pub struct Seed(pub u64);

impl Seed {
    fn drawn(self, name: &str, count: usize, draw: impl Fn(&mut Random) -> f64) -> Vec<f32> {
        let mut random = Random::new(fnv(&format!("{}|{name}", self.0)));
        (0..count).map(|_| draw(&mut random) as f32).collect()
    }
}

impl ParameterSource for Seed {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let count = shape.iter().product();
        let values = match initial {
            Initial::Zeros => vec![0.0; count],
            Initial::Ones => vec![1.0; count],
            Initial::Values(values) => values,
            Initial::Normal(deviation) => {
                self.drawn(name, count, |random| random.normal() * deviation)
            }
            Initial::Uniform(bound) => {
                self.drawn(name, count, |random| (2.0 * random.f() - 1.0) * bound)
            }
            Initial::Draw(draw) => self.drawn(name, count, draw),
            Initial::Orthogonal(length) => {
                let [rows, columns] =
                    [shape.first(), shape.get(1)].map(|axis| axis.copied().unwrap_or(1));
                let numbers = self.drawn(name, count, |random| random.normal());
                perpendicular(numbers, rows, columns, length)
            }
        };
        Ok(values.into())
    }
}

/// Weights of a Hugging Face folder, read through the family's table of names. What lies in the file as the model has it, whole or as a
/// run of rows of a fused tensor, stays there, mapped; the rest is put together in memory, in the file's format.
pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    places: HashMap<String, Vec<Place>>,
    scales: Option<ScaleForm>,
}

/// Where one of our parameters, or some rows of it, lies in a checkpoint.
#[derive(Clone)]
struct Place {
    tensor: String,
    /// First of our rows within a group of the (possibly fused) tensor.
    start: usize,
    /// Rows of the whole fused tensor.
    total: usize,
    /// Groups in which the fused parts take turns.
    groups: usize,
    transposed: bool,
    /// The rows of our parameter that lie there, where others lie elsewhere.
    rows: Option<Range<usize>>,
}

impl<'a> CheckpointSource<'a> {
    /// Prepares to read `spec`'s parameters from `checkpoint`.
    pub fn new(checkpoint: &'a Checkpoint, family: &Family, spec: &ModelSpec) -> Self {
        let shapes: HashMap<String, Vec<usize>> = spec.parameters().into_iter().collect();
        let mut places: HashMap<String, Vec<Place>> = HashMap::new();
        for (part, place) in (family.tensors)(spec)
            .iter()
            .flat_map(|entry| self::places(entry, &shapes))
        {
            places.entry(part).or_default().push(place);
        }
        // Rows that were scattered come back in their order.
        places
            .values_mut()
            .for_each(|list| list.sort_by_key(|place| place.rows.as_ref().map(|rows| rows.start)));
        Self {
            checkpoint,
            prefix: family.prefix,
            places,
            scales: None,
        }
    }

    /// The same, where the configuration says what the scales beside packed weights are.
    pub(crate) fn with_scales(self, scales: Option<ScaleForm>) -> Self {
        Self { scales, ..self }
    }

    /// Reads one of our parameters from this tensor of the file and not from its usual one.
    pub(crate) fn read_from(&mut self, ours: &str, tensor: String) {
        for place in self.places.get_mut(ours).into_iter().flatten() {
            place.tensor.clone_from(&tensor);
        }
    }
}

/// The tensor's name as this file has it: base-model files lack the prefix, and norms of old files and the
/// embedding of Mamba's authors have other names.
pub(crate) fn stored_name(checkpoint: &Checkpoint, prefix: &str, name: &str) -> Option<String> {
    let bare = name.strip_prefix(prefix).unwrap_or(name);
    let old = |name: &str| {
        let name = name
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        name.replace("backbone.embeddings.", "backbone.embedding.")
    };
    let names = [name.to_owned(), bare.to_owned(), old(name), old(bare)];
    names
        .into_iter()
        .find(|name| checkpoint.info(name).is_some())
}

/// Ends of the names of tensors that hold a packed parameter: its numbers, and the scales of their blocks.
const PACKED: [&str; 2] = ["_blocks", "_scales"];

/// The name of the parameter that a tensor of this name holds, or holds a part of.
pub(crate) fn unpacked_name(name: &str) -> &str {
    let bare = PACKED.iter().find_map(|end| name.strip_suffix(end));
    bitnet::weight_of(bitsandbytes::weight_of(bare.unwrap_or(name)))
}

/// The name that newer files give to what this one calls `name`.
pub(crate) fn todays_name(name: &str) -> String {
    let name = name
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias");
    name.replace("backbone.embedding.", "backbone.embeddings.")
}

/// The places of all parts of one checkpoint tensor.
fn places(entry: &TensorEntry, shapes: &HashMap<String, Vec<usize>>) -> Vec<(String, Place)> {
    let count = |part: &String| shapes.get(part).map_or(0, |shape| shape[0]);
    let total = entry.parts.iter().map(count).sum();
    let mut start = 0;
    let mut found = Vec::new();
    for part in &entry.parts {
        let (tensor, groups, transposed) = (entry.name.clone(), entry.groups, entry.transposed);
        let rows = entry.rows.clone();
        found.push((
            part.clone(),
            Place {
                tensor,
                start,
                total,
                groups,
                transposed,
                rows,
            },
        ));
        start += count(part) / groups;
    }
    found
}

impl CheckpointSource<'_> {
    fn missing(&self, tensor: &str) -> Error {
        Error::Checkpoint {
            path: self.checkpoint.folder().to_owned(),
            reason: format!("tensor `{tensor}` is missing; is config.json of another model?"),
        }
    }

    /// A stack of matrices `[.., out, in]` of this shape that the file holds packed, in the tensors of numbers and of scales that gpt-oss
    /// is published in.
    fn packed(&self, place: &Place, shape: &[usize]) -> Result<Option<Stored>> {
        let name = |end: &str| {
            let name = format!("{}{end}", place.tensor);
            stored_name(self.checkpoint, self.prefix, &name)
        };
        let [Some(numbers), Some(scales)] = PACKED.map(name) else {
            return Ok(None);
        };
        let size = |name: &str| self.checkpoint.info(name).map(|info| info.shape.clone());
        let (width, outer) = shape.split_last().unwrap_or((&0, &[]));
        let blocks = [outer, &[width / Mxfp4::NUMBERS]].concat();
        let misfit = |name: &str, expected: &[usize]| Error::Shape {
            operator: name.to_owned(),
            expected: format!("{expected:?}"),
            found: size(name).unwrap_or_default(),
        };
        let halves = [&blocks[..], &[Mxfp4::NUMBERS / 2]].concat();
        for (name, expected) in [(&numbers, &halves), (&scales, &blocks)] {
            if size(name).as_ref() != Some(expected) {
                return Err(misfit(name, expected));
            }
        }
        let [numbers_of, scales_of] = [&numbers, &scales].map(|name| self.checkpoint.bytes(name));
        let bytes = Mxfp4::joined(&numbers_of?, &scales_of?);
        bytes
            .and_then(|bytes| Stored::new(&Mxfp4, shape.to_vec(), bytes))
            .map(Some)
            .ok_or_else(|| misfit(&numbers, &halves))
    }

    /// What a rounded matrix of the file, which lies as ours do even where others are transposed, holds of a parameter of this shape.
    fn rounded(
        &self,
        whole: Stored,
        tensor: &str,
        place: &Place,
        shape: &[usize],
    ) -> Result<Stored> {
        let rows = place
            .rows
            .as_ref()
            .map_or(place.total, ExactSizeIterator::len);
        let expected = [rows, shape.last().copied().unwrap_or(0)];
        let upright = Place {
            transposed: false,
            ..place.clone()
        };
        let part = match whole.shape() == expected {
            true => part(&whole, &upright, shape),
            false => None,
        };
        part.ok_or_else(|| Error::Shape {
            operator: tensor.to_owned(),
            expected: format!("{expected:?}"),
            found: whole.shape().to_vec(),
        })
    }

    /// What one tensor of the file holds of a parameter of this shape, as rows `[rows, width]` over its first axis.
    fn read(&self, place: &Place, shape: &[usize]) -> Result<Stored> {
        if let Some(packed) = self.packed(place, shape)? {
            return Ok(packed);
        }
        if let Some(whole) = gptq::read(self.checkpoint, self.prefix, &place.tensor)? {
            return self.rounded(whole, &place.tensor, place, shape);
        }
        let tensor = stored_name(self.checkpoint, self.prefix, &place.tensor)
            .ok_or_else(|| self.missing(&place.tensor))?;
        if let Some(whole) = bitsandbytes::read(self.checkpoint, &tensor)? {
            return self.rounded(whole, &tensor, place, shape);
        }
        if let Some(whole) = bitnet::read(self.checkpoint, &tensor, self.scales)? {
            return self.rounded(whole, &tensor, place, shape);
        }
        let upright = Place {
            transposed: place.transposed && !self.checkpoint.is_upright(&tensor),
            ..place.clone()
        };
        let place = &upright;
        let found = self
            .checkpoint
            .info(&tensor)
            .map(|info| info.shape.clone())
            .unwrap_or_default();
        let mut expected = match &place.rows {
            Some(rows) => row_shape(rows, shape),
            None => [&[place.total], &shape[1..]].concat(),
        };
        if place.transposed {
            let last = expected.len().saturating_sub(2);
            expected[last..].reverse();
        }
        let misfit = || {
            let reason = format!(
                "tensor `{tensor}` has shape {found:?} where config.json asks for {expected:?}; do the two belong to one model?"
            );
            Error::checkpoint(self.checkpoint.path_of(&tensor), reason)
        };
        if found != expected {
            return Err(misfit());
        }
        let rows = match &place.rows {
            Some(rows) => vec![rows.len(), shape[shape.len() - 1]],
            None => vec![expected[0], expected[1..].iter().product()],
        };
        let whole = self.checkpoint.stored(&tensor)?.reshaped(rows);
        whole
            .and_then(|whole| part(&whole, place, shape))
            .ok_or_else(misfit)
    }
}

/// The rows of a parameter of this shape in the tensor that holds it.
fn part(whole: &Stored, place: &Place, shape: &[usize]) -> Option<Stored> {
    if place.rows.is_some() {
        return Some(whole.clone());
    }
    match (place.transposed, shape) {
        (true, [rows, _]) => return whole.transposed(place.start..place.start + rows),
        (true, [_, rows, inputs]) => return turned(whole, [*rows, *inputs]),
        _ => {}
    }
    let (stride, rows) = (place.total / place.groups, shape[0] / place.groups);
    let group = |group: usize| {
        let first = group * stride + place.start;
        whole.part(first..first + rows)
    };
    match place.groups {
        1 => group(0),
        groups => Stored::joined(&(0..groups).map(group).collect::<Option<Vec<_>>>()?),
    }
}

/// Matrices of this size that are stored `[in, out]`, one after another.
fn turned(whole: &Stored, [rows, inputs]: [usize; 2]) -> Option<Stored> {
    let matrix = |number: usize| {
        let one = whole.part(number..number + 1)?;
        one.reshaped(vec![inputs, rows])?.transposed(0..rows)
    };
    Stored::joined(&(0..whole.rows()).map(matrix).collect::<Option<Vec<_>>>()?)
}

impl ParameterSource for CheckpointSource<'_> {
    fn parameter(&mut self, name: &str, shape: &[usize], _: Initial) -> Result<Values> {
        let places = self.places.get(name).ok_or_else(|| self.missing(name))?;
        let parts = places.iter().map(|place| self.read(place, shape));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let whole = match &parts[..] {
            [part] => Some(part.clone()),
            parts => Stored::joined(parts),
        };
        let reshaped = whole.and_then(|whole| whole.reshaped(shape.to_vec()));
        reshaped.map(Values::Stored).ok_or_else(|| Error::Checkpoint {
            path: self.checkpoint.folder().to_owned(),
            reason: format!(
                "the tensors that make up `{name}` differ in type or size; convert the file to one type"
            ),
        })
    }
}

/// A matrix made of random `numbers` whose rows, or columns if they are fewer, are perpendicular and of this length (Gram and
/// Schmidt's method, twice for each row, in f64).
fn perpendicular(numbers: Vec<f32>, rows: usize, columns: usize, length: f64) -> Vec<f32> {
    if rows > columns {
        return transposed_columns(
            &perpendicular(numbers, columns, rows, length),
            rows,
            0,
            rows,
        );
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(rows);
    for row in numbers.chunks(columns.max(1)) {
        let mut row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        for other in done.iter().chain(&done) {
            let share = dot(&row, other);
            row.iter_mut()
                .zip(other)
                .for_each(|(x, other)| *x -= share * other);
        }
        let norm = dot(&row, &row).sqrt().max(f64::MIN_POSITIVE);
        row.iter_mut().for_each(|x| *x /= norm);
        done.push(row);
    }
    done.into_iter()
        .flatten()
        .map(|x| (x * length) as f32)
        .collect()
}

/// Columns `start..start + count` of a row-major matrix with `width` columns, as rows.
fn transposed_columns(matrix: &[f32], width: usize, start: usize, count: usize) -> Vec<f32> {
    let rows = matrix.len() / width.max(1);
    (start..start + count)
        .flat_map(|column| (0..rows).map(move |row| matrix[row * width + column]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_weights_are() {
        for [rows, columns] in [[5, 9], [9, 5], [7, 7], [1, 3]] {
            let x = Seed(3)
                .parameter("w", &[rows, columns], Initial::Orthogonal(0.5))
                .unwrap()
                .into_floats();
            let at = |i: usize, j: usize| {
                if rows <= columns {
                    x[i * columns + j]
                } else {
                    x[j * columns + i]
                }
            };
            let (few, many) = (rows.min(columns), rows.max(columns));
            for (i, j) in (0..few * few).map(|i| (i / few, i % few)) {
                let dot: f32 = (0..many).map(|k| at(i, k) * at(j, k)).sum();
                assert!((dot - if i == j { 0.25 } else { 0.0 }).abs() < 1e-6);
            }
        }
    }
}
