//! How the factors of a fresh adapter begin; PiSSA (arXiv 2404.02948) is [`Initialisation::Pissa`].
//!
//! PiSSA starts `s B A` as the part of `W` with the largest singular values, and trains beside it what is left. Here the base stays as it
//! is, in whatever format: the adapter holds its first factors too, with the sign turned, which are never trained. So `W` is whole for
//! other adapters, and what is saved is a plain LoRA of twice the rank.

use std::collections::HashMap;

use burn::tensor::{Tensor, TensorData};
use espalier_data::random::{Random, fnv};
use espalier_kernels::{
    decomposition::{Search, truncated_svd},
    readback::ReadFloats,
};

use super::{Factors, dora};
use crate::{
    Result,
    adapter::each_linear,
    checkpoint::{PeftConfig, peft_config::Initialisation},
    layers::linear::LinearMapMut,
    layout::Module,
    model::LanguageModel,
};

impl PeftConfig {
    /// Fresh factors of a map.
    pub(super) fn fresh(
        &self,
        map: &LinearMapMut<'_>,
        rank: usize,
        scale: f64,
        seed: u64,
    ) -> Factors {
        let seed = fnv(&format!("{seed}|{}|adapter", map.name));
        let mut random = Random::new(seed);
        let mut factors = zeros(map.size(), rank, scale);
        match self.initialisation {
            Initialisation::Pissa { passes } => {
                let weight = map.weights().weight;
                let [down, up] = principal(weight, rank, scale, search(passes, seed));
                factors.start = Some([down.clone(), negated(&up)]);
                (factors.down, factors.up) = (down, up);
            }
            Initialisation::Uniform => {
                let bound = 1.0 / (map.size()[1] as f64).sqrt();
                let mut draw = || ((random.f() * 2.0 - 1.0) * bound) as f32;
                factors.down.iter_mut().for_each(|value| *value = draw());
            }
            Initialisation::Gaussian => {
                let mut draw = || (random.normal() / rank as f64) as f32;
                factors.down.iter_mut().for_each(|value| *value = draw());
            }
        }
        if self.use_dora {
            factors.magnitude = Some(dora::lengths(map.weights().weight).floats());
        }
        factors
    }

    /// Factors that were trained on bases without their first ones, as PEFT loads them where they were not converted: the same are
    /// taken out of this base.
    pub(super) fn take_out_of_the_base(
        &self,
        modules: &[Module],
        model: &mut LanguageModel,
        factors: &mut HashMap<String, Factors>,
    ) -> Result<()> {
        if self.initialisation != (Initialisation::Pissa { passes: None }) {
            return Ok(());
        }
        for module in modules {
            let own = module.maps.iter().find_map(|map| factors.get(map));
            let Some(scale) = own.map(|factors| factors.scale) else {
                continue;
            };
            let rank = self.rank_of_module(module);
            let weights = weights_of(&module.maps, model)?;
            let outputs: Vec<usize> = weights.iter().map(|weight| weight.dims()[0]).collect();
            let whole = Tensor::cat(weights, 0);
            let [down, up] = principal(whole, rank, scale, Search::Exact);
            let found = up.len() / outputs.iter().sum::<usize>().max(1);
            let mut rows = up.chunks(found.max(1));
            for (map, outputs) in module.maps.iter().zip(outputs) {
                let up: Vec<f32> = rows.by_ref().take(outputs).flatten().copied().collect();
                if let Some(factors) = factors.get_mut(map) {
                    factors.start = Some([down.clone(), negated(&up)]);
                }
            }
        }
        Ok(())
    }

    /// What is written of an adapter that holds its first factors beside those that were trained.
    pub(super) fn converted(&self) -> Self {
        let mut config = self.clone();
        config.initialisation = Initialisation::Uniform;
        config.rank *= 2;
        config
            .rank_pattern
            .iter_mut()
            .for_each(|(_, rank)| *rank *= 2);
        let factor = if self.use_rslora { 2f64.sqrt() } else { 2.0 };
        config.alpha *= factor;
        config
            .alpha_pattern
            .iter_mut()
            .for_each(|(_, alpha)| *alpha *= factor);
        config
    }
}

/// Factors that add nothing.
pub(super) fn zeros([outputs, inputs]: [usize; 2], rank: usize, scale: f64) -> Factors {
    Factors {
        down: vec![0.0; rank * inputs],
        up: vec![0.0; outputs * rank],
        scale,
        ..Factors::default()
    }
}

/// The weights of some maps, in their order.
pub(super) fn weights_of(maps: &[String], model: &mut LanguageModel) -> Result<Vec<Tensor<2>>> {
    let mut weights = HashMap::new();
    each_linear(model, &mut |map| {
        if maps.contains(&map.name) {
            weights.insert(map.name.clone(), map.weights().weight);
        }
        Ok(())
    })?;
    Ok(maps.iter().filter_map(|map| weights.remove(map)).collect())
}

/// How singular vectors are found: all, or in so many passes.
fn search(passes: Option<usize>, seed: u64) -> Search {
    match passes {
        None => Search::Exact,
        Some(passes) => Search::Random { passes, seed },
    }
}

/// `sqrt(S / s) V^T` and `U sqrt(S / s)` of the largest singular values of a matrix: `[rank, in]` and `[out, rank]`, of a smaller rank
/// where the matrix has none so large.
fn principal(weight: Tensor<2>, rank: usize, scale: f64, search: Search) -> [Vec<f32>; 2] {
    let device = weight.device();
    let svd = truncated_svd(weight, rank, search);
    let root = |value: &f32| (f64::from(*value) / scale).sqrt() as f32;
    let roots: Vec<f32> = svd.values.iter().map(root).collect();
    let count = roots.len();
    let roots = Tensor::<1>::from_data(TensorData::new(roots, [count]), &device);
    let down = svd.right * roots.clone().unsqueeze_dim::<2>(1);
    let up = svd.left * roots.unsqueeze::<2>();
    [down, up].map(|factor| {
        let count = factor.dims().iter().product::<usize>();
        factor.reshape([count]).floats()
    })
}

fn negated(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| -value).collect()
}
