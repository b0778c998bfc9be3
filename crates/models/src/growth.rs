//! A model with rows for more tokens.
//!
//! New rows of the embedding, the head and its bias are the mean of the old ones (Hewitt, "Initializing New Word Embeddings for
//! Pretrained Language Models", 2021): the new tokens then get no more than the average probability, and the old ones keep theirs.

use std::collections::HashMap;

use crate::{
    Error, Result,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    source::{Initial, ParameterSource, Values},
    spec::ModelSpec,
};

impl LanguageModel {
    /// The model for a vocabulary of `tokens`, of which it knows the first `known`. It gets further rows where it has too few; where it has
    /// some to spare, the new tokens take these, and their values are replaced all the same, for nothing was ever learned there.
    ///
    /// # Errors
    /// When an adapter is attached.
    pub fn grown(&self, known: usize, tokens: usize) -> Result<Self> {
        let mut old = HashMap::new();
        self.visit(&mut |parameter: &Parameter| {
            old.insert(parameter.name().to_owned(), parameter.clone());
        });
        if let Some(parameter) = old.values().find(|parameter| parameter.adapter().is_some()) {
            let adapter = parameter.adapter().unwrap_or_default();
            return Err(Error::Invalid(format!(
                "tokens cannot be added while the adapter `{adapter}` is attached; `merge_adapters` puts it into the weights"
            )));
        }
        let mut spec = self.spec().clone();
        let axes = vocabulary_axes(&spec);
        spec.vocabulary = spec.vocabulary.max(tokens);
        let mut source = Grown {
            old,
            axes,
            known,
            tokens,
        };
        Self::build(spec, &mut source, self.device())
    }
}

/// The parameters with an entry for every token, and the axis along which these lie.
fn vocabulary_axes(spec: &ModelSpec) -> HashMap<String, usize> {
    let larger = ModelSpec {
        vocabulary: spec.vocabulary + 1,
        ..spec.clone()
    };
    let pairs = spec.parameters().into_iter().zip(larger.parameters());
    let axis = |(old, new): (&Vec<usize>, &Vec<usize>)| {
        old.iter().zip(new).position(|(old, new)| old != new)
    };
    pairs
        .filter_map(|((name, old), (_, new))| Some((name, axis((&old, &new))?)))
        .collect()
}

/// The weights of a model, with rows for new tokens.
struct Grown {
    old: HashMap<String, Parameter>,
    axes: HashMap<String, usize>,
    known: usize,
    tokens: usize,
}

impl ParameterSource for Grown {
    fn parameter(&mut self, name: &str, shape: &[usize], _: Initial) -> Result<Values> {
        let Some(old) = self.old.remove(name) else {
            return Err(Error::Invalid(format!(
                "the model has no weight `{name}` to grow from"
            )));
        };
        let Some(axis) = self.axes.get(name) else {
            return Ok(old.values());
        };
        // The axes before have one entry each: rows lie side by side.
        let width: usize = shape[axis + 1..].iter().product();
        let mut values = old.to_vec();
        let mean = mean_row(&values, width, self.known);
        let rows = shape[*axis];
        values.truncate(rows * width);
        while values.len() < rows * width {
            values.extend_from_slice(&mean);
        }
        for row in values.chunks_mut(width).take(self.tokens).skip(self.known) {
            row.copy_from_slice(&mean);
        }
        Ok(values.into())
    }
}

/// The mean of the first rows, summed in f64.
fn mean_row(values: &[f32], width: usize, count: usize) -> Vec<f32> {
    let rows = values.chunks(width).take(count);
    let count = rows.len().max(1) as f64;
    let mut sum = vec![0.0f64; width];
    for row in rows {
        sum.iter_mut()
            .zip(row)
            .for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::{model::Input, source::Seed};

    fn row(model: &LanguageModel, name: &str, width: usize, row: usize) -> Vec<f32> {
        let parameters = model.parameters();
        let parameter = parameters
            .iter()
            .find(|parameter| parameter.name() == name)
            .unwrap();
        parameter.to_vec()[row * width..(row + 1) * width].to_vec()
    }

    fn mean(model: &LanguageModel, name: &str, width: usize, rows: usize) -> Vec<f32> {
        let all: Vec<Vec<f32>> = (0..rows).map(|r| row(model, name, width, r)).collect();
        (0..width)
            .map(|i| (all.iter().map(|row| f64::from(row[i])).sum::<f64>() / rows as f64) as f32)
            .collect()
    }

    #[test]
    fn new_rows_are_the_mean_and_old_logits_stay() {
        for tied in [true, false] {
            let mut spec = ModelSpec::llama(10, 8, 2, 2, 1, 16, 32);
            (spec.tied_head, spec.head_bias) = (tied, true);
            let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
            // Two of the ten rows are padding; four tokens come.
            let grown = model.grown(8, 12).unwrap();
            assert_eq!(grown.spec().vocabulary, 12);
            for name in ["embedding.weight", "head.weight"] {
                if tied && name == "head.weight" {
                    continue;
                }
                let expected = mean(&model, name, 8, 8);
                for new in 8..12 {
                    assert_eq!(row(&grown, name, 8, new), expected, "{name} {new}");
                }
                assert_eq!(row(&grown, name, 8, 7), row(&model, name, 8, 7));
            }
            let logits = |model: &LanguageModel| {
                let input = Input::rows(&[vec![1, 2, 3]]).unwrap();
                let [_, _, vocabulary] = model.logits(&input).unwrap().dims();
                let all = model
                    .logits(&input)
                    .unwrap()
                    .into_data()
                    .try_into_vec::<f32>()
                    .unwrap();
                all.chunks(vocabulary)
                    .flat_map(|row| row[..8].to_vec())
                    .collect::<Vec<f32>>()
            };
            assert_eq!(logits(&model), logits(&grown));
        }
    }

    #[test]
    fn spare_rows_suffice() {
        let spec = ModelSpec::llama(10, 8, 1, 2, 1, 16, 32);
        let model = LanguageModel::build(spec, &mut Seed(1), &Device::flex()).unwrap();
        let grown = model.grown(7, 8).unwrap();
        assert_eq!(grown.spec().vocabulary, 10);
        assert_eq!(
            row(&grown, "embedding.weight", 8, 7),
            mean(&model, "embedding.weight", 8, 7)
        );
        assert_eq!(
            row(&grown, "embedding.weight", 8, 9),
            row(&model, "embedding.weight", 8, 9)
        );
    }
}
