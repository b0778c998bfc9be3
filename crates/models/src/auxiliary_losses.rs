//! Auxiliary losses and measures of routing: load balance and z-loss of experts, the predictor and the balance of depths.
//!
//! A layer that routes tokens leaves its scores as a [`SideOutput`] of the forward pass. [`auxiliary_losses`] turns those of a whole
//! model into losses and measures; whoever trains adds the losses and logs the measures without knowing what they are of.

use espalier_kernels::readback::ReadFloats;
use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::{Tensor, TensorData};
use espalier_kernels::experts::{Routing, expected_shares};

use crate::{
    layers::{depth::highest, router::choose},
    spec::{BalanceForm, DepthPredictor, DepthRouting, RouterLosses, RouterSpec},
    stack::Context,
};

/// What blocks say besides their output.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    /// In the order of computation.
    pub outputs: Vec<SideOutput>,
    /// The values of the first mixer, `[batch, time, width]`, where later ones read them (RWKV-7).
    pub first_value: Option<Tensor<3>>,
}

/// What a layer said of every token.
#[derive(Debug, Clone)]
pub struct SideOutput {
    /// What the values mean.
    pub spec: SideSpec,
    /// `[batch, time, channels]`.
    pub values: Tensor<3>,
    /// Which tokens are no padding, `[batch * time]`; all of them when absent.
    pub present: Option<Arc<Vec<bool>>>,
    /// Whether the layer worked as in training.
    pub training: bool,
    /// The choices that were made by the values, where they are known.
    pub routing: Option<Arc<Routing>>,
}

/// What the values of a [`SideOutput`] mean.
#[derive(Debug, Clone, PartialEq)]
pub enum SideSpec {
    /// Logits of a router, for each part of a token.
    Experts {
        /// How it chooses.
        router: RouterSpec,
        /// What is added to scores where experts are chosen, where the router has that.
        choice_bias: Option<Arc<Vec<f32>>>,
        /// Parts of a token.
        parts: usize,
        /// How often it counts in the joint balance loss.
        times: usize,
    },
    /// Scores of a router of depths and, where it has a network for that, its guesses.
    Depth(DepthRouting),
}

impl SideSpec {
    /// Values of a token.
    pub fn channels(&self) -> usize {
        match self {
            Self::Experts { router, parts, .. } => parts * router.experts,
            Self::Depth(DepthRouting {
                predictor: DepthPredictor::Mlp,
                ..
            }) => 2,
            Self::Depth(_) => 1,
        }
    }
}

impl SideOutput {
    /// What a layer said in `context`.
    pub fn new(spec: SideSpec, values: Tensor<3>, context: &Context) -> Self {
        Self {
            spec,
            values,
            present: context.present.clone(),
            training: context.training,
            routing: None,
        }
    }
}

/// A loss beside the objective's own.
#[derive(Debug, Clone)]
pub struct AuxiliaryLoss {
    /// Its name in logs.
    pub name: &'static str,
    /// Its value, `[1]`.
    pub value: Tensor<1>,
    /// Its weight.
    pub weight: f64,
}

/// Losses and measures that follow from side outputs.
#[derive(Debug, Clone, Default)]
pub struct AuxiliaryLosses {
    /// Losses to be added to the objective's.
    pub losses: Vec<AuxiliaryLoss>,
    /// Measures by name.
    pub measures: Vec<(&'static str, f64)>,
}

impl AuxiliaryLosses {
    /// The same for the log alone: nothing is added to any loss, and no gradient comes from them.
    #[must_use]
    pub fn untrained(mut self) -> Self {
        for loss in &mut self.losses {
            loss.value = loss.value.clone().detach();
            loss.weight = 0.0;
        }
        self
    }

    /// The weighted sum of all losses, `[1]`, where there are any.
    pub fn total(&self) -> Option<Tensor<1>> {
        self.losses
            .iter()
            .map(|loss| loss.value.clone() * loss.weight)
            .reduce(|a, b| a + b)
    }
}

/// Weight of the loss by which a depth router learns to tell its own choices; the network beside a router has weight one, as
/// nothing else feels it.
const DEPTH_WEIGHT: f64 = 0.01;

/// The losses and measures of `sides`.
pub fn auxiliary_losses(sides: &[SideOutput], losses: Option<RouterLosses>) -> AuxiliaryLosses {
    let mut found = AuxiliaryLosses::default();
    let routers: Vec<Logits> = sides.iter().filter_map(Logits::of).collect();
    if let Some(losses) = losses.filter(|losses| losses.added && !routers.is_empty()) {
        found.losses.push(AuxiliaryLoss {
            name: "aux_loss",
            value: balance(&routers, losses.form),
            weight: losses.balance,
        });
        if losses.z > 0.0 {
            found.losses.push(AuxiliaryLoss {
                name: "z_loss",
                value: z(&routers, losses.form),
                weight: losses.z,
            });
        }
    }
    if !routers.is_empty() {
        found.measures.extend(loads(&routers));
    }
    depth(sides, &mut found);
    found
}

/// One router's logits as rows.
struct Logits<'a> {
    router: &'a RouterSpec,
    times: usize,
    /// `[rows, experts]`.
    rows: Tensor<2>,
    /// Which rows are of real tokens; all where absent.
    real: Option<Vec<bool>>,
    /// Rows of real tokens.
    count: f64,
    /// Choices that each expert got, first choices apart, and those that a full expert dropped; padding aside.
    all: Vec<f64>,
    first: Vec<f64>,
    dropped: f64,
    /// Different experts that the parts of a token found, over all real tokens, and how many tokens that are; none where
    /// tokens are whole.
    distinct: [f64; 2],
}

impl<'a> Logits<'a> {
    fn of(side: &'a SideOutput) -> Option<Self> {
        let SideSpec::Experts {
            router,
            choice_bias,
            parts,
            times,
        } = &side.spec
        else {
            return None;
        };
        let [batch, time, _] = side.values.dims();
        let count = batch * time * parts;
        let rows = side.values.clone().reshape([count, router.experts]);
        let choose = || {
            let scores = rows.clone().floats();
            Arc::new(choose(
                router,
                &scores,
                choice_bias.as_ref().map(|bias| bias.as_slice()),
                *parts,
                side.present.as_deref(),
                side.training,
            ))
        };
        let routing = side.routing.clone().unwrap_or_else(choose);
        let is_real = |row: usize| {
            side.present
                .as_ref()
                .is_none_or(|present| present[row / parts])
        };
        let (mut all, mut first) = (vec![0.0; router.experts], vec![0.0; router.experts]);
        for (row, chosen) in routing
            .chosen()
            .chunks(routing.active())
            .enumerate()
            .filter(|(row, _)| is_real(*row))
        {
            debug_assert!(row < count);
            chosen
                .iter()
                .for_each(|expert| all[*expert as usize] += 1.0);
            first[chosen[0] as usize] += 1.0;
        }
        let distinct = match parts {
            1 => [0.0; 2],
            _ => {
                let tokens = routing
                    .chosen()
                    .chunks(routing.active() * parts)
                    .enumerate();
                let counts =
                    tokens
                        .filter(|(token, _)| is_real(token * parts))
                        .map(|(_, chosen)| {
                            let mut chosen = chosen.to_vec();
                            chosen.sort_unstable();
                            chosen.dedup();
                            chosen.len() as f64
                        });
                counts.fold([0.0; 2], |[sum, tokens], count| [sum + count, tokens + 1.0])
            }
        };
        let real: Option<Vec<bool>> = side
            .present
            .as_ref()
            .map(|_| (0..count).map(is_real).collect());
        let real_rows = first.iter().sum();
        let padding = (count as f64 - real_rows) * router.active as f64;
        // Padding takes no room where capacities are counted.
        let dropped = if router.capacity.is_some() {
            routing.dropped() as f64 - padding
        } else {
            0.0
        };
        Some(Self {
            router,
            times: *times,
            rows,
            real,
            count: real_rows,
            all,
            first,
            dropped,
            distinct,
        })
    }

    /// The sum of `values` `[rows, n]` over real rows: `[1, n]`.
    fn sum(&self, values: Tensor<2>) -> Tensor<2> {
        let values = match &self.real {
            Some(real) => {
                let (shape, real) = (
                    [real.len(), 1],
                    real.iter().map(|real| f32::from(u8::from(*real))).collect(),
                );
                values
                    * Tensor::<2>::from_data(
                        TensorData::new::<f32, _>(real, shape),
                        &self.rows.device().inner(),
                    )
            }
            None => values,
        };
        values.sum_dim(0)
    }

    /// The summed square of the log-sum-exp.
    fn squares(&self) -> Tensor<2> {
        let largest = self.rows.clone().detach().max_dim(1);
        let logarithm = (self.rows.clone() - largest.clone()).exp().sum_dim(1).log() + largest;
        self.sum(logarithm.clone() * logarithm)
    }
}

/// The sums over groups of routers that one balance loss covers.
fn groups<'a, 'b>(routers: &'b [Logits<'a>], form: BalanceForm) -> Vec<Vec<&'b Logits<'a>>> {
    match form {
        BalanceForm::PerLayer => routers.iter().map(|router| vec![router]).collect(),
        BalanceForm::Joint => {
            let mut by_experts: BTreeMap<usize, Vec<&Logits<'a>>> = BTreeMap::new();
            routers.iter().for_each(|router| {
                by_experts
                    .entry(router.router.experts)
                    .or_default()
                    .push(router)
            });
            by_experts.into_values().collect()
        }
    }
}

/// `E sum_e f_e P_e`, see [`BalanceForm`].
fn balance(routers: &[Logits<'_>], form: BalanceForm) -> Tensor<1> {
    let times = |router: &Logits<'_>| {
        if form == BalanceForm::Joint {
            router.times as f64
        } else {
            1.0
        }
    };
    let one = |group: &Vec<&Logits<'_>>| {
        let experts = group[0].router.experts;
        let (mut counts, mut total) = (vec![0.0; experts], 0.0);
        for router in group {
            let found = if form == BalanceForm::Joint {
                &router.all
            } else {
                &router.first
            };
            counts
                .iter_mut()
                .zip(found)
                .for_each(|(sum, count)| *sum += times(router) * count);
            total += times(router) * router.count;
        }
        let scale = experts as f64 / (total * total).max(1.0);
        add(group.iter().map(|router| {
            let shares = counts
                .iter()
                .map(|count| (count * scale * times(router)) as f32)
                .collect();
            expected_shares(router.rows.clone(), shares, router.real.clone())
        }))
    };
    add(groups(routers, form).iter().map(one))
}

/// The mean squared log-sum-exp: over all layers together, or for each layer and summed.
fn z(routers: &[Logits<'_>], form: BalanceForm) -> Tensor<1> {
    let one = |group: &Vec<&Logits<'_>>| {
        let count: f64 = group.iter().map(|router| router.count).sum();
        add(group.iter().map(|router| router.squares().sum())) / count.max(1.0)
    };
    add(groups(routers, form).iter().map(one))
}

/// The sum of at least one tensor.
fn add(mut terms: impl Iterator<Item = Tensor<1>>) -> Tensor<1> {
    let first = terms.next();
    terms.fold(
        first.unwrap_or_else(|| Tensor::zeros([1], &burn::tensor::Device::flex())),
        |sum, term| sum + term,
    )
}

/// How uneven the experts' work is: the most tokens of an expert over the mean, of the mean layer and of the worst; how many
/// experts the parts of a token find; and the share of choices that full experts dropped.
fn loads(routers: &[Logits<'_>]) -> Vec<(&'static str, f64)> {
    let uneven = |router: &Logits<'_>| {
        let most = router.all.iter().copied().fold(0.0, f64::max);
        most * router.router.experts as f64 / router.all.iter().sum::<f64>().max(1.0)
    };
    let each: Vec<f64> = routers.iter().map(uneven).collect();
    let choices: f64 = routers
        .iter()
        .map(|router| router.all.iter().sum::<f64>())
        .sum();
    let mut measures = vec![
        ("experts/load", each.iter().sum::<f64>() / each.len() as f64),
        (
            "experts/load_worst",
            each.iter().copied().fold(0.0, f64::max),
        ),
    ];
    let [distinct, tokens] = routers.iter().fold([0.0; 2], |[a, b], router| {
        [a + router.distinct[0], b + router.distinct[1]]
    });
    if tokens > 0.0 {
        measures.push(("experts/distinct", distinct / tokens));
    }
    if routers
        .iter()
        .any(|router| router.router.capacity.is_some())
    {
        let dropped: f64 = routers.iter().map(|router| router.dropped).sum();
        measures.push(("experts/dropped", dropped / choices.max(1.0)));
    }
    measures
}

/// The loss by which predictors of depth learn, in training, and how often they are right.
fn depth(sides: &[SideOutput], found: &mut AuxiliaryLosses) {
    let mut losses: Vec<(Tensor<1>, f64)> = Vec::new();
    let (mut right, mut count) = (0.0, 0.0);
    for side in sides {
        let SideSpec::Depth(routing) = &side.spec else {
            continue;
        };
        let [batch, time, channels] = side.values.dims();
        let all = side.values.clone().reshape([batch * time, channels]);
        let host = all.clone().floats();
        let present = side.present.as_deref().map(Vec::as_slice);
        let scores: Vec<f32> = host.iter().step_by(channels).copied().collect();
        let mut passed = vec![0f32; batch * time];
        for (row, chosen) in highest(&scores, time, routing.capacity, present)
            .iter()
            .enumerate()
        {
            chosen
                .iter()
                .for_each(|t| passed[row * time + *t as usize] = 1.0);
        }
        let is_real = |token: usize| present.is_none_or(|present| present[token]);
        let real: Vec<usize> = (0..batch * time).filter(|token| is_real(*token)).collect();
        let guess = |token: &usize| host[token * channels + channels - 1] > 0.0;
        right += real
            .iter()
            .filter(|token| guess(token) == (passed[**token] > 0.0))
            .count() as f64;
        count += real.len() as f64;
        if side.training {
            let weights: Vec<f32> = (0..batch * time)
                .map(|token| f32::from(u8::from(is_real(token))))
                .collect();
            let column = |values| {
                Tensor::<2>::from_data(
                    TensorData::new(values, [batch * time, 1]),
                    &all.device().inner(),
                )
            };
            let guesses = all.clone().narrow(1, channels - 1, 1);
            let loss = cross_entropy(guesses, column(passed)) * column(weights);
            let weight = if routing.predictor == DepthPredictor::Mlp {
                1.0
            } else {
                DEPTH_WEIGHT
            };
            losses.push((loss.sum() / real.len().max(1) as f64, weight));
        }
    }
    if count > 0.0 {
        found
            .measures
            .push(("depth/predictor_accuracy", right / count));
    }
    if let Some((_, weight)) = losses.first() {
        let (weight, value) = (*weight, add(losses.iter().map(|(loss, _)| loss.clone())));
        found.losses.push(AuxiliaryLoss {
            name: "depth_loss",
            value,
            weight,
        });
    }
}

/// Binary cross-entropy of logits: `max(z, 0) - z y + ln(1 + exp(-|z|))`.
fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<2> {
    let softplus = (-logits.clone().abs()).exp().log1p();
    logits.clone().clamp_min(0.0) - logits * targets + softplus
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn side(rows: &[&[f32]], active: usize, present: Option<Vec<bool>>) -> SideOutput {
        let (count, experts) = (rows.len(), rows[0].len());
        let values = Tensor::<3>::from_data(
            TensorData::new(rows.concat(), [1, count, experts]),
            &Device::flex(),
        );
        let spec = SideSpec::Experts {
            router: RouterSpec::softmax(experts, active, true),
            choice_bias: None,
            parts: 1,
            times: 1,
        };
        SideOutput {
            spec,
            values,
            present: present.map(Arc::new),
            training: true,
            routing: None,
        }
    }

    fn losses(sides: &[SideOutput], form: BalanceForm) -> [f64; 2] {
        let found = auxiliary_losses(
            sides,
            Some(RouterLosses {
                added: true,
                balance: 1.0,
                form,
                z: 1.0,
            }),
        );
        let value = |i: usize| {
            f64::from(
                found.losses[i]
                    .value
                    .clone()
                    .into_data()
                    .try_into_vec::<f32>()
                    .unwrap()[0],
            )
        };
        [value(0), value(1)]
    }

    #[test]
    fn values_of_the_reference_library() {
        let zeros: [&[f32]; 2] = [&[0.0; 4], &[0.0; 4]];
        let [balance, z] = losses(&[side(&zeros, 2, None)], BalanceForm::Joint);
        assert!(
            (balance - 2.0).abs() < 1e-6 && (z - 1.921_812).abs() < 1e-5,
            "{balance} {z}"
        );
        let skewed: [&[f32]; 4] = [&[9.0, 0.0, 0.0, 0.0]; 4];
        assert!((losses(&[side(&skewed, 1, None)], BalanceForm::Joint)[0] - 3.9985).abs() < 1e-4);
        let two: [&[f32]; 2] = [&[2.0, 1.0, 0.0, 0.0], &[0.0, 2.0, 1.0, 0.0]];
        assert!((losses(&[side(&two, 2, None)], BalanceForm::Joint)[0] - 2.6696).abs() < 1e-4);
    }

    #[test]
    fn the_parts_of_a_token_find_experts_of_their_own() {
        // Two tokens of two parts: the parts of the first choose 0, 1 and 2, 3, those of the second 0, 1 and 1, 0.
        let rows: [&[f32]; 4] = [
            &[2.0, 1.0, 0.0, 0.0],
            &[0.0, 0.0, 2.0, 1.0],
            &[2.0, 1.0, 0.0, 0.0],
            &[1.0, 2.0, 0.0, 0.0],
        ];
        let mut side = side(&rows, 2, None);
        side.values = side.values.reshape([1, 2, 8]);
        if let SideSpec::Experts { parts, .. } = &mut side.spec {
            *parts = 2;
        }
        let measures = auxiliary_losses(&[side], None).measures;
        assert!(
            measures.contains(&("experts/distinct", 3.0)),
            "{measures:?}"
        );
    }

    #[test]
    fn padding_does_not_count() {
        let rows: [&[f32]; 3] = [
            &[2.0, 1.0, 0.0, 0.0],
            &[50.0, 0.0, 0.0, 7.0],
            &[0.0, 2.0, 1.0, 0.0],
        ];
        let padded = side(&rows, 2, Some(vec![true, false, true]));
        let plain = side(&[rows[0], rows[2]], 2, None);
        for form in [BalanceForm::Joint, BalanceForm::PerLayer] {
            let (padded, plain) = (
                losses(std::slice::from_ref(&padded), form),
                losses(std::slice::from_ref(&plain), form),
            );
            assert!((padded[0] - plain[0]).abs() < 1e-6 && (padded[1] - plain[1]).abs() < 1e-5);
        }
    }

    #[test]
    fn balanced_layers_cost_one_each_or_the_number_of_choices_together() {
        let rows: [&[f32]; 4] = [
            &[1.0, 0.0, 0.0, 0.0],
            &[0.0, 1.0, 0.0, 0.0],
            &[0.0, 0.0, 1.0, 0.0],
            &[0.0, 0.0, 0.0, 1.0],
        ];
        let sides = [side(&rows, 1, None), side(&rows, 1, None)];
        assert!((losses(&sides, BalanceForm::Joint)[0] - 1.0).abs() < 1e-6);
        assert!((losses(&sides, BalanceForm::PerLayer)[0] - 2.0).abs() < 1e-6);
    }

    #[test]
    fn binary_cross_entropy_is_stable() {
        let column = |values: [f32; 3]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), [3, 1]), &Device::flex())
        };
        let loss = cross_entropy(column([0.0, 100.0, -100.0]), column([1.0, 1.0, 1.0]));
        let loss = loss.into_data().try_into_vec::<f32>().unwrap();
        assert!(
            (loss[0] - 2f32.ln()).abs() < 1e-6
                && loss[1].abs() < 1e-6
                && (loss[2] - 100.0).abs() < 1e-4
        );
    }
}
