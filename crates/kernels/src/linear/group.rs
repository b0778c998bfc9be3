//! Several linear maps of one input: the input is packed once for all of them, and its gradient is one sum of products.

use std::sync::{Arc, Mutex, PoisonError};

use burn_flex::FlexTensor;

use super::Precision;
use crate::{
    backward::Waiting,
    fused::{contiguous, dimensions, slice, tensor},
    matmul::{How, Left, Matrix, Packed, Term, add_products, sum_of_products},
    parallel::{chunk, for_chunks},
    simd::add,
    weight::Held,
};

/// Linear maps that read the same input, such as the projections of an attention.
///
/// All of them are applied to clones of one tensor, and where `x` needs a gradient, all outputs must take part in what is
/// differentiated, those of other readers too: the gradient of `x` is computed when the last of their backwards runs. Where one of
/// them has left the graph, [`crate::backward::backward`] gives an error instead of gradients.
#[derive(Debug, Clone)]
pub struct Group {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    /// Maps whose forward is still to come, and the packed input for them.
    forwards: usize,
    packed: Option<Arc<Rows>>,
    /// Readers whose backward is still to come, and the finished readers' contributions to the input's gradient.
    backwards: usize,
    /// From the first reader's backward to the last one's.
    waiting: Option<Waiting>,
    factors: Vec<Factor>,
    sum: Option<FlexTensor>,
}

/// Rows that are a left factor of products, in panels where that pays.
pub(super) struct Rows {
    x: FlexTensor,
    packed: Option<Packed>,
}

/// A product that is part of the input's gradient: rows of upstream gradients, and a weight.
#[derive(Debug)]
pub(super) struct Factor {
    pub upstream: Rows,
    /// `[out, in]`.
    pub weight: Held,
    /// The arithmetic of the product.
    pub precision: Precision,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("shape", &dimensions(&self.x))
            .finish_non_exhaustive()
    }
}

impl Rows {
    /// For one product: packed when it runs.
    pub fn plain(x: &FlexTensor) -> Self {
        Self {
            x: contiguous(x),
            packed: None,
        }
    }

    /// For several products.
    pub fn packed(x: &FlexTensor, precision: Precision) -> Self {
        let rows = Self::plain(x);
        let packed = Packed::new(rows.matrix(), precision);
        Self { packed, ..rows }
    }

    pub fn matrix(&self) -> Matrix<'_> {
        let width = dimensions(&self.x).last().copied().unwrap_or(0);
        Matrix::new(slice(&self.x), slice(&self.x).len() / width.max(1), width)
    }

    pub fn left(&self) -> Left<'_> {
        match &self.packed {
            Some(packed) => Left::Packed(packed),
            None => Left::Plain(self.matrix()),
        }
    }
}

impl Group {
    /// A group of `count` maps.
    pub fn new(count: usize) -> Self {
        Self::beside(0, count)
    }

    /// A group of `count` maps whose input is read by `others` too, operators that leave their part of its gradient in the group.
    pub fn beside(others: usize, count: usize) -> Self {
        let shared = Shared {
            forwards: count,
            packed: None,
            backwards: others + count,
            waiting: None,
            factors: Vec::new(),
            sum: None,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// The input, packed by the first map that asks and dropped after the last; a single map packs it itself.
    pub(super) fn input(&self, x: &FlexTensor, precision: Precision) -> Arc<Rows> {
        self.rows(x, precision, false)
    }

    /// As [`Group::input`], packed for a single map too.
    pub(super) fn shared_input(&self, x: &FlexTensor, precision: Precision) -> Arc<Rows> {
        self.rows(x, precision, true)
    }

    fn rows(&self, x: &FlexTensor, precision: Precision, several: bool) -> Arc<Rows> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.forwards = shared.forwards.saturating_sub(1);
        let packed = shared
            .packed
            .take()
            .filter(|rows| rows.left().is_for(precision));
        let rows = packed.unwrap_or_else(|| match several || shared.forwards > 0 {
            true => Arc::new(Rows::packed(x, precision)),
            false => Arc::new(Rows::plain(x)),
        });
        if shared.forwards > 0 {
            shared.packed = Some(rows.clone());
        }
        rows
    }

    /// Takes one map's part of the input's gradient; the last reader receives the whole, in the shape of `x`.
    pub(super) fn gradient(&self, factors: Vec<Factor>, shape: &[usize]) -> Option<FlexTensor> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.factors.extend(factors);
        shared.whole(shape)
    }

    /// Takes another reader's part of the input's gradient; the last reader receives the whole.
    fn addend(&self, part: FlexTensor) -> Option<FlexTensor> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = dimensions(&part);
        shared.sum = Some(match shared.sum.take() {
            Some(sum) => added(sum, &part),
            None => part,
        });
        shared.whole(&shape)
    }

    /// As [`Group::addend`] for a reader that may be the only one, and then is in no group.
    pub(crate) fn leave(readers: Option<&Self>, part: FlexTensor) -> Option<FlexTensor> {
        match readers {
            Some(readers) => readers.addend(part),
            None => Some(part),
        }
    }
}

impl Shared {
    /// The whole gradient, where the last part has come.
    fn whole(&mut self, shape: &[usize]) -> Option<FlexTensor> {
        self.backwards = self.backwards.saturating_sub(1);
        if self.backwards > 0 {
            self.waiting.get_or_insert_with(Waiting::begin);
            return None;
        }
        if let Some(waiting) = self.waiting.take() {
            waiting.end();
        }
        let factors = std::mem::take(&mut self.factors);
        for precision in [Precision::F32, Precision::Bf16] {
            let factors = factors
                .iter()
                .filter(|factor| factor.precision == precision);
            let terms: Vec<Term<'_>> = factors
                .map(|factor| (factor.upstream.left(), factor.weight.matrix()))
                .collect();
            let how = How::all(precision);
            self.sum = match self.sum.take() {
                sum if terms.is_empty() => sum,
                None => Some(tensor(sum_of_products(&terms, how), shape)),
                Some(mut sum) => {
                    add_products(sum.storage_mut::<f32>(), &terms, how);
                    Some(sum)
                }
            };
        }
        self.sum.take()
    }
}

/// `a + b`, in the place of `a`.
fn added(mut a: FlexTensor, b: &FlexTensor) -> FlexTensor {
    const CHUNK: usize = 1 << 14;
    for_chunks([(a.storage_mut::<f32>(), CHUNK)], |i, [a]| {
        add(a, chunk(slice(b), CHUNK, i));
    });
    a
}
