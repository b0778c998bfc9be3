//! Sparse upcycling (arXiv 2212.05055; mergekit's `moe`): a dense model becomes one with experts, each of them a copy of its
//! feed-forward layer, or of those of several models of one shape. Recipe: `experts.toml`.
//!
//! The routers start small and random, or from prompts ([`gates`]). With weights that sum to one, copies of one layer compute what it
//! computed, so that training goes on from where it stood.

pub mod gates;

use std::collections::HashMap;

use espalier_data::random::Random;

use crate::{
    Error, Result,
    families::by_name,
    model::LanguageModel,
    parameter::Parameter,
    source::{Initial, ParameterSource, Seed, Values},
    spec::{BalanceForm, ChannelSpec, ExpertsSpec, ModelSpec, RouterLosses, RouterSpec},
};

/// What comes out.
#[derive(Debug, Clone, PartialEq)]
pub struct Upcycling {
    /// Experts of every layer.
    pub experts: usize,
    /// Experts that each token passes through.
    pub active: usize,
    /// Weight of the load-balance loss in further training.
    pub balance: f64,
    /// Standard deviation of noise on the copies, as a share of each matrix's own; it lets them part sooner.
    pub noise: f64,
    /// Seed of routers and noise.
    pub seed: u64,
    /// The routers of all blocks, `[experts, width]` each; small and random where there are none.
    pub gates: Vec<Vec<f32>>,
}

/// Makes `base` into a model with experts in Mixtral's form. Expert `i` is that of donor `i mod n`; without donors `base` itself
/// gives all of them.
///
/// # Errors
/// When the family has no form with experts, a donor has another shape, or the numbers make no sense.
pub fn upcycle(
    base: &LanguageModel,
    donors: &[&LanguageModel],
    options: Upcycling,
) -> Result<LanguageModel> {
    let spec = specification(base.spec(), &options)?;
    let own = [base];
    let donors = if donors.is_empty() { &own[..] } else { donors };
    if let Some(other) = donors
        .iter()
        .find(|donor| donor.spec().blocks != base.spec().blocks)
    {
        let reason = format!(
            "`donors`: one of the family `{}` has blocks of another shape",
            other.spec().family
        );
        return Err(Error::Invalid(format!(
            "{reason}; give models that were tuned from one base"
        )));
    }
    if !base.adapters().is_empty() {
        return Err(Error::Invalid(
            "an adapted model is merged before its layers are copied".into(),
        ));
    }
    let named = |model: &&LanguageModel| -> HashMap<String, Parameter> {
        model
            .parameters()
            .into_iter()
            .map(|p| (p.name().to_owned(), p.clone()))
            .collect()
    };
    let mut source = Copies {
        base: named(&base),
        donors: donors.iter().map(named).collect(),
        options,
    };
    LanguageModel::build(spec, &mut source, base.device())
}

/// The specification with experts in place of feed-forward layers.
///
/// # Errors
/// As [`upcycle`].
pub fn specification(spec: &ModelSpec, options: &Upcycling) -> Result<ModelSpec> {
    let Upcycling {
        experts,
        active,
        balance,
        noise,
        ..
    } = *options;
    if !["llama", "mistral"].contains(&spec.family.as_str()) {
        return Err(Error::Invalid(format!(
            "`model`: `{}` has no form with experts; give a llama or a mistral",
            spec.family
        )));
    }
    if active == 0 || active > experts {
        return Err(Error::Invalid(format!(
            "`active`: {active} of {experts} experts cannot be active; choose 1 to {experts}"
        )));
    }
    for (key, value) in [("balance", balance), ("noise", noise)] {
        if value.is_nan() || value < 0.0 {
            return Err(Error::Invalid(format!("`{key}`: {value} is negative")));
        }
    }
    if !options.gates.is_empty()
        && options
            .gates
            .iter()
            .any(|gates| gates.len() != experts * spec.width)
    {
        return Err(Error::Invalid(format!(
            "a router of {experts} experts needs that many rows of {}",
            spec.width
        )));
    }
    let mut spec = spec.clone();
    for block in &mut spec.blocks {
        let ChannelSpec::GatedMlp(expert) = &block.channel else {
            continue;
        };
        let router = RouterSpec::softmax(experts, active, true);
        block.channel = ChannelSpec::SparseExperts(ExpertsSpec {
            router,
            expert: expert.clone(),
            gated: true,
            clamped: None,
            output_bias: false,
            shared: None,
        });
    }
    spec.family = by_name("mixtral")?.model_type.into();
    spec.router_losses = Some(RouterLosses {
        added: true,
        balance,
        form: BalanceForm::Joint,
        z: 0.0,
    });
    Ok(spec)
}

/// Weights of dense models as those of one with experts.
struct Copies {
    base: HashMap<String, Parameter>,
    donors: Vec<HashMap<String, Parameter>>,
    options: Upcycling,
}

impl Copies {
    /// One expert's matrices, one after another.
    fn expert(&self, number: usize, names: &[String]) -> Option<Vec<f32>> {
        let donor = &self.donors[number % self.donors.len()];
        let mut values = Vec::new();
        for name in names {
            values.extend(donor.get(name)?.to_vec());
        }
        let deviation = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
            / values.len().max(1) as f64)
            .sqrt();
        if self.options.noise > 0.0 {
            let mut random = Random::named(&format!(
                "upcycle|{}|{number}|{}",
                self.options.seed,
                names.concat()
            ));
            values
                .iter_mut()
                .for_each(|v| *v += (random.normal() * deviation * self.options.noise) as f32);
        }
        Some(values)
    }
}

impl ParameterSource for Copies {
    fn parameter(&mut self, name: &str, shape: &[usize], _: Initial) -> Result<Values> {
        if let Some(block) = name
            .strip_prefix("blocks.")
            .and_then(|name| name.strip_suffix(".channel.router.weight"))
        {
            return match block
                .parse()
                .ok()
                .and_then(|block: usize| self.options.gates.get(block))
            {
                Some(gates) => Ok(gates.clone().into()),
                None => Seed(self.options.seed).parameter(name, shape, Initial::Normal(0.02)),
            };
        }
        let parts = match name.split_once(".experts.") {
            Some((layer, "up.weight")) => {
                vec![format!("{layer}.gate.weight"), format!("{layer}.up.weight")]
            }
            Some((layer, _)) => vec![format!("{layer}.down.weight")],
            None => Vec::new(),
        };
        let values = match parts.is_empty() {
            true => self.base.get(name).map(Parameter::values),
            false => (0..shape[0])
                .map(|expert| self.expert(expert, &parts))
                .collect::<Option<Vec<_>>>()
                .map(|experts| experts.concat().into()),
        };
        let missing = || Error::Invalid(format!("the dense model has no weights for `{name}`"));
        values
            .filter(|values| values.len() == shape.iter().product::<usize>())
            .ok_or_else(missing)
    }
}
