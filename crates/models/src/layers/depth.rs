//! Mixture of Depths (arXiv 2404.02258): a router lets some tokens through the block, the others skip it.
//!
//! `r_t = w^T x_t`; in training the `C = ceil(c T)` highest of every sequence pass, `x_t + r_t f(x)_t` with `f` the block
//! without its residual; they see each other alone, at their own positions. As the highest of a sequence are known at its
//! end only, a predictor decides elsewhere: `r` itself, which an auxiliary loss pulls above zero for chosen tokens, or a small
//! network that nothing else feels. Our own variant weighs by `sigmoid(r_t)`. Recipe: `mixture-of-depths.toml`.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use espalier_kernels::readback::ReadFloats;
use espalier_kernels::{
    activation::{Activation, activate},
    embedding::embedding,
    linear::{Precision, linear},
};

use super::Builder;
use crate::{
    Result,
    auxiliary_losses::{SideOutput, SideSpec, Sides},
    parameter::{Parameter, parameters},
    source::Initial,
    spec::{DepthGate, DepthPredictor, DepthRouting, MixerSpec},
    stack::Context,
    state::{BlockState, MixerState},
};

/// Chooses the tokens of a block.
#[derive(Debug, Clone)]
pub struct Depth {
    spec: DepthRouting,
    mixer: MixerSpec,
    router: Parameter,
    predictor: Option<Predictor>,
}

parameters!(Depth: router, predictor);

/// A network of one hidden layer that guesses the router's choice.
#[derive(Debug, Clone)]
struct Predictor {
    up: Parameter,
    up_bias: Parameter,
    down: Parameter,
    down_bias: Parameter,
}

parameters!(Predictor: up, up_bias, down, down_bias);

/// The block without routing, on any tokens.
pub(super) type Inner<'a> =
    dyn FnMut(Tensor<3>, &Context, Option<&mut BlockState>, &mut Sides) -> Tensor<3> + 'a;

impl Depth {
    /// Builds `{name}.router` `[1, width]` and, where the spec has one, `{name}.predictor.up` and `down`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(
        builder: &mut Builder,
        name: &str,
        width: usize,
        spec: &DepthRouting,
        mixer: &MixerSpec,
    ) -> Result<Self> {
        let normal = Initial::Normal(builder.deviation);
        // Scores weigh what the block adds, so that they start at the size of the tokens themselves, whatever the rest does.
        let even = Initial::Normal((width.max(1) as f64).powf(-0.5));
        let router = builder.parameter(format!("{name}.router.weight"), vec![1, width], even)?;
        let predictor = match spec.predictor {
            DepthPredictor::AuxLoss => None,
            DepthPredictor::Mlp => {
                let inner = (width / 2).max(1);
                let mut part = |part: &str, shape, initial| {
                    builder.parameter(format!("{name}.predictor.{part}"), shape, initial)
                };
                Some(Predictor {
                    up: part("up.weight", vec![inner, width], normal.clone())?,
                    up_bias: part("up.bias", vec![inner], Initial::Zeros)?,
                    down: part("down.weight", vec![1, inner], normal)?,
                    down_bias: part("down.bias", vec![1], Initial::Zeros)?,
                })
            }
        };
        Ok(Self {
            spec: *spec,
            mixer: mixer.clone(),
            router,
            predictor,
        })
    }

    /// `x`: `[batch, time, width]`; the same shape comes back. A token that does not pass leaves as it came, bit for bit.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        context: &Context,
        state: Option<&mut BlockState>,
        sides: &mut Sides,
        inner: &mut Inner<'_>,
    ) -> Tensor<3> {
        let [batch, time, width] = x.dims();
        let rows = x.reshape([batch * time, width]);
        let scores = linear(rows.clone(), self.router.value(), None, Precision::F32);
        let guesses = self
            .predictor
            .as_ref()
            .map(|predictor| predictor.forward(rows.clone().detach()));
        let said: Vec<Tensor<2>> = std::iter::once(scores.clone())
            .chain(guesses.clone())
            .collect();
        let channels = said.len();
        let said = Tensor::cat(said, 1).reshape([batch, time, channels]);
        sides
            .outputs
            .push(SideOutput::new(SideSpec::Depth(self.spec), said, context));
        let present = context.present.as_deref();
        let chosen = match context.training && state.is_none() {
            true => highest(
                &scores.clone().floats(),
                time,
                self.spec.capacity,
                present.map(Vec::as_slice),
            ),
            false => positive(
                &guesses.unwrap_or_else(|| scores.clone()).floats(),
                time,
                present.map(Vec::as_slice),
            ),
        };
        let count = chosen.first().map_or(0, Vec::len);
        let even = chosen.iter().all(|row| row.len() == count);
        let mut passing = Passing {
            depth: self,
            context,
            rows,
            scores,
            size: [time, width],
            sides,
            inner,
        };
        match state.map(|state| &mut state.mixer) {
            None if even => passing.pass(&(0..batch).collect::<Vec<_>>(), &chosen, None),
            None => (0..batch).for_each(|row| passing.pass(&[row], &chosen[row..=row], None)),
            Some(MixerState::Routed(state)) => {
                let empty = (*state.empty).clone();
                state
                    .rows
                    .resize_with(batch, || (empty.clone(), Vec::new()));
                for (row, memory) in state.rows.iter_mut().enumerate() {
                    passing.pass(&[row], &chosen[row..=row], Some(memory));
                }
            }
            // The state of a routed block is always of the routed kind.
            Some(_) => {}
        }
        passing.rows.reshape([batch, time, width])
    }
}

impl Predictor {
    /// `x`: `[tokens, width]`; returns `[tokens, 1]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = linear(
            x,
            self.up.value(),
            Some(self.up_bias.value()),
            Precision::F32,
        );
        let inner = activate(Activation::Silu, inner);
        linear(
            inner,
            self.down.value(),
            Some(self.down_bias.value()),
            Precision::F32,
        )
    }
}

/// Tokens on their way through a routed block.
struct Passing<'a, 'b> {
    depth: &'a Depth,
    context: &'a Context,
    /// All tokens, `[batch * time, width]`, those that passed already changed.
    rows: Tensor<2>,
    scores: Tensor<2>,
    size: [usize; 2],
    sides: &'a mut Sides,
    inner: &'a mut Inner<'b>,
}

impl Passing<'_, '_> {
    /// Lets the `chosen` tokens of some rows of the batch through, equally many of each.
    fn pass(
        &mut self,
        rows: &[usize],
        chosen: &[Vec<u32>],
        memory: Option<&mut (BlockState, Vec<u32>)>,
    ) {
        let ([time, width], count) = (self.size, chosen.first().map_or(0, Vec::len));
        if count == 0 {
            return;
        }
        let flat = |(row, chosen): (&usize, &Vec<u32>)| {
            let first = (row * time) as u32;
            chosen.iter().map(|t| first + t).collect::<Vec<u32>>()
        };
        let ids: Vec<u32> = rows.iter().zip(chosen).flat_map(flat).collect();
        let earlier = memory.as_ref().map_or(&[][..], |(_, segments)| segments);
        let tokens = self.context.tokens.part(rows.len(), &ids, earlier);
        let context = Context {
            dropout: self.context.dropout,
            ..tokens.context(&self.depth.mixer)
        };
        let part = embedding(self.rows.clone(), &ids);
        let x = part.clone().reshape([rows.len(), count, width]);
        let state = memory.map(|(state, segments)| {
            segments.extend(tokens.new_segments(0));
            state
        });
        let added = (self.inner)(x, &context, state, self.sides).reshape([ids.len(), width]) - part;
        let scores = embedding(self.scores.clone(), &ids);
        let added = match self.depth.spec.gate {
            DepthGate::Raw => added * scores,
            DepthGate::Sigmoid => added * activate(Activation::Sigmoid, scores),
        };
        let indices: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let indices = Tensor::<1, Int>::from_data(
            TensorData::new(indices, [ids.len()]),
            &added.device().inner(),
        );
        self.rows = self
            .rows
            .clone()
            .select_assign(0, indices, added, IndexingUpdateOp::Add);
    }
}

/// The `ceil(capacity * time)` highest scores of every row, in the order of tokens; padding is never chosen.
pub(crate) fn highest(
    scores: &[f32],
    time: usize,
    capacity: f64,
    present: Option<&[bool]>,
) -> Vec<Vec<u32>> {
    let count = (capacity * time as f64).ceil() as usize;
    let is_present = |i: usize| present.is_none_or(|present| present[i]);
    let row = |(row, scores): (usize, &[f32])| {
        let mut order: Vec<u32> = (0..time as u32)
            .filter(|t| is_present(row * time + *t as usize))
            .collect();
        order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
        order.truncate(count);
        order.sort_unstable();
        order
    };
    scores.chunks(time.max(1)).enumerate().map(row).collect()
}

/// The tokens of every row that are guessed to pass.
fn positive(guesses: &[f32], time: usize, present: Option<&[bool]>) -> Vec<Vec<u32>> {
    let passes = |i: usize| guesses[i] > 0.0 && present.is_none_or(|present| present[i]);
    let rows = (0..guesses.len() / time.max(1)).map(|row| row * time);
    rows.map(|first| {
        (0..time as u32)
            .filter(|t| passes(first + *t as usize))
            .collect()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_each_row_pass_in_order() {
        let scores = [0.1, 0.9, 0.5, 0.7, 3.0, 1.0, 2.0, 4.0];
        assert_eq!(highest(&scores, 4, 0.5, None), [[1, 3], [0, 3]]);
        assert_eq!(highest(&scores, 4, 0.3, None).concat().len(), 4);
        let present = [true, false, true, true, false, false, false, true];
        assert_eq!(
            highest(&scores, 4, 0.5, Some(&present)),
            [vec![2, 3], vec![3]]
        );
    }
}
