//! The parameters that a run trains, the model's and the objective's own, each under one key: gradients, optimiser and
//! checkpoint know them by it.
//!
//! The model's go by their names, the objective's by `objective.<part>.<name>`.

use std::collections::BTreeSet;

use espalier_models::{
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};

use crate::{Error, Result, objectives::Objective};

/// Shows every parameter that is trained with its key, in a fixed order.
pub fn visit<'a>(
    model: &'a LanguageModel,
    objective: &'a dyn Objective,
    visitor: &mut dyn FnMut(&str, &'a Parameter),
) {
    model.visit(&mut |p| {
        if p.is_trainable() {
            visitor(p.name(), p);
        }
    });
    for (part, parameters) in objective.parameters() {
        parameters.visit(&mut |p| {
            if p.is_trainable() {
                visitor(&key(part, p), p);
            }
        });
    }
}

/// Shows every parameter that is trained with its key for change, in the same order.
pub fn visit_mut(
    model: &mut LanguageModel,
    objective: &mut dyn Objective,
    visitor: &mut dyn FnMut(&str, &mut Parameter),
) {
    model.visit_mut(&mut |p| {
        if p.is_trainable() {
            let name = p.name().to_owned();
            visitor(&name, p);
        }
    });
    for (part, parameters) in objective.parameters_mut() {
        parameters.visit_mut(&mut |p| {
            if p.is_trainable() {
                visitor(&key(part, p), p);
            }
        });
    }
}

fn key(part: &str, parameter: &Parameter) -> String {
    format!("objective.{part}.{}", parameter.name())
}

/// Whether every key is there once.
///
/// # Errors
/// When two parameters share one.
pub fn check_keys(model: &LanguageModel, objective: &dyn Objective) -> Result<()> {
    let (mut keys, mut twice) = (BTreeSet::new(), None);
    visit(model, objective, &mut |key, _| {
        if !keys.insert(key.to_owned()) {
            twice = Some(key.to_owned());
        }
    });
    match twice {
        None => Ok(()),
        Some(key) => Err(Error::Option {
            key: "objective",
            reason: format!("two of its parameters are named `{key}`; give its parts other names"),
        }),
    }
}

/// Takes the objective's own parameters out of autodiff for as long as `work` lasts.
pub fn frozen<T>(
    objective: &mut dyn Objective,
    work: impl FnOnce(&dyn Objective) -> Result<T>,
) -> Result<T> {
    let mut trained = Vec::new();
    each_own(objective, &mut |p| {
        trained.push(p.is_trainable());
        p.set_trainable(false);
    });
    let result = work(objective);
    let mut trained = trained.into_iter();
    each_own(objective, &mut |p| {
        p.set_trainable(trained.next().unwrap_or(false));
    });
    result
}

fn each_own(objective: &mut dyn Objective, visitor: &mut dyn FnMut(&mut Parameter)) {
    for (_, parameters) in objective.parameters_mut() {
        parameters.visit_mut(visitor);
    }
}
