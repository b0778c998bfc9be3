//! Flash attention on host memory (arXiv 2205.14135, 2307.08691), on panels of packed keys, values and queries.
//!
//! Scores are computed transposed, keys by queries: a block of them is then the right factor of the products that follow,
//! as it stands, and the softmax works on many queries at once without sums across a vector.

mod backward;
mod few_queries;
mod forward;
mod scores;

use std::ops::Range;

use super::{Mask, Options};
use crate::{
    fused::{FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    matmul::{
        Matrix,
        kernel::{Kernel, kernel},
    },
    parallel::{DisjointRows, for_each, fresh, zeros},
    simd::add,
};
use burn_flex::FlexTensor;

/// The operator on queries, keys and values.
#[derive(Debug)]
pub(super) struct Flash {
    pub mask: Mask,
    pub options: Options,
}

/// The operator with a bias by distance.
#[derive(Debug)]
pub(super) struct WithBias(pub Flash);

/// The operator with a further score of each head.
#[derive(Debug)]
pub(super) struct WithSinks(pub Flash);

/// Keys of a block: whole panels of whole units, so that every block begins with both.
fn keys_of_block(kernel: &Kernel) -> usize {
    const MOST: usize = 336;
    MOST / kernel.rows * kernel.rows
}

/// Tokens whose gradients a task gathers.
const TOKENS: usize = 64;

/// A tensor `[batch, time, heads, width]` with any strides but of the last axis.
struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    batch: usize,
    time: usize,
    heads: usize,
    width: usize,
}

/// The tensor itself where its last axis lies in order, else a copy that does.
fn readable(tensor: &FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    if strides[3] == 1 && strides.iter().all(|s| *s >= 0) {
        tensor.clone()
    } else {
        tensor.to_contiguous()
    }
}

impl<'a> Heads<'a> {
    fn new(tensor: &'a FlexTensor) -> Self {
        let (shape, layout) = (dimensions(tensor), tensor.layout());
        let stride = |axis: usize| layout.strides()[axis].unsigned_abs();
        Self {
            values: &tensor.storage::<f32>()[layout.start_offset()..],
            strides: [stride(0), stride(1), stride(2)],
            batch: shape[0],
            time: shape[1],
            heads: shape[2],
            width: shape[3],
        }
    }

    /// Some positions of one head: `[positions, width]`.
    fn matrix(&self, batch: usize, head: usize, positions: Range<usize>) -> Matrix<'a> {
        let start =
            batch * self.strides[0] + positions.start * self.strides[1] + head * self.strides[2];
        Matrix::strided(
            &self.values[start.min(self.values.len())..],
            positions.len(),
            self.width,
            self.strides[1],
        )
    }

    fn row(&self, batch: usize, position: usize, head: usize) -> &'a [f32] {
        let start = batch * self.strides[0] + position * self.strides[1] + head * self.strides[2];
        &self.values[start..start + self.width]
    }

    /// Index of a row in a contiguous tensor of this shape.
    fn index(&self, batch: usize, position: usize, head: usize) -> usize {
        (batch * self.time + position) * self.heads + head
    }

    fn len(&self) -> usize {
        self.batch * self.time * self.heads * self.width
    }
}

/// Query, key and value, and what each head has besides.
struct Inputs<'a> {
    flash: &'a Flash,
    query: Heads<'a>,
    key: Heads<'a>,
    value: Heads<'a>,
    own: Own<'a>,
}

/// What each head has of its own.
#[derive(Clone, Copy)]
enum Own<'a> {
    Nothing,
    /// A row of biases by distance.
    Bias(&'a [f32]),
    /// A score that adds no value.
    Sink(&'a [f32]),
}

impl<'a> Inputs<'a> {
    /// The head of keys and values that a query head reads.
    fn kv_head(&self, head: usize) -> usize {
        head / (self.query.heads / self.key.heads)
    }

    /// The biases of a head: element `query - key + keys - 1` belongs to a query and a key.
    fn bias(&self, head: usize) -> Option<&'a [f32]> {
        let distances = self.query.time + self.key.time - 1;
        match self.own {
            Own::Bias(bias) => Some(&bias[head * distances..(head + 1) * distances]),
            Own::Nothing | Own::Sink(_) => None,
        }
    }

    /// The score of a head that adds no value, where there is one.
    fn sink(&self, head: usize) -> Option<f32> {
        match self.own {
            Own::Sink(sinks) => sinks.get(head).copied(),
            Own::Nothing | Own::Bias(_) => None,
        }
    }

    /// Numbers that each head has of its own.
    fn own_len(&self) -> usize {
        match self.own {
            Own::Nothing => 0,
            Own::Bias(_) => self.query.time + self.key.time - 1,
            Own::Sink(_) => 1,
        }
    }

    /// The values mixed for all queries, `[batch, queries, heads, value_width]`, and for each row of it the log of its softmax's
    /// denominator.
    fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let (query, value_width) = (&self.query, self.value.width);
        let rows = query.batch * query.time * query.heads;
        let mut output = zeros(rows * value_width);
        let mut log_sums = vec![f32::NEG_INFINITY; rows];
        let rows = (
            DisjointRows::new(&mut output, value_width),
            DisjointRows::new(&mut log_sums, 1),
        );
        let heads = query.batch * query.heads;
        if query.time <= few_queries::LIMIT {
            for_each(heads, |task| {
                few_queries::run(self, task / query.heads, task % query.heads, &rows);
            });
            return (output, log_sums);
        }
        // Few heads are split into parts of their queries, which pack keys and values once each.
        let kernel = kernel(self.flash.options.precision);
        let parts = (8usize.div_ceil(heads))
            .min(query.time.div_ceil(keys_of_block(kernel)))
            .max(1);
        let part = query.time.div_ceil(parts).next_multiple_of(kernel.columns);
        for_each(heads * parts, |task| {
            // The last parts see the most keys; they go first, so that no thread waits for one at the end.
            let (first, pair) = ((parts - 1 - task / heads) * part, task % heads);
            if first < query.time {
                let queries = first..(first + part).min(query.time);
                forward::run(self, pair / query.heads, pair % query.heads, queries, &rows);
            }
        });
        (output, log_sums)
    }

    /// Gradients of query, key, value and what heads have of their own.
    fn backward(
        &self,
        output: &Heads<'_>,
        gradient: &Heads<'_>,
        log_sums: &[f32],
    ) -> [Vec<f32>; 4] {
        let (query, key, value) = (&self.query, &self.key, &self.value);
        let each = query.batch * query.heads;
        let mut of_query = zeros(query.len());
        let query_rows = DisjointRows::new(&mut of_query, query.width);
        let [key_head, value_head] = [key, value].map(|heads| heads.time * heads.width);
        let sizes = [
            (each * key_head, key_head),
            (each * value_head, value_head),
            (each * self.own_len(), self.own_len().max(1)),
        ];
        let [of_key, of_value, of_own] = fresh(sizes, |task, [of_key, of_value, of_own]| {
            let place = (task / query.heads, task % query.heads);
            let given = backward::Given {
                inputs: self,
                output,
                gradient,
                log_sums,
            };
            given.run(place, &query_rows, of_key, of_value, of_own);
        });
        let [of_key, of_value] =
            [(of_key, key), (of_value, value)].map(|(parts, of)| self.gathered(&parts, of));
        [of_query, of_key, of_value, self.summed(&of_own)]
    }

    /// From `[batch, heads, keys, width]` to `[batch, keys, kv_heads, width]`, the shape of `key`: sums over the heads of a group, in
    /// order.
    fn gathered(&self, parts: &[f32], key: &Heads<'_>) -> Vec<f32> {
        let heads = self.query.heads;
        let (group, width) = (heads / key.heads, key.width);
        let [gathered] = fresh([(key.len(), TOKENS * key.heads * width)], |task, [rows]| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let (token, kv_head) = (task * TOKENS + i / key.heads, i % key.heads);
                let (batch, position) = (token / key.time, token % key.time);
                for head in kv_head * group..(kv_head + 1) * group {
                    let start = ((batch * heads + head) * key.time + position) * width;
                    add(row, &parts[start..start + width]);
                }
            }
        });
        gathered
    }

    /// The gradient of what heads have of their own, summed over the batch.
    fn summed(&self, parts: &[f32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.query.heads * self.own_len()];
        for part in parts.chunks_exact(sums.len().max(1)) {
            add(&mut sums, part);
        }
        sums
    }
}

/// Applies the operator to three tensors and perhaps what heads have of their own.
fn forward(flash: &Flash, tensors: [&FlexTensor; 3], own: Own<'_>) -> (FlexTensor, Saved) {
    let tensors = tensors.map(readable);
    let [query, key, value] = tensors.each_ref().map(Heads::new);
    let shape = [query.batch, query.time, query.heads, value.width];
    let inputs = Inputs {
        flash,
        query,
        key,
        value,
        own,
    };
    let (output, log_sums) = inputs.forward();
    (tensor(output, &shape), vec![log_sums])
}

fn backward<const N: usize>(flash: &Flash, given: &Given<N>, own: Own<'_>) -> [Vec<f32>; 4] {
    let tensors: Vec<FlexTensor> = given.inputs[..3].iter().map(readable).collect();
    let (query, key, value) = (
        Heads::new(&tensors[0]),
        Heads::new(&tensors[1]),
        Heads::new(&tensors[2]),
    );
    let inputs = Inputs {
        flash,
        query,
        key,
        value,
        own,
    };
    match &given.output {
        Some(output) => inputs.backward(
            &Heads::new(output),
            &Heads::new(&given.gradient),
            &given.saved[0],
        ),
        None => Default::default(),
    }
}

impl FusedOperator<3> for Flash {
    fn forward(&self, inputs: &[FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        forward(self, inputs.each_ref(), Own::Nothing)
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn backward(&self, given: Given<3>, _: [bool; 3]) -> [Option<FlexTensor>; 3] {
        let [query, key, value, _] = backward(self, &given, Own::Nothing);
        let shapes = given.inputs.each_ref().map(dimensions);
        [
            Some(tensor(query, &shapes[0])),
            Some(tensor(key, &shapes[1])),
            Some(tensor(value, &shapes[2])),
        ]
    }
}

/// An operator with a fourth tensor, which `$own` makes of its numbers.
macro_rules! with_own {
    ($operator:ident, $own:ident) => {
        impl FusedOperator<4> for $operator {
            fn forward(
                &self,
                [query, key, value, own]: &[FlexTensor; 4],
                _: [bool; 4],
            ) -> (FlexTensor, Saved) {
                let own = contiguous(own);
                forward(&self.0, [query, key, value], Own::$own(slice(&own)))
            }

            fn keeps_output(&self) -> bool {
                true
            }

            fn backward(&self, given: Given<4>, _: [bool; 4]) -> [Option<FlexTensor>; 4] {
                let own = contiguous(&given.inputs[3]);
                let gradients = backward(&self.0, &given, Own::$own(slice(&own)));
                let mut shapes = given.inputs.iter().map(dimensions);
                gradients.map(|values| shapes.next().map(|shape| tensor(values, &shape)))
            }
        }
    };
}

with_own!(WithBias, Bias);
with_own!(WithSinks, Sink);
