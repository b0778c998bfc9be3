//! Three steps of each optimiser against their authors' numbers, and what must hold of all.

use super::*;
use burn::tensor::{Device, TensorData};
use serde_json::{Value as Json, json};

use crate::named_tensors;

const START: [f32; 6] = [0.5, -0.25, 1.0, 0.75, -0.5, 0.1];
const GRADIENTS: [[f32; 6]; 3] = [
    [0.1, -0.2, 0.3, 0.05, -0.4, 0.25],
    [-0.05, 0.1, 0.2, 0.15, 0.1, -0.3],
    [0.2, 0.2, -0.1, 0.3, 0.05, 0.1],
];

fn options(optimiser: Json, weight_decay: f64) -> TrainOptions {
    let options = json!({ "optimiser": optimiser, "weight_decay": weight_decay });
    let options: TrainOptions = serde_json::from_value(options).unwrap();
    options.check().unwrap();
    options
}

fn parameter(name: &str, shape: &[usize]) -> Parameter {
    let values = TensorData::new(START.to_vec(), [6]);
    let flat = Tensor::from_data(values, &Device::flex());
    Parameter::new(name, shape.to_vec(), flat)
}

fn step(optimiser: &mut dyn Optimiser, p: &mut Parameter, number: usize, learning_rate: f64) {
    let gradient = Tensor::from_floats(GRADIENTS[number], &Device::flex());
    let step = Step {
        number: number as u64 + 1,
        learning_rate,
        gradient_scale: 1.0,
    };
    optimiser.step("p", p, gradient, step);
}

/// The weight after three steps.
fn after(options: &TrainOptions, shape: &[usize], learning_rate: f64) -> Vec<f32> {
    let mut p = parameter("blocks.0.mixer.query.weight", shape);
    let mut optimiser = options.optimiser.build(options);
    for number in 0..GRADIENTS.len() {
        step(optimiser.as_mut(), &mut p, number, learning_rate);
    }
    p.to_vec()
}

fn close(found: &[f32], expected: [f32; 6]) {
    for (found_one, expected_one) in found.iter().zip(expected) {
        let difference = (found_one - expected_one).abs();
        assert!(difference < 2e-6, "{found:?} is not {expected:?}");
    }
}

#[test]
fn gradient_descent_is_that_of_pytorch() {
    let run = |own: Json| after(&options(json!({ "sgd": own }), 0.0), &[3, 2], 0.1);
    close(&run(json!({})), [0.475, -0.26, 0.96, 0.7, -0.475, 0.095]);
    let momentum = run(json!({ "momentum": 0.9 }));
    close(
        &momentum,
        [0.4624, -0.2348, 0.8907, 0.67795, -0.4156, 0.07925],
    );
    let nesterov = run(json!({ "momentum": 0.9, "nesterov": true }));
    close(
        &nesterov,
        [0.44116, -0.24632, 0.86163, 0.635_155, -0.39904, 0.076_325],
    );
}

#[test]
fn lion_takes_signs() {
    let found = after(&options(json!({ "lion": {} }), 0.1), &[3, 2], 0.01);
    close(
        &found,
        [
            0.4885115, -0.2592607, 0.9870331, 0.7177823, -0.5085115, 0.0897103,
        ],
    );
}

#[test]
fn adafactor_is_that_of_transformers() {
    let matrix = after(&options(json!({ "adafactor": {} }), 0.01), &[3, 2], 0.1);
    close(
        &matrix,
        [
            0.354_660_4,
            -0.298_929_3,
            0.837_601_5,
            0.498_147_4,
            -0.460_933_3,
            0.075_499_9,
        ],
    );
    let vector = after(&options(json!({ "adafactor": {} }), 0.0), &[6], 0.1);
    close(
        &vector,
        [
            0.3246313, -0.3318868, 0.8692169, 0.3826043, -0.4605756, 0.0624648,
        ],
    );
}

#[test]
fn muon_makes_momentum_orthogonal() {
    let like_adamw = after(&options(json!({ "muon": {} }), 0.01), &[3, 2], 0.1);
    close(
        &like_adamw,
        [
            0.4720922, -0.2277987, 0.9520051, 0.6960248, -0.4671652, 0.0968448,
        ],
    );
    let original = json!({ "muon": { "scale": "original" } });
    close(
        &after(&options(original, 0.0), &[3, 2], 0.1),
        [
            0.4066487, -0.1740009, 0.8406589, 0.5669531, -0.3891099, 0.089879,
        ],
    );
    let random: Vec<f32> = (0..16 * 40)
        .map(|i| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5)
        .collect();
    let matrix = Tensor::from_data(TensorData::new(random, [16, 40]), &Device::flex());
    let x = muon::orthogonalised(matrix, 5);
    let search = espalier_kernels::decomposition::Search::Exact;
    let svd = espalier_kernels::decomposition::truncated_svd(x, 16, search);
    assert!(
        svd.values.iter().all(|value| (0.6..1.2).contains(value)),
        "{:?}",
        svd.values
    );
}

#[test]
fn galore_is_adam_in_a_subspace() {
    let run = |rank: usize| {
        let own = json!({ "galore": { "rank": rank } });
        let mut options = options(own, 0.01);
        options.epsilon = 1e-6;
        after(&options, &[3, 2], 0.1)
    };
    close(
        &run(2),
        [
            0.469438, -0.2120538, 0.9175688, 0.7039615, -0.4679395, 0.0770611,
        ],
    );
    close(
        &run(1),
        [
            0.4603761, -0.2300051, 0.9513163, 0.7708149, -0.4650383, 0.0828082,
        ],
    );
    close(
        &run(7),
        [
            0.469438, -0.2120538, 0.9175688, 0.7039615, -0.4679395, 0.0770611,
        ],
    );
}

#[test]
fn a_subspace_costs_its_own_size() {
    let options = options(json!({ "galore": { "rank": 1 } }), 0.0);
    let optimiser = options.optimiser.build(&options);
    // A row of two, and two moments of three.
    let matrix = parameter("blocks.0.channel.up.weight", &[3, 2]);
    assert_eq!(optimiser.bytes(&matrix), 4 * (2 + 3 + 3));
    // Tables and heads have plain moments.
    assert_eq!(optimiser.bytes(&parameter("embedding.weight", &[3, 2])), 48);
    assert_eq!(
        optimiser.bytes(&parameter("blocks.0.norm.weight", &[6])),
        48
    );
}

#[test]
fn every_optimiser_goes_on_from_its_state() {
    for (name, _) in OPTIMISERS {
        let options = match *name {
            "adamw_8bit" => options(json!({ "adamw_8bit": { "smallest": 1 } }), 0.01),
            name => options(json!(name), 0.01),
        };
        for shape in [&[3, 2][..], &[6], &[2, 3, 1]] {
            let mut whole = options.optimiser.build(&options);
            let mut p = parameter("blocks.0.mixer.query.weight", shape);
            let unchanged = p.to_vec();
            whole.start("p", &p);
            step(whole.as_mut(), &mut p, 0, 0.1);
            assert_ne!(p.to_vec(), unchanged, "{name}");
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.safetensors");
            named_tensors::write(&path, &whole.state()).unwrap();
            let saved = SavedTensors::open(&path).unwrap();
            let mut again = options.optimiser.build(&options);
            again.restore("p", &p, &saved).unwrap();
            saved.refuse_unread().unwrap();
            let mut other = p.clone();
            for number in 1..3 {
                step(whole.as_mut(), &mut p, number, 0.1);
                step(again.as_mut(), &mut other, number, 0.1);
            }
            assert_eq!(p.to_vec(), other.to_vec(), "{name} {shape:?}");
            let bytes: u64 = whole.state().iter().map(bytes_of).sum();
            assert_eq!(whole.bytes(&p), bytes, "{name} {shape:?}");
        }
    }
}

fn bytes_of(tensor: &NamedTensor<'_>) -> u64 {
    let numbers = tensor.shape.iter().product::<usize>() as u64;
    match tensor.values {
        named_tensors::Values::Floats(_) => 4 * numbers,
        named_tensors::Values::Bytes(..) => numbers,
    }
}

#[test]
fn names_and_tables_are_read_and_senseless_options_refused() {
    let parse =
        |optimiser: Json| serde_json::from_value::<TrainOptions>(json!({ "optimiser": optimiser }));
    for (name, _) in OPTIMISERS {
        assert_eq!(
            parse(json!(name)).unwrap(),
            parse(json!({ *name: {} })).unwrap()
        );
    }
    let error = parse(json!("adam")).unwrap_err().to_string();
    assert!(
        error.contains("unknown variant `adam`") && error.contains("`galore`"),
        "{error}"
    );
    for wrong in [
        json!({ "galore": { "rank": 0 } }),
        json!({ "muon": { "iterations": 0 } }),
        json!({ "sgd": { "nesterov": true } }),
        json!({ "lion": { "beta1": 1.5 } }),
        json!({ "adafactor": { "clip": 0.0 } }),
    ] {
        assert!(parse(wrong.clone()).unwrap().check().is_err(), "{wrong}");
    }
}
