//! Adapters on models whose head is their embedding. An adapter that trains or adds to one of the two has that one alone, as PEFT
//! does: the other stays the base's. With `ensure_weight_tying` the two stay one.

use super::{AdapterKind, saved_modules::is_module_saved};
use crate::{
    checkpoint::peft_config::is_named,
    families::Family,
    layout::{self, StoredTensor},
    model::LanguageModel,
    tied_head::{EMBEDDING, HEAD, tensor_in_memory, tensor_of},
};

/// A tied head as a tensor of its own, which checkpoints leave out and adapters do not.
pub(super) fn head<'a>(model: &'a LanguageModel, family: &Family) -> Option<StoredTensor<'a>> {
    let tied = tied(model, family)?;
    let embedding = format!("{}.weight", tied.embedding);
    let mut tensors = layout::tensors_in_memory(model, family).into_iter();
    let mut head = tensors.find(|tensor| tensor.name == embedding)?;
    head.name = format!("{}.weight", tied.head);
    Some(head)
}

/// The modules of head and embedding of a model that ties them.
struct Tied {
    head: String,
    head_in_file: String,
    embedding: String,
}

fn tied(model: &LanguageModel, family: &Family) -> Option<Tied> {
    let spec = model.spec();
    let module = |tensor: Option<String>| Some(tensor?.strip_suffix(".weight")?.to_owned());
    let is_tied = spec.tied_head && !spec.headless;
    is_tied.then_some(())?;
    Some(Tied {
        head: module(tensor_in_memory(HEAD, family, spec))?,
        head_in_file: module(tensor_of(HEAD, family, spec))?,
        embedding: module(tensor_in_memory(EMBEDDING, family, spec))?,
    })
}

/// The modules that an adapter replaces whole, `saved`, as the model has them: where head and embedding stay one, the embedding is both.
pub(super) fn saved(
    kind: &dyn AdapterKind,
    mut saved: Vec<String>,
    model: &LanguageModel,
    family: &Family,
) -> Vec<String> {
    if let Some(tied) = tied(model, family).filter(|_| kind.keeps_ties()) {
        for entry in &mut saved {
            if is_named(&tied.head, entry) {
                entry.clone_from(&tied.embedding);
            }
        }
    }
    saved
}

/// Gives the model a head of its own where the adapter changes one of the two.
pub(super) fn untie(
    kind: &dyn AdapterKind,
    saved: &[String],
    model: &mut LanguageModel,
    family: &Family,
) {
    if parted(kind, saved, model, family).is_some() {
        model.untied_head();
    }
}

/// Which of the two an adapter changes alone.
fn parted(
    kind: &dyn AdapterKind,
    saved: &[String],
    model: &LanguageModel,
    family: &Family,
) -> Option<String> {
    let tied = tied(model, family).filter(|_| !kind.keeps_ties())?;
    if kind.parts_head(&[&tied.embedding], &[&tied.head, &tied.head_in_file]) {
        return Some(tied.head);
    }
    let changes = |module: &String| {
        let other = match *module == tied.head {
            true => &tied.head_in_file,
            false => module,
        };
        is_module_saved(module, saved) || kind.adapts(&[module, other])
    };
    [&tied.head, &tied.embedding]
        .into_iter()
        .find(|module| changes(module))
        .cloned()
}

/// What the user should know before the adapter is put on the model.
pub(super) fn remark(
    kind: &dyn AdapterKind,
    saved: &[String],
    model: &LanguageModel,
    family: &Family,
) -> Option<String> {
    let module = parted(kind, saved, model, family)?;
    Some(format!(
        "the base ties its head to its embedding and the adapter changes `{module}` alone, so the two part, as in PEFT; a model that it is merged into says `\"tie_word_embeddings\": false`"
    ))
}
