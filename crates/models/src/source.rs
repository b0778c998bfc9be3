//! Where a model's weights come from: a seed, or a checkpoint.

use std::{collections::HashMap, ops::Range};

use espalier_data::random::{Random, fnv};

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    families::{Family, TensorEntry},
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

/// Gives a model its weights one at a time, so that building peaks at the model and one tensor.
pub trait ParameterSource {
    /// The elements of our parameter `name` in row-major order; `shape` is what the model expects.
    ///
    /// # Errors
    /// When the source has no such weight or another shape.
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Vec<f32>>;
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
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Vec<f32>> {
        let count = shape.iter().product();
        Ok(match initial {
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
        })
    }
}

/// Weights of a Hugging Face folder, read through the family's table of names.
pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    places: HashMap<String, Vec<Place>>,
}

/// Where one of our parameters, or some rows of it, lies in a checkpoint.
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

    /// What one tensor of the file holds of a parameter of this shape.
    fn read(&self, place: &Place, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = stored_name(self.checkpoint, self.prefix, &place.tensor)
            .ok_or_else(|| self.missing(&place.tensor))?;
        let found = self
            .checkpoint
            .info(&tensor)
            .map(|info| info.shape.clone())
            .unwrap_or_default();
        let mut expected = match &place.rows {
            Some(rows) => vec![rows.len(), shape[shape.len() - 1]],
            None => [&[place.total], &shape[1..]].concat(),
        };
        if place.transposed {
            expected.reverse();
        }
        if found != expected {
            return Err(Error::Shape {
                operator: tensor,
                expected: format!("{expected:?}"),
                found,
            });
        }
        if place.rows.is_some() {
            return self.checkpoint.read_f32(&tensor, None);
        }
        if place.transposed && shape.len() == 2 {
            let whole = self.checkpoint.read_f32(&tensor, None)?;
            return Ok(transposed_columns(
                &whole,
                place.total,
                place.start,
                shape[0],
            ));
        }
        let (stride, rows) = (place.total / place.groups, shape[0] / place.groups);
        let mut values = Vec::with_capacity(shape.iter().product());
        for group in 0..place.groups {
            let first = group * stride + place.start;
            values.extend(
                self.checkpoint
                    .read_f32(&tensor, Some(first..first + rows))?,
            );
        }
        Ok(values)
    }
}

impl ParameterSource for CheckpointSource<'_> {
    fn parameter(&mut self, name: &str, shape: &[usize], _: Initial) -> Result<Vec<f32>> {
        let places = self.places.get(name).ok_or_else(|| self.missing(name))?;
        if let [place] = &places[..] {
            return self.read(place, shape);
        }
        let mut values = Vec::with_capacity(shape.iter().product());
        for place in places {
            values.extend(self.read(place, shape)?);
        }
        Ok(values)
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
                .unwrap();
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
