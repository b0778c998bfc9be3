//! The critic of PPO: what reward is to be expected at each token of an answer.
//!
//! A linear head, zero at first, over hidden states: the policy's own, or those of a model of its own that starts as the policy does. What of the
//! policy is trained is trained of that model too; where that is an adapter, both share one base.

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    auxiliary_losses::AuxiliaryLosses,
    model::LanguageModel,
    parameter::{Parameter, Parameters},
    taps::Unobserved,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Result, batch::TokenBatch};

/// Whose hidden states the critic reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// Those of a model of its own, which starts as the policy does.
    #[default]
    Model,
    /// The policy's, which the critic's loss trains too.
    Head,
}

/// A critic.
#[derive(Debug)]
pub struct Critic {
    kind: CriticKind,
    model: Vec<LanguageModel>,
    head: Vec<Parameter>,
}

impl Critic {
    /// A critic that has not seen the policy yet.
    pub fn new(kind: CriticKind) -> Self {
        Self {
            kind,
            model: Vec::new(),
            head: Vec::new(),
        }
    }

    /// Starts as the policy does.
    ///
    /// # Errors
    /// When the policy's blocks cannot be computed again, which it asks for.
    pub fn start(&mut self, policy: &LanguageModel) -> Result<()> {
        let width = policy.spec().hidden_width();
        let zeros = |name: &str, shape: Vec<usize>| {
            let count: usize = shape.iter().product();
            let mut p = Parameter::new(name, shape, Tensor::zeros([count], policy.device()));
            p.set_trainable(true);
            p
        };
        self.head = vec![zeros("weight", vec![width, 1]), zeros("bias", vec![1])];
        self.model = match self.kind {
            CriticKind::Head => Vec::new(),
            CriticKind::Model => vec![trained_alike(policy)?],
        };
        Ok(())
    }

    /// Its parameters by the name of the part.
    pub fn parameters(&self) -> Vec<(&'static str, &dyn Parameters)> {
        vec![("value", &self.head), ("value_model", &self.model)]
    }

    /// The same for change.
    pub fn parameters_mut(&mut self) -> Vec<(&'static str, &mut dyn Parameters)> {
        vec![("value", &mut self.head), ("value_model", &mut self.model)]
    }

    /// The value before each target of a batch, `[targets]`; `hidden` are the policy's states there, `[targets, width]`. Where
    /// `apart`, the policy's states are constants.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn values(
        &self,
        batch: &TokenBatch,
        hidden: Tensor<2>,
        apart: bool,
    ) -> Result<(Tensor<1>, Option<AuxiliaryLosses>)> {
        match self.model.first() {
            Some(model) => {
                let (hidden, auxiliary) = batch.predicting(model, &mut Unobserved)?;
                Ok((self.read(hidden), Some(auxiliary)))
            }
            None if apart => Ok((self.read(hidden.inner()), None)),
            None => Ok((self.read(hidden), None)),
        }
    }

    /// As [`Critic::values`] as numbers, outside autodiff. The policy is asked for its states where the critic reads these alone.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary.
    pub fn measured(&self, batch: &TokenBatch, policy: &LanguageModel) -> Result<Vec<f32>> {
        let model = self.model.first().unwrap_or(policy).frozen();
        let (hidden, _) = batch.predicting(&model, &mut Unobserved)?;
        Ok(self.read(hidden.inner()).floats())
    }

    fn read(&self, hidden: Tensor<2>) -> Tensor<1> {
        let [weight, bias] = &self.head[..] else {
            return Tensor::zeros([hidden.dims()[0]], &hidden.device());
        };
        let count = hidden.dims()[0];
        hidden.matmul(weight.value::<2>()).reshape([count]) + bias.value::<1>()
    }
}

/// A copy of which the same parameters are trained, apart from the policy's, with as little memory.
///
/// # Errors
/// When the policy's blocks cannot be computed again one by one; it has refused that itself by then.
fn trained_alike(policy: &LanguageModel) -> Result<LanguageModel> {
    let mut copy = policy.frozen();
    let trained = policy.parameters().into_iter().map(Parameter::is_trainable);
    let mut trained = trained.collect::<Vec<_>>().into_iter();
    copy.visit_mut(&mut |p| p.set_trainable(trained.next().unwrap_or(false)));
    copy.set_gradient_checkpointing(policy.has_gradient_checkpointing())?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_data::{encode::Example, packing::Row};
    use espalier_models::{source::Seed, spec::ModelSpec};

    fn policy(seed: u64) -> LanguageModel {
        let spec = ModelSpec::llama(16, 8, 2, 2, 1, 16, 32);
        let mut model = LanguageModel::build(spec, &mut Seed(seed), &Device::flex()).unwrap();
        model.set_trainable(|p| p.name().contains("blocks.1"));
        model
    }

    #[test]
    fn a_critic_is_trained_as_the_policy_and_spares_memory_as_it_does() {
        for spares in [false, true] {
            let mut policy = policy(1);
            policy.set_gradient_checkpointing(spares).unwrap();
            let mut critic = Critic::new(CriticKind::Model);
            critic.start(&policy).unwrap();
            let copy = &critic.model[0];
            assert_eq!(copy.has_gradient_checkpointing(), spares);
            for (own, other) in copy.parameters().iter().zip(policy.parameters()) {
                assert_eq!(own.is_trainable(), other.is_trainable(), "{}", own.name());
            }
        }
    }

    #[test]
    fn a_critic_with_a_model_asks_the_policy_for_nothing() {
        let row = Row::from(&Example::answered(vec![1, 2, 3, 4], 1));
        let batch = TokenBatch::new(&[&row]);
        let [own, other] = [policy(1), policy(2)];
        for (kind, alike) in [(CriticKind::Model, true), (CriticKind::Head, false)] {
            let mut critic = Critic::new(kind);
            critic.start(&own).unwrap();
            critic.head[0].update(|flat| flat + 1.0);
            let of_own = critic.measured(&batch, &own).unwrap();
            assert_eq!(of_own.len(), 3);
            assert_eq!(of_own == critic.measured(&batch, &other).unwrap(), alike);
        }
    }
}
