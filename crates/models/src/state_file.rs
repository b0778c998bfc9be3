//! Sequence states in files: a prompt that was read once can be continued any number of times.
//!
//! The file is a safetensors file with the tokens (`tokens`), every block's memory (`blocks.0.mixer.scan`, `blocks.1.keys`,
//! ...) and a mark of the model (`model`), by which a state of another model is refused. That of a recurrent model has the
//! same size however long the text was.

use espalier_kernels::readback::ReadFloats;
use std::{collections::HashMap, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use espalier_data::random::fnv;

use crate::{
    Error, Result,
    checkpoint::{Dtype, TensorFile, TensorPlan, TensorWriter},
    model::LanguageModel,
    recurrent::RecurrentState,
    state::{MixerState, SequenceState},
};

/// A text that was read, and what the model remembers of it.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec, state_file::Prefix};
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let path = std::env::temp_dir().join(format!("prefix-example-{}.safetensors", std::process::id()));
/// Prefix::read(&model, &[1, 2, 3])?.save(&model, &path)?;
/// assert_eq!(Prefix::load(&model, &path)?.ids, [1, 2, 3]);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), espalier_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Prefix {
    /// The text.
    pub ids: Vec<u32>,
    /// What is remembered of it, as a batch of one row.
    pub state: SequenceState,
}

/// A tensor to be written.
type Written = (String, Vec<usize>, Dtype, Vec<f32>);

impl Prefix {
    /// Lets the model read `ids`.
    ///
    /// # Errors
    /// When there are none, one is outside the vocabulary, or the model remembers texts in no way that can be kept.
    pub fn read(model: &LanguageModel, ids: &[u32]) -> Result<Self> {
        if model.has_interventions() {
            let reason = "an adapter changes hidden states by their place in the whole prompt";
            return Err(Error::Invalid(format!(
                "{reason}, so that a part of it cannot be kept; give the prompt as a whole"
            )));
        }
        Self::read_any(model, ids)
    }

    /// As [`Prefix::read`], whether or not adapters intervene.
    pub(crate) fn read_any(model: &LanguageModel, ids: &[u32]) -> Result<Self> {
        let spec = model.spec();
        if spec.encoder.is_some()
            || spec.bidirectional
            || spec.blocks.iter().any(|block| block.routing.is_some())
        {
            let reason = "states are kept of decoders alone, and not where tokens skip blocks";
            return Err(Error::Invalid(format!(
                "{reason}; this model is another kind"
            )));
        }
        let mut state = SequenceState::new(spec);
        model.hidden(
            &crate::model::Input::rows(&[ids.to_vec()])?,
            Some(&mut state),
        )?;
        Ok(Self {
            ids: ids.to_vec(),
            state,
        })
    }

    /// Numbers in the state.
    pub fn size(&self) -> usize {
        self.tensors()
            .iter()
            .map(|(_, _, _, values)| values.len())
            .sum::<usize>()
            - self.ids.len()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk fails; the file at `path` is then as it was.
    pub fn save(&self, model: &LanguageModel, path: &Path) -> Result<()> {
        let mut written = self.tensors();
        let mark: Vec<f32> = mark(model).into_iter().map(|part| part as f32).collect();
        written.push(("model".into(), vec![mark.len()], Dtype::I64, mark));
        let plan = |(name, shape, dtype, _): &Written| TensorPlan {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
        };
        let plans = written.iter().map(plan).collect();
        let mut values: HashMap<String, Vec<f32>> = written
            .into_iter()
            .map(|(name, _, _, values)| (name, values))
            .collect();
        TensorWriter::new(plans)?
            .write_file(path, |name| Ok(values.remove(name).unwrap_or_default()))
    }

    fn tensors(&self) -> Vec<Written> {
        let ids = self.ids.iter().map(|id| *id as f32).collect();
        let mut written = vec![("tokens".to_owned(), vec![self.ids.len()], Dtype::I64, ids)];
        let mut add = |name: String, shape: &[usize], values: TensorData| {
            let values = values.floats();
            written.push((name, shape.to_vec(), Dtype::F32, values));
        };
        for (number, block) in self.state.blocks.iter().enumerate() {
            let channel = block
                .channel
                .parts()
                .map(|(name, part)| ("channel", name, part));
            let mixer: Vec<_> = match &block.mixer {
                MixerState::Recurrent(state) => state
                    .parts()
                    .map(|(name, part)| ("mixer", name, part))
                    .collect(),
                MixerState::Attention(cache) => {
                    for (name, tensor) in cache.seen() {
                        add(
                            format!("blocks.{number}.{name}"),
                            &tensor.dims(),
                            tensor.into_data(),
                        );
                    }
                    Vec::new()
                }
                MixerState::Routed(_) => Vec::new(),
            };
            for (place, name, part) in mixer.into_iter().chain(channel) {
                add(
                    format!("blocks.{number}.{place}.{name}"),
                    &part.dims(),
                    part.clone().into_data(),
                );
            }
        }
        written
    }

    /// Reads a file that was written for this model.
    ///
    /// # Errors
    /// When the file is damaged, or of another model.
    pub fn load(model: &LanguageModel, path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let wrong = |reason: String| Error::Checkpoint {
            path: path.to_owned(),
            reason,
        };
        if file.read_i64("model")? != mark(model) {
            let reason = "this state was left by another model; let this one read the text with --save-state";
            return Err(wrong(reason.into()));
        }
        let id = |id: i64| {
            u32::try_from(id)
                .ok()
                .filter(|id| (*id as usize) < model.spec().vocabulary)
        };
        let ids: Option<Vec<u32>> = file.read_i64("tokens")?.into_iter().map(id).collect();
        let ids = ids.ok_or_else(|| wrong("a token is outside the model's vocabulary".into()))?;
        if ids.is_empty() {
            return Err(wrong(
                "there are no tokens; a state needs at least one".into(),
            ));
        }
        let parts = Parts {
            file: &file,
            device: model.device(),
        };
        // One token shows which parts there are.
        let mut state = Self::read(model, &ids[..1])?.state;
        for (number, block) in state.blocks.iter_mut().enumerate() {
            match &mut block.mixer {
                MixerState::Recurrent(state) => {
                    parts.fill(state, &format!("blocks.{number}.mixer"))?
                }
                MixerState::Attention(cache) => {
                    let read = |name: &str, [heads, width]: [usize; 2]| {
                        let name = format!("blocks.{number}.{name}");
                        parts.read(&name, [1, ids.len(), heads, width])
                    };
                    *cache = cache.filled(ids.len(), read)?;
                }
                MixerState::Routed(_) => {}
            }
            parts.fill(&mut block.channel, &format!("blocks.{number}.channel"))?;
        }
        (state.length, state.prompts) = (ids.len(), vec![ids.len() as u32]);
        Ok(Self { ids, state })
    }
}

/// The tensors of a file.
struct Parts<'a> {
    file: &'a TensorFile,
    device: &'a Device,
}

impl Parts<'_> {
    /// A tensor that must have this shape.
    fn read<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        match self.file.info(name).filter(|info| info.shape == shape) {
            Some(_) => Ok(Tensor::from_data(
                TensorData::new(self.file.read_f32(name, None)?, shape),
                self.device,
            )),
            None => Err(Error::Checkpoint {
                path: self.file.path().to_owned(),
                reason: format!(
                    "tensor `{name}` of shape {shape:?} is missing; the file is damaged"
                ),
            }),
        }
    }

    /// Fills all parts of a state.
    fn fill(&self, state: &mut RecurrentState, place: &str) -> Result<()> {
        let known: Vec<(String, [usize; 2])> = state
            .parts()
            .map(|(name, part)| (name.to_owned(), part.dims()))
            .collect();
        known.into_iter().try_for_each(|(name, shape)| {
            state.set::<2>(&name, self.read(&format!("{place}.{name}"), shape)?);
            Ok(())
        })
    }
}

/// What tells a model from others: its specification and its embedding's first numbers, as numbers that an f32 holds.
fn mark(model: &LanguageModel) -> Vec<i64> {
    let spec = serde_json::to_string(model.spec()).unwrap_or_default();
    let parameters = model.parameters();
    let first = parameters.first().map(|parameter| parameter.first(256));
    let bits: String = first
        .unwrap_or_default()
        .iter()
        .map(|value| format!("{:08x}", value.to_bits()))
        .collect();
    let hash = fnv(&format!("{spec}|{bits}"));
    (0..4)
        .map(|part| (hash >> (16 * part) & 0xffff) as i64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Input, source::Seed, spec::ModelSpec};

    fn hybrid(seed: u64) -> LanguageModel {
        let text = r#"{"model_type":"jamba","vocab_size":40,"hidden_size":16,"num_hidden_layers":3,"num_attention_heads":2,
            "intermediate_size":24,"num_experts":1,"attn_layer_period":3,"attn_layer_offset":1,"initializer_range":0.3}"#;
        let config = crate::families::Config::parse("config.json".as_ref(), text).unwrap();
        let spec = (crate::families::family(&config).unwrap().read)(&config).unwrap();
        LanguageModel::build(spec, &mut Seed(seed), &Device::flex()).unwrap()
    }

    fn last(model: &LanguageModel, ids: &[u32], state: Option<&mut SequenceState>) -> Vec<f32> {
        let hidden = model
            .hidden(&Input::rows(&[ids.to_vec()]).unwrap(), state)
            .unwrap();
        let time = hidden.dims()[1];
        hidden
            .narrow(1, time - 1, 1)
            .into_data()
            .try_into_vec::<f32>()
            .unwrap()
    }

    /// A model whose attention keeps latents.
    fn latent() -> LanguageModel {
        const FIXTURE: &str = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/deepseek-v3"
        );
        crate::folder::load(FIXTURE.as_ref(), &Device::flex())
            .unwrap()
            .model
    }

    #[test]
    fn a_text_goes_on_from_the_file_as_from_the_text() {
        for model in [hybrid(1), latent()] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("prefix.safetensors");
            let ids: Vec<u32> = (0..30).collect();
            let read = Prefix::read(&model, &ids[..20]).unwrap();
            read.save(&model, &path).unwrap();
            let mut prefix = Prefix::load(&model, &path).unwrap();
            let (whole, joined) = (
                last(&model, &ids, None),
                last(&model, &ids[20..], Some(&mut prefix.state)),
            );
            let gaps = whole.iter().zip(&joined).map(|(a, b)| (a - b).abs());
            let gap = gaps.fold(0.0, f32::max);
            assert!(gap < 1e-5, "{gap}");
        }
    }

    #[test]
    fn latents_are_kept_in_place_of_keys_and_values() {
        let model = latent();
        let size = |length: u32| {
            let ids: Vec<u32> = (0..length).collect();
            Prefix::read(&model, &ids).unwrap().size()
        };
        // A latent of 8 and four rotating channels, in both blocks.
        assert_eq!(size(9) - size(5), 4 * 2 * (8 + 4));
    }

    #[test]
    fn states_of_recurrent_blocks_have_one_size() {
        let model = hybrid(1);
        let size = |length: u32| {
            Prefix::read(&model, &(0..length).collect::<Vec<_>>())
                .unwrap()
                .size()
        };
        // Only the block of attention adds to it: a key and a value of 16 for each token.
        assert_eq!(size(30) - size(10), 20 * 32);
    }

    #[test]
    fn states_of_other_models_and_damaged_ones_are_refused() {
        let (model, folder) = (hybrid(1), tempfile::tempdir().unwrap());
        let path = folder.path().join("prefix.safetensors");
        Prefix::read(&model, &[1, 2, 3])
            .unwrap()
            .save(&model, &path)
            .unwrap();
        let error = Prefix::load(&hybrid(2), &path).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
        let other = LanguageModel::build(
            ModelSpec::llama(40, 16, 2, 2, 1, 32, 32),
            &mut Seed(1),
            &Device::flex(),
        )
        .unwrap();
        assert!(Prefix::load(&other, &path).is_err());
        let bytes = std::fs::read(&path).unwrap();
        for end in [0, 7, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..end]).unwrap();
            assert!(Prefix::load(&model, &path).is_err());
        }
        let renamed = String::from_utf8_lossy(&bytes).contains("blocks.0.mixer.scan");
        assert!(renamed);
        let at = bytes
            .windows(4)
            .position(|window| window == b"scan")
            .unwrap();
        let mut damaged = bytes;
        damaged[at] = b'S';
        std::fs::write(&path, damaged).unwrap();
        let error = Prefix::load(&model, &path).unwrap_err().to_string();
        assert!(error.contains("`blocks.0.mixer.scan`"), "{error}");
    }
}
