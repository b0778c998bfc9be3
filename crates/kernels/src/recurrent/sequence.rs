//! A batch of sequences as the operators read it: rows of channels, wherever they lie.

use std::ops::Range;

use burn_flex::FlexTensor;

use crate::{fused::dimensions, matmul::Matrix};

/// A tensor `[batch, time, width]` with any strides but of the last axis.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    values: &'a [f32],
    strides: [usize; 2],
    /// Rows of the batch.
    pub batch: usize,
    /// Steps of time.
    pub time: usize,
    /// Channels.
    pub width: usize,
}

/// The tensor itself where its rows lie in order, perhaps as parts of wider ones, else a copy of which that is true.
pub(super) fn readable(tensor: &FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    let in_order = strides.last() == Some(&1) && strides.iter().all(|s| *s >= 0);
    if in_order {
        tensor.clone()
    } else {
        tensor.to_contiguous()
    }
}

impl<'a> Sequence<'a> {
    /// Reads a [`readable`] tensor.
    pub fn new(tensor: &'a FlexTensor) -> Self {
        let (shape, layout) = (dimensions(tensor), tensor.layout());
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        Self {
            values: &tensor.storage::<f32>()[layout.start_offset()..],
            strides: [stride(0), stride(1)],
            batch: shape[0],
            time: shape[1],
            width: shape[2],
        }
    }

    /// As [`Self::new`]; a single row stands for every step of every sequence.
    pub fn repeated(tensor: &'a FlexTensor, batch: usize, time: usize) -> Self {
        let own = Self::new(tensor);
        if [own.batch, own.time] == [batch, time] {
            own
        } else {
            Self {
                strides: [0; 2],
                batch,
                time,
                ..own
            }
        }
    }

    /// Whether every step has a row of its own, rather than one row for all.
    pub fn has_rows(&self) -> bool {
        self.strides != [0; 2] || self.batch * self.time == 1
    }

    /// The channels of one step.
    #[inline(always)]
    pub fn row(&self, batch: usize, time: usize) -> &'a [f32] {
        let start = batch * self.strides[0] + time * self.strides[1];
        &self.values[start..start + self.width]
    }

    /// Some channels of some steps, `[steps, columns]`.
    pub fn matrix(&self, batch: usize, steps: Range<usize>, columns: Range<usize>) -> Matrix<'a> {
        let start = batch * self.strides[0] + steps.start * self.strides[1] + columns.start;
        Matrix::strided(
            &self.values[start.min(self.values.len())..],
            steps.len(),
            columns.len(),
            self.strides[1],
        )
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.batch * self.time * self.width
    }

    /// Its shape.
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.time, self.width]
    }
}
