//! Routers from prompts, as mergekit's `moe` makes them: what the base model thinks of prompts that suit an expert becomes that
//! expert's row of the router. Recipe: `experts-by-prompts.toml`.
//!
//! With `h_l(p)` what block `l` is given for prompt `p`, expert `i` gets `mean_p h_l(p) - mean_n h_l(n)` over its positive and negative
//! prompts, scaled to length one. Nothing is trained, so that tuned models work as experts at once. Every prompt runs alone: there
//! is no padding that could count.

use burn::tensor::Tensor;
use espalier_kernels::readback::ReadFloats;

use crate::{
    Error, Result,
    model::{Input, LanguageModel},
    taps::{Flow, Site},
};

/// Token ids of prompts that say what an expert is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertPrompts {
    /// What the expert shall see; at least one.
    pub positive: Vec<Vec<u32>>,
    /// What it shall not see.
    pub negative: Vec<Vec<u32>>,
}

/// What stands for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateForm {
    /// The hidden state of its last token before each block.
    LastHidden,
    /// The mean of its tokens' hidden states before each block.
    MeanHidden,
    /// The sum of its tokens' embeddings, for all blocks alike.
    Embedding,
}

/// Router matrices `[experts, width]` of all blocks, one after another.
///
/// # Errors
/// When an expert has no positive prompt, a prompt has no tokens or ids outside the vocabulary, or two experts get the same prompts.
pub fn gates(
    model: &LanguageModel,
    prompts: &[ExpertPrompts],
    form: GateForm,
) -> Result<Vec<Vec<f32>>> {
    for (i, one) in prompts.iter().enumerate() {
        if one.positive.is_empty() {
            let reason = format!("expert {} has no positive prompts", i + 1);
            return Err(Error::Invalid(format!(
                "{reason}; give at least one that it shall answer"
            )));
        }
        if let Some(twin) = prompts[..i].iter().position(|other| other == one) {
            let reason = format!("experts {} and {} have the same prompts", twin + 1, i + 1);
            return Err(Error::Invalid(format!(
                "{reason}, so that no router can tell them apart"
            )));
        }
    }
    let model = model.frozen();
    let experts = prompts
        .iter()
        .map(|prompts| expert(&model, prompts, form))
        .collect::<Result<Vec<_>>>()?;
    let block = |block: usize| {
        experts
            .iter()
            .flat_map(|rows| rows[block].iter().copied())
            .collect()
    };
    Ok((0..model.spec().blocks.len()).map(block).collect())
}

/// The largest cosine between two rows of `[experts, width]`: near one, the router hardly tells two experts apart.
pub fn similarity(gates: &[f32], width: usize) -> f64 {
    let rows: Vec<_> = gates.chunks(width).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let cosine =
        |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE);
    let pairs = rows
        .iter()
        .enumerate()
        .flat_map(|(i, a)| rows[..i].iter().map(move |b| cosine(a, b)));
    pairs.fold(-1.0, f64::max)
}

/// One expert's rows, `[blocks][width]`.
fn expert(model: &LanguageModel, prompts: &ExpertPrompts, form: GateForm) -> Result<Vec<Vec<f32>>> {
    let mut rows = vec![vec![0.0; model.spec().width]; model.spec().blocks.len()];
    for (prompts, sign) in [(&prompts.positive, 1.0), (&prompts.negative, -1.0)] {
        for prompt in prompts {
            let factor = sign / prompts.len() as f32;
            for (row, state) in rows.iter_mut().zip(states(model, prompt, form)?) {
                row.iter_mut()
                    .zip(state)
                    .for_each(|(row, state)| *row += factor * state);
            }
        }
    }
    for row in &mut rows {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-8);
        row.iter_mut().for_each(|v| *v /= length);
    }
    Ok(rows)
}

/// What stands for one prompt before every block, `[blocks][width]`.
fn states(model: &LanguageModel, prompt: &[u32], form: GateForm) -> Result<Vec<Vec<f32>>> {
    let mut states = Vec::new();
    let last = model.spec().blocks.len().saturating_sub(1);
    let mut observer = |site: Site, hidden: Tensor<3>| {
        let [_, time, _] = hidden.dims();
        let state = match form {
            GateForm::LastHidden => hidden.clone().narrow(1, time - 1, 1),
            GateForm::MeanHidden => hidden.clone().mean_dim(1),
            GateForm::Embedding => hidden.clone().sum_dim(1),
        };
        states.push(state.floats());
        match site {
            Site::Block(block) if block + 1 >= last => Flow::Stop(hidden),
            Site::Embedding if form == GateForm::Embedding || last == 0 => Flow::Stop(hidden),
            _ => Flow::Continue(hidden),
        }
    };
    model.hidden_observed(&Input::rows(&[prompt.to_vec()])?, None, &mut observer)?;
    if form == GateForm::Embedding {
        states.resize(last + 1, states.first().cloned().unwrap_or_default());
    }
    Ok(states)
}
