//! The ways to merge: one file each, with formula, paper and tests, and one line in [`METHODS`].
//!
//! A method sees one tensor of every model as `f32` and gives the merged one. What it needs to know besides comes as parameters, which are
//! already those of this tensor.

mod arcee_fusion;
mod breadcrumbs;
mod dare;
mod della;
mod karcher;
mod linear;
mod magnitude;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod sce;
mod slerp;
mod task_arithmetic;
#[cfg(test)]
mod testing;
mod ties;

use std::collections::BTreeMap;

/// All methods, in the order of the documentation.
pub const METHODS: &[&Method] = &[
    &linear::LINEAR,
    &slerp::SLERP,
    &nuslerp::NUSLERP,
    &multislerp::MULTISLERP,
    &karcher::KARCHER,
    &task_arithmetic::TASK_ARITHMETIC,
    &ties::TIES,
    &dare::DARE_LINEAR,
    &dare::DARE_TIES,
    &della::DELLA,
    &della::DELLA_LINEAR,
    &breadcrumbs::BREADCRUMBS,
    &breadcrumbs::BREADCRUMBS_TIES,
    &model_stock::MODEL_STOCK,
    &sce::SCE,
    &arcee_fusion::ARCEE_FUSION,
    &nearswap::NEARSWAP,
    &passthrough::PASSTHROUGH,
];

/// The method of this name.
pub fn by_name(name: &str) -> Option<&'static Method> {
    METHODS.iter().copied().find(|method| method.name == name)
}

/// One way to merge.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its name in recipes.
    pub name: &'static str,
    /// Its name in the model card.
    pub title: &'static str,
    /// Where it is described.
    pub source: &'static str,
    /// Parameters that one tensor has once.
    pub globals: &'static [Parameter],
    /// Parameters that every model has.
    pub own: &'static [Parameter],
    /// What the base is to it.
    pub base: Base,
    /// Models besides the base, the fewest and the most.
    pub models: (usize, usize),
    /// Merges one tensor.
    pub merge: fn(Operands) -> Result<Vec<f32>, String>,
}

/// What the base model is to a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// One of the models, where it is listed.
    Plain,
    /// The origin of the differences, where there is one.
    Optional,
    /// The origin of the differences; there must be one.
    Required,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// Its value where the recipe says nothing.
    pub default: Default,
}

/// What holds where the recipe says nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// The recipe must say something.
    Required,
    /// Nothing is done.
    Absent,
    /// This number; flags are 0 and 1.
    Value(f64),
}

/// A parameter that must be given.
pub(super) const fn required(name: &'static str) -> Parameter {
    Parameter {
        name,
        default: Default::Required,
    }
}

/// A parameter with a value of its own.
pub(super) const fn default(name: &'static str, value: f64) -> Parameter {
    Parameter {
        name,
        default: Default::Value(value),
    }
}

/// The values of parameters for one tensor; flags are 0 and 1.
#[derive(Debug, Clone, std::default::Default, PartialEq)]
pub struct Values(pub BTreeMap<&'static str, f64>);

impl Values {
    /// The value, where there is one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The value, or 0.
    pub fn number(&self, name: &str) -> f64 {
        self.get(name).unwrap_or(0.0)
    }

    /// Whether the flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.number(name) != 0.0
    }
}

/// One tensor of one model.
#[derive(Debug, Clone)]
pub struct Operand {
    /// Its numbers, row-major.
    pub numbers: Vec<f32>,
    /// The model's parameters for this tensor.
    pub values: Values,
    /// Whether it is the base model's.
    pub is_base: bool,
    /// The start of whatever is drawn at random for it: of the run's seed, the tensor's name and the model.
    pub seed: u64,
}

/// One tensor of all models.
#[derive(Debug, Clone)]
pub struct Operands {
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The models' tensors, in the recipe's order, all of one shape.
    pub inputs: Vec<Operand>,
    /// Parameters of the tensor as such.
    pub values: Values,
}

impl Operands {
    /// The base's tensor and the others'.
    fn split(self) -> (Option<Operand>, Vec<Operand>, Values) {
        let (mut bases, others): (Vec<_>, Vec<_>) =
            self.inputs.into_iter().partition(|input| input.is_base);
        (bases.pop(), others, self.values)
    }

    /// As [`Operands::split`] for methods that need a base.
    fn split_from_base(self) -> Result<(Operand, Vec<Operand>, Values), String> {
        let (base, others, values) = self.split();
        Ok((base.ok_or("there is no base")?, others, values))
    }

    /// The length of a row: the last axis.
    fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1).max(1)
    }
}

/// Numbers of one task of the thread pool.
const PIECE: usize = 1 << 16;

/// Calls `change` on every number with its place, on all cores.
fn for_each(numbers: &mut [f32], change: impl Fn(usize, &mut f32) + Sync) {
    use rayon::prelude::*;
    numbers
        .par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(piece, numbers)| {
            for (place, number) in numbers.iter_mut().enumerate() {
                change(piece * PIECE + place, number);
            }
        });
}

/// The sum of `term` over all places, in f64, the same for any number of threads.
fn sum(count: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    use rayon::prelude::*;
    let pieces: Vec<f64> = (0..count.div_ceil(PIECE))
        .into_par_iter()
        .map(|piece| {
            (piece * PIECE..count.min((piece + 1) * PIECE))
                .map(&term)
                .sum()
        })
        .collect();
    pieces.iter().sum()
}

/// The sum of products of two vectors.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a.len().min(b.len()), |i| f64::from(a[i]) * f64::from(b[i]))
}

/// The length of a vector.
fn norm(a: &[f32]) -> f64 {
    dot(a, a).sqrt()
}
