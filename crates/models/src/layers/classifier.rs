//! Scores of classes for texts or tokens, from pooled or single hidden states.

use burn::tensor::Tensor;
use espalier_kernels::activation::activate;

use super::{Builder, linear::Linear, norm::Norm};
use crate::{
    Result,
    input::Input,
    parameter::parameters,
    pooling::Pooling,
    spec::{ClassifierSpec, Subject},
};

/// A linear layer over texts or tokens, behind a dense layer where the family has one.
#[derive(Debug, Clone)]
pub struct Classifier {
    spec: ClassifierSpec,
    dense: Option<Linear>,
    norm: Option<Norm>,
    output: Linear,
}

parameters!(Classifier: dense, norm, output);

impl Classifier {
    /// Builds `classifier.output` and, where the spec has them, `classifier.dense` and `classifier.norm`.
    ///
    /// # Errors
    /// When the source lacks a weight.
    pub fn build(builder: &mut Builder, width: usize, spec: ClassifierSpec) -> Result<Self> {
        let deviation = builder.deviation;
        let mut linear = |name: &str, rows, bias| {
            let name = format!("classifier.{name}");
            Linear::build(builder, &name, [rows, width], bias, deviation)
        };
        let dense = spec
            .dense
            .map(|dense| linear("dense", width, dense.bias))
            .transpose()?;
        let output = linear("output", spec.labels, spec.bias)?;
        let norm = spec
            .dense
            .and_then(|dense| dense.norm)
            .map(|kind| Norm::build(builder, "classifier.norm", width, kind))
            .transpose()?;
        Ok(Self {
            spec,
            dense,
            norm,
            output,
        })
    }

    /// `hidden`: `[batch, time, width]` of `input`; the scores are `[batch, labels]` of texts, `[batch * time, labels]` of tokens.
    /// The last token of a text is the last that is not the padding token `pad`.
    pub fn forward(&self, hidden: Tensor<3>, input: &Input, pad: Option<u32>) -> Tensor<2> {
        let [batch, time, width] = hidden.dims();
        let states = match self.spec.subject {
            Subject::Tokens => hidden.reshape([batch * time, width]),
            Subject::Texts(pooling) => pooling.pool(hidden, &real(input, pooling, pad)),
        };
        let states = match (&self.dense, self.spec.dense) {
            (Some(dense), Some(spec)) => activate(spec.activation, dense.forward(states)),
            _ => states,
        };
        let states = match &self.norm {
            Some(norm) => norm.forward(states),
            None => states,
        };
        self.output.forward(states)
    }
}

/// The tokens that count, `[batch * time]`.
fn real(input: &Input, pooling: Pooling, pad: Option<u32>) -> Vec<bool> {
    let present = |token: usize| {
        let segments = input.segments.as_ref();
        segments.is_none_or(|segments| segments.get(token).is_some_and(|segment| *segment != 0))
    };
    let is_text = |id: u32| pooling != Pooling::Last || Some(id) != pad;
    input
        .ids
        .iter()
        .enumerate()
        .map(|(token, id)| present(token) && is_text(*id))
        .collect()
}
