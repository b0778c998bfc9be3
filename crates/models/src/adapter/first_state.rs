//! State tuning: the weights stay as they are, and what every recurrent layer remembers before the first token is trained.
//!
//! RWKV's authors tune the state of RWKV's heads so; here it is all that the mixers of a block remember, of whatever family. A
//! fresh state is zero, which is what a model starts from anyway. The folder holds `adapter_config.json` with the `peft_type`
//! below and `adapter_model.safetensors` with `blocks.0.mixer.scan` and so on, each `[size]`.

use std::path::Path;

use serde_json::json;

use crate::{
    Error, Result,
    checkpoint::{TensorFile, partial_file::write_whole},
    families::config::Config,
    layout::StoredTensor,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    recurrent::FirstState,
    state_file::Prefix,
};

/// The `peft_type` of such an adapter.
pub(super) const KIND: &str = "FIRST_STATE";

/// What the parameters' names have and those in the file have not.
const MARK: &str = ".adapter.";

/// The configuration of trained first states.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FirstStateConfig {
    /// The model that they were trained on.
    pub base_model: Option<String>,
}

impl FirstStateConfig {
    pub(super) fn read(config: &Config) -> Result<Self> {
        config.ignore(&["peft_type"]);
        let base_model = config
            .optional_text("base_model_name_or_path")?
            .map(Into::into);
        config.refuse_unread()?;
        Ok(Self { base_model })
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let map = json!({"peft_type": KIND, "base_model_name_or_path": self.base_model});
        write_whole(path, format!("{map:#}\n").as_bytes())
    }
}

/// Gives every recurrent layer a first state of zeros and marks those as trained.
///
/// # Errors
/// When the model is no decoder or has no such layer.
pub fn attach(model: &mut LanguageModel) -> Result<()> {
    let seen = Prefix::read(model, &[0])?.state;
    let device = model.device().clone();
    let mut layers = 0;
    for (number, layer) in model.recurrent_layers_mut() {
        let Some([mixer, _]) = seen.recurrent(number) else {
            continue;
        };
        layer.start_from(FirstState::zeros(
            &format!("blocks.{number}.mixer"),
            mixer,
            &device,
        ));
        layers += 1;
    }
    if layers == 0 {
        let fix = "train it with `lora`";
        return Err(Error::Invalid(format!(
            "only recurrent layers have a first state, and this model has none; {fix}"
        )));
    }
    mark_trainable(model);
    Ok(())
}

pub(super) fn mark_trainable(model: &mut LanguageModel) {
    model.set_trainable(|parameter| parameter.name().contains(MARK));
}

fn stored_name(parameter: &Parameter) -> String {
    parameter.name().replacen(MARK, ".", 1)
}

pub(super) fn tensors(model: &LanguageModel) -> Vec<StoredTensor<'_>> {
    let mut tensors = Vec::new();
    model.visit(&mut |parameter| {
        if parameter.name().contains(MARK) {
            tensors.push(StoredTensor::whole(stored_name(parameter), parameter));
        }
    });
    tensors
}

/// Puts the values of a file into the attached states; every tensor must find its place, every state its tensor.
pub(super) fn fill(model: &mut LanguageModel, path: &Path) -> Result<()> {
    let file = TensorFile::open(path)?;
    let wrong = |reason: String| Error::Adapter {
        path: path.to_owned(),
        reason,
    };
    let device = model.device().clone();
    let mut unused: Vec<String> = file.names().map(str::to_owned).collect();
    let mut outcome = Ok(());
    model.visit_mut(&mut |parameter| {
        if outcome.is_err() || !parameter.name().contains(MARK) {
            return;
        }
        let name = stored_name(parameter);
        unused.retain(|other| *other != name);
        outcome = match file
            .info(&name)
            .filter(|info| info.shape == parameter.shape())
        {
            Some(_) => file
                .read_f32(&name, None)
                .map(|values| parameter.set_data(values, &device)),
            None => Err(wrong(format!(
                "tensor `{name}` of shape {:?} is missing",
                parameter.shape()
            ))),
        };
    });
    outcome?;
    match unused.first() {
        Some(name) => Err(wrong(format!(
            "tensor `{name}` fits no recurrent layer of the base model"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        model::Input, parameter::Parameters, source::Seed, spec::ModelSpec, state::SequenceState,
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
        attach(&mut model).unwrap();
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
            attach(&mut attached).unwrap();
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
                    !parameter.is_trainable() || parameter.name().contains(MARK),
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
        let error = attach(&mut llama).unwrap_err().to_string();
        assert!(error.contains("recurrent"), "{error}");
    }
}
