//! Sums of low-rank adapters as one, in PEFT's three ways (`add_weighted_adapter`), and the adapter that is nearest to what tuning did.

use std::collections::{BTreeSet, HashMap, HashSet};

use burn::tensor::{Tensor, TensorData};
use espalier_kernels::decomposition::{Search, truncated_svd};
use espalier_kernels::readback::ReadFloats;

use super::{Factors, LowRank, start::weights_of};
use crate::{
    Error, Result,
    adapter::{
        Adapter, each_linear,
        saved_modules::{is_unread, module_of},
    },
    checkpoint::{PeftConfig, peft_config::Targets},
    families::{Family, TensorEntry},
    model::LanguageModel,
    parameter::{Parameter, Parameters},
};

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// Sums of `A` and of `B`, each times the root of its weight: of one rank, and no sum of what the adapters do.
    Linear,
    /// `A` and `B` side by side: exactly the sum, of the sum of the ranks.
    Cat,
    /// The largest singular values of the sum.
    Svd {
        /// How many.
        rank: usize,
    },
}

/// The name of an adapter that is made of others, or of a difference.
const NAME: &str = "combined";

/// The sum of the attached adapters of these names, each times its weight, in their place and active.
///
/// # Errors
/// When one of them is no plain low-rank adapter or replaces modules whole, or their ranks differ and the combination needs one.
pub fn combine(
    model: &mut LanguageModel,
    adapters: &[(&str, f64)],
    combination: Combination,
) -> Result<Adapter> {
    let mut whole = Vec::new();
    model
        .saved_modules()
        .adapters(&mut |adapter, _| whole.push(adapter.to_owned()));
    if let Some((name, _)) = adapters
        .iter()
        .find(|(name, _)| whole.iter().any(|w| w == name))
    {
        return Err(Error::Invalid(format!(
            "`{name}` holds modules whole, of which there is no sum; merge the adapters into the model, or leave it out"
        )));
    }
    if let Some((name, _)) = adapters
        .iter()
        .find(|(name, _)| model.embedding().adapters.get(name).is_some())
    {
        return Err(Error::Invalid(format!(
            "`{name}` changes the embedding, and only adapters of linear layers are combined; merge the adapters into the model, or leave it out"
        )));
    }
    let mut found: HashMap<String, Factors> = HashMap::new();
    let mut failed = None;
    model.visit_linears(&mut |map| {
        let mut own = Vec::new();
        for (name, weight) in adapters {
            match map.adapters.get(name).map(|part| part.low_rank()) {
                None => {}
                Some(Some(part)) if part.is_product() => own.push((part, *weight)),
                Some(_) => failed = Some(Error::Invalid(format!(
                    "`{name}` is no plain low-rank addition at `{}`, and only those have sums of their kind; merge it into the model",
                    map.name
                ))),
            }
        }
        if own.is_empty() || failed.is_some() {
            return;
        }
        match combined(&own, combination) {
            Some(factors) => _ = found.insert(map.name, factors),
            None => failed = Some(Error::Invalid(format!(
                "`linear` needs adapters of one rank, and those of `{}` differ; use `cat` or `svd`",
                map.name
            ))),
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if found.is_empty() {
        return Err(Error::Invalid(
            "none of the adapters has a low-rank part to combine".into(),
        ));
    }
    for (name, _) in adapters {
        model.detach_adapter(name);
    }
    attach(model, found)
}

/// Puts factors with a scale of one on their maps.
fn attach(model: &mut LanguageModel, mut factors: HashMap<String, Factors>) -> Result<Adapter> {
    let device = model.device().clone();
    let mut rank = 1;
    each_linear(model, &mut |map| match factors.remove(&map.name) {
        None => Ok(()),
        Some(factors) => {
            rank = rank.max(factors.down.len() / map.size()[1].max(1));
            factors.attach(map, NAME, 0.0, &device)
        }
    })?;
    // Ranks and modules that differ are written as they are found.
    Adapter::new(PeftConfig::new(rank, rank as f64, Targets::AllLinear)).named(NAME)
}

fn combined(parts: &[(&LowRank, f64)], combination: Combination) -> Option<Factors> {
    let scaled = |factor: Tensor<2>, by: f64| factor.inner() * by;
    let of = |share: &dyn Fn(f64) -> [f64; 2]| -> [Vec<Tensor<2>>; 2] {
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for (part, weight) in parts {
            let [down, up] = part.factors();
            let [of_down, of_up] = share(weight * part.scale);
            downs.push(scaled(down, of_down));
            ups.push(scaled(up, of_up));
        }
        [downs, ups]
    };
    let [down, up] = match combination {
        Combination::Cat => {
            let [downs, ups] = of(&|weight| [1.0, weight]);
            [Tensor::cat(downs, 0), Tensor::cat(ups, 1)]
        }
        Combination::Linear => {
            let rank = parts.first()?.0.rank();
            if parts.iter().any(|(part, _)| part.rank() != rank) {
                return None;
            }
            let root = |weight: f64| [weight.abs().sqrt() * weight.signum(), weight.abs().sqrt()];
            let sum = |all: Vec<Tensor<2>>| all.into_iter().reduce(|sum, one| sum + one);
            let [downs, ups] = of(&root);
            [sum(downs)?, sum(ups)?]
        }
        Combination::Svd { rank } => {
            let products = parts.iter().map(|(part, weight)| part.product() * *weight);
            let (factors, _) = nearest(products.reduce(|sum, one| sum + one)?, rank);
            return Some(factors);
        }
    };
    let [down, up] = [down, up].map(flat);
    Some(Factors {
        down,
        up,
        scale: 1.0,
        ..Factors::default()
    })
}

fn flat(matrix: Tensor<2>) -> Vec<f32> {
    let count = matrix.dims().iter().product::<usize>();
    matrix.reshape([count]).floats()
}

/// The factors of the largest singular values of a matrix, with a scale of one, and the sum of these values' squares.
fn nearest(matrix: Tensor<2>, rank: usize) -> (Factors, f64) {
    let device = matrix.device();
    let svd = truncated_svd(matrix, rank, Search::Exact);
    let count = svd.values.len();
    let captured = svd.values.iter().map(|value| f64::from(*value).powi(2));
    let captured = captured.sum();
    let roots: Vec<f32> = svd.values.iter().map(|value| value.sqrt()).collect();
    let roots = Tensor::<1>::from_data(TensorData::new(roots, [count]), &device);
    let factors = Factors {
        down: flat(svd.right * roots.clone().unsqueeze_dim::<2>(1)),
        up: flat(svd.left * roots.unsqueeze::<2>()),
        scale: 1.0,
        ..Factors::default()
    };
    (factors, captured)
}

/// An adapter that was taken out of a tuned model.
#[derive(Debug)]
pub struct Extracted {
    /// The adapter, on the base.
    pub adapter: Adapter,
    /// Which share of what tuning changed at the adapted maps it has, by the sum of squares.
    pub share: f64,
    /// Parameters that tuning changed and the adapter leaves as the base has them.
    pub left: Vec<String>,
}

/// The modules that tuning changed and of which `config` takes no low rank, such as the table of tokens and norms: kept whole, they make the
/// adapter all of what tuning did but for what the rank leaves out.
///
/// # Errors
/// As [`extract`].
pub fn changed_modules(
    base: &LanguageModel,
    tuned: &LanguageModel,
    family: &Family,
    config: &PeftConfig,
) -> Result<Vec<String>> {
    check_alike(base, tuned)?;
    let planned = config.planned(base, family, false)?;
    let mut adapted = HashSet::new();
    base.visit_linears(&mut |map| {
        if planned.contains_key(&map.name) {
            adapted.insert(map.weight.to_owned());
        }
    });
    let changed: HashSet<String> = changed(base, tuned).into_iter().collect();
    let entries = family.in_memory(base.spec());
    let modules_with = |parameters: &HashSet<String>| -> BTreeSet<String> {
        let has = |entry: &&TensorEntry| entry.parts.iter().any(|part| parameters.contains(part));
        let found = entries.iter().filter(has);
        found
            .map(|entry| module_of(&entry.name).to_owned())
            .collect()
    };
    let whole = &modules_with(&changed) - &modules_with(&adapted);
    let whole = whole.into_iter();
    Ok(whole.filter(|module| !is_unread(module, family)).collect())
}

/// Refuses models that are no whole ones of one shape.
fn check_alike(base: &LanguageModel, tuned: &LanguageModel) -> Result<()> {
    let shapes = |model: &LanguageModel| -> Vec<(String, Vec<usize>)> {
        let parameters = model.parameters().into_iter();
        parameters
            .map(|p| (p.name().to_owned(), p.shape().to_vec()))
            .collect()
    };
    let whole = tuned.adapters().is_empty() && base.adapters().is_empty();
    let [own, other] = [base, tuned].map(shapes);
    let parted = base.spec().tied_head != tuned.spec().tied_head;
    let reason = match other.iter().zip(&own).find(|(other, own)| other != own) {
        _ if !whole => "an adapter is attached to one of them; merge it first".to_owned(),
        _ if parted => {
            "one has a head of its own, and the head of the other is its table of tokens; tune with the head as the base has it, \
             or extract from a base that was saved with `tie_word_embeddings = false` and a head of its own"
                .to_owned()
        }
        None if own.len() == other.len() => return Ok(()),
        None => format!("one has {} weights, the other {}", other.len(), own.len()),
        Some(((name, shape), (other, expected))) => {
            format!("`{name}` of {shape:?} stands where the base has `{other}` of {expected:?}")
        }
    };
    Err(Error::Invalid(format!(
        "the tuned model and its base must be whole models of one shape: {reason}"
    )))
}

/// Puts the adapter on `base` that is nearest to what it takes to be `tuned`: ranks, modules, and those that are kept whole are
/// `config`'s.
///
/// # Errors
/// When the models differ in shape, or the configuration means no module.
pub fn extract(
    base: &mut LanguageModel,
    tuned: &LanguageModel,
    family: &Family,
    config: &PeftConfig,
) -> Result<Extracted> {
    check_alike(base, tuned)?;
    let mut left = changed(base, tuned);
    let planned = config.planned(base, family, false)?;
    let mut tuned = tuned.clone();
    let (mut captured, mut all) = (0.0, 0.0);
    let mut factors = HashMap::new();
    let mut adapted = Vec::new();
    base.visit_linears(&mut |map| {
        if planned.contains_key(&map.name) {
            adapted.push((map.name, map.weight.to_owned()));
        }
    });
    for (map, parameter) in adapted {
        let own = std::slice::from_ref(&map);
        let pair = [weights_of(own, &mut tuned)?, weights_of(own, base)?].map(|mut w| w.pop());
        let [Some(after), Some(before)] = pair else {
            continue;
        };
        let difference = after - before;
        all += sum_of_squares(&difference);
        let (rank, scale) = planned[&map];
        let (mut found, share) = nearest(difference, rank);
        found.rescale(scale);
        captured += share;
        factors.insert(map, found);
        left.retain(|name| *name != parameter);
    }
    let adapter = Adapter::new(config.clone()).named(NAME)?;
    adapter.attach(base, family, 0)?;
    let device = base.device().clone();
    each_linear(base, &mut |map| match factors.remove(&map.name) {
        None => Ok(()),
        Some(factors) => factors.attach(map, NAME, config.dropout, &device),
    })?;
    let saved = base.saved_modules().clone();
    let of_tuned: HashMap<&str, &Parameter> = tuned
        .parameters()
        .into_iter()
        .map(|p| (p.name(), p))
        .collect();
    base.visit_mut(&mut |p| {
        if let Some(own) = of_tuned
            .get(p.name())
            .filter(|_| saved.trains(NAME, p.name()))
        {
            p.set_values_of(own);
        }
    });
    left.retain(|name| !saved.trains(NAME, name));
    base.set_trainable(|_| false);
    let share = if all > 0.0 { captured / all } else { 1.0 };
    Ok(Extracted {
        adapter,
        share,
        left,
    })
}

fn sum_of_squares(matrix: &Tensor<2>) -> f64 {
    let values = flat(matrix.clone());
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// The names of parameters that are not the same.
fn changed(base: &LanguageModel, tuned: &LanguageModel) -> Vec<String> {
    let pairs = base.parameters().into_iter().zip(tuned.parameters());
    pairs
        .filter(|(before, after)| before.to_vec() != after.to_vec())
        .map(|(before, _)| before.name().to_owned())
        .collect()
}
