//! Whether a model's head is its embedding, by what the configuration says and what the file holds, as transformers 5 decides it.
//!
//! The configuration's word counts, with one exception: where it ties the two and the file holds both with different values, they
//! stay apart. Of two that are tied either may be missing. A head that should be there and is not starts from random numbers, and its
//! bias from zero.

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    families::{Family, TensorEntry, config::Config},
    layout::StoredTensor,
    model::LanguageModel,
    source::{Initial, ParameterSource, Seed, Values, stored_name},
    spec::ModelSpec,
};

/// Our name of the head's matrix.
pub(crate) const HEAD: &str = "head.weight";
/// Our name of the head's bias.
pub(crate) const HEAD_BIAS: &str = "head.bias";
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
    name_of(ours, (family.tensors)(&untied(spec)))
}

/// As [`tensor_of`], by the name that transformers has for it.
pub(crate) fn tensor_in_memory(ours: &str, family: &Family, spec: &ModelSpec) -> Option<String> {
    name_of(ours, family.in_memory(&untied(spec)))
}

fn name_of(ours: &str, entries: Vec<TensorEntry>) -> Option<String> {
    let mut entries = entries.into_iter();
    let entry = entries.find(|entry| entry.parts.iter().any(|part| part == ours))?;
    Some(entry.name)
}

/// The same model with a head of its own.
pub(crate) fn untied(spec: &ModelSpec) -> ModelSpec {
    ModelSpec {
        tied_head: false,
        ..spec.clone()
    }
}

/// Whether a tensor of a file says nothing: one of the family's derived ones, or the bias of a head that is not there, which
/// transformers writes beside that of the head that is.
pub(crate) fn is_derived(name: &str, family: &Family, spec: &ModelSpec) -> bool {
    let ignored = |end: &&str| name.ends_with(end);
    family.ignored.iter().any(ignored) || other_bias(family, spec).is_some_and(|bias| bias == name)
}

/// What a head's bias is called where the head is tied, if that of `spec` has its own, and the other way round: transformers has both,
/// and they are one where an adapter trains them.
pub(crate) fn other_bias(family: &Family, spec: &ModelSpec) -> Option<String> {
    let other = ModelSpec {
        tied_head: !spec.tied_head,
        ..spec.clone()
    };
    let bias = |spec| name_of(HEAD_BIAS, (family.tensors)(spec));
    let (own, other) = (bias(spec), bias(&other));
    other.filter(|name| spec.head_bias && own.as_ref() != Some(name))
}

/// Settles whether the head of `spec` is tied.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn settle(
    spec: &mut ModelSpec,
    config: &Config,
    family: &Family,
    checkpoint: &Checkpoint,
) -> Result<HeadInFile> {
    let table = own_table(family, spec, checkpoint)?;
    let found = settle_head(spec, config, family, checkpoint, table.clone())?;
    Ok(HeadInFile {
        embedding: table.or(found.embedding),
        ..found
    })
}

/// As [`settle`], with the tensor that is the embedding where it is not the usual one.
fn settle_head(
    spec: &mut ModelSpec,
    config: &Config,
    family: &Family,
    checkpoint: &Checkpoint,
    table: Option<String>,
) -> Result<HeadInFile> {
    if spec.headless {
        return Ok(HeadInFile::default());
    }
    let is_stored = |ours, spec: &ModelSpec| {
        let name = tensor_of(ours, family, spec)?;
        stored_name(checkpoint, family.prefix, &name)
    };
    let has_own_bias = is_stored(HEAD_BIAS, spec).is_some();
    let is_base = is_base_model(config, family)?;
    let head = is_stored(HEAD, spec);
    let embedding = table.or_else(|| is_stored(EMBEDDING, spec));
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
        settled.fresh.push(HEAD_BIAS);
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

/// The tables that the stacks of an encoder-decoder look up in transformers, which never reads the one that they share.
fn stack_tables(family: &Family, spec: &ModelSpec) -> Vec<String> {
    let shared = family
        .modules
        .unread
        .zip(tensor_of(EMBEDDING, family, spec));
    let Some((unread, shared)) = shared else {
        return Vec::new();
    };
    let sides = match spec.encoder {
        Some(_) => &["encoder", "decoder"][..],
        None => &["encoder"],
    };
    let table = |side: &&str| shared.replace(unread, &format!("{side}.embed_tokens"));
    sides.iter().map(table).collect()
}

/// The table that the stacks look up, where the file has one of their own. A stack without one has the shared one, and so has a tied head.
fn own_table(family: &Family, spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<Option<String>> {
    let stored = |name: String| stored_name(checkpoint, family.prefix, &name);
    let own: Vec<Option<String>> = stack_tables(family, spec).into_iter().map(stored).collect();
    let Some(first) = own.iter().flatten().next().cloned() else {
        return Ok(None);
    };
    let shared = tensor_of(EMBEDDING, family, spec).and_then(stored);
    let ties_head = spec.tied_head && !spec.headless;
    let has_head = tensor_of(HEAD, family, spec).and_then(stored).is_some();
    let of_head = shared.clone().filter(|_| ties_head && !has_head);
    let of_stacks = own
        .iter()
        .filter_map(|own| own.as_ref().or(shared.as_ref()));
    for other in of_stacks.chain(&of_head).filter(|other| **other != first) {
        if !are_equal(checkpoint, &first, other)? {
            return Err(Error::checkpoint(
                checkpoint.folder(),
                format!(
                    "`{first}` and `{other}` differ; an encoder, a decoder and a tied head with embeddings of their own are not supported"
                ),
            ));
        }
    }
    Ok(Some(first))
}

/// The embedding under the names of both stacks' tables, which transformers reads where nothing ties them.
pub(crate) fn repeated_tables<'a>(
    model: &'a LanguageModel,
    family: &Family,
) -> Vec<StoredTensor<'a>> {
    let spec = model.spec();
    let embedding = model
        .parameters()
        .into_iter()
        .find(|parameter| parameter.name() == EMBEDDING);
    let Some(embedding) = embedding.filter(|_| !spec.tied_head && spec.encoder.is_some()) else {
        return Vec::new();
    };
    let whole = |name| StoredTensor::whole(name, embedding);
    stack_tables(family, spec).into_iter().map(whole).collect()
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
