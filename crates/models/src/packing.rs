//! Models whose linear maps have packed weights of three or two values, two bits a number, and their files.
//!
//! A weight that is trained is rounded whenever it multiplies; packed, it is what it was rounded to, to the same logits bit for bit, in a
//! sixteenth of the room. What was rounded away is gone: a packed model is not trained further, but for adapters beside it.

use espalier_kernels::stored::{Stored, Ternary};

use crate::{
    Error, Result,
    checkpoint::{
        Dtype, Elements, TensorPlan,
        bitnet::{self, ROWS, SCALE},
    },
    families::Family,
    layout::stored_tensors,
    model::LanguageModel,
    parameter::Parameters,
};

/// The model with its rounded weights packed, and how many these are.
///
/// # Errors
/// When no weight of the model is rounded, or adapters are attached.
pub fn packed(model: &LanguageModel) -> Result<(LanguageModel, usize)> {
    let mut adapted = false;
    model.visit(&mut |parameter| adapted |= parameter.adapter().is_some());
    if adapted {
        let reason =
            "an adapter is on the model, which stays beside a packed base; pack the base alone";
        return Err(Error::Invalid(reason.into()));
    }
    let (mut packed, mut count) = (model.frozen(), 0);
    packed.visit_linears_mut(&mut |mut map| count += usize::from(map.pack()));
    match count {
        0 => Err(Error::Invalid(
            "the weights of this model are not rounded to one bit or 1.58, and to do so now would destroy it; train it with `config.bits` of `ternary` first".into(),
        )),
        _ => Ok((packed, count)),
    }
}

/// Whether the model has packed weights.
pub(crate) fn is_packed(model: &LanguageModel) -> bool {
    let mut found = false;
    model.visit(&mut |parameter| found |= parameter.as_stored().is_some_and(Ternary::is_of));
    found
}

/// Refuses a packed model whose files have no room for its scales.
pub(crate) fn check_savable(model: &LanguageModel, family: &Family) -> Result<()> {
    let mut missing = 0;
    model.visit(&mut |parameter| {
        missing += usize::from(parameter.as_stored().is_some_and(Ternary::is_of));
    });
    for tensor in stored_tensors(model, family) {
        let Some(weight) = tensor.packed() else {
            continue;
        };
        missing -= 1;
        if !weight.rows().is_multiple_of(ROWS) {
            return Err(Error::Invalid(format!(
                "`{}` has {} rows, and four share a byte; keep the model unpacked",
                tensor.name,
                weight.rows()
            )));
        }
    }
    match missing {
        0 => Ok(()),
        _ => Err(Error::Invalid(format!(
            "files of the family `{}` hold several linear maps in one tensor, or transposed, where packed weights have no room for their scales; keep the model unpacked",
            family.model_type
        ))),
    }
}

/// The tensors of a packed weight `[out, in]`.
pub(crate) fn plans(name: &str, shape: &[usize]) -> Vec<TensorPlan> {
    let [rows, width] = [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(1));
    let plan = |name: String, dtype, shape| TensorPlan { name, dtype, shape };
    vec![
        plan(name.to_owned(), Dtype::U8, vec![rows / ROWS, width]),
        plan(format!("{name}{SCALE}"), Dtype::F32, vec![1]),
    ]
}

/// The bytes of a packed weight, or its scale.
pub(crate) fn elements(weight: &Stored, bytes: bool) -> Result<Elements<'static>> {
    let odd = || Error::Invalid("a packed weight has rows that four to a byte cannot hold".into());
    let (codes, scale) = bitnet::written(weight).ok_or_else(odd)?;
    Ok(match bytes {
        true => Elements::Bytes(codes.into()),
        false => Elements::Numbers(vec![scale]),
    })
}
