//! State tuning: the weights stay as they are, and what every recurrent layer remembers before the first token is trained.
//!
//! RWKV's authors tune the state of RWKV's heads so; here it is all that the mixers of a block remember, of whatever family. A
//! fresh state is zero, which is what a model starts from anyway. The folder holds `adapter_config.json` with the `peft_type`
//! below and `adapter_model.safetensors` with `blocks.0.mixer.scan` and so on, each `[size]`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{AdapterKind, Fresh, Registration};
use crate::{
    Error, Result,
    families::{Family, config::Config},
    layout::StoredTensor,
    model::LanguageModel,
    recurrent::FirstState,
    state_file::Prefix,
};

/// The line of first states in the list of kinds.
pub const REGISTRATION: Registration = Registration {
    peft_type: "FIRST_STATE",
    read: |config: &Config| {
        if let Some(key) = config.unread().first() {
            let reason = "first states have no such key; is this the configuration of another kind of adapter?";
            return Err(config.error(key, reason));
        }
        Ok(Arc::new(FirstStateConfig {}))
    },
};

/// Why first states are not merged.
pub(super) const NO_WEIGHT: &str = "trained first states are no part of any weight";

/// The configuration of trained first states, which says nothing but its kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FirstStateConfig {}

/// The layer of the block of this number, as names of parameters and of stored tensors begin.
fn layer_name(number: usize) -> String {
    format!("blocks.{number}.mixer")
}

impl AdapterKind for FirstStateConfig {
    fn peft_type(&self) -> &'static str {
        REGISTRATION.peft_type
    }

    /// Every recurrent layer gets a first state of zeros.
    fn attach(&self, model: &mut LanguageModel, _: &Family, fresh: Fresh<'_>) -> Result<()> {
        let seen = Prefix::read_any(model, &[0])?.state;
        let device = model.device().clone();
        let mut layers = 0;
        for (number, layer) in model.recurrent_layers_mut() {
            let Some([mixer, _]) = seen.recurrent(number) else {
                continue;
            };
            let first = FirstState::zeros(&layer_name(number), fresh.adapter, mixer, &device);
            layer.first_states_mut().attach(fresh.adapter, first);
            layers += 1;
        }
        if layers == 0 {
            let fix = "train it with `lora`";
            return Err(Error::Invalid(format!(
                "only recurrent layers have a first state, and this model has none; {fix}"
            )));
        }
        Ok(())
    }

    fn tensors<'a>(
        &self,
        model: &'a LanguageModel,
        _: &Family,
        adapter: &str,
    ) -> Vec<StoredTensor<'a>> {
        let of_layer = |(number, first): (usize, &'a FirstState)| {
            let name = layer_name(number);
            let part = move |(part, value)| StoredTensor::whole(format!("{name}.{part}"), value);
            first.parts().map(part)
        };
        model
            .recurrent_layers()
            .filter_map(|(number, layer)| Some((number, layer.first_states().get(adapter)?)))
            .flat_map(of_layer)
            .collect()
    }

    fn configuration(&self, _: &LanguageModel, _: &Family, _: &str) -> Value {
        json!({})
    }

    fn merge_refusal(&self) -> Option<&'static str> {
        Some(NO_WEIGHT)
    }

    fn describe(&self) -> String {
        "trained first states of the recurrent layers".into()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        adapter::Adapter, model::Input, parameter::Parameters, source::Seed, spec::ModelSpec,
        state::SequenceState,
    };

    fn model(config: &str) -> LanguageModel {
        let config = Config::parse("config.json".as_ref(), config).unwrap();
        let spec = (crate::families::family(&config).unwrap().read)(&config).unwrap();
        let mut model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        // A fresh RWKV's outputs are zero, whatever its state.
        model.visit_mut(&mut |parameter| {
            if parameter.name().ends_with("output.weight") {
                parameter.set_data(pattern(parameter.len()), &Device::flex());
            }
        });
        model
    }

    fn attach(model: &mut LanguageModel) {
        let family = crate::families::by_name(&model.spec().family).unwrap();
        let adapter = Adapter::new(FirstStateConfig {});
        adapter.attach(model, family, 0).unwrap();
    }

    fn pattern(count: usize) -> Vec<f32> {
        (0..count).map(|i| 0.1 * ((i % 5) as f32 - 1.5)).collect()
    }

    const KINDS: [&str; 7] = [
        r#"{"model_type":"mamba","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"initializer_range":0.3}"#,
        r#"{"model_type":"mamba2","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"num_heads":4,"head_dim":8,
            "n_groups":1,"state_size":8,"initializer_range":0.3}"#,
        r#"{"model_type":"recurrent_gemma","vocab_size":40,"hidden_size":16,"num_hidden_layers":3,"num_attention_heads":2,
            "intermediate_size":24,"attention_window_size":4,"head_dim":8}"#,
        r#"{"model_type":"rwkv4","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"intermediate_size":24}"#,
        r#"{"model_type":"rwkv5","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"intermediate_size":24,"head_size":8}"#,
        r#"{"model_type":"rwkv6","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"intermediate_size":24,"head_size":8}"#,
        r#"{"model_type":"rwkv7","vocab_size":40,"hidden_size":16,"num_hidden_layers":2,"intermediate_size":24,"head_size":8}"#,
    ];

    fn logits(model: &LanguageModel, rows: &[Vec<u32>]) -> Vec<f32> {
        model
            .logits(&Input::rows(rows).unwrap())
            .unwrap()
            .into_data()
            .try_into_vec::<f32>()
            .unwrap()
    }

    fn gap(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    /// A model whose first states are no longer zero.
    fn tuned(config: &str) -> LanguageModel {
        let mut model = model(config);
        attach(&mut model);
        model.visit_mut(&mut |parameter| {
            if parameter.is_trainable() {
                parameter.set_data(pattern(parameter.len()), &Device::flex());
            }
        });
        model
    }

    #[test]
    fn zeros_change_nothing_and_gradients_reach_them() {
        for config in KINDS {
            let plain = model(config);
            let mut attached = plain.clone();
            attach(&mut attached);
            let rows = [vec![1, 2, 3, 4, 5], vec![6, 7, 8, 9, 10]];
            let gap = gap(&logits(&plain, &rows), &logits(&attached.frozen(), &rows));
            assert!(gap < 1e-6, "{config}: {gap}");
            let tuned = tuned(config);
            let sum = tuned
                .logits(&Input::rows(&rows).unwrap())
                .unwrap()
                .powi_scalar(2)
                .sum();
            let gradients = sum.backward();
            let mut reached = 0;
            tuned.visit(&mut |parameter| {
                let gradient = parameter
                    .is_trainable()
                    .then(|| parameter.leaf()?.grad(&gradients))
                    .flatten();
                reached +=
                    usize::from(gradient.is_some_and(|g| g.abs().sum().into_scalar::<f32>() > 0.0));
                assert!(
                    !parameter.is_trainable() || parameter.adapter() == Some("default"),
                    "{}",
                    parameter.name()
                );
            });
            assert!(reached > 1, "{config}");
        }
    }

    #[test]
    fn parts_equal_the_whole() {
        for config in KINDS {
            let model = tuned(config).frozen();
            let ids: Vec<u32> = (1..12).collect();
            let whole = logits(&model, std::slice::from_ref(&ids));
            let mut state = SequenceState::new(model.spec());
            let mut last = Vec::new();
            for part in [&ids[..4], &ids[4..5], &ids[5..]] {
                let hidden = model
                    .hidden(&Input::rows(&[part.to_vec()]).unwrap(), Some(&mut state))
                    .unwrap();
                last = model
                    .head(hidden)
                    .into_data()
                    .try_into_vec::<f32>()
                    .unwrap();
            }
            let gap = gap(&whole[whole.len() - last.len()..], &last);
            assert!(gap < 1e-5, "{config}: {gap}");
            assert!(
                self::gap(&whole, &logits(&self::model(config), &[ids])) > 1e-3,
                "{config}: no effect"
            );
        }
    }

    #[test]
    fn packed_texts_each_start_from_the_state_and_padding_before_them_is_refused() {
        for config in KINDS {
            let model = tuned(config).frozen();
            let apart = [vec![1, 2, 3], vec![4, 5, 6, 7]]
                .map(|row| logits(&model, &[row]))
                .concat();
            let packed = Input {
                ids: (1..8).collect(),
                batch: 1,
                positions: Some(vec![0, 1, 2, 0, 1, 2, 3]),
                segments: Some(vec![1, 1, 1, 2, 2, 2, 2]),
                ..Input::default()
            };
            let found = model
                .logits(&packed)
                .unwrap()
                .into_data()
                .try_into_vec::<f32>()
                .unwrap();
            assert!(gap(&found, &apart) < 1e-5, "{config}");
            let padded = Input {
                segments: Some(vec![0, 1, 1, 1, 1, 1, 1]),
                ..packed
            };
            assert!(model.logits(&padded).is_err());
        }
    }

    #[test]
    fn models_without_recurrent_layers_are_refused() {
        let spec = ModelSpec::llama(40, 16, 2, 2, 1, 32, 32);
        let mut llama = LanguageModel::build(spec, &mut Seed(0), &Device::flex()).unwrap();
        let family = crate::families::by_name("llama").unwrap();
        let adapter = Adapter::new(FirstStateConfig {});
        let error = adapter
            .attach(&mut llama, family, 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("recurrent"), "{error}");
    }
}
