//! Block expansion (LLaMA Pro, arXiv 2401.02415): a model with further blocks that compute nothing yet.
//!
//! The blocks are cut into as many groups as there shall be new ones; after each group comes a copy of its last block, whose
//! mixers' output projections are zero, so that the stream passes it unchanged. Recipe: the stage `expand`, then `freeze` with `expanded`.

use burn::tensor::Tensor;

use crate::{
    Error, Result,
    depth::{CopiedBlocks, block_of},
    model::{Input, LanguageModel},
    source::{Initial, ParameterSource, Values},
    spec::ModelSpec,
};

/// Numbers of the blocks that are new, or the last of so many groups, in a model of `blocks` blocks.
pub fn last_of_groups(blocks: usize, groups: usize) -> Vec<usize> {
    let size = blocks / groups.max(1);
    (1..=groups).map(|group| group * size - 1).collect()
}

/// The model with so many new blocks, which gives the same logits bit for bit.
///
/// # Errors
/// When the blocks cannot be cut into so many groups, an adapter is attached, or the family's blocks cannot be made to compute nothing.
pub fn expanded(base: &LanguageModel, added: usize) -> Result<LanguageModel> {
    let blocks = base.spec().blocks.len();
    if added == 0 || !blocks.is_multiple_of(added) {
        return Err(Error::Invalid(format!(
            "`blocks`: {blocks} blocks cannot be cut into {added} groups of one size; choose a divisor of {blocks}"
        )));
    }
    if !base.adapters().is_empty() {
        return Err(Error::Invalid(
            "an adapted model is merged before it gets further blocks".into(),
        ));
    }
    let size = blocks / added;
    let spec = ModelSpec {
        blocks: base
            .spec()
            .blocks
            .chunks(size)
            .flat_map(|group| group.iter().chain(group.last()).cloned())
            .collect(),
        ..base.spec().clone()
    };
    let blocks: Vec<usize> = (0..blocks + added)
        .map(|block| block / (size + 1) * size + (block % (size + 1)).min(size - 1))
        .collect();
    let mut source = Expanded {
        copied: CopiedBlocks::of(base, &blocks),
        size,
    };
    let model = LanguageModel::build(spec, &mut source, base.device())?;
    check(base, &model)?;
    Ok(model)
}

/// Whether both give the same hidden states of some tokens.
fn check(base: &LanguageModel, expanded: &LanguageModel) -> Result<()> {
    let count = base.spec().vocabulary.min(1 << 16) as u32;
    let ids: Vec<u32> = (0..12u32).map(|i| (i * 7919 + 3) % count).collect();
    let ids = &ids[..ids.len().min(base.spec().context)];
    let hidden = |model: &LanguageModel| -> Result<Tensor<3>> {
        let row = Input::rows(&[ids.to_vec()])?;
        let source = model.spec().encoder.is_some();
        let source = source.then(|| Box::new(Input::padded(&[ids.to_vec()])));
        model.frozen().hidden(&Input { source, ..row }, None)
    };
    let gap = (hidden(base)? - hidden(expanded)?).abs().max();
    match gap.into_scalar::<f32>() == 0.0 {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "blocks of the family `{}` cannot be made to compute nothing: more than the projections behind their mixers reaches the stream",
            base.spec().family
        ))),
    }
}

/// The weights of a model with a new block after every `size`.
struct Expanded<'a> {
    copied: CopiedBlocks<'a>,
    size: usize,
}

impl ParameterSource for Expanded<'_> {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        let is_new = block_of(name).is_some_and(|(block, _)| block % (self.size + 1) == self.size);
        match is_new && closes(name) {
            true => Ok(vec![0.0; shape.iter().product()].into()),
            false => self.copied.parameter(name, shape, initial),
        }
    }
}

/// Whether a parameter of a block is the last that a mixer's output passes.
fn closes(name: &str) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    [
        ".mixer.output",
        ".cross.output",
        ".cross.attention.output",
        ".down",
    ]
    .iter()
    .any(|end| module.ends_with(end))
        || name.ends_with("_output_norm.bias")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::source::Seed;

    #[test]
    fn new_blocks_close_each_group_and_change_no_bit() {
        let spec = ModelSpec::llama(61, 16, 4, 2, 1, 32, 32);
        let base = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        let model = expanded(&base, 2).unwrap();
        assert_eq!(model.spec().blocks.len(), 6);
        assert_eq!(last_of_groups(6, 2), [2, 5]);
        let logits = |model: &LanguageModel| {
            let input = Input::rows(&[vec![5, 9, 2, 7, 1]]).unwrap();
            let logits = model.logits(&input).unwrap();
            logits.into_data().try_into_vec::<f32>().unwrap()
        };
        assert_eq!(logits(&base), logits(&model));
        let values = |model: &LanguageModel, name: &str| {
            let parameters = model.parameters();
            let found = parameters.iter().find(|p| p.name() == name).unwrap();
            found.to_vec()
        };
        let query = |block: usize| format!("blocks.{block}.mixer.query.weight");
        for (old, new) in [(0, 0), (1, 1), (1, 2), (2, 3), (3, 4), (3, 5)] {
            assert_eq!(values(&base, &query(old)), values(&model, &query(new)));
        }
        for name in ["mixer.output.weight", "channel.down.weight"] {
            let name = format!("blocks.2.{name}");
            assert!(values(&model, &name).iter().all(|x| *x == 0.0));
        }
        let error = expanded(&base, 3).unwrap_err().to_string();
        assert!(error.contains("choose a divisor of 4"), "{error}");
    }
}
