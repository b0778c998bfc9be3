//! Mixture of Depths against the plain model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use burn::tensor::{Device, Tensor};
use espalier_models::{
    Result,
    model::{Input, LanguageModel},
    parameter::Parameters,
    source::{Initial, ParameterSource, Seed, Values},
    spec::{DepthGate, DepthPredictor, DepthRouting, ModelSpec},
    state::SequenceState,
    taps::{Flow, Site, Unobserved},
};

const TIME: usize = 16;

fn spec(capacity: f64, predictor: DepthPredictor) -> ModelSpec {
    let mut spec = ModelSpec {
        initializer_range: 0.4,
        ..ModelSpec::llama(40, 16, 3, 2, 2, 24, 32)
    };
    spec.blocks[1].routing = Some(DepthRouting {
        capacity,
        predictor,
        gate: DepthGate::Raw,
    });
    spec
}

/// Fresh weights, and the routers' made by a function of their index where there is one.
struct Routers(Option<fn(usize) -> f32>);

impl ParameterSource for Routers {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        match self.0 {
            Some(weight) if name.contains("depth.router") => Ok((0..shape.iter().product())
                .map(weight)
                .collect::<Vec<_>>()
                .into()),
            _ => Seed(3).parameter(name, shape, initial),
        }
    }
}

fn build(spec: ModelSpec, source: &mut Routers) -> LanguageModel {
    LanguageModel::build(spec, source, &Device::flex()).unwrap()
}

fn input() -> Input {
    Input::rows(&[(0..TIME as u32).map(|i| i * 7 % 40).collect()]).unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Hidden states before and after the routed block, and the router's scores.
fn around(model: &LanguageModel) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut seen = [Vec::new(), Vec::new()];
    let mut observer = |site: Site, hidden: Tensor<3>| {
        if let Site::Block(i @ 0..=1) = site {
            seen[i] = values(hidden.clone());
        }
        Flow::Continue(hidden)
    };
    let forward = model.forward(&input(), None, &mut observer).unwrap();
    let channels = forward.sides.outputs[0].values.dims()[2];
    let scores = values(forward.sides.outputs[0].values.clone())
        .into_iter()
        .step_by(channels)
        .collect();
    let [before, after] = seen;
    (before, after, scores)
}

#[test]
fn tokens_that_do_not_pass_leave_as_they_came() {
    let mut model = build(spec(0.25, DepthPredictor::Mlp), &mut Routers(None));
    model.set_training(true);
    let (before, after, scores) = around(&model);
    let mut order: Vec<usize> = (0..TIME).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    for (rank, token) in order.into_iter().enumerate() {
        let same = before[token * 16..(token + 1) * 16] == after[token * 16..(token + 1) * 16];
        assert_eq!(same, rank >= 4, "token {token} of rank {rank}");
    }
}

#[test]
fn a_block_for_all_tokens_is_weighted_by_the_router_alone() {
    let spec = spec(1.0, DepthPredictor::AuxLoss);
    let mut plain = spec.clone();
    plain.blocks[1].routing = None;
    let plain = build(plain, &mut Routers(None));
    let mut whole = Vec::new();
    let mut observer = |site: Site, hidden: Tensor<3>| {
        if site == Site::Block(1) {
            whole = values(hidden.clone());
        }
        Flow::Continue(hidden)
    };
    plain
        .hidden_observed(&input(), None, &mut observer)
        .unwrap();
    for gate in [DepthGate::Raw, DepthGate::Sigmoid] {
        let mut spec = spec.clone();
        spec.blocks[1].routing = spec.blocks[1]
            .routing
            .map(|routing| DepthRouting { gate, ..routing });
        let mut routed = build(spec, &mut Routers(None));
        routed.set_training(true);
        let (before, after, scores) = around(&routed);
        // x + w f(x) with f the block without its residual: for w = 1 the plain block.
        let weight = |score: f32| {
            if gate == DepthGate::Raw {
                score
            } else {
                1.0 / (1.0 + (-score).exp())
            }
        };
        let expected =
            (0..whole.len()).map(|i| before[i] + weight(scores[i / 16]) * (whole[i] - before[i]));
        assert!(
            gap(&after, &expected.collect::<Vec<_>>()) < 1e-4,
            "{gate:?}"
        );
    }
}

#[test]
fn the_router_is_on_the_gradient_path_and_the_network_beside_it_is_not() {
    for predictor in [DepthPredictor::Mlp, DepthPredictor::AuxLoss] {
        let mut model = build(spec(0.5, predictor), &mut Routers(None));
        model.set_training(true);
        model.set_trainable(|_| true);
        let forward = || model.forward(&input(), None, &mut Unobserved).unwrap();
        let gradients = forward().hidden.powf_scalar(4.0).sum().backward();
        let largest = |gradients: &burn::tensor::Gradients, part: &str| {
            let mut largest = 0f32;
            model.visit(&mut |p| {
                if let Some(gradient) = p
                    .leaf()
                    .and_then(|leaf| leaf.grad(gradients))
                    .filter(|_| p.name().contains(part))
                {
                    largest = values(gradient)
                        .into_iter()
                        .fold(largest, |a, b| a.max(b.abs()));
                }
            });
            largest
        };
        assert!(largest(&gradients, "depth.router") > 1e-3);
        assert_eq!(largest(&gradients, "depth.predictor"), 0.0);
        let auxiliary = model.auxiliary_losses(&forward().sides.outputs);
        assert_eq!(auxiliary.losses[0].name, "depth_loss");
        let gradients = auxiliary.total().unwrap().backward();
        let (own, others) = match predictor {
            DepthPredictor::Mlp => ("depth.predictor", ["depth.router", "blocks.0.mixer"]),
            DepthPredictor::AuxLoss => ("depth.router", ["depth.predictor", "blocks.2.mixer"]),
        };
        assert!(largest(&gradients, own) > 0.0);
        others
            .iter()
            .for_each(|other| assert_eq!(largest(&gradients, other), 0.0, "{other}"));
    }
}

#[test]
fn recomputing_changes_no_gradient() {
    let gradients = |recomputed: bool| -> Vec<Vec<f32>> {
        let mut model = build(spec(0.5, DepthPredictor::Mlp), &mut Routers(None));
        model.set_training(true);
        model.set_trainable(|_| true);
        model.set_gradient_checkpointing(recomputed).unwrap();
        let forward = model.forward(&input(), None, &mut Unobserved).unwrap();
        let loss = forward.hidden.powf_scalar(2.0).sum()
            + model
                .auxiliary_losses(&forward.sides.outputs)
                .total()
                .unwrap();
        let gradients = loss.backward();
        model
            .parameters()
            .into_iter()
            .map(|p| {
                p.leaf()
                    .and_then(|leaf| leaf.grad(&gradients))
                    .map_or(Vec::new(), values)
            })
            .collect()
    };
    gradients(false)
        .iter()
        .zip(&gradients(true))
        .for_each(|(a, b)| assert!(gap(a, b) < 1e-4));
}

#[test]
fn a_predictor_that_is_always_right_decodes_what_training_computes() {
    // Where as many tokens have a positive score as the capacity allows, the score itself is such a predictor.
    let probe = build(spec(1.0, DepthPredictor::AuxLoss), &mut Routers(None));
    let positive = around(&probe)
        .2
        .iter()
        .filter(|score| **score > 0.0)
        .count();
    assert!(positive > 2 && positive < TIME - 2);
    let mut model = build(
        spec(positive as f64 / TIME as f64, DepthPredictor::AuxLoss),
        &mut Routers(None),
    );
    let guessed = values(model.logits(&input()).unwrap());
    let mut state = SequenceState::new(model.spec());
    let mut decoded = Vec::new();
    for (start, end) in std::iter::once((0, 5)).chain((5..TIME).map(|t| (t, t + 1))) {
        let step = Input::rows(&[input().ids[start..end].to_vec()]).unwrap();
        let hidden = model.hidden(&step, Some(&mut state)).unwrap();
        decoded.extend(values(model.head(hidden)));
    }
    model.set_training(true);
    let parallel = values(model.logits(&input()).unwrap());
    assert!(gap(&parallel, &guessed) < 1e-5 && gap(&parallel, &decoded) < 1e-5);
    assert_eq!(state.processed(1), Some(vec![positive]));
    assert_eq!(state.processed(0), None);
}

#[test]
fn rows_of_a_batch_do_not_touch_each_other() {
    let model = build(spec(0.5, DepthPredictor::AuxLoss), &mut Routers(None));
    let rows: [Vec<u32>; 2] = [input().ids, (0..TIME as u32).map(|i| i * 11 % 40).collect()];
    let together = values(model.logits(&Input::rows(&rows).unwrap()).unwrap());
    let apart = rows
        .map(|row| values(model.logits(&Input::rows(&[row]).unwrap()).unwrap()))
        .concat();
    assert!(gap(&together, &apart) < 1e-5);
    let padded = Input {
        ids: [vec![0; 4], input().ids].concat(),
        batch: 1,
        positions: Some([vec![0; 4], (0..TIME as u32).collect()].concat()),
        segments: Some([vec![0; 4], vec![1; TIME]].concat()),
        ..Input::default()
    };
    let width = model.spec().vocabulary;
    let padded = values(model.logits(&padded).unwrap());
    assert!(gap(&padded[4 * width..], &apart[..TIME * width]) < 1e-5);
}
