//! Depth: a model of some of another's blocks, in any order and as often as wanted.
//!
//! Depth pruning (arXiv 2403.17887) leaves blocks out, Inheritune (arXiv 2404.08634) keeps the first ones, and depth up-scaling
//! (SOLAR, arXiv 2312.15166) lets the middle ones stand twice. Embedding, last norm and head stay. Stages `prune` and `depth`.

use std::collections::HashMap;

use crate::{
    Error, Result,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    source::{Initial, ParameterSource, Values},
    spec::ModelSpec,
};

/// A model whose block `i` is block `kept[i]` of `base`.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_models::{depth::with_blocks, model::LanguageModel, source::Seed, spec::ModelSpec};
/// let spec = ModelSpec::llama(64, 16, 4, 2, 1, 32, 32);
/// let base = LanguageModel::build(spec, &mut Seed(0), &Device::flex())?;
/// assert_eq!(with_blocks(&base, &[0, 1, 3])?.spec().blocks.len(), 3);
/// # Ok::<(), espalier_models::Error>(())
/// ```
///
/// # Errors
/// When no block is left, a number is beyond the model's blocks, the model has an encoder or an adapter, or blocks share weights.
pub fn with_blocks(base: &LanguageModel, kept: &[usize]) -> Result<LanguageModel> {
    let spec = base.spec();
    let count = spec.blocks.len();
    if kept.is_empty() {
        return Err(Error::Invalid("no block would be left".into()));
    }
    if let Some(beyond) = kept.iter().find(|block| **block >= count) {
        return Err(Error::Invalid(format!(
            "the model has {count} blocks, counted from 0; there is no block {beyond}"
        )));
    }
    if spec.encoder.is_some() {
        return Err(Error::Invalid(
            "the depth of a model with an encoder cannot be changed".into(),
        ));
    }
    if !base.adapters().is_empty() {
        return Err(Error::Invalid(
            "an adapted model is merged before its depth is changed".into(),
        ));
    }
    let spec = ModelSpec {
        blocks: kept
            .iter()
            .map(|block| spec.blocks[*block].clone())
            .collect(),
        ..spec.clone()
    };
    LanguageModel::build(spec, &mut CopiedBlocks::of(base, kept), base.device())
}

/// The weights of a model, of which each block is one of another model's.
pub(crate) struct CopiedBlocks<'a> {
    old: HashMap<String, Parameter>,
    blocks: &'a [usize],
}

impl<'a> CopiedBlocks<'a> {
    /// Block `i` has the weights of block `blocks[i]` of `base`.
    pub(crate) fn of(base: &LanguageModel, blocks: &'a [usize]) -> Self {
        let mut old = HashMap::new();
        base.visit(&mut |parameter: &Parameter| {
            old.insert(parameter.name().to_owned(), parameter.clone());
        });
        Self { old, blocks }
    }
}

/// The number of the block that a parameter belongs to, and the rest of its name.
pub(crate) fn block_of(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

impl ParameterSource for CopiedBlocks<'_> {
    fn parameter(&mut self, name: &str, _: &[usize], _: Initial) -> Result<Values> {
        let own = match block_of(name) {
            Some((number, rest)) => format!("blocks.{}.{rest}", self.blocks[number]),
            None => name.to_owned(),
        };
        let old = self.old.get(&own);
        old.map(Parameter::values).ok_or_else(|| {
            Error::Invalid(format!(
                "the model has no weight `{own}` for its new blocks"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        model::Input,
        source::Seed,
        taps::{Flow, Site},
    };

    fn base() -> LanguageModel {
        let spec = ModelSpec::llama(61, 16, 4, 2, 1, 32, 32);
        LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap()
    }

    fn input() -> Input {
        Input::rows(&[vec![5, 9, 2, 7, 1]]).unwrap()
    }

    #[test]
    fn all_blocks_are_the_model_itself() {
        let base = base();
        let same = with_blocks(&base, &[0, 1, 2, 3]).unwrap();
        let logits = |model: &LanguageModel| {
            let logits = model.logits(&input()).unwrap();
            logits.into_data().try_into_vec::<f32>().unwrap()
        };
        assert_eq!(logits(&same), logits(&base));
    }

    #[test]
    fn the_first_blocks_give_the_hidden_states_after_them() {
        let base = base();
        let shallow = with_blocks(&base, &[0, 1]).unwrap();
        let mut after = [None, None];
        for (model, kept) in [&base, &shallow].into_iter().zip(&mut after) {
            let mut observer = |site: Site, hidden: burn::tensor::Tensor<3>| {
                if site == Site::Block(1) {
                    *kept = Some(hidden.clone().into_data().try_into_vec::<f32>().unwrap());
                }
                Flow::Continue(hidden)
            };
            model
                .hidden_observed(&input(), None, &mut observer)
                .unwrap();
        }
        assert!(after[0].is_some());
        assert_eq!(after[0], after[1]);
    }

    #[test]
    fn blocks_may_stand_twice() {
        let deep = with_blocks(&base(), &[0, 1, 2, 1, 2, 3]).unwrap();
        let values = |block: usize| {
            let name = format!("blocks.{block}.mixer.query.weight");
            let parameters = deep.parameters();
            let found = parameters.iter().find(|p| p.name() == name).unwrap();
            found.to_vec()
        };
        assert_eq!(values(1), values(3));
        assert_ne!(values(1), values(2));
    }

    #[test]
    fn what_cannot_be_is_told() {
        let said = |kept: &[usize]| with_blocks(&base(), kept).unwrap_err().to_string();
        assert!(said(&[]).contains("no block"));
        assert!(said(&[0, 4]).contains("there is no block 4"));
    }
}
