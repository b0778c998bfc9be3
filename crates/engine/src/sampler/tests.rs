use std::collections::BTreeMap;

use super::*;

const PROBABILITIES: [f32; 4] = [0.15, 0.5, 0.05, 0.3];

fn logits() -> Vec<f32> {
    PROBABILITIES
        .iter()
        .map(|probability| probability.ln())
        .collect()
}

fn kept(options: SamplerOptions) -> Vec<u32> {
    let sampler = Sampler::new(options).unwrap();
    let candidates = sampler.candidates(&mut logits(), &[], &[]).unwrap();
    assert!((mass(&candidates) - 1.0).abs() < 1e-6);
    let mut ids: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn cuts_keep_the_published_sets() {
    let options = SamplerOptions::default;
    assert_eq!(kept(options()), [0, 1, 2, 3]);
    assert_eq!(
        kept(SamplerOptions {
            top_p: 0.79,
            ..options()
        }),
        [1, 3]
    );
    assert_eq!(
        kept(SamplerOptions {
            top_p: 0.81,
            ..options()
        }),
        [0, 1, 3]
    );
    assert_eq!(
        kept(SamplerOptions {
            min_p: 0.2,
            ..options()
        }),
        [0, 1, 3]
    );
    assert_eq!(
        kept(SamplerOptions {
            top_k: 1,
            ..options()
        }),
        [1]
    );
    assert_eq!(
        kept(SamplerOptions {
            top_k: 3,
            top_p: 0.8,
            ..options()
        }),
        [1, 3]
    );
    assert_eq!(
        kept(SamplerOptions {
            min_p: 1.0,
            ..options()
        }),
        [1]
    );
}

#[test]
fn temperature_comes_before_the_cuts() {
    // Squared and normalised, 0.5 alone has 0.685 of the mass.
    assert_eq!(
        kept(SamplerOptions {
            temperature: 0.5,
            top_p: 0.6,
            ..Default::default()
        }),
        [1]
    );
    assert_eq!(
        kept(SamplerOptions {
            top_p: 0.6,
            ..Default::default()
        }),
        [1, 3]
    );
}

#[test]
fn large_vocabularies_are_cut_the_same() {
    let mut logits = vec![0.0; 5000];
    let sampler = Sampler::new(SamplerOptions {
        top_p: 0.5,
        ..Default::default()
    })
    .unwrap();
    let ids: Vec<u32> = sampler
        .candidates(&mut logits, &[], &[])
        .unwrap()
        .iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(ids, (0..2500).collect::<Vec<u32>>());
}

#[test]
fn the_order_decides_what_is_kept() {
    let llama_cpp = vec![
        Step::TopK,
        Step::Typical,
        Step::TopP,
        Step::MinP,
        Step::Xtc,
        Step::Temperature,
    ];
    let options = SamplerOptions {
        temperature: 0.5,
        top_p: 0.6,
        order: llama_cpp,
        ..Default::default()
    };
    assert_eq!(kept(options.clone()), [1, 3]);
    // Without the step the temperature is not applied.
    let sampler = Sampler::new(SamplerOptions {
        order: vec![Step::TopP],
        ..options
    })
    .unwrap();
    let candidates = sampler.candidates(&mut logits(), &[], &[]).unwrap();
    assert!((candidates[0].probability - 0.625).abs() < 1e-6);
    let twice = SamplerOptions {
        order: vec![Step::TopP, Step::TopP],
        ..Default::default()
    };
    assert!(
        twice
            .validate()
            .unwrap_err()
            .to_string()
            .contains("top_p twice")
    );
}

#[test]
fn a_bias_moves_tokens() {
    let bias = |token, bias| SamplerOptions {
        logit_bias: BTreeMap::from([(token, bias)]),
        temperature: 0.0,
        ..Default::default()
    };
    let greedy = |options| {
        Sampler::new(options)
            .unwrap()
            .sample(&mut logits(), &[], &[])
            .unwrap()
    };
    assert_eq!(
        (greedy(bias(2, 10.0)), greedy(bias(1, f32::NEG_INFINITY))),
        (2, 3)
    );
    assert!(bias(2, f32::NAN).validate().is_err());
}

#[test]
fn penalties_of_occurrence_leave_the_prompt_out() {
    let options = SamplerOptions {
        temperature: 0.0,
        presence_penalty: 5.0,
        ..Default::default()
    };
    let mut sampler = Sampler::new(options).unwrap().behind(1);
    assert_eq!(sampler.sample(&mut logits(), &[1], &[]).unwrap(), 1);
    assert_eq!(sampler.sample(&mut logits(), &[1, 1], &[]).unwrap(), 3);
}

#[test]
fn draws_follow_the_probabilities() {
    let mut sampler = Sampler::new(SamplerOptions {
        seed: 7,
        ..Default::default()
    })
    .unwrap();
    let mut counts = [0.0f64; 4];
    let draws = 100_000.0;
    for _ in 0..100_000 {
        counts[sampler.sample(&mut logits(), &[], &[]).unwrap() as usize] += 1.0;
    }
    for (count, probability) in counts.iter().zip(PROBABILITIES.map(f64::from)) {
        let deviation = (draws * probability * (1.0 - probability)).sqrt();
        assert!(
            (count - draws * probability).abs() < 3.0 * deviation,
            "{counts:?}"
        );
    }
}

#[test]
fn equal_seeds_draw_equally() {
    let run = |seed| {
        let mut sampler = Sampler::new(SamplerOptions {
            seed,
            ..Default::default()
        })
        .unwrap();
        (0..50)
            .map(|_| sampler.sample(&mut logits(), &[], &[]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_nothing_forbidden() {
    let mut sampler = Sampler::new(SamplerOptions {
        temperature: 0.0,
        ..Default::default()
    })
    .unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0], &[], &[]).unwrap(), 1);
    assert_eq!(
        sampler
            .sample(&mut [1.0, 3.0, 3.0], &[], &[1, 2, 7])
            .unwrap(),
        0
    );
    assert!(
        sampler
            .sample(&mut [1.0], &[], &[0])
            .unwrap_err()
            .to_string()
            .contains("no token can be chosen")
    );
    assert!(sampler.sample(&mut [], &[], &[]).is_err());
}

#[test]
fn broken_logits_are_errors() {
    let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
    let error = sampler.sample(&mut [1.0, f32::NAN], &[], &[]).unwrap_err();
    assert!(error.to_string().contains("token 1 is NaN"));
    assert!(sampler.sample(&mut [f32::INFINITY, 0.0], &[], &[]).is_err());
    assert_eq!(
        sampler
            .sample(&mut [f32::NEG_INFINITY, 0.0], &[], &[])
            .unwrap(),
        1
    );
}

#[test]
fn tiny_temperatures_do_not_overflow() {
    let mut sampler = Sampler::new(SamplerOptions {
        temperature: 1e-30,
        ..Default::default()
    })
    .unwrap();
    assert_eq!(
        sampler.sample(&mut [-50.0, 80.0, 79.0], &[], &[]).unwrap(),
        1
    );
}

#[test]
fn options_out_of_range_are_named() {
    let bad = [
        SamplerOptions {
            temperature: -1.0,
            ..Default::default()
        },
        SamplerOptions {
            top_p: 0.0,
            ..Default::default()
        },
        SamplerOptions {
            min_p: f32::NAN,
            ..Default::default()
        },
        SamplerOptions {
            repetition_penalty: 0.0,
            ..Default::default()
        },
    ];
    for (options, key) in bad
        .iter()
        .zip(["temperature", "top_p", "min_p", "repetition_penalty"])
    {
        assert!(options.validate().unwrap_err().to_string().starts_with(key));
    }
}
