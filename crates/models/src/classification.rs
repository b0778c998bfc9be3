//! What a model that classifies learns from: the loss of its scores against labels.

use burn::tensor::{Tensor, TensorData};
use espalier_kernels::{
    cross_entropy::{Regularisation, cross_entropy},
    embedding::embedding,
};

use crate::{
    Error, Result,
    model::LanguageModel,
    spec::{ClassifierSpec, Problem},
};

impl LanguageModel {
    /// The mean loss of `scores` `[rows, labels]`, as [`LanguageModel::class_scores`] gives them: `[1]`. Of one class of many, `given`
    /// holds each row's class, or a negative number where nothing is asked; otherwise it holds `[rows, labels]` numbers.
    ///
    /// # Errors
    /// When the model does not classify, `given` has another length, or a class does not exist.
    pub fn class_loss(&self, scores: Tensor<2>, given: &[f32]) -> Result<Tensor<1>> {
        let reason = || Error::Invalid("this model has no classifier".into());
        let spec = self.spec().classifier.ok_or_else(reason)?;
        let [rows, labels] = scores.dims();
        let wanted = match spec.problem {
            Problem::OneClass => rows,
            Problem::ManyClasses | Problem::Regression => rows * labels,
        };
        if given.len() != wanted {
            let found = given.len();
            return Err(Error::Invalid(format!(
                "{rows} rows of {labels} classes need {wanted} labels, found {found}"
            )));
        }
        match spec.problem {
            Problem::OneClass => one_class(scores, &classes(given, spec)?),
            Problem::ManyClasses => Ok(many_classes(scores, given)),
            Problem::Regression => Ok(square(scores, given)),
        }
    }
}

/// The rows that are asked for, and their classes.
fn classes(given: &[f32], spec: ClassifierSpec) -> Result<Vec<(u32, u32)>> {
    let asked = given.iter().enumerate().filter(|(_, class)| **class >= 0.0);
    let class = |(row, class): (usize, &f32)| match class.fract() == 0.0
        && (*class as usize) < spec.labels
    {
        true => Ok((row as u32, *class as u32)),
        false => Err(Error::Invalid(format!(
            "class {class} is none of the model's {}",
            spec.labels
        ))),
    };
    asked.map(class).collect()
}

fn one_class(scores: Tensor<2>, asked: &[(u32, u32)]) -> Result<Tensor<1>> {
    let (rows, classes): (Vec<u32>, Vec<u32>) = asked.iter().copied().unzip();
    if rows.is_empty() {
        return Err(Error::Invalid("no label asks for anything".into()));
    }
    let sum = cross_entropy(
        embedding(scores, &rows),
        &classes,
        Regularisation::default(),
    );
    Ok(sum / rows.len() as f64)
}

/// `max(z, 0) - z y + log(1 + exp(-|z|))`.
fn many_classes(scores: Tensor<2>, given: &[f32]) -> Tensor<1> {
    let truth = truth(&scores, given);
    let rest = (scores.clone().abs().neg().exp() + 1.0).log();
    (scores.clone().clamp_min(0.0) - scores * truth + rest).mean()
}

fn square(scores: Tensor<2>, given: &[f32]) -> Tensor<1> {
    let distance = scores.clone() - truth(&scores, given);
    (distance.clone() * distance).mean()
}

fn truth(scores: &Tensor<2>, given: &[f32]) -> Tensor<2> {
    let data = TensorData::new(given.to_vec(), scores.dims());
    Tensor::from_data(data, &scores.device().inner())
}
