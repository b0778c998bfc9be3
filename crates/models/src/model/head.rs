//! The head over the vocabulary: logits, and losses and log-probabilities that need not keep them.

use burn::tensor::Tensor;
use espalier_kernels::{
    cross_entropy::{
        HeadOptions, Regularisation, cross_entropy, linear_cross_entropy, linear_log_probabilities,
        log_probabilities,
    },
    weight::Weight,
};

use super::{Input, LanguageModel};
use crate::{Error, Result, parameter::Parameter};

impl LanguageModel {
    /// The head: `[.., width]` to logits `[.., vocabulary]`.
    pub fn head<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let hidden = self.before_head(hidden);
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => self.embedding.logits(hidden, self.precision),
        };
        let logits = match &self.head_bias {
            Some(bias) => logits + flat(bias).unsqueeze(),
            None => logits,
        };
        match self.spec.logit_softcap {
            Some(softcap) => (logits / softcap).tanh() * softcap,
            None => logits,
        }
    }

    /// The negative sum of the log-probabilities of `targets` `[tokens]`, from `hidden` `[tokens, width]`: `[1]`.
    ///
    /// # Errors
    /// When a target is outside the vocabulary, or there is no head over it.
    pub fn cross_entropy(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Tensor<1>> {
        self.check_head()?;
        self.check_ids(targets)?;
        Ok(match self.plain_head() {
            Some((weight, bias)) => linear_cross_entropy(
                self.before_head(hidden),
                weight,
                bias,
                targets,
                self.head_options(),
            ),
            None => cross_entropy(self.head(hidden), targets, self.regularisation()),
        })
    }

    /// Log-probability of `targets` `[tokens]` as the head sees them from `hidden` `[tokens, width]`: `[tokens]`.
    ///
    /// # Errors
    /// When a target is outside the vocabulary, or there is no head over it.
    pub fn log_probabilities(&self, hidden: Tensor<2>, targets: &[u32]) -> Result<Tensor<1>> {
        self.check_head()?;
        self.check_ids(targets)?;
        Ok(match self.plain_head() {
            Some((weight, bias)) => linear_log_probabilities(
                self.before_head(hidden),
                weight,
                bias,
                targets,
                self.head_options(),
            ),
            None => log_probabilities(self.head(hidden), targets),
        })
    }

    /// As [`LanguageModel::log_probabilities`], of the logits divided by `temperature`, at which tokens are drawn.
    ///
    /// # Errors
    /// When a target is outside the vocabulary, or there is no head over it.
    pub fn log_probabilities_at(
        &self,
        hidden: Tensor<2>,
        targets: &[u32],
        temperature: f64,
    ) -> Result<Tensor<1>> {
        if temperature == 1.0 {
            return self.log_probabilities(hidden, targets);
        }
        self.check_head()?;
        self.check_ids(targets)?;
        let plain = self
            .plain_head()
            .filter(|_| self.spec.logit_softcap.is_none());
        Ok(match plain {
            // A linear head of a scaled state has scaled logits, which need not be kept.
            Some((weight, bias)) => linear_log_probabilities(
                self.before_head(hidden) / temperature,
                weight,
                bias.map(|bias| bias / temperature),
                targets,
                self.head_options(),
            ),
            None => log_probabilities(self.head(hidden) / temperature, targets),
        })
    }

    /// Whether there is a head over the vocabulary.
    ///
    /// # Errors
    /// When there is none.
    pub fn check_head(&self) -> Result<()> {
        let reason = "this model has no head over its vocabulary (`architectures` in config.json) and predicts no tokens";
        match self.spec.headless {
            true => Err(Error::Invalid(reason.into())),
            false => Ok(()),
        }
    }

    /// Hidden states for the head's product: transformed, and scaled, since the factor on the logits may as well stand here.
    pub(super) fn before_head<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let hidden = match &self.head_transform {
            Some(transform) => transform.forward(hidden),
            None => hidden,
        };
        if self.spec.logit_scale == 1.0 {
            hidden
        } else {
            hidden * self.spec.logit_scale
        }
    }

    fn head_options(&self) -> HeadOptions {
        let regularisation = self.regularisation();
        HeadOptions {
            softcap: self.spec.logit_softcap,
            precision: self.precision,
            regularisation,
        }
    }

    /// A matter of training: what is measured of a model is its likelihood.
    fn regularisation(&self) -> Regularisation {
        match self.training {
            true => Regularisation {
                z_loss: self.spec.z_loss,
                label_smoothing: self.label_smoothing,
            },
            false => Regularisation::default(),
        }
    }

    /// The head's weight and bias, where they are all there is to the head.
    pub(super) fn plain_head(&self) -> Option<(Weight<2>, Option<Tensor<1>>)> {
        let bias = || self.head_bias.as_ref().map(flat);
        match &self.head {
            Some(head) if head.is_adapted() => None,
            Some(head) => {
                let own = head.bias.as_ref().map(Parameter::value);
                Some((head.weight.weight(), own.or_else(bias)))
            }
            None => Some((self.embedding.table(), bias())),
        }
    }

    /// Whether the weight of a plain head, or an adapter on the table that it is, is trained.
    pub(super) fn trains_plain_head(&self) -> bool {
        match &self.head {
            Some(head) => head.weight.is_trainable(),
            None => self.embedding.weight.is_trainable() || self.embedding.adapters.is_active(),
        }
    }

    /// Logits of every position, `[batch, time, vocabulary]`.
    ///
    /// # Errors
    /// When a token id or a position is outside the model's tables.
    pub fn logits(&self, input: &Input) -> Result<Tensor<3>> {
        if self.spec.headless && self.spec.hidden_width() != self.spec.outer_width() {
            return Err(Error::Invalid("this model has no head".into()));
        }
        Ok(self.head(self.hidden(input, None)?))
    }
}

/// A bias of any rank as one row, tracked where it is trained: `[len]`.
fn flat(bias: &Parameter) -> Tensor<1> {
    bias.leaf().cloned().unwrap_or_else(|| bias.flat())
}
