//! Losses of whole rows of logits, a few rows at a time: what is kept for the backward is as wide as the model, not as the vocabulary.

use std::ops::Range;

use burn::tensor::Tensor;

use espalier_kernels::linear::{Precision, linear};

use super::LanguageModel;
use crate::Result;

/// Rows of logits that are made at once: with 128 thousand words 128 MiB.
const ROWS: usize = 256;

/// What a loss says of some rows of logits.
#[derive(Debug)]
pub struct Rated {
    /// The loss, summed over the rows.
    pub value: f64,
    /// Its gradient, `[rows, vocabulary]`, outside autodiff.
    pub gradient: Tensor<2>,
}

impl LanguageModel {
    /// The sum of a loss of the logits of `hidden` `[tokens, width]`: `[1]`. `loss` gets the numbers of some rows with their logits
    /// `[rows, vocabulary]`, outside autodiff, and gives the gradient itself. Where the head is a plain linear map, no logits are kept.
    ///
    /// # Errors
    /// When there is no head over the vocabulary.
    pub fn through_head(
        &self,
        hidden: Tensor<2>,
        loss: &mut dyn FnMut(Range<usize>, Tensor<2>) -> Rated,
    ) -> Result<Tensor<1>> {
        self.check_head()?;
        let count = hidden.dims()[0];
        let chunks = (0..count).step_by(ROWS);
        let chunks = chunks.map(|start| start..(start + ROWS).min(count));
        let head = Head::of(self);
        let scaled = if head.is_some() {
            self.before_head(hidden.clone())
        } else {
            hidden
        };
        let (mut value, mut of_states, mut rest) = (0.0, Vec::new(), None);
        let (mut of_weight, mut of_bias) = (None, None);
        for rows in chunks {
            let states = scaled.clone().narrow(0, rows.start, rows.len());
            let Some(head) = &head else {
                let logits = self.head(states);
                let rated = loss(rows, logits.clone().inner());
                value += rated.value;
                add(&mut rest, (logits * rated.gradient).sum());
                continue;
            };
            let states = states.inner();
            let logits = head.logits(states.clone());
            let rated = loss(rows, head.capped(logits.clone()));
            value += rated.value;
            let gradient = head.before_cap(rated.gradient, logits);
            if head.trained.is_some() {
                let of_rows = head.product(gradient.clone().transpose(), states.transpose());
                add(&mut of_weight, of_rows);
            }
            if head.bias.is_some() {
                add(&mut of_bias, gradient.clone().sum_dim(0).flatten::<1>(0, 1));
            }
            of_states.push(head.product(gradient, head.transposed.clone()));
        }
        if let (Some(head), false) = (&head, of_states.is_empty()) {
            add(&mut rest, (scaled * Tensor::cat(of_states, 0)).sum());
            if let (Some(weight), Some(gradient)) = (&head.trained, of_weight) {
                add(&mut rest, (weight.clone() * gradient).sum());
            }
            if let (Some(bias), Some(gradient)) = (&head.bias, of_bias) {
                add(&mut rest, (bias.clone() * gradient).sum());
            }
        }
        // Its gradient is the loss's, and its value is replaced by that of the loss.
        let value = Tensor::<1>::from_floats([value as f32], self.device());
        Ok(match rest {
            Some(rest) => {
                let own: Tensor<1> = rest.clone().inner();
                rest + (value - own)
            }
            None => value,
        })
    }
}

fn add<const D: usize>(sum: &mut Option<Tensor<D>>, more: Tensor<D>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + more,
        None => more,
    });
}

/// A matrix whose rows lie side by side, as products read them: one copy for all chunks, and not one for each.
fn laid_out(matrix: Tensor<2>) -> Tensor<2> {
    let shape = matrix.dims();
    matrix
        .reshape([shape.iter().product::<usize>()])
        .reshape(shape)
}

/// A head that is a linear map, with a cap on its logits where the model has one.
struct Head {
    /// `[vocabulary, width]`, tracked, where it is trained.
    trained: Option<Tensor<2>>,
    /// `[vocabulary, width]`, outside autodiff.
    weight: Tensor<2>,
    /// `[width, vocabulary]`.
    transposed: Tensor<2>,
    /// `[vocabulary]`, tracked where it is trained.
    bias: Option<Tensor<1>>,
    softcap: Option<f64>,
    precision: Precision,
}

impl Head {
    fn of(model: &LanguageModel) -> Option<Self> {
        let (weight, bias) = model.plain_head()?;
        let tracked = weight.into_tensor(model.device());
        let weight = tracked.clone().inner();
        Some(Self {
            trained: model.trains_plain_head().then_some(tracked),
            transposed: laid_out(weight.clone().transpose()),
            weight,
            bias,
            softcap: model.spec().logit_softcap,
            precision: model.precision(),
        })
    }

    /// Before the cap.
    fn logits(&self, states: Tensor<2>) -> Tensor<2> {
        let bias = self.bias.clone().map(Tensor::inner);
        linear(states, self.weight.clone(), bias, self.precision)
    }

    /// `x W^T`, of two matrices outside autodiff.
    fn product(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        linear(x, weight, None, self.precision)
    }

    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The gradient before the cap, from that behind it.
    fn before_cap(&self, gradient: Tensor<2>, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => {
                let bent = (logits / cap).tanh();
                let slope: Tensor<2> = -(bent.clone() * bent) + 1.0;
                gradient * slope
            }
            None => gradient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Input,
        parameter::{Parameter, Parameters},
        source::Seed,
        spec::ModelSpec,
    };
    use burn::tensor::Device;

    /// Half the sum of the squares of all logits, whose gradient they are.
    fn squares(model: &LanguageModel, hidden: Tensor<2>) -> Tensor<1> {
        let half = &mut |_: Range<usize>, logits: Tensor<2>| {
            let value = (logits.clone() * logits.clone()).sum().into_scalar::<f32>();
            Rated {
                value: f64::from(value) / 2.0,
                gradient: logits,
            }
        };
        model.through_head(hidden, half).unwrap()
    }

    fn gradients(model: &LanguageModel, loss: Tensor<1>) -> Vec<(String, Vec<f32>)> {
        let all = loss.backward();
        let mut found = Vec::new();
        model.visit(&mut |p: &Parameter| {
            if let Some(gradient) = p.leaf().and_then(|leaf| leaf.grad(&all)) {
                let values = gradient.into_data().try_into_vec::<f32>().unwrap();
                found.push((p.name().to_owned(), values));
            }
        });
        found
    }

    #[test]
    fn values_and_gradients_are_those_of_whole_logits() {
        let plain = ModelSpec::llama(40, 16, 1, 2, 1, 24, 512);
        let capped = ModelSpec {
            logit_softcap: Some(0.5),
            logit_scale: 3.0,
            head_bias: true,
            ..plain.clone()
        };
        let apart = ModelSpec {
            tied_head: false,
            ..capped.clone()
        };
        for spec in [plain, capped, apart] {
            let mut model = LanguageModel::build(spec, &mut Seed(4), &Device::flex()).unwrap();
            model.set_trainable(|_| true);
            let ids: Vec<u32> = (0..300).map(|i| i * 7 % 40).collect();
            let input = Input::rows(std::slice::from_ref(&ids)).unwrap();
            let hidden = || model.hidden(&input, None).unwrap().reshape([300, 16]);
            let logits = model.head(hidden());
            let whole: Tensor<1> = (logits.clone() * logits).sum() * 0.5;
            let ours = squares(&model, hidden());
            let value = |tensor: &Tensor<1>| tensor.clone().inner().into_scalar::<f32>();
            let (a, b) = (value(&whole), value(&ours));
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} {b}");
            let (whole, ours) = (gradients(&model, whole), gradients(&model, ours));
            assert_eq!(whole.len(), ours.len());
            for ((name, whole), (_, ours)) in whole.iter().zip(&ours) {
                let scale = whole.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
                let gap = whole.iter().zip(ours).map(|(a, b)| (a - b).abs());
                let gap = gap.fold(0.0f32, f32::max);
                assert!(gap < 1e-4 * scale, "{name}: {gap} of {scale}");
            }
        }
    }
}
