//! Tests of `reference`.

use super::*;
use espalier_models::{
    adapter::Adapter,
    checkpoint::{PeftConfig, peft_config::Targets},
    families,
    source::Seed,
    spec::ModelSpec,
};

fn model(seed: u64) -> LanguageModel {
    let spec = ModelSpec::llama(16, 8, 1, 2, 1, 16, 32);
    let mut model = LanguageModel::build(spec, &mut Seed(seed), &Device::flex()).unwrap();
    model.set_trainable(|_| true);
    model
}

fn vectors(model: &LanguageModel) -> Vec<Vec<f32>> {
    model.parameters().iter().map(|p| p.to_vec()).collect()
}

fn moving(every: usize, mix: f64) -> Reference {
    Reference::new(ReferenceOptions::Moving(MovingOptions { every, mix }))
}

#[test]
fn weights_are_mixed() {
    let parameter = |values: [f32; 2]| {
        Parameter::new("w", vec![2], Tensor::from_floats(values, &Device::flex()))
    };
    let (mut own, other) = (parameter([1.0, 2.0]), parameter([2.0, 0.0]));
    mix(&mut own, &other, 0.6);
    let values = own.to_vec();
    assert!((values[0] - 1.6).abs() < 1e-6 && (values[1] - 0.8).abs() < 1e-6);
    mix(&mut own, &other, 1.0);
    assert_eq!(own.to_vec(), [2.0, 0.0]);
}

#[test]
fn it_follows_the_policy_where_that_is_due() {
    let (first, second) = (model(1), model(2));
    let mut reference = moving(2, 1.0);
    reference.start(&first, false).unwrap();
    reference.after_step(&second, 1).unwrap();
    assert_eq!(vectors(reference.kept().unwrap()), vectors(&first));
    reference.after_step(&second, 2).unwrap();
    assert_eq!(vectors(reference.kept().unwrap()), vectors(&second));
    assert_eq!(reference.state().len(), first.parameters().len());
    let mut still = moving(1, 0.0);
    still.start(&first, false).unwrap();
    still.after_step(&second, 1).unwrap();
    assert_eq!(vectors(still.kept().unwrap()), vectors(&first));
}

#[test]
fn of_adapters_the_merged_weights_are_mixed() {
    let mut policy = model(1);
    let adapter = Adapter::new(PeftConfig::new(2, 4.0, Targets::AllLinear));
    let family = families::by_name("llama").unwrap();
    adapter.attach(&mut policy, family, 0).unwrap();
    let mut reference = moving(1, 0.25);
    reference.start(&policy, false).unwrap();
    let before = reference.kept().unwrap().clone();
    policy.visit_mut(&mut |p| {
        if p.adapter().is_some() {
            p.update(|flat| flat + 0.5);
        }
    });
    reference.after_step(&policy, 1).unwrap();
    let (after, whole) = (reference.kept().unwrap(), merged(&policy).unwrap());
    let adapted = moving_weights(&policy);
    assert!(!adapted.is_empty() && adapted.len() < after.parameters().len());
    let old = before.parameters();
    for ((own, old), policy) in after.parameters().iter().zip(old).zip(whole.parameters()) {
        let expected = old.flat() * 0.75 + policy.flat() * 0.25;
        let far = (own.flat() - expected).abs().max().into_scalar::<f32>();
        assert!(far < 1e-6, "{}: {far}", own.name());
        assert_eq!(own.to_vec() != old.to_vec(), adapted.contains(own.name()));
    }
    assert_eq!(reference.state().len(), adapted.len());
    let numbers: usize = reference
        .state()
        .iter()
        .map(|t| t.shape.iter().product::<usize>())
        .sum();
    assert_eq!(reference.kept_bytes(&policy, false), 4 * numbers as u64);
}

#[test]
fn long_samples_are_scored_few_at_once() {
    let sample = |tokens: usize| {
        let example = espalier_data::encode::Example::new(vec![0; tokens], vec![true; tokens]);
        Sample::example(&example)
    };
    let count = |tokens: usize| at_once(&vec![sample(tokens); 40]);
    assert_eq!([10, 1000, 5000].map(count), [16, 2, 1]);
}

#[test]
fn passes_are_counted_where_they_are_made() {
    let model = model(1);
    let pass = 2.0 * model.spec().active_parameter_count();
    let counted = |options: ReferenceOptions, always| {
        let OtherPasses { once, each } = Reference::new(options).passes(&model, always);
        [once, each]
    };
    let moving = ReferenceOptions::Moving(MovingOptions::default());
    assert_eq!(counted(ReferenceOptions::None, false), [0.0, 0.0]);
    assert_eq!(counted(ReferenceOptions::Start, false), [pass, 0.0]);
    assert_eq!(counted(ReferenceOptions::Start, true), [0.0, pass]);
    assert_eq!(counted(moving, false), [0.0, pass]);
}

#[test]
fn what_no_model_can_do_is_refused() {
    let plain = Reference::new(ReferenceOptions::WithoutAdapter);
    let error = plain.check(&model(1)).unwrap_err().to_string();
    assert!(error.contains("this one has none"), "{error}");
    assert!(
        ReferenceOptions::Moving(MovingOptions { every: 0, mix: 0.5 })
            .check()
            .is_err()
    );
    assert!(
        ReferenceOptions::Moving(MovingOptions { every: 1, mix: 1.5 })
            .check()
            .is_err()
    );
}
