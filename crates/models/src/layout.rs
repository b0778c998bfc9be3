//! Parameters as files store them: names, fused tensors, transposed layouts.

mod expert_factors;
mod modules;

pub use expert_factors::{ExpertFactors, Factor, PartSize};
pub use modules::{ExpertModule, Module, modules, modules_of_file};

use espalier_kernels::{
    readback::ReadFloats,
    stored::{Stored, Ternary},
};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use burn::tensor::Tensor;

use crate::{
    families::{Family, TensorEntry},
    model::LanguageModel,
    parameter::Parameter,
    tied_head::untied,
};

/// One checkpoint tensor, assembled from one or several of our parameters.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    /// The name in the file.
    pub name: String,
    /// The shape in the file.
    pub shape: Vec<usize>,
    parts: Vec<&'a Parameter>,
    groups: usize,
    /// Elements of the only part that it holds; all of every part when absent.
    elements: Option<Range<usize>>,
    assembly: Assembly,
}

/// How the parts make up the stored tensor.
#[derive(Debug, Clone)]
enum Assembly {
    /// Rows of the parts one after another.
    Rows,
    /// The same, transposed: stored `[in, out]`.
    Transposed,
    /// Each part in its own columns, so many that follow each other in the same rows; zero elsewhere. The `B` of a low-rank adapter on
    /// a fused weight is one.
    BlockDiagonal {
        /// Parts in the same rows.
        beside: usize,
    },
    /// Factors of low-rank adapters of a stack of experts.
    Experts(Arc<ExpertFactors>),
}

impl<'a> StoredTensor<'a> {
    /// One parameter as it is.
    pub fn whole(name: String, parameter: &'a Parameter) -> Self {
        let shape = parameter.shape().to_vec();
        Self {
            name,
            shape,
            parts: vec![parameter],
            groups: 1,
            elements: None,
            assembly: Assembly::Rows,
        }
    }

    /// The parameter's rows, where it is one whole parameter of two bits a number.
    pub(crate) fn packed(&self) -> Option<&'a Stored> {
        match (&self.parts[..], &self.assembly, &self.elements) {
            ([part], Assembly::Rows, None) => part.as_stored().filter(|rows| Ternary::is_of(rows)),
            _ => None,
        }
    }

    /// Our names of the parameters that make it up.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.name())
    }

    /// The rows of several parameters of one width, one after another.
    pub fn rows_of(name: String, parts: Vec<&'a Parameter>) -> Self {
        let mut shape = parts
            .first()
            .map(|part| part.shape().to_vec())
            .unwrap_or_default();
        if let Some(rows) = shape.first_mut() {
            *rows = parts.iter().map(|part| part.shape()[0]).sum();
        }
        Self {
            name,
            shape,
            parts,
            groups: 1,
            elements: None,
            assembly: Assembly::Rows,
        }
    }

    /// Matrices in rows and columns of their own, zero elsewhere, each of parts side by side, as many as every other. Their rows take
    /// turns in so many groups, as those of [`TensorEntry::groups`].
    pub fn block_diagonal(name: String, blocks: Vec<Vec<&'a Parameter>>, groups: usize) -> Self {
        let beside = blocks.first().map_or(1, Vec::len);
        debug_assert!(blocks.iter().all(|block| block.len() == beside));
        let rows = blocks.iter().map(|block| block[0].shape()[0]).sum();
        let parts = blocks.concat();
        let columns = parts.iter().map(|part| part.shape()[1]).sum();
        Self {
            shape: vec![rows, columns],
            assembly: Assembly::BlockDiagonal { beside },
            groups,
            ..Self::rows_of(name, parts)
        }
    }

    /// The same, its rows in so many groups in which the parts take turns.
    #[must_use]
    pub fn in_turns(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// The factors of adapters of a stack of experts, each in its place, zero elsewhere.
    pub fn of_experts(name: String, parts: Vec<&'a Parameter>, factors: ExpertFactors) -> Self {
        Self {
            shape: factors.shape().to_vec(),
            assembly: Assembly::Experts(Arc::new(factors)),
            ..Self::rows_of(name, parts)
        }
    }

    /// One matrix that is stored transposed.
    pub fn transposed(name: String, parameter: &'a Parameter) -> Self {
        let shape = parameter.shape().iter().rev().copied().collect();
        Self {
            shape,
            assembly: Assembly::Transposed,
            ..Self::whole(name, parameter)
        }
    }

    /// The values of each part, by its name, in stored elements of this shape. A tensor that holds a part of a parameter alone
    /// gives nothing.
    pub fn split(&self, values: Vec<f32>) -> Vec<(String, Vec<f32>)> {
        if self.elements.is_some() {
            return Vec::new();
        }
        let names = self.parts.iter().map(|part| part.name().to_owned());
        let parts = match &self.assembly {
            Assembly::Rows => self.split_rows(&values),
            Assembly::Transposed if self.shape.len() < 2 => self.split_rows(&values),
            Assembly::Transposed => {
                let [inputs, outputs] = self.last_axes();
                self.split_rows(&transpose_each(&values, inputs, outputs))
            }
            Assembly::BlockDiagonal { beside } => self.split_block_diagonal(&values, *beside),
            Assembly::Experts(factors) => {
                let sizes = self.parts.iter().map(|part| part.shape());
                factors.split(sizes, &values)
            }
        };
        names.zip(parts).collect()
    }

    fn split_rows(&self, values: &[f32]) -> Vec<Vec<f32>> {
        let mut parts = vec![Vec::new(); self.parts.len()];
        let mut start = 0;
        for _ in 0..self.groups {
            for (part, split) in self.parts.iter().zip(&mut parts) {
                let length = part.len() / self.groups;
                split.extend(&values[start..start + length]);
                start += length;
            }
        }
        parts
    }

    fn split_block_diagonal(&self, values: &[f32], beside: usize) -> Vec<Vec<f32>> {
        let width = self.shape[1];
        let mut parts = vec![Vec::new(); self.parts.len()];
        for BlockRow {
            row, part, columns, ..
        } in self.rows_of_blocks(beside)
        {
            parts[part].extend(&values[row * width + columns.start..row * width + columns.end]);
        }
        parts
    }

    /// Whether it is never trained.
    pub fn is_fixed(&self) -> bool {
        self.parts.iter().all(|part| part.is_fixed())
    }

    /// The stored elements; `values` gives those of one parameter (its weight, or its gradient), `[len]`.
    pub fn assemble(&self, values: &dyn Fn(&Parameter) -> Tensor<1>) -> Vec<f32> {
        let values = |part: &Parameter| {
            let all = values(part);
            let held = match &self.elements {
                Some(elements) => all.narrow(0, elements.start, elements.len()),
                None => all,
            };
            held.floats()
        };
        self.assemble_from(&values)
    }

    fn assemble_from(&self, values: &dyn Fn(&Parameter) -> Vec<f32>) -> Vec<f32> {
        match &self.assembly {
            Assembly::Rows => self.rows(values),
            Assembly::Transposed => {
                let rows = self.rows(values);
                let [inputs, outputs] = self.last_axes();
                if self.shape.len() < 2 {
                    rows
                } else {
                    transpose_each(&rows, outputs, inputs)
                }
            }
            Assembly::BlockDiagonal { beside } => self.blocks(values, *beside),
            Assembly::Experts(factors) => {
                let parts = self.parts.iter().map(|part| (part.shape(), values(part)));
                factors.assemble(parts)
            }
        }
    }

    /// The lengths of the last two axes, or of the only one twice.
    fn last_axes(&self) -> [usize; 2] {
        let axis = |from_last: usize| self.shape[self.shape.len().saturating_sub(from_last)];
        [axis(self.shape.len().min(2)), axis(1)]
    }

    /// The rows of all parts, which take turns in as many groups as there are.
    fn rows(&self, values: &dyn Fn(&Parameter) -> Vec<f32>) -> Vec<f32> {
        let parts: Vec<Vec<f32>> = self.parts.iter().map(|part| values(part)).collect();
        let share = |part: &Vec<f32>, group: usize| {
            let length = part.len() / self.groups;
            part[group * length..(group + 1) * length].to_vec()
        };
        (0..self.groups)
            .flat_map(|group| parts.iter().flat_map(move |part| share(part, group)))
            .collect()
    }

    fn blocks(&self, values: &dyn Fn(&Parameter) -> Vec<f32>, beside: usize) -> Vec<f32> {
        let width = self.shape[1];
        let parts: Vec<Vec<f32>> = self.parts.iter().map(|part| values(part)).collect();
        let mut whole = vec![0.0; self.shape.iter().product()];
        for BlockRow {
            row,
            part,
            own,
            columns,
        } in self.rows_of_blocks(beside)
        {
            let place = row * width + columns.start..row * width + columns.end;
            let rank = columns.len();
            whole[place].copy_from_slice(&parts[part][own * rank..(own + 1) * rank]);
        }
        whole
    }

    /// The rows of all parts of a block diagonal, in the order of the stored ones.
    fn rows_of_blocks(&self, beside: usize) -> Vec<BlockRow> {
        let mut columns = Vec::new();
        let mut end = 0;
        for part in &self.parts {
            columns.push(end..end + part.shape()[1]);
            end += part.shape()[1];
        }
        let mut rows = Vec::new();
        let mut row = 0;
        for group in 0..self.groups {
            for (block, parts) in self.parts.chunks(beside).enumerate() {
                let share = parts[0].shape()[0] / self.groups;
                for own in group * share..(group + 1) * share {
                    rows.extend((0..parts.len()).map(|part| BlockRow {
                        row,
                        part: block * beside + part,
                        own,
                        columns: columns[block * beside + part].clone(),
                    }));
                    row += 1;
                }
            }
        }
        rows
    }
}

/// A row of a part of a block diagonal.
struct BlockRow {
    /// The stored row.
    row: usize,
    /// Whose it is.
    part: usize,
    /// Which of that part's rows.
    own: usize,
    /// The part's columns.
    columns: Range<usize>,
}

/// The shape in which these rows of a parameter of this shape are stored: a matrix, but for a row of a matrix, which is a vector.
pub(crate) fn row_shape(rows: &Range<usize>, shape: &[usize]) -> Vec<usize> {
    let width = shape.last().copied().unwrap_or(1);
    match (rows.len(), shape.len()) {
        (1, ..=2) => vec![width],
        (rows, _) => vec![rows, width],
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c]))
        .collect()
}

/// As [`transpose`], for matrices of this size one after another.
fn transpose_each(matrices: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    matrices
        .chunks((rows * columns).max(1))
        .flat_map(|matrix| transpose(matrix, rows, columns))
        .collect()
}

/// Every weight of the model (adapters aside) under its checkpoint name.
pub fn stored_tensors<'a>(model: &'a LanguageModel, family: &Family) -> Vec<StoredTensor<'a>> {
    tensors_of(model, (family.tensors)(model.spec()))
}

/// Every weight of the model (adapters aside) as the modules of transformers hold it, under the names that adapters have for it.
pub fn tensors_in_memory<'a>(model: &'a LanguageModel, family: &Family) -> Vec<StoredTensor<'a>> {
    tensors_of(model, family.in_memory(model.spec()))
}

/// What transformers calls each tensor of the file that it holds under another name.
pub fn renamed_tensors(model: &LanguageModel, family: &Family) -> BTreeMap<String, String> {
    if family.modules.tensors.is_none() {
        return BTreeMap::new();
    }
    let spec = untied(model.spec());
    let memory = family.in_memory(&spec);
    let places: HashMap<_, _> = memory
        .into_iter()
        .map(|e| ((e.parts, e.rows.map(|rows| rows.start)), e.name))
        .collect();
    let renamed = |entry: TensorEntry| {
        let name = places.get(&(entry.parts, entry.rows.map(|rows| rows.start)))?;
        (*name != entry.name).then(|| (entry.name, name.clone()))
    };
    (family.tensors)(&spec)
        .into_iter()
        .filter_map(renamed)
        .collect()
}

fn tensors_of(model: &LanguageModel, entries: Vec<TensorEntry>) -> Vec<StoredTensor<'_>> {
    let parameters: HashMap<&str, &Parameter> = model
        .parameters()
        .into_iter()
        .map(|p| (p.name(), p))
        .collect();
    let store = |entry: TensorEntry| {
        let parts: Vec<&Parameter> = entry
            .parts
            .iter()
            .filter_map(|p| parameters.get(p.as_str()).copied())
            .collect();
        let mut shape = parts
            .first()
            .map(|p| p.shape().to_vec())
            .unwrap_or_default();
        shape[0] = parts.iter().map(|p| p.shape()[0]).sum();
        let width = shape[shape.len() - 1];
        if let Some(rows) = &entry.rows {
            shape = row_shape(rows, &shape);
        }
        if entry.transposed {
            let last = shape.len().saturating_sub(2);
            shape[last..].reverse();
        }
        let assembly = if entry.transposed {
            Assembly::Transposed
        } else {
            Assembly::Rows
        };
        let elements = entry.rows.map(|rows| rows.start * width..rows.end * width);
        StoredTensor {
            name: entry.name,
            shape,
            parts,
            groups: entry.groups,
            elements,
            assembly,
        }
    };
    entries.into_iter().map(store).collect()
}
