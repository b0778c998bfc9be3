//! What of the model a stage trains: all, some blocks, a fresh adapter, or the one that it starts from.

use espalier_models::{
    adapter::Adapter, families::Family, model::LanguageModel, quantised::quantised_weights,
};

use super::TrainStage;
use crate::{Error, Result, stages::Voice};

/// Marks what is trained, and gives the adapter, where one is: `earlier` is what the model stands under, `added` are the ids of new tokens.
///
/// # Errors
/// When the keys do not go together, or do not suit the model.
pub(super) fn choose(
    stage: &TrainStage,
    model: &mut LanguageModel,
    family: &Family,
    earlier: Option<Adapter>,
    added: &[u32],
) -> Result<Option<Adapter>> {
    let is_quantised = quantised_weights(model) > 0;
    Ok(match (&stage.adapter, earlier) {
        (None, None) if is_quantised => {
            return Err(Error::usage(
                "the model is quantised, and rounded weights cannot be trained; train an adapter on them (`adapter = \"lora\"`), or the full-precision model",
            ));
        }
        (None, None) => {
            match &stage.freeze {
                Some(freeze) => freeze.apply(model, family)?,
                None => model.set_trainable(|_| true),
            }
            None
        }
        (Some(options), None) => {
            let seed = stage.options.seed;
            if stage.objective.registered().classifies && !stage.add_tokens.is_empty() {
                return Err(Error::usage(
                    "`add_tokens` with an adapter trains embedding and head, and a classifier has no head; add the tokens in a stage of its own",
                ));
            }
            Some(match stage.add_tokens.is_empty() {
                true if stage.objective.registered().classifies => {
                    options.attach_with_classifier(model, family, seed)?
                }
                true => options.attach(model, family, seed)?,
                false if stage.keeps_added_tokens() => {
                    if added.is_empty() {
                        return Err(Error::usage(
                            "`added_tokens`: the vocabulary has all of the `add_tokens` already; name them by their ids in `trainable_tokens`",
                        ));
                    }
                    options.attach_with_tokens(added, model, family, seed)?
                }
                false => options.attach_with_vocabulary(model, family, seed)?,
            })
        }
        (None, Some(_)) if stage.freeze.is_some() => {
            return Err(Error::usage(
                "the model is an adapter, which alone is trained; leave `freeze` out, or merge it into its base first",
            ));
        }
        (None, Some(earlier)) => {
            earlier.mark_trainable(model);
            Some(earlier)
        }
        (Some(_), Some(_)) => {
            return Err(Error::usage(
                "the model is an adapter already: leave `adapter` out to train it on, or give the model that it stands on for a fresh one",
            ));
        }
    })
}

/// Whether the adapter is merged at the end: its folder cannot say that its base was changed.
pub(super) fn merges(stage: &TrainStage) -> bool {
    !stage.config.is_empty() || !stage.add_tokens.is_empty() && !stage.keeps_added_tokens()
}

/// Whether what is left at the end can be written: an adapter with its base, or a model that it is merged into. Of the base `rounded`
/// weights were quantised at the start.
///
/// # Errors
/// When it cannot.
pub(super) fn check_kept(
    stage: &TrainStage,
    model: &LanguageModel,
    family: &Family,
    adapter: Option<&Adapter>,
    rounded: usize,
) -> Result<()> {
    let merges = merges(stage);
    let refusal = adapter.and_then(|adapter| adapter.merge_refusal());
    if let Some(reason) = refusal.filter(|_| merges) {
        let fix = "change the base in a stage of its own";
        return Err(Error::usage(format!(
            "the adapter cannot be merged into a base that `config` or `add_tokens` changes: {reason}; {fix}"
        )));
    }
    if let Some(adapter) = adapter.filter(|_| !merges) {
        adapter.check_kept(model, family)?;
        if stage.new.is_some() {
            return Err(Error::usage(
                "an adapter's folder names its base, and a `new` model has no folder yet; make it in a stage of its own, whose name is then the `model` of this one",
            ));
        }
    }
    if rounded > 0 && merges {
        return Err(Error::usage(
            "the adapter cannot be merged into a quantised base, which `config` or `add_tokens` asks for; change the full-precision base in a stage of its own",
        ));
    }
    if quantised_weights(model) < rounded {
        return Err(Error::usage(
            "the adapter would change or train weights of the quantised base themselves; leave their modules out of `modules_to_save`, start from a plain `lora`, or do not quantise",
        ));
    }
    Ok(())
}

/// Tells what becomes of the rows of added tokens.
pub(super) fn say_added(stage: &TrainStage, adapter: Option<&Adapter>, voice: &mut dyn Voice) {
    match adapter.is_some() && !stage.add_tokens.is_empty() {
        true if stage.keeps_added_tokens() => voice.say("   of embedding and head the rows of the added tokens alone are trained, and kept in the adapter"),
        true => voice.say("   embedding and head have new rows: they are trained too, and the whole model is left instead of an adapter"),
        false => {}
    }
}
