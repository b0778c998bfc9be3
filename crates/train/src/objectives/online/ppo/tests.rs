//! Tests of `ppo`.

use super::*;
use burn::tensor::Device;
use espalier_data::encode::Example;

fn tensor(values: &[f32]) -> Tensor<1> {
    Tensor::from_floats(values, &Device::flex())
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-5;
    assert!(
        found.iter().zip(expected).all(near),
        "{found:?}, expected {expected:?}"
    );
    assert_eq!(found.len(), expected.len());
}

#[test]
fn losses_of_three_tokens_and_four_values() {
    let old = tensor(&[-1.0, -0.5, -2.0]);
    let new = tensor(&[-0.6, -0.8, -1.9]).autodiff().require_grad();
    let ratios = (new.clone() - old).exp();
    assert_near(&ratios.clone().floats(), &[1.491_825, 0.740_818, 1.105_171]);
    let advantages = tensor(&[0.945_790, 0.100_785, -1.046_575]);
    let clip = Clip {
        low: 0.2,
        high: 0.2,
        delta: None,
    };
    let policy = clipped(ratios, advantages, clip).mean();
    let values = tensor(&[0.5, 0.25, 0.2, 0.45]).autodiff().require_grad();
    let returns = tensor(&[0.916_987_5, 0.965_25, 0.995, 1.0]);
    let before = tensor(&[0.1, 0.2, 0.3, 0.4]);
    let value = value_losses(values.clone(), before, returns, 0.2).mean();
    assert_near(&policy.clone().floats(), &[-0.017_656]);
    assert_near(&value.clone().floats(), &[0.228_348]);
    let loss = policy + value * 0.1;
    assert_near(&loss.clone().floats(), &[0.005_179]);
    let gradients = loss.backward();
    assert_near(
        &new.grad(&gradients).unwrap().floats(),
        &[0.0, -0.024_888, 0.385_548],
    );
    let expected = [0.0, -0.017_881, -0.019_875, -0.013_750];
    assert_near(&values.grad(&gradients).unwrap().floats(), &expected);
}

#[test]
fn the_score_stands_at_the_last_token_and_a_missing_end_costs() {
    let mut answer = Sample::example(&Example::new(
        vec![1, 2, 3, 4],
        vec![false, true, true, true],
    ));
    answer.columns.set_numbers(OLD, vec![-1.0, -0.5, -2.0]);
    answer
        .columns
        .set_numbers(REFERENCE, vec![-1.2, -0.4, -1.5]);
    answer.columns.set_numbers(ENDED, vec![1.0]);
    let ppo = Ppo::new(PpoOptions {
        missing_eos_penalty: Some(0.25),
        ..PpoOptions::default()
    });
    let near = |found: &[f64], expected: [f64; 3]| {
        let near = found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(near, "{found:?}");
    };
    near(
        &ppo.rewards(&mut answer, 1.0).unwrap(),
        [-0.01, 0.005, 1.025],
    );
    assert!((answer.columns.numbers(RLHF, 1).unwrap()[0] - 1.02).abs() < 1e-9);
    answer.columns.set_numbers(ENDED, vec![0.0]);
    near(
        &ppo.rewards(&mut answer, 1.0).unwrap(),
        [-0.01, 0.005, 0.775],
    );
}

#[test]
fn the_penalty_follows_its_target_and_survives_a_checkpoint() {
    let options = PpoOptions {
        kl_target: Some(6.0),
        kl_horizon: 10.0,
        ..PpoOptions::default()
    };
    let mut ppo = Ppo::new(options.clone());
    let mut answer = Sample::default();
    answer.columns.set_numbers(OLD, vec![-1.0, -1.0]);
    answer.columns.set_numbers(REFERENCE, vec![-10.0, -4.0]);
    ppo.after_step(&[&answer, &answer]);
    assert!((ppo.kl_coef - 0.05 * 1.04).abs() < 1e-12, "{}", ppo.kl_coef);
    // A step on answers of an earlier one steers nothing.
    ppo.after_step(&[]);
    assert!((ppo.kl_coef - 0.05 * 1.04).abs() < 1e-12, "{}", ppo.kl_coef);
    let mut other = Ppo::new(options);
    other.restore(&ppo.state()).unwrap();
    assert_eq!(other.state(), ppo.state());
    assert!(other.restore(&[1]).is_err());
}
