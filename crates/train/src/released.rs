//! The backward of a step whose blocks are updated on the way, one block's gradients after another's (LOMO, arXiv 2306.09782).

use std::collections::BTreeMap;

use burn::tensor::{Gradients, Tensor};
use espalier_kernels::{
    optimiser::sum_of_squares,
    release::{Leaf, Release},
};
use espalier_models::{model::LanguageModel, parameter::Parameter};

use crate::{
    Error, Result,
    objectives::Objective,
    optimisers::{Optimiser, Step},
    trained,
};

/// Squared norms of gradients, by the keys of their parameters.
pub(crate) type Squares = BTreeMap<String, f64>;

/// The squared norm of a gradient.
///
/// # Errors
/// When it is not finite.
pub(crate) fn squares(key: &str, gradient: &Tensor<1>, step: u64) -> Result<f64> {
    match sum_of_squares(gradient.clone()) {
        squares if squares.is_finite() => Ok(squares),
        _ => Err(Error::NotFinite {
            step: step as usize,
            what: format!("the gradient of `{key}`"),
        }),
    }
}

/// A step of one parameter, at its own learning rate.
pub(crate) fn update(
    optimiser: &mut dyn Optimiser,
    key: &str,
    parameter: &mut Parameter,
    gradient: Tensor<1>,
    step: Step,
) {
    let learning_rate = step.learning_rate * parameter.learning_rate();
    let step = Step {
        learning_rate,
        ..step
    };
    optimiser.step(key, parameter, gradient, step);
    parameter.restore_orthonormal_rows();
}

/// Updates every parameter whose gradient a block of its own gives, as soon as it does. Returns the gradients of the others, and the
/// squared norms of those that are gone.
///
/// # Errors
/// When a gradient is not finite; nothing is updated from then on.
pub(crate) fn backward(
    release: Release,
    loss: Tensor<1>,
    model: &mut LanguageModel,
    objective: &mut dyn Objective,
    optimiser: &mut dyn Optimiser,
    step: Step,
) -> Result<(Gradients, Squares)> {
    let (mut gone, mut failed) = (Squares::new(), None);
    let rest = release.backward(loss, &mut |mut gradients| {
        trained::visit_mut(model, objective, &mut |key, parameter| {
            let leaf = parameter.leaf().and_then(Leaf::of);
            let gradient = leaf.and_then(|leaf| gradients.remove(&leaf));
            let Some(gradient) = gradient.filter(|_| failed.is_none()) else {
                return;
            };
            match squares(key, &gradient, step.number) {
                Ok(squares) => {
                    gone.insert(key.to_owned(), squares);
                    update(optimiser, key, parameter, gradient, step);
                }
                Err(error) => failed = Some(error),
            }
        });
    });
    match failed {
        Some(error) => Err(error),
        None => Ok((rest?, gone)),
    }
}
