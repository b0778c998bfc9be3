//! The decoding loop: prefill of a batch of prompts, then one token a row and step, with one key-value cache (or
//! recurrent state) for the batch and one sampler a row.
//!
//! Prompts of different lengths are padded on the left; padding is a segment of its own, so no token sees it, and positions
//! count from each row's first token. A row's tokens do not depend on what else is in the batch.
//!
//! An encoder-decoder reads the prompts as sources and begins with its start token.

use espalier_kernels::readback::ReadFloats;
use espalier_models::{
    model::{Input, LanguageModel},
    spec::ModelSpec,
    state::SequenceState,
    state_file::Prefix,
};

use crate::{
    Error, Result,
    rules::Place,
    sampler::{Sampler, SamplerOptions},
};

/// Limits, sampling and end tokens of decoding.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// Most tokens to generate for a row.
    pub max_new_tokens: usize,
    /// Options of sampling.
    pub sampler: SamplerOptions,
    /// Tokens that end a row; the row keeps them.
    pub end: Vec<u32>,
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token was drawn.
    End,
    /// The caller asked to stop.
    Stopped,
    /// `max_new_tokens` were generated.
    Length,
    /// The model's learned positions are used up.
    Context,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// Why the row ended.
    pub finish: Finish,
}

/// One row under way.
struct Row {
    history: Vec<u32>,
    prompt: usize,
    sampler: Sampler,
    finish: Option<Finish>,
}

/// Generates for every prompt. `on_token(row, token)` sees each token and returns whether the row continues.
///
/// ```
/// use burn::tensor::Device;
/// use espalier_engine::{decode::{DecodeOptions, decode}, sampler::SamplerOptions};
/// use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};
/// let model = LanguageModel::build(ModelSpec::llama(64, 16, 2, 2, 1, 32, 32), &mut Seed(0), &Device::flex())?;
/// let sampler = SamplerOptions { temperature: 0.0, ..Default::default() };
/// let options = DecodeOptions { max_new_tokens: 4, sampler, end: vec![] };
/// let generated = decode(&model, &[vec![1, 2], vec![3]], &options, &mut |_, _| true)?;
/// assert_eq!(generated[0].ids.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When a prompt is empty, a token id is outside the vocabulary, or the logits are not finite.
pub fn decode(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    options: &DecodeOptions,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    check_prompts(model, 0, prompts)?;
    let mut all = vec![None; prompts.len()];
    for numbers in batches(model, prompts) {
        let batch: Vec<Vec<u32>> = numbers
            .iter()
            .map(|number| prompts[*number].clone())
            .collect();
        let batch = Batch {
            state: model.fresh_state(),
            before: &[],
            prompts: &batch,
            numbers: &numbers,
        };
        for (number, generated) in numbers.iter().zip(batch.decode(model, options, on_token)?) {
            all[*number] = Some(generated);
        }
    }
    Ok(all.into_iter().flatten().collect())
}

/// Whether the model can begin with these prompts behind a text of `before` tokens.
pub(crate) fn check_prompts(
    model: &LanguageModel,
    before: usize,
    prompts: &[Vec<u32>],
) -> Result<()> {
    if prompts.iter().any(Vec::is_empty) {
        return Err(Error::EmptyPrompt);
    }
    let spec = model.spec();
    if spec.bidirectional {
        return Err(Error::Bidirectional);
    }
    if spec.headless {
        return Err(Error::Headless);
    }
    let Some(limit) = spec.prompt_positions() else {
        return Ok(());
    };
    let tokens = |prompt: &Vec<u32>| before + prompt.len();
    match prompts.iter().position(|prompt| tokens(prompt) > limit) {
        Some(index) => Err(Error::PromptTooLong {
            number: index + 1,
            tokens: tokens(&prompts[index]),
            limit,
        }),
        None => Ok(()),
    }
}

/// Which prompts are decoded together: all of them, unless trained first states would pass through padding before they reach a
/// prompt that is shorter than others.
fn batches(model: &LanguageModel, prompts: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut numbers: Vec<usize> = (0..prompts.len()).collect();
    if numbers.is_empty() || !model.has_first_states() {
        return vec![numbers];
    }
    numbers.sort_by_key(|number| prompts[*number].len());
    numbers
        .chunk_by(|a, b| prompts[*a].len() == prompts[*b].len())
        .map(<[usize]>::to_vec)
        .collect()
}

/// As [`decode`] for one prompt that continues a prefix, whose key-value cache or recurrent state was saved.
///
/// # Errors
/// As [`decode`].
pub fn decode_after(
    model: &LanguageModel,
    prefix: &Prefix,
    prompt: &[u32],
    options: &DecodeOptions,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    let prompts = [prompt.to_vec()];
    check_prompts(model, prefix.ids.len(), &prompts)?;
    let batch = Batch {
        state: prefix.state.clone(),
        before: &prefix.ids,
        prompts: &prompts,
        numbers: &[0],
    };
    batch.decode(model, options, on_token)
}

/// Prompts that are decoded together after the prefix `before`, whose key-value cache or recurrent state is `state`; with
/// a prefix there is one prompt.
struct Batch<'a> {
    state: SequenceState,
    before: &'a [u32],
    prompts: &'a [Vec<u32>],
    /// The caller's number of each prompt.
    numbers: &'a [usize],
}

impl Batch<'_> {
    fn decode(
        self,
        model: &LanguageModel,
        options: &DecodeOptions,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Generated>> {
        let Self {
            mut state,
            before,
            prompts,
            numbers,
        } = self;
        let (spec, source) = (model.spec(), source(model, prompts));
        let starts = match &spec.encoder {
            Some(encoder) => vec![vec![encoder.decoder_start]; prompts.len()],
            None => prompts.to_vec(),
        };
        let prompts = starts.as_slice();
        let mut rows = numbers
            .iter()
            .zip(prompts)
            .map(|(number, prompt)| Row::new(*number, [before, prompt], options))
            .collect::<Result<Vec<_>>>()?;
        let mut input = Input {
            source,
            ..Input::padded_before(prompts)
        };
        let limit = spec.learned_positions().unwrap_or(usize::MAX);
        for produced in 0..options.max_new_tokens {
            let full = |row: &&mut Row| row.history.len() > limit;
            for row in rows.iter_mut().filter(full) {
                row.finish = row.finish.or(Some(Finish::Context));
            }
            if rows.iter().all(|row| row.finish.is_some()) {
                break;
            }
            let outgrows = |row: &Row| {
                let length = row.history.len();
                let known = if produced == 0 {
                    before.len()
                } else {
                    length - 1
                };
                row.finish.is_none() && spec.stales_cache(known, length)
            };
            if rows.iter().any(outgrows) {
                // Frequencies of another length: all keys are computed anew.
                let histories: Vec<Vec<u32>> = rows.iter().map(|row| row.history.clone()).collect();
                let longest = histories.iter().map(Vec::len).max().unwrap_or(0);
                let prompts = rows.iter().map(|row| row.prompt as u32);
                state = model.fresh_state();
                input = Input {
                    prompts: Some(
                        prompts
                            .flat_map(|prompt| std::iter::repeat_n(prompt, longest))
                            .collect(),
                    ),
                    ..Input::padded_before(&histories)
                };
            }
            let logits = last_logits(model, &input, &mut state)?;
            let vocabulary = spec.vocabulary;
            let mut next = Vec::with_capacity(rows.len());
            for ((number, row), logits) in
                numbers.iter().zip(&mut rows).zip(logits.chunks(vocabulary))
            {
                next.push(row.advance(*number, logits, spec, options, on_token)?);
            }
            // A row that has ended may stand beyond the last position; what it reads is of no use.
            let last = u32::try_from(limit - 1).unwrap_or(u32::MAX);
            let positions = rows.iter().map(|row| row.position().min(last)).collect();
            input = Input {
                ids: next,
                batch: rows.len(),
                positions: Some(positions),
                ..Input::default()
            };
        }
        Ok(rows.into_iter().map(Row::into_generated).collect())
    }
}

/// The input of the encoder, where there is one: texts on the left of a rectangle, padding with segment 0.
pub(crate) fn source(model: &LanguageModel, texts: &[Vec<u32>]) -> Option<Box<Input>> {
    model
        .spec()
        .encoder
        .as_ref()
        .map(|_| Box::new(Input::padded(texts)))
}

/// Logits of the last position of every row, `[batch * vocabulary]`.
fn last_logits(
    model: &LanguageModel,
    input: &Input,
    state: &mut SequenceState,
) -> Result<Vec<f32>> {
    let hidden = model.hidden(input, Some(state))?;
    let [batch, time, width] = hidden.dims();
    let last = hidden.narrow(1, time - 1, 1).reshape([batch, width]);
    Ok(model.head(last).floats())
}

impl Row {
    fn new(index: usize, [before, prompt]: [&[u32]; 2], options: &DecodeOptions) -> Result<Self> {
        let seed = options.sampler.seed.wrapping_add(index as u64);
        let sampler = Sampler::new(SamplerOptions {
            seed,
            ..options.sampler.clone()
        })?;
        let history = [before, prompt].concat();
        Ok(Self {
            prompt: history.len(),
            sampler: sampler.behind(history.len()),
            history,
            finish: None,
        })
    }

    /// Draws the row's next token, unless it has ended; an ended row repeats its last token, which is dropped.
    fn advance(
        &mut self,
        index: usize,
        logits: &[f32],
        spec: &ModelSpec,
        options: &DecodeOptions,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<u32> {
        if self.finish.is_none() {
            let token = self.next(logits, spec, options)?;
            self.history.push(token);
            let go_on = on_token(index, token);
            self.finish = match () {
                () if options.end.contains(&token) => Some(Finish::End),
                () if !go_on => Some(Finish::Stopped),
                () if self.history.len() - self.prompt >= options.max_new_tokens => {
                    Some(Finish::Length)
                }
                () => None,
            };
        }
        Ok(self.history[self.history.len() - 1])
    }

    /// The token that must come here, or else one that may.
    fn next(&mut self, logits: &[f32], spec: &ModelSpec, options: &DecodeOptions) -> Result<u32> {
        let rules = &options.sampler.rules;
        let place = Place {
            history: &self.history,
            prompt: self.prompt,
            longest: options.max_new_tokens,
            end: &options.end,
        };
        if let Some(token) = rules.forced(spec.encoder.as_ref(), &place) {
            return Ok(token);
        }
        let forbidden = rules.forbidden(&place);
        self.sampler
            .sample(&mut logits.to_vec(), &self.history, &forbidden)
    }

    /// Position of the newest token.
    fn position(&self) -> u32 {
        (self.history.len() - 1) as u32
    }

    fn into_generated(self) -> Generated {
        Generated {
            ids: self.history[self.prompt..].to_vec(),
            finish: self.finish.unwrap_or(Finish::Length),
        }
    }
}

#[cfg(test)]
mod tests;
