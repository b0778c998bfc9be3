//! Beam search (arXiv 1609.08144, section 7): the likeliest continuations of a prompt, extended side by side by one token a
//! step, each with its own key-value cache.
//!
//! A repetition penalty changes log-probabilities, which it multiplies for tokens that occurred; an end string ends a
//! continuation as an end token does; and what ends counts only where it is among the `beams` best of its step. These are the
//! rules of Hugging Face's `generate`. A finished continuation `y` scores `log P(y | x) / length^penalty`, its end token counted, which is another of them. The search
//! ends when no continuation under way can still beat the worst of the best finished ones.

use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::{Input, LanguageModel},
    state::SequenceState,
};

use crate::{
    Error, Result,
    decode::{check_prompts, source},
    rules::{Place, Rules},
    sampler::{nothing_left, repeated},
};

/// Width, length and end of a beam search.
#[derive(Debug, Clone)]
pub struct BeamOptions {
    /// Continuations that are followed.
    pub beams: usize,
    /// Most tokens of a continuation.
    pub max_new_tokens: usize,
    /// Above 1 long continuations are favoured, below 1 short ones.
    pub length_penalty: f64,
    /// Tokens that end a continuation, which keeps them.
    pub end: Vec<u32>,
    /// Above 1 tokens that occurred before become less likely, those of a decoder's prompt included; 1 does nothing.
    pub repetition_penalty: f32,
    /// What may not come, and what must.
    pub rules: Rules,
    /// Whether the search ends as soon as there are `beams` finished continuations, though a longer one might be better.
    pub early_stopping: bool,
}

impl Default for BeamOptions {
    /// Five beams of twenty tokens, without penalties.
    fn default() -> Self {
        Self {
            beams: 5,
            max_new_tokens: 20,
            length_penalty: 1.0,
            end: Vec::new(),
            repetition_penalty: 1.0,
            rules: Rules::default(),
            early_stopping: false,
        }
    }
}

/// A continuation and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// Its log-probability over a power of its length.
    pub score: f64,
}

/// A continuation under way.
#[derive(Debug, Clone)]
struct Beam {
    ids: Vec<u32>,
    log_probability: f64,
}

/// The best continuations of one prompt (of an encoder-decoder: of one source), best first, at most `beams`. `ends` is asked
/// of the new tokens of every continuation whether they end it, beside the end tokens.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_engine::beam::{BeamOptions, beam_search};
/// use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let options = BeamOptions { beams: 3, max_new_tokens: 4, ..Default::default() };
/// assert_eq!(beam_search(&model, &[1, 2], &options, &mut |_| Ok(false))?.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the prompt is empty or too long, a token id is outside the vocabulary, the model does not generate, `ends` fails, or every
/// token is forbidden.
pub fn beam_search(
    model: &LanguageModel,
    prompt: &[u32],
    options: &BeamOptions,
    ends: &mut dyn FnMut(&[u32]) -> Result<bool>,
) -> Result<Vec<Hypothesis>> {
    check_prompts(model, 0, std::slice::from_ref(&prompt.to_vec()))?;
    if options.beams == 0 {
        return Err(Error::Sampling("beams = 0: expected at least 1".into()));
    }
    if model.spec().headless {
        return Err(Error::Headless);
    }
    let start = model
        .spec()
        .encoder
        .as_ref()
        .map_or(prompt.to_vec(), |encoder| vec![encoder.decoder_start]);
    let limit = model
        .spec()
        .learned_positions()
        .map_or(usize::MAX, |count| count.saturating_sub(start.len()) + 1);
    let longest = options.max_new_tokens.min(limit);
    let mut state = model.fresh_state();
    let mut input = Input {
        source: source(model, &[prompt.to_vec()]),
        ..Input::rows(std::slice::from_ref(&start))?
    };
    let mut beams = vec![Beam {
        ids: Vec::new(),
        log_probability: 0.0,
    }];
    let mut finished: Vec<Hypothesis> = Vec::new();
    for step in 0..longest {
        let mut rows = log_probabilities(model, &input, &mut state)?;
        let mut forced = None;
        for (beam, row) in beams.iter().zip(&mut rows) {
            let history = [start.as_slice(), &beam.ids].concat();
            repeated(row, &history, options.repetition_penalty);
            let place = Place {
                history: &history,
                prompt: start.len(),
                longest,
                end: &options.end,
            };
            // Depends on the step alone, which all of them share.
            forced = options.rules.forced(model.spec().encoder.as_ref(), &place);
            for id in options.rules.forbidden(&place) {
                if let Some(value) = row.get_mut(id as usize) {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
        let mut next: Vec<(usize, Beam)> = Vec::with_capacity(options.beams);
        let count = 2 * options.beams;
        for (rank, (row, beam)) in candidates(&beams, &rows, count, forced).enumerate() {
            // Where no more tokens may come, everything ends, and is compared with what ended before.
            let full = step + 1 == longest;
            let ended = full || beam.ids.last().is_some_and(|id| options.end.contains(id));
            if ended || ends(&beam.ids)? {
                if rank < options.beams {
                    finished.push(beam.scored(options));
                }
            } else if next.len() < options.beams {
                next.push((row, beam));
            }
        }
        keep_best(&mut finished, options.beams);
        let chosen: Vec<usize> = next.iter().map(|(row, _)| *row).collect();
        beams = next.into_iter().map(|(_, beam)| beam).collect();
        if beams.is_empty() || is_settled(&finished, &beams, options) {
            break;
        }
        let length = start.len() + step + 1;
        let stale = model.spec().stales_cache(length - 1, length);
        let unread = |beam: &Beam| match stale {
            true => [start.as_slice(), &beam.ids].concat(),
            false => vec![beam.ids[step]],
        };
        state = match stale {
            // Frequencies of another length: all keys are computed anew.
            true => model.fresh_state(),
            false => state.selected(&chosen),
        };
        input = Input::rows(&beams.iter().map(unread).collect::<Vec<_>>())?;
        input.prompts = Some(vec![start.len() as u32; input.ids.len()]);
    }
    if finished.len() < options.beams {
        finished.extend(beams.iter().map(|beam| beam.scored(options)));
        keep_best(&mut finished, options.beams);
    }
    if finished.is_empty() {
        return Err(nothing_left());
    }
    Ok(finished)
}

impl Beam {
    fn scored(&self, options: &BeamOptions) -> Hypothesis {
        let score = self.log_probability / (self.ids.len() as f64).powf(options.length_penalty);
        Hypothesis {
            ids: self.ids.clone(),
            score,
        }
    }
}

/// Best first, at most `count`.
fn keep_best(hypotheses: &mut Vec<Hypothesis>, count: usize) {
    hypotheses.sort_by(|a, b| b.score.total_cmp(&a.score));
    hypotheses.truncate(count);
}

/// Whether there are enough finished ones, and the best beam, as it stands, is worse than all of them or not asked for.
fn is_settled(finished: &[Hypothesis], beams: &[Beam], options: &BeamOptions) -> bool {
    let worst = finished
        .last()
        .filter(|_| finished.len() >= options.beams)
        .map(|last| last.score);
    worst.is_some_and(|worst| {
        options.early_stopping || beams.iter().all(|beam| beam.scored(options).score <= worst)
    })
}

/// The `count` likeliest beams of one more token, best first, each with the row that it extends.
fn candidates(
    beams: &[Beam],
    rows: &[Vec<f32>],
    count: usize,
    forced: Option<u32>,
) -> impl Iterator<Item = (usize, Beam)> {
    let mut all: Vec<(usize, u32, f64)> = Vec::new();
    for (row, (beam, log_probabilities)) in beams.iter().zip(rows).enumerate() {
        match forced {
            // A forced token costs nothing, as in the reference.
            Some(token) => all.push((row, token, beam.log_probability)),
            None => all.extend(
                (0..)
                    .zip(log_probabilities)
                    // What is forbidden is no candidate.
                    .filter(|(_, p)| **p > f32::NEG_INFINITY)
                    .map(|(id, p)| (row, id, beam.log_probability + f64::from(*p))),
            ),
        }
    }
    let better = |a: &(usize, u32, f64), b: &(usize, u32, f64)| b.2.total_cmp(&a.2);
    if all.len() > count {
        all.select_nth_unstable_by(count - 1, better);
        all.truncate(count);
    }
    all.sort_by(better);
    let extended = move |(row, id, log_probability): (usize, u32, f64)| {
        let ids = beams[row].ids.iter().copied().chain([id]).collect();
        (
            row,
            Beam {
                ids,
                log_probability,
            },
        )
    };
    all.into_iter().map(extended)
}

/// Log-probabilities of the next token of every row.
fn log_probabilities(
    model: &LanguageModel,
    input: &Input,
    state: &mut SequenceState,
) -> Result<Vec<Vec<f32>>> {
    let hidden = model.hidden(input, Some(state))?;
    let [batch, time, width] = hidden.dims();
    let logits = model.head(hidden.narrow(1, time - 1, 1).reshape([batch, width]));
    let values = burn::tensor::activation::log_softmax(logits, 1).floats();
    Ok(values
        .chunks(model.spec().vocabulary)
        .map(<[f32]>::to_vec)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use espalier_models::{folder, source::Seed, spec::ModelSpec};

    #[test]
    fn wide_beams_find_the_likeliest_of_all() {
        let mut spec = ModelSpec::llama(5, 16, 2, 4, 2, 32, 64);
        spec.initializer_range = 0.7;
        let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        let options = BeamOptions {
            beams: 25,
            max_new_tokens: 3,
            ..BeamOptions::default()
        };
        let found = beam_search(&model, &[1, 2], &options, &mut |_| Ok(false)).unwrap();
        let mut best = (f64::NEG_INFINITY, Vec::new());
        for code in 0..125u32 {
            let ids = vec![code / 25, code / 5 % 5, code % 5];
            let text = [vec![1, 2], ids.clone()].concat();
            let logits = model
                .logits(&Input::rows(std::slice::from_ref(&text)).unwrap())
                .unwrap();
            let values = burn::tensor::activation::log_softmax(logits, 2)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap();
            let sum: f64 = (1..4)
                .map(|t| f64::from(values[t * 5 + text[t + 1] as usize]))
                .sum();
            if sum > best.0 {
                best = (sum, ids);
            }
        }
        assert_eq!(found[0].ids, best.1);
        assert!((found[0].score - best.0 / 3.0).abs() < 1e-5);
    }

    #[test]
    fn continuations_and_scores_of_the_reference_library() {
        for (name, penalty, stop, ids, score) in REFERENCE {
            let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
            let model = folder::load(path.as_ref(), &Device::flex()).unwrap().model;
            let options = BeamOptions {
                beams: 4,
                max_new_tokens: 8,
                end: vec![2],
                repetition_penalty: *penalty,
                ..BeamOptions::default()
            };
            let mut ends = |ids: &[u32]| Ok(ids.ends_with(stop) && !stop.is_empty());
            let found = beam_search(&model, &[5, 9, 31, 7, 40, 12], &options, &mut ends).unwrap();
            assert_eq!(found[0].ids, *ids, "{name}");
            assert!(
                (found[0].score - score).abs() < 1e-4,
                "{name}: {} against {score}",
                found[0].score
            );
        }
    }

    #[test]
    fn an_early_end_asks_for_no_better_continuation() {
        let path = format!("{}/../../tests/fixtures/llama", env!("CARGO_MANIFEST_DIR"));
        let model = folder::load(path.as_ref(), &Device::flex()).unwrap().model;
        // By transformers, as below, with `length_penalty` and `early_stopping`.
        for (length_penalty, end, early_stopping, ids, score) in [
            (
                1.0,
                59,
                false,
                vec![57, 57, 57, 29, 29, 29, 29, 29],
                -2.673693,
            ),
            (1.0, 59, true, vec![57, 57, 29, 59], -2.770545),
            (
                2.0,
                29,
                false,
                vec![57, 57, 57, 59, 33, 59, 59, 29],
                -0.349032,
            ),
            (2.0, 29, true, vec![57, 57, 29], -0.893186),
        ] {
            let options = BeamOptions {
                beams: 4,
                max_new_tokens: 8,
                length_penalty,
                end: if end == 59 { vec![59, 8] } else { vec![end] },
                early_stopping,
                ..BeamOptions::default()
            };
            let prompt = [5, 9, 31, 7, 40, 12];
            let found = beam_search(&model, &prompt, &options, &mut |_| Ok(false)).unwrap();
            assert_eq!(found[0].ids, ids, "{length_penalty}, {early_stopping}");
            assert!((found[0].score - score).abs() < 1e-4, "{}", found[0].score);
        }
    }

    /// By transformers: `generate(num_beams=4, max_new_tokens=8, eos_token_id=2, pad_token_id=0)` with a `repetition_penalty` and
    /// a stopping criterion for the tokens in the third place.
    type Reference = (&'static str, f32, &'static [u32], &'static [u32], f64);
    const REFERENCE: &[Reference] = &[
        (
            "gpt2",
            1.0,
            &[],
            &[11, 11, 11, 11, 11, 11, 11, 11],
            -1.992188,
        ),
        (
            "gpt2",
            2.5,
            &[],
            &[35, 27, 11, 28, 29, 47, 26, 52],
            -3.209945,
        ),
        ("gpt2", 1.3, &[11], &[35, 27, 11], -2.946753),
        (
            "llama",
            1.0,
            &[],
            &[57, 57, 57, 29, 29, 29, 29, 29],
            -2.673694,
        ),
        (
            "llama",
            1.3,
            &[],
            &[57, 29, 59, 33, 43, 53, 17, 29],
            -2.967155,
        ),
        (
            "llama",
            1.0,
            &[57, 57],
            &[57, 29, 29, 59, 33, 59, 29, 29],
            -2.667860,
        ),
        ("llama", 1.0, &[57, 29], &[57, 57, 29], -2.679557),
        ("t5", 1.0, &[], &[8, 8, 8, 8, 8, 8, 8, 8], -3.704240),
        ("t5", 1.3, &[], &[8, 38, 24, 37, 31, 56, 30, 29], -3.899407),
        ("t5", 1.0, &[8, 8, 8], &[8, 8, 8], -3.696686),
        (
            "bart",
            1.0,
            &[],
            &[56, 56, 56, 56, 56, 56, 56, 2],
            -1.825880,
        ),
        (
            "bart",
            1.3,
            &[],
            &[56, 56, 56, 50, 50, 50, 50, 2],
            -2.278610,
        ),
        (
            "bart",
            1.0,
            &[56, 56],
            &[9, 50, 50, 50, 50, 50, 50, 2],
            -1.926699,
        ),
    ];
}
