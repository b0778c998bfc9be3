//! Classes of texts or of words (fine-tuning of BERT, arXiv 1810.04805, section 4): the loss of a classifier's scores.
//!
//! What a score means is the model's (`problem_type` of config.json): one class of many, `-log softmax(z)_y`, a mean over texts or over
//! labelled words; several classes, `log(1 + exp(z)) - z y`, a mean over all scores; or numbers, `(z - y)^2`. Words are labelled at
//! their first tokens. Recipe: `classify.toml`.

use burn::tensor::Tensor;
use espalier_data::{packing::Row, random::Random, readers::Wanted};
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    auxiliary_losses::AuxiliaryLosses,
    model::LanguageModel,
    spec::{ClassifierSpec, Problem, Subject},
    taps::Unobserved,
};
use serde::{Deserialize, Serialize};

use super::{Batch, Loss, Metric, Objective, PackedRows, registry::Entry, rows, wrong};
use crate::{
    Result,
    batch::{LABELS, Sample, TokenBatch, UNASKED},
    metrics::MetricDescription,
    options::TrainOptions,
};

/// The options of classification; there are none yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyOptions {}

/// Metric of classifiers.
pub(super) const RIGHT: MetricDescription = MetricDescription::share(
    "accuracy",
    "accuracy",
    "share of the labels that are the model's choice",
);

/// The objective's registration.
pub const ENTRY: Entry<ClassifyOptions> = Entry::of_classes(
    &[RIGHT],
    Wanted::Labels,
    |_| Ok(()),
    |_, _| Ok(Box::new(Classify { name: "classify" })),
);

/// The objective, which process rewards share.
#[derive(Debug, Clone, Copy)]
pub struct Classify {
    /// The name under which it was asked for.
    pub name: &'static str,
}

impl Objective for Classify {
    fn name(&self) -> &'static str {
        self.name
    }

    fn packed_rows(&self) -> PackedRows {
        ENTRY.packed_rows
    }

    fn predicts_tokens(&self) -> bool {
        false
    }

    fn needs_head(&self) -> bool {
        false
    }

    fn check(&self, model: &LanguageModel, _: &[Sample], _: &TrainOptions) -> Result<()> {
        classifier(self.name, model).map(drop)
    }

    fn collate(&self, model: &LanguageModel, samples: &[&Sample], _: &mut Random) -> Result<Batch> {
        let rows = rows(self.name, samples)?;
        let spec = classifier(self.name, model)?;
        let tokens = TokenBatch::unasked(&rows);
        let labels = labels(spec, samples, &rows, tokens.input.time())?;
        let units = match spec.problem {
            Problem::OneClass => labels.iter().filter(|label| **label >= 0.0).count(),
            Problem::ManyClasses | Problem::Regression => rows.len(),
        };
        let mut batch = Batch::new(tokens, units, &[])?;
        batch.columns.set_numbers(LABELS, labels);
        Ok(batch)
    }

    fn loss(&self, model: &LanguageModel, batch: &Batch) -> Result<Loss> {
        let spec = classifier(self.name, model)?;
        let (scores, auxiliary) = class_scores(model, &batch.tokens)?;
        let [rows, classes] = scores.dims();
        let count = match spec.problem {
            Problem::OneClass => rows,
            Problem::ManyClasses | Problem::Regression => rows * classes,
        };
        let labels: Vec<f32> = batch
            .columns
            .numbers(LABELS, count)?
            .iter()
            .map(|label| *label as f32)
            .collect();
        let mean = model.class_loss(scores.clone(), &labels)?;
        let mut loss = Loss::new(mean * batch.units, batch.units, auxiliary);
        loss.metrics.extend(accuracy(spec, scores, &labels));
        Ok(loss)
    }
}

/// What the model gives classes of; a model without is an error of the objective `name`.
fn classifier(name: &str, model: &LanguageModel) -> Result<ClassifierSpec> {
    let missing = || {
        wrong(format!(
            "`{name}` needs a model with classes (`...ForSequenceClassification` or `...ForTokenClassification`)"
        ))
    };
    model.spec().classifier.ok_or_else(missing)
}

/// The labels of a batch: of each text, or of each of `time` tokens of every row.
fn labels(
    spec: ClassifierSpec,
    samples: &[&Sample],
    rows: &[&Row],
    time: usize,
) -> Result<Vec<f64>> {
    let of_tokens = spec.subject == Subject::Tokens;
    let each = match spec.problem {
        Problem::OneClass => 1,
        Problem::ManyClasses | Problem::Regression => spec.labels,
    };
    let mut all = Vec::new();
    for (sample, row) in samples.iter().zip(rows) {
        let count = if of_tokens { row.ids.len() } else { each };
        all.extend(sample.columns.numbers(LABELS, count)?);
        if of_tokens {
            all.extend(std::iter::repeat_n(UNASKED, time - count));
        }
    }
    Ok(all)
}

/// The scores of the classes of a batch's texts or tokens, see [`LanguageModel::class_scores`], and the losses that the model brings
/// along.
///
/// # Errors
/// When the model does not classify, or a token id is outside the vocabulary.
pub fn class_scores(
    model: &LanguageModel,
    tokens: &TokenBatch,
) -> Result<(Tensor<2>, AuxiliaryLosses)> {
    let forward = model.forward(&tokens.input, None, &mut Unobserved)?;
    let scores = model.class_scores(forward.hidden, &tokens.input)?;
    Ok((scores, model.auxiliary_losses(&forward.sides.outputs)))
}

/// How often the choice of the scores `[rows, classes]` is the label; numbers are no choices.
fn accuracy(spec: ClassifierSpec, scores: Tensor<2>, labels: &[f32]) -> Option<Metric> {
    let [_, classes] = scores.dims();
    let scores = scores.floats();
    let mut metric = Metric {
        name: RIGHT.name,
        sum: 0.0,
        units: 0.0,
    };
    let mut count = |right: bool| {
        metric.sum += f64::from(u8::from(right));
        metric.units += 1.0;
    };
    match spec.problem {
        Problem::Regression => return None,
        Problem::ManyClasses => {
            let both = scores.iter().zip(labels);
            both.for_each(|(score, label)| count((*score > 0.0) == (*label > 0.5)));
        }
        Problem::OneClass => {
            let rows = scores.chunks(classes.max(1)).zip(labels);
            for (row, label) in rows.filter(|(_, label)| **label >= 0.0) {
                count(first_largest(row) == *label as usize);
            }
        }
    }
    Some(metric)
}

fn first_largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (class, score) in row.iter().enumerate() {
        if *score > row[best] {
            best = class;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_models::pooling::Pooling;

    fn spec(labels: usize, subject: Subject, problem: Problem) -> ClassifierSpec {
        ClassifierSpec {
            labels,
            subject,
            dense: None,
            bias: false,
            problem,
        }
    }

    #[test]
    fn choices_are_counted_where_a_label_asks() {
        let tokens = spec(2, Subject::Tokens, Problem::OneClass);
        let scores = || {
            Tensor::<2>::from_floats(
                [[0.1, 0.3], [2.0, -1.0], [0.0, 0.0], [1.0, 5.0]],
                &Device::flex(),
            )
        };
        let found = accuracy(tokens, scores(), &[1.0, 1.0, 0.0, -100.0]).unwrap();
        assert_eq!([found.sum, found.units], [2.0, 3.0]);
        let texts = Subject::Texts(Pooling::Last);
        let many = spec(2, texts, Problem::ManyClasses);
        let given = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let found = accuracy(many, scores(), &given).unwrap();
        assert_eq!([found.sum, found.units], [6.0, 8.0]);
        assert!(accuracy(spec(2, texts, Problem::Regression), scores(), &given).is_none());
    }

    #[test]
    fn labels_of_tokens_are_padded_with_what_asks_nothing() {
        let long = Sample::labelled(&[5, 6, 7], &[0, 2], &[1.0, 0.0]);
        let short = Sample::labelled(&[5], &[0], &[2.0]);
        let samples = [&long, &short];
        let rows = rows("classify", &samples).unwrap();
        let tokens = spec(3, Subject::Tokens, Problem::OneClass);
        let found = labels(tokens, &samples, &rows, 3).unwrap();
        assert_eq!(found, [1.0, UNASKED, 0.0, 2.0, UNASKED, UNASKED]);
    }
}
