//! Whether a model's head is its embedding, by what the configuration says and what the file holds, as transformers 5 decides it.
//!
//! The configuration's word counts, with one exception: where it ties the two and the file holds both with different values, they
//! stay apart. Of two that are tied either may be missing. A head that should be there and is not starts from random numbers, and its
//! bias from zero.

use crate::{
    Result,
    checkpoint::Checkpoint,
    families::{Family, config::Config},
    source::{Initial, ParameterSource, Seed, Values, stored_name},
    spec::ModelSpec,
};

/// Our name of the head's matrix.
pub(crate) const HEAD: &str = "head.weight";
/// Our name of its bias.
const BIAS: &str = "head.bias";
/// Our name of the embedding's.
pub(crate) const EMBEDDING: &str = "embedding.weight";

/// How head and embedding of a file belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeadInFile {
    /// What starts as in a fresh model, for the file does not have it: a head at random, its bias at zero.
    pub fresh: Vec<&'static str>,
    /// The tensor that is the embedding too, where the file has the head alone.
    pub embedding: Option<String>,
    /// What the user should know.
    pub remark: Option<String>,
}

/// The checkpoint's name of one of the two matrices, where the family's files have one.
pub(crate) fn tensor_of(ours: &str, family: &Family, spec: &ModelSpec) -> Option<String> {
    let untied = ModelSpec {
        tied_head: false,
        ..spec.clone()
    };
    let mut entries = (family.tensors)(&untied).into_iter();
    let entry = entries.find(|entry| entry.parts.iter().any(|part| part == ours))?;
    Some(entry.name)
}

/// Settles whether the head of `spec` is tied, and what of it starts fresh.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn settle(
    spec: &mut ModelSpec,
    config: &Config,
    family: &Family,
    checkpoint: &Checkpoint,
) -> Result<HeadInFile> {
    if spec.headless {
        return Ok(HeadInFile::default());
    }
    let is_stored = |ours, spec: &ModelSpec| {
        let name = tensor_of(ours, family, spec)?;
        stored_name(checkpoint, family.prefix, &name)
    };
    let has_own_bias = is_stored(BIAS, spec).is_some();
    let is_base = is_base_model(config, family)?;
    let stored = |ours| is_stored(ours, spec);
    let (head, embedding) = (stored(HEAD), stored(EMBEDDING));
    let mut settled = match (spec.tied_head, head, embedding) {
        (true, Some(head), None) => HeadInFile {
            embedding: Some(head),
            ..HeadInFile::default()
        },
        (true, Some(head), Some(embedding)) if !are_equal(checkpoint, &head, &embedding)? => {
            spec.tied_head = false;
            said(format!(
                "{}: the configuration ties the head to the embedding, but `{head}` and `{embedding}` differ; both are taken as they are (`\"tie_word_embeddings\": false` says so)",
                checkpoint.folder().display()
            ))
        }
        (false, None, _) if is_base => {
            spec.tied_head = true;
            said(format!(
                "{}: a base model without a head; where it has to predict tokens, its embedding takes the head's place",
                checkpoint.folder().display()
            ))
        }
        (false, None, _) => HeadInFile {
            fresh: vec![HEAD],
            ..said(format!(
                "{}: the file has no head, and the configuration does not tie it to the embedding: it starts from random numbers and has to be trained (`\"tie_word_embeddings\": true` ties it)",
                checkpoint.folder().display()
            ))
        },
        _ => HeadInFile::default(),
    };
    let quiet = is_base || spec.head_bias_fixed || !settled.fresh.is_empty();
    if spec.head_bias && !has_own_bias && (quiet || spec.tied_head && !spec.bidirectional) {
        settled.fresh.push(BIAS);
        let remark = || {
            format!(
                "{}: the file has no bias of the head: it starts from zero",
                checkpoint.folder().display()
            )
        };
        settled.remark = settled.remark.or_else(|| (!quiet).then(remark));
    }
    Ok(settled)
}

fn said(remark: String) -> HeadInFile {
    HeadInFile {
        remark: Some(remark),
        ..HeadInFile::default()
    }
}

/// Whether two tensors have the same elements.
fn are_equal(checkpoint: &Checkpoint, one: &str, other: &str) -> Result<bool> {
    let same = checkpoint.info(one) == checkpoint.info(other);
    Ok(same && checkpoint.bytes(one)? == checkpoint.bytes(other)?)
}

/// Whether the configuration is one of the family's base model, whose files never have a head.
fn is_base_model(config: &Config, family: &Family) -> Result<bool> {
    let architectures = config.optional_texts("architectures")?.unwrap_or_default();
    let first = architectures.first();
    Ok(first.is_some_and(|name| family.is_base_architecture(name)))
}

/// A source in which these parameters start as in a fresh model.
pub(crate) struct WithFresh<S> {
    /// The other parameters.
    pub source: S,
    /// Our names of these.
    pub fresh: Vec<&'static str>,
}

impl<S: ParameterSource> ParameterSource for WithFresh<S> {
    fn parameter(&mut self, name: &str, shape: &[usize], initial: Initial) -> Result<Values> {
        match self.fresh.contains(&name) {
            true => Seed(0).parameter(name, shape, initial),
            false => self.source.parameter(name, shape, initial),
        }
    }
}
