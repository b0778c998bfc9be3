//! The table of worked numbers: one pair with log-probabilities -12 and -15 of 6 and 8 tokens, under the reference -13 and -14.5, so that
//! `a = 1`, `b = -0.5`; `beta = 0.1`. Computed in f64.

use super::{
    divergence::{AlphaOptions, Divergence},
    mixture::Mixture,
    *,
};
use crate::objectives::preference::tests::{constant, leaf, near, with_gradients};

const CONSTANTS: Constants = Constants {
    beta: 0.1,
    label_smoothing: None,
    tau: 0.05,
    mean_reward: 0.0,
};

/// Mean loss over pairs and its gradients for the policy's log-probabilities of better and worse answers.
fn worked<const N: usize>(
    mixture: &Mixture,
    divergence: Divergence,
    constants: Constants,
    [better, worse]: [[f32; N]; 2],
    [better_reference, worse_reference]: [[f32; N]; 2],
) -> (f32, Vec<Vec<f32>>) {
    let (chosen, rejected) = (leaf(better), leaf(worse));
    let reference = [constant(better_reference), constant(worse_reference)];
    let [of_chosen, of_rejected] = reference.clone();
    let pairs = Pairs {
        chosen: divergence.score(chosen.clone() - of_chosen),
        rejected: divergence.score(rejected.clone() - of_rejected),
        chosen_tokens: constant([6.0; N]),
        rejected_tokens: constant([8.0; N]),
        policy_margins: chosen.clone() - rejected.clone(),
        reference_margins: reference[0].clone() - reference[1].clone(),
    };
    let term = |(loss, weight): (PairLoss, f64)| {
        let of_pairs = match loss.of(&pairs, constants) {
            Some(of_pairs) => of_pairs,
            None => -chosen.clone() / 6.0,
        };
        of_pairs.mean() * weight
    };
    let loss = mixture.iter().map(term).reduce(|sum, one| sum + one);
    with_gradients(loss.unwrap(), &[&chosen, &rejected])
}

fn of_one(mixture: &Mixture, divergence: Divergence, constants: Constants) -> [f32; 3] {
    let pair = [[-12.0], [-15.0]];
    let (loss, gradients) = worked(mixture, divergence, constants, pair, [[-13.0], [-14.5]]);
    [loss, gradients[0][0], gradients[1][0]]
}

#[test]
fn one_pair() {
    let alpha = Divergence::AlphaDivergence(AlphaOptions { alpha: 0.5 });
    let usual = Divergence::ReverseKl;
    for (loss, divergence, expected) in [
        ("'sigmoid'", usual, [0.620957, -0.046257, 0.046257]),
        ("'hinge'", usual, [0.85, -0.1, 0.1]),
        ("'ipo'", usual, [22.760_85, -1.590278, 1.192708]),
        ("'ipo_raw'", usual, [12.25, -7.0, 7.0]),
        ("'robust'", usual, [0.602207, -0.058757, 0.058757]),
        ("'cdpo'", usual, [0.635957, -0.036257, 0.036257]),
        ("'exo_pair'", usual, [2.505517, -0.167972, 0.167972]),
        ("'nca_pair'", usual, [1.350825, -0.021253, 0.024375]),
        ("'bco_pair'", usual, [1.312856, -0.047502, 0.04875]),
        ("'bco'", usual, [1.312856, -0.047502, 0.04875]),
        ("'sppo_hard'", usual, [36.25, -8.0, 9.0]),
        ("'aot'", usual, [0.620957, -0.046257, 0.046257]),
        ("'aot_unpaired'", usual, [0.620957, -0.046257, 0.046257]),
        ("'apo_zero'", usual, [0.962523, -0.024938, 0.024984]),
        ("'apo_down'", usual, [0.987549, 0.000078, 0.02486]),
        ("'discopop'", usual, [0.849338, -0.06252, 0.06252]),
        ("'sigmoid_norm'", usual, [0.681754, -0.008238, 0.006178]),
        ("'sft'", usual, [2.0, -0.166667, 0.0]),
        (
            "{'sigmoid': 1, 'sft': 1}",
            usual,
            [2.620957, -0.212924, 0.046257],
        ),
        (
            "{'sigmoid': 0.8, 'bco_pair': 0.2, 'sft': 1}",
            usual,
            [2.759337, -0.213173, 0.046756],
        ),
        (
            "'sigmoid'",
            Divergence::ForwardKl,
            [0.631154, -0.017218, 0.077164],
        ),
        (
            "'sigmoid'",
            Divergence::JsDivergence,
            [0.660652, -0.013003, 0.030095],
        ),
        ("'sigmoid'", alpha, [0.627691, -0.028275, 0.059858]),
    ] {
        let mixture: Mixture = serde_json::from_str(&loss.replace('\'', "\"")).unwrap();
        let what = format!("{loss}, {divergence:?}");
        near(&of_one(&mixture, divergence, CONSTANTS), &expected, &what);
    }
}

#[test]
fn losses_of_distributions_sort_a_batch() {
    let policy = [[-12.0, -20.0], [-15.0, -18.0]];
    let reference = [[-13.0, -19.0], [-14.5, -18.5]];
    for (loss, mean, better, worse) in [
        (
            PairLoss::Aot,
            0.695957,
            [-0.023129, -0.026871],
            [0.023129, 0.026871],
        ),
        (
            PairLoss::AotUnpaired,
            0.693460,
            [-0.024375, -0.025625],
            [0.025625, 0.024375],
        ),
    ] {
        let (found, gradients) = worked(
            &loss.into(),
            Divergence::ReverseKl,
            CONSTANTS,
            policy,
            reference,
        );
        near(&[found], &[mean], "loss");
        near(&gradients[0], &better, "better");
        near(&gradients[1], &worse, "worse");
    }
}

#[test]
fn a_policy_that_is_its_reference_costs_what_is_known() {
    let same = [[-12.0], [-15.0]];
    let two = 2f32.ln();
    for (loss, expected) in [
        (PairLoss::Sigmoid, two),
        (PairLoss::Hinge, 1.0),
        (PairLoss::Ipo, 25.0),
        (PairLoss::IpoRaw, 25.0),
        (PairLoss::Robust, two),
        (PairLoss::Cdpo, two),
        (PairLoss::NcaPair, 2.0 * two),
        (PairLoss::BcoPair, 2.0 * two),
        (PairLoss::Bco, 2.0 * two),
        (PairLoss::SppoHard, 50.0),
        (PairLoss::Aot, two),
        (PairLoss::AotUnpaired, two),
        (PairLoss::ApoZero, 1.0),
        (PairLoss::ApoDown, 1.0),
        (PairLoss::SigmoidNorm, two),
        (PairLoss::Discopop, 0.5 + 0.5 * two),
    ] {
        let (found, _) = worked(&loss.into(), Divergence::ReverseKl, CONSTANTS, same, same);
        near(&[found], &[expected], &format!("{loss:?}"));
    }
    let sigmoid = &PairLoss::Sigmoid.into();
    let (_, gradients) = worked(sigmoid, Divergence::ReverseKl, CONSTANTS, same, same);
    assert_eq!(gradients, [[-0.05], [0.05]]);
}

#[test]
fn the_mean_of_all_rewards_shifts_what_is_good() {
    // The rewards of the pair are 0.1 and -0.05: their mean is 0.025.
    let mean = absolute::RunningMean::default().with(&[0.1, -0.05]);
    assert!((mean.value() - 0.025).abs() < 1e-9);
    assert_eq!(absolute::RunningMean::from_bits(mean.to_bits()), mean);
    let constants = Constants {
        mean_reward: mean.value(),
        ..CONSTANTS
    };
    let shifted = of_one(&PairLoss::Bco.into(), Divergence::ReverseKl, constants);
    // Twice -ls(0.075).
    near(&shifted, &[1.312_7, -0.048126, 0.048126], "bco");
}

#[test]
fn losses_stay_finite_for_hopeless_pairs() {
    let pair = [[-5000.0], [5000.0]];
    for loss in [
        PairLoss::Sigmoid,
        PairLoss::Cdpo,
        PairLoss::NcaPair,
        PairLoss::BcoPair,
        PairLoss::ApoZero,
        PairLoss::ApoDown,
        PairLoss::ExoPair,
    ] {
        let (found, gradients) = worked(
            &loss.into(),
            Divergence::ReverseKl,
            CONSTANTS,
            pair,
            [[0.0], [0.0]],
        );
        let all = gradients.concat();
        assert!(
            found.is_finite() && all.iter().all(|g| g.is_finite()),
            "{loss:?}"
        );
    }
    let hopeless = Divergence::AlphaDivergence(AlphaOptions { alpha: 0.5 });
    assert!(
        hopeless
            .score(constant([-5000.0]))
            .into_scalar::<f32>()
            .is_finite()
    );
}
