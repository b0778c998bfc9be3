//! Experts, multi-head experts and attention experts against what they are made of; upcycling.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail loudly"
)]

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use espalier_models::{
    Result,
    checkpoint::Dtype,
    folder,
    model::{Input, LanguageModel},
    parameter::Parameters,
    source::{Initial, ParameterSource, Seed, Values},
    spec::{
        Activation, AttentionExpertsSpec, BalanceForm, CapacitySpec, ChannelSpec, ExpertsSpec,
        MixerSpec, MlpSpec, ModelSpec, MultiHeadExpertsSpec, RouterLosses, RouterSpec,
    },
    taps::{Flow, Unobserved},
    upcycle::{
        Upcycling,
        gates::{ExpertPrompts, GateForm, gates, similarity},
        upcycle,
    },
};

const WIDTH: usize = 16;
const INNER: usize = 12;

fn dense() -> ModelSpec {
    ModelSpec {
        initializer_range: 0.4,
        ..ModelSpec::llama(40, WIDTH, 2, 2, 2, INNER, 32)
    }
}

fn router(experts: usize, active: usize) -> RouterSpec {
    RouterSpec::softmax(experts, active, true)
}

fn experts(router: RouterSpec) -> ExpertsSpec {
    let expert = MlpSpec {
        inner: INNER,
        activation: Activation::Silu,
        bias: false,
        sub_norm: None,
    };
    ExpertsSpec {
        router,
        expert,
        gated: true,
        clamped: None,
        output_bias: false,
        shared: None,
    }
}

fn sparse(router: RouterSpec) -> ModelSpec {
    let losses = RouterLosses {
        added: true,
        balance: 0.5,
        form: BalanceForm::Joint,
        z: 0.1,
    };
    let mut spec = ModelSpec {
        family: "mixtral".into(),
        router_losses: Some(losses),
        ..dense()
    };
    spec.blocks
        .iter_mut()
        .for_each(|block| block.channel = ChannelSpec::SparseExperts(experts(router.clone())));
    spec
}

fn build(spec: ModelSpec, source: &mut dyn ParameterSource) -> LanguageModel {
    LanguageModel::build(spec, source, &Device::flex()).unwrap()
}

/// Weights by a function of their name, the seed's where it gives none.
struct Named<F>(F);

impl<F: Fn(&str, &[usize]) -> Option<Vec<f32>>> ParameterSource for Named<F> {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let values = (self.0)(name, shape);
        values.map_or_else(
            || Seed(1).parameter(name, shape, initial),
            |values| Ok(values.into()),
        )
    }
}

fn input() -> Input {
    Input::rows(&[
        (0..20).map(|i| i * 7 % 40).collect(),
        (0..20).map(|i| i * 11 % 40).collect(),
    ])
    .unwrap()
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

fn assert_alike(a: &LanguageModel, b: &LanguageModel, what: &str) {
    let gap = gap(
        &values(a.logits(&input()).unwrap()),
        &values(b.logits(&input()).unwrap()),
    );
    assert!(gap < 1e-5, "{what}: {gap}");
}

fn weights(model: &LanguageModel) -> HashMap<String, Vec<f32>> {
    model
        .parameters()
        .into_iter()
        .map(|p| (p.name().to_owned(), p.to_vec()))
        .collect()
}

fn options(experts: usize, active: usize) -> Upcycling {
    Upcycling {
        experts,
        active,
        balance: 0.01,
        noise: 0.0,
        seed: 5,
        gates: Vec::new(),
    }
}

#[test]
fn one_expert_and_equal_experts_are_the_dense_layer() {
    let model = build(dense(), &mut Seed(1));
    for (experts, active) in [(1, 1), (4, 2), (3, 3), (8, 1)] {
        let upcycled = upcycle(&model, &[], options(experts, active)).unwrap();
        assert_alike(
            &upcycled,
            &model,
            &format!("{active} of {experts} equal experts"),
        );
    }
}

#[test]
fn upcycled_models_are_saved_as_mixtral_and_take_donors() {
    let (base, donor) = (build(dense(), &mut Seed(1)), build(dense(), &mut Seed(2)));
    let mixed = upcycle(&base, &[&base, &donor], options(4, 2)).unwrap();
    let (found, given) = (weights(&mixed), weights(&donor));
    let size = INNER * WIDTH;
    let up = &found["blocks.0.channel.experts.up.weight"];
    assert_eq!(
        up[2 * size..3 * size],
        given["blocks.0.channel.gate.weight"]
    );
    assert_eq!(up[7 * size..8 * size], given["blocks.0.channel.up.weight"]);
    let saved = tempfile::tempdir().unwrap();
    folder::save(&mixed, saved.path(), None, Dtype::F32).unwrap();
    let again = folder::load(saved.path(), &Device::flex()).unwrap().model;
    assert_eq!(weights(&again), found);
    assert!(upcycle(&base, &[], options(2, 3)).is_err());
    assert!(
        upcycle(&mixed, &[], options(4, 2))
            .unwrap_err()
            .to_string()
            .contains("no form with experts")
    );
}

#[test]
fn prompts_make_routers() {
    let base = build(dense(), &mut Seed(1));
    let prompt = |first: u32| (first..first + 5).collect::<Vec<u32>>();
    let prompts = [
        ExpertPrompts {
            positive: vec![prompt(1), prompt(9)],
            negative: vec![prompt(20)],
        },
        ExpertPrompts {
            positive: vec![prompt(20)],
            negative: Vec::new(),
        },
    ];
    // Hidden states by themselves: the second block is given what the first one leaves.
    let states = |row: Vec<u32>| {
        let mut states = Vec::new();
        let mut observer = |_, hidden: Tensor<3>| {
            states.push(values(hidden.clone().reshape([5, WIDTH])));
            Flow::Continue(hidden)
        };
        base.hidden_observed(&Input::rows(&[row]).unwrap(), None, &mut observer)
            .unwrap();
        states
    };
    let [a, b, c] = [1, 9, 20].map(|first| states(prompt(first)));
    let scaled = |row: Vec<f32>| {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.into_iter().map(|v| v / length).collect::<Vec<_>>()
    };
    let check = |form, of: &dyn Fn(&[f32], usize) -> f32, embedded: bool| {
        let found = gates(&base, &prompts, form).unwrap();
        for (block, found) in found.iter().enumerate() {
            let at = if embedded { 0 } else { block };
            let [a, b, c] = [&a[at], &b[at], &c[at]];
            let first = (0..WIDTH)
                .map(|i| (of(a, i) + of(b, i)) / 2.0 - of(c, i))
                .collect();
            let second = (0..WIDTH).map(|i| of(c, i)).collect();
            assert!(
                gap(found, &[scaled(first), scaled(second)].concat()) < 1e-5,
                "{form:?} in block {block}"
            );
        }
        found
    };
    let sum = |rows: &[f32], i: usize| rows.iter().skip(i).step_by(WIDTH).sum::<f32>();
    check(GateForm::MeanHidden, &sum, false);
    check(GateForm::Embedding, &sum, true);
    let found = check(GateForm::LastHidden, &|rows, i| rows[4 * WIDTH + i], false);
    assert!(similarity(&found[0], WIDTH) < 0.9);
    let mixed = upcycle(
        &base,
        &[],
        Upcycling {
            gates: found.clone(),
            ..options(2, 1)
        },
    )
    .unwrap();
    assert_eq!(weights(&mixed)["blocks.1.channel.router.weight"], found[1]);
    assert!(
        upcycle(
            &base,
            &[],
            Upcycling {
                gates: found,
                ..options(4, 2)
            }
        )
        .is_err()
    );
    let twins = [prompts[0].clone(), prompts[0].clone()];
    assert!(
        gates(&base, &twins, GateForm::LastHidden)
            .unwrap_err()
            .to_string()
            .contains("same prompts")
    );
    assert!(gates(&base, &[ExpertPrompts::default()], GateForm::LastHidden).is_err());
}

#[test]
fn all_experts_are_the_soft_mixture() {
    let spec = sparse(router(3, 3));
    let model = build(spec.clone(), &mut Seed(4));
    let switched = build(
        ModelSpec {
            blocks: {
                let mut blocks = spec.blocks.clone();
                let not = RouterSpec {
                    normalised: false,
                    ..router(3, 3)
                };
                blocks
                    .iter_mut()
                    .for_each(|b| b.channel = ChannelSpec::SparseExperts(experts(not.clone())));
                blocks
            },
            ..spec
        },
        &mut Seed(4),
    );
    // All probabilities sum to one already.
    assert_alike(&model, &switched, "all experts");
}

#[test]
fn tokens_beyond_the_capacity_keep_their_residual() {
    // All tokens go to the first expert: 40 tokens, two experts, so that a factor of 0.25 leaves room for five.
    let full = RouterSpec {
        capacity: Some(CapacitySpec {
            training: 0.25,
            evaluation: 2.0,
        }),
        ..router(2, 1)
    };
    let source = || {
        Named(|name: &str, shape: &[usize]| match name {
            "blocks.1.channel.experts.down.weight" => Some(vec![0.5; shape.iter().product()]),
            name if name.ends_with("router.weight") => Some(vec![0.0; shape.iter().product()]),
            _ => None,
        })
    };
    let mut model = build(sparse(full), &mut source());
    let free = build(sparse(router(2, 1)), &mut source());
    assert_alike(&model, &free, "room for all in evaluation");
    model.set_training(true);
    let forward = model.forward(&input(), None, &mut Unobserved).unwrap();
    let auxiliary = model.auxiliary_losses(&forward.sides.outputs);
    let measure = |name: &str| {
        auxiliary
            .measures
            .iter()
            .find(|(found, _)| *found == name)
            .unwrap()
            .1
    };
    assert_eq!(measure("experts/dropped"), 35.0 / 40.0);
    assert_eq!(measure("experts/load"), 2.0);
}

/// The loss with its auxiliary part, and every gradient.
fn trained(mut model: LanguageModel, recomputed: bool) -> (Vec<f32>, Vec<Vec<f32>>) {
    model.set_trainable(|_| true);
    model.set_training(true);
    model.set_gradient_checkpointing(recomputed).unwrap();
    let forward = model.forward(&input(), None, &mut Unobserved).unwrap();
    let auxiliary = model
        .auxiliary_losses(&forward.sides.outputs)
        .total()
        .unwrap();
    let loss = forward.hidden.powf_scalar(2.0).mean() + auxiliary;
    let gradients = loss.backward();
    let gradient = |p: &espalier_models::parameter::Parameter| {
        p.leaf()
            .and_then(|leaf| leaf.grad(&gradients))
            .map_or(Vec::new(), values)
    };
    (
        values(loss.clone().inner()),
        model.parameters().into_iter().map(gradient).collect(),
    )
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let mut with_attention = sparse(router(4, 2));
    with_attention.blocks[1].mixer = attention_experts(router(4, 2));
    for spec in [sparse(router(4, 2)), with_attention] {
        let model = build(spec, &mut Seed(3));
        let (plain, recomputed) = (trained(model.clone(), false), trained(model, true));
        assert!(gap(&plain.0, &recomputed.0) < 1e-6);
        for (a, b) in plain.1.iter().zip(&recomputed.1) {
            assert!(gap(a, b) < 1e-5);
        }
    }
}

#[test]
fn the_router_learns_from_weighted_choices_only() {
    let gradient = |normalised| {
        let mut spec = sparse(RouterSpec {
            normalised,
            ..router(4, 1)
        });
        spec.router_losses = Some(RouterLosses {
            added: true,
            balance: 0.0,
            form: BalanceForm::Joint,
            z: 0.0,
        });
        let mut model = build(spec, &mut Seed(3));
        model.set_trainable(|_| true);
        let hidden = model.hidden(&input(), None).unwrap();
        let gradients = hidden.powf_scalar(4.0).sum().backward();
        let mut largest = 0f32;
        model.visit(&mut |p| {
            if p.name().ends_with("router.weight") {
                largest = largest.max(gap(
                    &values(p.leaf().unwrap().grad(&gradients).unwrap()),
                    &vec![0.0; p.len()],
                ));
            }
        });
        largest
    };
    assert!(gradient(false) > 1e-3 && gradient(true) == 0.0);
}

fn identity(size: usize) -> Vec<f32> {
    (0..size * size)
        .map(|i| if i / size == i % size { 1.0 } else { 0.0 })
        .collect()
}

fn multi_head(heads: usize, experts: ExpertsSpec) -> ModelSpec {
    let mut spec = sparse(router(4, 2));
    let channel = ChannelSpec::MultiHeadExperts(MultiHeadExpertsSpec { heads, experts });
    spec.blocks
        .iter_mut()
        .for_each(|block| block.channel = channel.clone());
    spec
}

/// Identities in place of the two maps around multi-head experts.
fn unmixed(name: &str, _: &[usize]) -> Option<Vec<f32>> {
    let maps = ["multi_head.weight", "merge.weight"];
    maps.iter()
        .any(|map| name.ends_with(map))
        .then(|| identity(WIDTH))
}

#[test]
fn one_head_without_its_maps_is_the_plain_mixture() {
    let model = build(multi_head(1, experts(router(4, 2))), &mut Named(unmixed));
    assert_alike(
        &model,
        &build(sparse(router(4, 2)), &mut Seed(1)),
        "one head",
    );
}

#[test]
fn a_linear_expert_for_parts_is_block_diagonal() {
    let part = WIDTH / 2;
    let expert = MlpSpec {
        inner: 2 * part,
        activation: Activation::Relu,
        bias: false,
        sub_norm: None,
    };
    let linear = ExpertsSpec {
        router: router(1, 1),
        expert,
        gated: false,
        clamped: None,
        output_bias: false,
        shared: None,
    };
    // relu(x) - relu(-x) = x, so that the expert is the map `a`.
    let a = |i: usize, j: usize| ((i * 5 + j * 3) % 7) as f32 * 0.1 - 0.3;
    let source = |name: &str, shape: &[usize]| {
        let at = |row: usize, column: usize| match name.rsplit_once(".experts.") {
            Some((_, "up.weight")) if row % part == column => {
                Some(if row < part { 1.0 } else { -1.0 })
            }
            Some((_, "up.weight")) => Some(0.0),
            Some((_, "down.weight")) => Some(if column < part {
                a(row, column)
            } else {
                -a(row, column - part)
            }),
            _ => None,
        };
        let whole = || -> Option<Vec<f32>> {
            let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
            (0..rows * columns)
                .map(|i| at(i / columns, i % columns))
                .collect()
        };
        if name.contains(".experts.") {
            whole()
        } else {
            unmixed(name, shape)
        }
    };
    let model = build(multi_head(2, linear), &mut Named(source));
    // The same as a feed-forward layer: twice as many units, which see one half of the channels each.
    let wide = |name: &str, shape: &[usize]| {
        let at = |row: usize, column: usize| match name.rsplit_once(".channel.") {
            Some((_, "up.weight")) if row % WIDTH == column => {
                Some(if row < WIDTH { 1.0 } else { -1.0 })
            }
            Some((_, "up.weight")) => Some(0.0),
            Some((_, "down.weight")) => {
                let (sign, column) = if column < WIDTH {
                    (1.0, column)
                } else {
                    (-1.0, column - WIDTH)
                };
                Some(if row / part == column / part {
                    sign * a(row % part, column % part)
                } else {
                    0.0
                })
            }
            _ => None,
        };
        let columns = shape[shape.len() - 1];
        (0..shape.iter().product())
            .map(|i: usize| at(i / columns, i % columns))
            .collect::<Option<Vec<f32>>>()
    };
    let mut spec = dense();
    let mlp = MlpSpec {
        inner: 2 * WIDTH,
        activation: Activation::Relu,
        bias: false,
        sub_norm: None,
    };
    spec.blocks
        .iter_mut()
        .for_each(|block| block.channel = ChannelSpec::Mlp(mlp.clone()));
    assert_alike(&model, &build(spec, &mut Named(wide)), "block-diagonal");
}

fn attention_experts(router: RouterSpec) -> MixerSpec {
    let MixerSpec::Attention(attention) = &dense().blocks[0].mixer else {
        panic!()
    };
    MixerSpec::AttentionExperts(AttentionExpertsSpec {
        router,
        kv_heads: attention.kv_heads,
        head_dim: attention.head_dim,
        scale: attention.scale,
        rotary: attention.rotary.clone(),
    })
}

fn with_attention(router: RouterSpec) -> ModelSpec {
    let mut spec = dense();
    spec.blocks
        .iter_mut()
        .for_each(|block| block.mixer = attention_experts(router.clone()));
    spec
}

/// Attention experts that are all equal to the dense model's projections.
fn equal_experts(
    dense: &HashMap<String, Vec<f32>>,
    name: &str,
    shape: &[usize],
) -> Option<Vec<f32>> {
    let (layer, part) = name.split_once(".mixer.experts.")?;
    Some(dense[&format!("{layer}.mixer.{part}")].repeat(shape[0]))
}

#[test]
fn one_attention_expert_is_plain_attention() {
    let model = build(dense(), &mut Seed(1));
    let weights = weights(&model);
    let source = |name: &str, shape: &[usize]| equal_experts(&weights, name, shape);
    assert_alike(
        &build(with_attention(router(1, 1)), &mut Named(source)),
        &model,
        "one expert",
    );
    // Equal experts give equal heads, whatever the router chooses, and weights that sum to one.
    assert_alike(
        &build(with_attention(router(4, 2)), &mut Named(source)),
        &model,
        "equal experts",
    );
}
