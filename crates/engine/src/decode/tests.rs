//! Tests of `decode`.

use super::*;
use crate::beam::{BeamOptions, beam_search};
use crate::rules::Rules;
use burn::tensor::Device;
use espalier_models::{
    adapter::{Adapter, FirstStateConfig},
    families::{self, Config},
    parameter::Parameters,
    source::Seed,
    spec::{MixerSpec, RotaryScaling, RotarySpec},
};

fn model() -> LanguageModel {
    let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
    spec.initializer_range = 0.5;
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
}

fn options(temperature: f32) -> DecodeOptions {
    let sampler = SamplerOptions {
        temperature,
        seed: 11,
        ..Default::default()
    };
    DecodeOptions {
        max_new_tokens: 12,
        sampler,
        end: vec![],
    }
}

#[test]
fn a_model_without_a_head_does_not_generate() {
    let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
    spec.headless = true;
    let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
    let result = decode(&model, &[vec![5]], &options(0.0), &mut |_, _| true);
    assert!(matches!(result, Err(Error::Headless)));
    let result = beam_search(&model, &[5], &BeamOptions::default(), &mut |_| Ok(false));
    assert!(matches!(result, Err(Error::Headless)));
}

#[test]
fn cached_decoding_equals_the_full_forward() {
    assert_greedy_is_uncached(&model());
}

fn assert_greedy_is_uncached(model: &LanguageModel) {
    let generated = decode(model, &[vec![5, 9, 2]], &options(0.0), &mut |_, _| true).unwrap();
    let mut history = vec![5, 9, 2];
    for token in &generated[0].ids {
        let logits = model
            .logits(&Input::rows(&[history.clone()]).unwrap())
            .unwrap();
        let last = logits
            .narrow(1, history.len() - 1, 1)
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let best = (0..last.len())
            .max_by(|a, b| last[*a].total_cmp(&last[*b]).then(b.cmp(a)))
            .unwrap();
        assert_eq!(*token as usize, best);
        history.push(*token);
    }
}

#[test]
fn trained_first_states_meet_no_padding() {
    let text = r#"{"model_type":"mamba","vocab_size":61,"hidden_size":16,"num_hidden_layers":2,"initializer_range":0.5}"#;
    let config = Config::parse("config.json".as_ref(), text).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    let mut model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
    let family = families::by_name("mamba").unwrap();
    let adapter = Adapter::new(FirstStateConfig {});
    adapter.attach(&mut model, family, 0).unwrap();
    model.visit_mut(&mut |parameter| {
        if parameter.is_trainable() {
            parameter.set_data(vec![0.5; parameter.len()], &Device::flex());
        }
    });
    let model = model.frozen();
    let prompts = [
        vec![5, 9, 2],
        vec![7],
        vec![3, 4, 8, 1],
        vec![6],
        vec![1, 2, 3],
    ];
    let mut seen = vec![Vec::new(); prompts.len()];
    let together = decode(&model, &prompts, &options(0.0), &mut |row, token| {
        seen[row].push(token);
        true
    });
    for ((prompt, generated), seen) in prompts.iter().zip(together.unwrap()).zip(seen) {
        let alone = decode(
            &model,
            std::slice::from_ref(prompt),
            &options(0.0),
            &mut |_, _| true,
        )
        .unwrap();
        assert_eq!(generated, alone[0], "{prompt:?}");
        assert_eq!(generated.ids, seen, "{prompt:?}");
    }
}

/// A model whose rotary frequencies depend on the length of the text.
fn model_scaled(scaling: &RotaryScaling) -> LanguageModel {
    let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
    spec.initializer_range = 0.5;
    for block in &mut spec.blocks {
        let MixerSpec::Attention(attention) = &mut block.mixer else {
            panic!()
        };
        let scaling = scaling.clone();
        attention.rotary = attention
            .rotary
            .clone()
            .map(|rotary| RotarySpec { scaling, ..rotary });
    }
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
}

fn long_rope() -> RotaryScaling {
    RotaryScaling::LongRope {
        short: vec![1.0, 1.5],
        long: vec![3.0, 40.0],
        original_context: 8,
        attention_factor: 1.2,
    }
}

#[test]
fn keys_are_computed_anew_where_their_frequencies_change() {
    let model = model_scaled(&long_rope());
    assert_greedy_is_uncached(&model);
    let prompt = vec![5, 9, 2];
    let options = DecodeOptions {
        max_new_tokens: 12,
        ..options(0.0)
    };
    let greedy = decode(
        &model,
        std::slice::from_ref(&prompt),
        &options,
        &mut |_, _| true,
    )
    .unwrap();
    let beam = BeamOptions {
        beams: 1,
        max_new_tokens: 12,
        ..BeamOptions::default()
    };
    let found = beam_search(&model, &prompt, &beam, &mut |_| Ok(false)).unwrap();
    assert_eq!(found[0].ids, greedy[0].ids);
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let dynamic = RotaryScaling::Dynamic {
        factor: 4.0,
        original_context: 5,
    };
    assert_rows_are_independent(&model());
    assert_rows_are_independent(&model_scaled(&long_rope()));
    assert_rows_are_independent(&model_scaled(&dynamic));
}

fn assert_rows_are_independent(model: &LanguageModel) {
    for temperature in [0.0, 1.0] {
        let prompts = [vec![5, 9, 2, 7, 7, 1], vec![3], vec![8, 8, 4]];
        let together = decode(model, &prompts, &options(temperature), &mut |_, _| true).unwrap();
        for (i, prompt) in prompts.iter().enumerate() {
            let mut alone = options(temperature);
            alone.sampler.seed += i as u64;
            let alone = decode(model, std::slice::from_ref(prompt), &alone, &mut |_, _| {
                true
            })
            .unwrap();
            assert_eq!(
                alone[0], together[i],
                "row {i} at temperature {temperature}"
            );
        }
    }
}

/// A model of six learned positions.
fn short_model() -> LanguageModel {
    let text = r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":61,"n_embd":16,"n_layer":2,
        "n_head":2,"n_positions":6,"initializer_range":0.5}"#;
    let config = Config::parse("config.json".as_ref(), text).unwrap();
    let spec = (families::family(&config).unwrap().read)(&config).unwrap();
    LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
}

#[test]
fn rows_end_at_the_last_learned_position_each_for_itself() {
    let model = short_model();
    let prompts = [vec![5; 6], vec![5, 9], vec![7, 1, 2, 3]];
    let together = decode(&model, &prompts, &options(0.0), &mut |_, _| true).unwrap();
    for (prompt, generated) in prompts.iter().zip(&together) {
        let prompt = std::slice::from_ref(prompt);
        let alone = decode(&model, prompt, &options(0.0), &mut |_, _| true).unwrap();
        assert_eq!(generated, &alone[0], "{prompt:?}");
        assert_eq!(generated.ids.len(), 7 - prompt[0].len());
        assert_eq!(generated.finish, Finish::Context);
    }
}

#[test]
fn a_prompt_beyond_the_learned_positions_is_an_error() {
    let prompts = [vec![5; 6], vec![5; 7]];
    let error = decode(&short_model(), &prompts, &options(0.0), &mut |_, _| true);
    assert_eq!(
        error.unwrap_err().to_string(),
        "prompt 2 has 7 tokens, but the model has learned 6 positions; shorten it"
    );
    let beams = BeamOptions {
        beams: 2,
        max_new_tokens: 4,
        ..BeamOptions::default()
    };
    assert!(beam_search(&short_model(), &prompts[1], &beams, &mut |_| Ok(false)).is_err());
}

#[test]
fn end_tokens_end_and_forbidden_tokens_never_come() {
    let model = model();
    let first = decode(&model, &[vec![5]], &options(0.0), &mut |_, _| true).unwrap()[0].ids[0];
    let ending = DecodeOptions {
        end: vec![first],
        ..options(0.0)
    };
    let generated = decode(&model, &[vec![5]], &ending, &mut |_, _| true).unwrap();
    assert_eq!(
        (generated[0].ids.as_slice(), generated[0].finish),
        ([first].as_slice(), Finish::End)
    );
    let mut forbidding = options(0.0);
    forbidding.sampler.rules = Rules::without(&[first]);
    let generated = decode(&model, &[vec![5]], &forbidding, &mut |_, _| true).unwrap();
    assert!(!generated[0].ids.contains(&first));
}
