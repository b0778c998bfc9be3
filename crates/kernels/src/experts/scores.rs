//! Softmax, or the logistic function, of a router's logits `[tokens, experts]`: the gating weights of the chosen experts, and the expected share of all
//! tokens for each expert, which load balancing losses ask for (arXiv 2101.03961, section 2.2).

use std::sync::Arc;

use burn::tensor::{
    Int, Tensor, TensorData,
    activation::{sigmoid, softmax},
};
use burn_flex::FlexTensor;

use super::Routing;
use crate::{
    fused::{self, FusedOperator, Given, Saved, contiguous, dimensions, slice, tensor},
    parallel::{chunk, fresh},
    simd::{exp, vectorised},
};

/// The weight of every choice, `[tokens, active]`, from the router's `logits` `[tokens, experts]`: the softmax over all
/// experts at the chosen ones, divided by their sum where `normalised`.
pub fn choice_weights(logits: Tensor<2>, routing: &Arc<Routing>, normalised: bool) -> Tensor<2> {
    match fused::on_host(&logits) {
        true => fused::one(
            logits,
            Weights {
                routing: routing.clone(),
                normalised,
            },
        ),
        false => reference_weights(logits, routing, normalised),
    }
}

/// The weight of every choice, `[tokens, active]`, where experts do not compete: the logistic function of the chosen logits, divided
/// by their sum where `normalised` (DeepSeek-V3, arXiv 2412.19437).
pub fn sigmoid_weights(logits: Tensor<2>, routing: &Routing, normalised: bool) -> Tensor<2> {
    let weights = sigmoid(of_chosen(logits, routing));
    match normalised {
        // The small number is the authors'.
        true => weights.clone() / (weights.sum_dim(1) + 1e-20),
        false => weights,
    }
}

/// `sum_t c_t sum_e s_e p_te` with the softmax `p` of every row of `logits` `[rows, experts]`: `[1]`. `shares`: `[experts]`, as
/// numbers without gradient; `counted` says which rows count, all where absent.
pub fn expected_shares(
    logits: Tensor<2>,
    shares: Vec<f32>,
    counted: Option<Vec<bool>>,
) -> Tensor<1> {
    match fused::on_host(&logits) {
        true => fused::one(logits, Expected { shares, counted }),
        false => reference_shares(logits, shares, counted),
    }
}

fn reference_weights(logits: Tensor<2>, routing: &Routing, normalised: bool) -> Tensor<2> {
    match normalised {
        true => softmax(of_chosen(logits, routing), 1),
        false => of_chosen(softmax(logits, 1), routing),
    }
}

/// The values `[tokens, experts]` of the chosen experts, `[tokens, active]`.
fn of_chosen(values: Tensor<2>, routing: &Routing) -> Tensor<2> {
    let chosen: Vec<i32> = routing
        .chosen()
        .iter()
        .map(|expert| *expert as i32)
        .collect();
    let chosen = TensorData::new(chosen, [routing.tokens(), routing.active()]);
    let chosen = Tensor::<2, Int>::from_data(chosen, &values.device().inner());
    values.gather(1, chosen)
}

fn reference_shares(logits: Tensor<2>, shares: Vec<f32>, counted: Option<Vec<bool>>) -> Tensor<1> {
    let ([rows, experts], device) = (logits.dims(), logits.device().inner());
    let weighted =
        softmax(logits, 1) * Tensor::<2>::from_data(TensorData::new(shares, [1, experts]), &device);
    let counts = counted.map_or_else(
        || vec![1.0; rows],
        |rows| rows.iter().map(|row| f32::from(u8::from(*row))).collect(),
    );
    (weighted * Tensor::<2>::from_data(TensorData::new(counts, [rows, 1]), &device)).sum()
}

/// Rows of a task. Fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 256;

/// Replaces rows of scores by their softmax. All exponentials come at once: a row by itself would not fill a vector.
fn softmax_rows(scores: &mut [f32], width: usize) {
    for row in scores.chunks_exact_mut(width) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|value| *value -= largest);
    }
    exponentials(scores);
    for row in scores.chunks_exact_mut(width) {
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
}

vectorised! {
    fn exponentials<const FUSED: bool>(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = exp::<FUSED>(*value));
    }
}

/// From the gradient of a softmax, in `row`, and its output, that of the scores: `p (g - <p, g>)`.
fn through(row: &mut [f32], output: &[f32]) {
    let along: f32 = row
        .iter()
        .zip(output)
        .map(|(gradient, p)| gradient * p)
        .sum();
    row.iter_mut()
        .zip(output)
        .for_each(|(gradient, p)| *gradient = p * (*gradient - along));
}

#[derive(Debug)]
struct Weights {
    routing: Arc<Routing>,
    normalised: bool,
}

impl Weights {
    /// The experts that the tokens of a task chose, token by token.
    fn chosen(&self, task: usize) -> impl Iterator<Item = &[u32]> + '_ {
        let active = self.routing.active();
        chunk(self.routing.chosen(), ROWS * active, task).chunks_exact(active)
    }

    /// For every token of a task, the softmax over the chosen scores, or over all of them where weights are its shares.
    fn softmax(&self, task: usize, scores: &[f32]) -> Vec<f32> {
        let experts = self.routing.experts();
        let scores = chunk(scores, ROWS * experts, task);
        let (mut values, width) = match self.normalised {
            true => {
                let rows = self.chosen(task).zip(scores.chunks_exact(experts));
                let of_chosen = rows.flat_map(|(chosen, scores)| {
                    chosen.iter().map(|expert| scores[*expert as usize])
                });
                (of_chosen.collect(), self.routing.active())
            }
            false => (scores.to_vec(), experts),
        };
        softmax_rows(&mut values, width);
        values
    }
}

impl FusedOperator<1> for Weights {
    fn forward(&self, [logits]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let (logits, active, experts) = (
            contiguous(logits),
            self.routing.active(),
            self.routing.experts(),
        );
        let tokens = self.routing.tokens();
        let [weights] = fresh(
            [(tokens * active, ROWS * active)],
            |task, [weights]: [&mut [f32]; 1]| {
                let softmax = self.softmax(task, slice(&logits));
                if self.normalised {
                    weights.copy_from_slice(&softmax);
                    return;
                }
                let rows = self.chosen(task).zip(softmax.chunks_exact(experts));
                let shares = rows
                    .flat_map(|(chosen, all)| chosen.iter().map(|expert| all[*expert as usize]));
                weights
                    .iter_mut()
                    .zip(shares)
                    .for_each(|(weight, share)| *weight = share);
            },
        );
        (tensor(weights, &[tokens, active]), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let (logits, active, experts) = (
            contiguous(&given.inputs[0]),
            self.routing.active(),
            self.routing.experts(),
        );
        let [of_logits] = fresh(
            [(slice(&logits).len(), ROWS * experts)],
            |task, [of_logits]| {
                let softmax = self.softmax(task, slice(&logits));
                let mut gradients = chunk(slice(&given.gradient), ROWS * active, task).to_vec();
                let rows = of_logits
                    .chunks_exact_mut(experts)
                    .zip(gradients.chunks_exact_mut(active));
                let outputs = softmax.chunks_exact(if self.normalised { active } else { experts });
                for ((chosen, output), (out, gradient)) in self.chosen(task).zip(outputs).zip(rows)
                {
                    if self.normalised {
                        through(gradient, output);
                    }
                    chosen
                        .iter()
                        .zip(gradient)
                        .for_each(|(expert, value)| out[*expert as usize] = *value);
                    if !self.normalised {
                        through(out, output);
                    }
                }
            },
        );
        [Some(tensor(of_logits, &dimensions(&logits)))]
    }
}

#[derive(Debug)]
struct Expected {
    shares: Vec<f32>,
    counted: Option<Vec<bool>>,
}

impl Expected {
    /// The softmax of the rows of a task, and which of them count.
    fn softmax(&self, task: usize, scores: &[f32]) -> (Vec<f32>, impl Fn(usize) -> bool + '_) {
        let experts = self.shares.len();
        let mut softmax = chunk(scores, ROWS * experts, task).to_vec();
        softmax_rows(&mut softmax, experts);
        (softmax, move |row| {
            self.counted
                .as_ref()
                .is_none_or(|counted| counted[task * ROWS + row])
        })
    }
}

impl FusedOperator<1> for Expected {
    fn forward(&self, [logits]: &[FlexTensor; 1], _: [bool; 1]) -> (FlexTensor, Saved) {
        let (logits, experts) = (contiguous(logits), self.shares.len());
        let tasks = slice(&logits).len().div_ceil(ROWS * experts);
        let [sums] = fresh([(tasks, 1)], |task, [sum]: [&mut [f32]; 1]| {
            let (softmax, counts) = self.softmax(task, slice(&logits));
            let rows = softmax
                .chunks_exact(experts)
                .enumerate()
                .filter(|(row, _)| counts(*row));
            let expected = |all: &[f32]| {
                all.iter()
                    .zip(&self.shares)
                    .map(|(p, share)| p * share)
                    .sum::<f32>()
            };
            sum[0] = rows.map(|(_, all)| expected(all)).sum();
        });
        (tensor(vec![sums.iter().sum()], &[1]), Vec::new())
    }

    fn backward(&self, given: Given<1>, _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        let (logits, experts) = (contiguous(&given.inputs[0]), self.shares.len());
        let factor = slice(&given.gradient).first().copied().unwrap_or_default();
        let [of_logits] = fresh(
            [(slice(&logits).len(), ROWS * experts)],
            |task, [of_logits]| {
                let (softmax, counts) = self.softmax(task, slice(&logits));
                let rows = of_logits
                    .chunks_exact_mut(experts)
                    .zip(softmax.chunks_exact(experts))
                    .enumerate();
                for (_, (out, all)) in rows.filter(|(row, _)| counts(*row)) {
                    out.iter_mut()
                        .zip(&self.shares)
                        .for_each(|(out, share)| *out = factor * share);
                    through(out, all);
                }
            },
        );
        [Some(tensor(of_logits, &dimensions(&logits)))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, numbers};
    use burn::tensor::Device;

    #[test]
    fn weights_are_shares_of_the_softmax() {
        let logits = Tensor::<2>::from_floats([[2.0, 1.0, 0.0]], &Device::flex());
        let routing = Arc::new(Routing::top_k(&[2.0, 1.0, 0.0], 3, 2, None, None));
        let weights = |normalised| {
            choice_weights(logits.clone(), &routing, normalised)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap()
        };
        let sum = 2f32.exp() + 1f32.exp() + 1.0;
        let (first, second) = (2f32.exp() / sum, 1f32.exp() / sum);
        for (found, expected) in [
            (weights(false), [first, second]),
            (
                weights(true),
                [first / (first + second), second / (first + second)],
            ),
        ] {
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| (a - b).abs() < 1e-6),
                "{found:?}"
            );
        }
    }

    #[test]
    fn weights_without_competition() {
        let logits = Tensor::<2>::from_floats([[0.0, 3f32.ln(), -9.0]], &Device::flex());
        let routing = Routing::top_k(&[0.0, 1.0, -9.0], 3, 2, None, None);
        for (normalised, expected) in [(false, [0.75, 0.5]), (true, [0.6, 0.4])] {
            let found = sigmoid_weights(logits.clone(), &routing, normalised);
            let found = found.into_data().try_into_vec::<f32>().unwrap();
            let near = found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{found:?}");
        }
    }

    #[test]
    fn agree_with_their_definitions() {
        for (tokens, experts, active) in [(1, 1, 1), (5, 4, 2), (600, 7, 3)] {
            let routing = Arc::new(Routing::top_k(
                &numbers(tokens * experts, 1),
                experts,
                active,
                None,
                None,
            ));
            for normalised in [false, true] {
                agree(
                    &[&[tokens, experts]],
                    1e-6,
                    |t| choice_weights(t[0].get(), &routing, normalised).reshape([-1]),
                    |t| reference_weights(t[0].get(), &routing, normalised).reshape([-1]),
                );
            }
            let counted = || Some((0..tokens).map(|t| t % 3 != 1).collect::<Vec<_>>());
            for counted in [None, counted()] {
                agree(
                    &[&[tokens, experts]],
                    1e-5,
                    |t| expected_shares(t[0].get(), numbers(experts, 5), counted.clone()),
                    |t| reference_shares(t[0].get(), numbers(experts, 5), counted.clone()),
                );
            }
        }
    }
}
