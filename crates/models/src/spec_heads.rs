//! What stands on a model's hidden states besides the head over its vocabulary: the layer before that head, and scores of classes
//! for texts or tokens.

use crate::{
    pooling::Pooling,
    spec::{Activation, NormSpec},
};
use serde::{Deserialize, Serialize};

/// A layer before the head: `norm(activation(x W^T + b))`. It leads to the width of the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadTransformSpec {
    /// The nonlinearity.
    pub activation: Activation,
    /// The norm after it.
    pub norm: NormSpec,
    /// Whether there is a bias.
    pub bias: bool,
}

/// Scores of classes: a linear layer over pooled or single hidden states, with a dense layer before it where the family has one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassifierSpec {
    /// How many classes.
    pub labels: usize,
    /// What is classified.
    pub subject: Subject,
    /// A layer before the scores, as wide as the model.
    pub dense: Option<ClassifierDenseSpec>,
    /// Whether the scores have a bias.
    pub bias: bool,
    /// What the scores mean.
    pub problem: Problem,
}

/// What is classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Whole texts, by one vector each.
    Texts(Pooling),
    /// Every token.
    Tokens,
}

/// `norm(activation(x W^T + b))`, before the scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassifierDenseSpec {
    /// The nonlinearity.
    pub activation: Activation,
    /// The norm after it.
    pub norm: Option<NormSpec>,
    /// Whether there is a bias.
    pub bias: bool,
}

/// What the scores of classes mean, and so what is learned (`problem_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Logits of classes of which one holds; cross-entropy.
    OneClass,
    /// Logits of classes each of which holds or not; binary cross-entropy.
    ManyClasses,
    /// Numbers; the mean square of their distance.
    Regression,
}
