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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Input,
        pooling::Pooling,
        source::Seed,
        spec::{ModelSpec, Subject},
    };
    use burn::tensor::Device;

    fn model(labels: usize, problem: Problem) -> LanguageModel {
        let spec = ModelSpec {
            headless: true,
            pad: Some(0),
            classifier: Some(ClassifierSpec {
                labels,
                subject: Subject::Texts(Pooling::Last),
                dense: None,
                bias: false,
                problem,
            }),
            ..ModelSpec::llama(20, 8, 1, 2, 1, 16, 32)
        };
        LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
    }

    fn loss(labels: usize, problem: Problem, given: &[f32]) -> Result<f32> {
        let scores = [[1.0f32, -2.0, 0.5], [0.0, 3.0, -1.0]].map(|row| row[..labels].to_vec());
        let data = TensorData::new(scores.concat(), [2, labels]);
        let scores = Tensor::from_data(data, &Device::flex());
        let loss = model(labels, problem).class_loss(scores, given)?;
        Ok(loss.into_scalar())
    }

    #[test]
    fn losses_of_the_three_problems() {
        // -log softmax of (1, -2, 0.5) at 2 and of (0, 3, -1) at 1.
        let one = loss(3, Problem::OneClass, &[2.0, 1.0]).unwrap();
        assert!((one - (1.004_597 + 0.065_884) / 2.0).abs() < 1e-4, "{one}");
        // What is negative is not asked for.
        let first = loss(3, Problem::OneClass, &[2.0, -100.0]).unwrap();
        assert!((first - 1.004_597).abs() < 1e-4, "{first}");
        // Of scores 1 and 0 the targets 1 and 0: log(1 + e^-1) and log 2.
        let many = loss(1, Problem::ManyClasses, &[1.0, 0.0]).unwrap();
        assert!(
            (many - (0.313_262 + std::f32::consts::LN_2) / 2.0).abs() < 1e-4,
            "{many}"
        );
        let numbers = loss(1, Problem::Regression, &[3.0, 1.0]).unwrap();
        assert!((numbers - (4.0 + 1.0) / 2.0).abs() < 1e-6, "{numbers}");
    }

    #[test]
    fn labels_that_do_not_fit_are_errors() {
        let error = |labels, given: &[f32]| loss(labels, Problem::OneClass, given).unwrap_err();
        assert!(error(3, &[3.0, 0.0]).to_string().contains("class 3"));
        assert!(error(3, &[0.5, 0.0]).to_string().contains("class 0.5"));
        assert!(error(3, &[1.0]).to_string().contains("need 2 labels"));
        assert!(error(3, &[-100.0, -100.0]).to_string().contains("no label"));
    }

    #[test]
    fn the_last_token_is_the_last_that_is_no_padding() {
        let model = model(3, Problem::OneClass);
        let scores = |rows: &[Vec<u32>]| -> Vec<f32> {
            let input = Input::rows(rows).unwrap();
            let hidden = model.hidden(&input, None).unwrap();
            let scores = model.class_scores(hidden, &input).unwrap();
            scores.into_data().try_into_vec().unwrap()
        };
        let alone = scores(&[vec![5, 7, 9]]);
        let padded = scores(&[vec![5, 7, 9, 0, 0]]);
        let gap = |(a, b): (&f32, &f32)| (a - b).abs();
        assert!(alone.iter().zip(&padded).map(gap).all(|gap| gap < 1e-6));
        assert!(
            alone
                .iter()
                .zip(&scores(&[vec![5, 7, 9, 4]]))
                .map(gap)
                .any(|gap| gap > 1e-4)
        );
        let hidden = Tensor::<2>::zeros([1, 8], &Device::flex());
        let error = model.cross_entropy(hidden.clone(), &[1]).unwrap_err();
        assert!(error.to_string().contains("no head"), "{error}");
        assert!(model.target_scores(hidden, &[1]).is_err());
        let plain = ModelSpec::llama(20, 8, 1, 2, 1, 16, 32);
        let plain = LanguageModel::build(plain, &mut Seed(3), &Device::flex()).unwrap();
        let input = Input::rows(&[vec![1]]).unwrap();
        let hidden = plain.hidden(&input, None).unwrap();
        assert!(plain.class_scores(hidden, &input).is_err());
    }
}
