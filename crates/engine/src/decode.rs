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
    /// Tokens that may not be drawn.
    pub forbidden: Vec<u32>,
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
/// let options = DecodeOptions { max_new_tokens: 4, sampler, end: vec![], forbidden: vec![] };
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
            state: SequenceState::new(model.spec()),
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
                state = SequenceState::new(model.spec());
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
            history,
            sampler,
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
        let forbidden = [options.forbidden.as_slice(), &rules.forbidden(&place)].concat();
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
mod tests {
    use super::*;
    use crate::beam::{BeamOptions, beam_search};
    use burn::tensor::Device;
    use espalier_models::{
        adapter::{Adapter, FirstStateConfig},
        families::{self, Config},
        parameter::Parameters,
        source::Seed,
        spec::{MixerSpec, RotaryScaling, RotarySpec},
    };

    fn model() -> LanguageModel {
        let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
        spec.initializer_range = 0.5;
        LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
    }

    fn options(temperature: f32) -> DecodeOptions {
        let sampler = SamplerOptions {
            temperature,
            seed: 11,
            ..Default::default()
        };
        DecodeOptions {
            max_new_tokens: 12,
            sampler,
            end: vec![],
            forbidden: vec![],
        }
    }

    #[test]
    fn a_model_without_a_head_does_not_generate() {
        let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
        spec.headless = true;
        let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        let result = decode(&model, &[vec![5]], &options(0.0), &mut |_, _| true);
        assert!(matches!(result, Err(Error::Headless)));
        let result = beam_search(&model, &[5], &BeamOptions::default(), &mut |_| Ok(false));
        assert!(matches!(result, Err(Error::Headless)));
    }

    #[test]
    fn cached_decoding_equals_the_full_forward() {
        assert_greedy_is_uncached(&model());
    }

    fn assert_greedy_is_uncached(model: &LanguageModel) {
        let generated = decode(model, &[vec![5, 9, 2]], &options(0.0), &mut |_, _| true).unwrap();
        let mut history = vec![5, 9, 2];
        for token in &generated[0].ids {
            let logits = model
                .logits(&Input::rows(&[history.clone()]).unwrap())
                .unwrap();
            let last = logits
                .narrow(1, history.len() - 1, 1)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap();
            let best = (0..last.len())
                .max_by(|a, b| last[*a].total_cmp(&last[*b]).then(b.cmp(a)))
                .unwrap();
            assert_eq!(*token as usize, best);
            history.push(*token);
        }
    }

    #[test]
    fn trained_first_states_meet_no_padding() {
        let text = r#"{"model_type":"mamba","vocab_size":61,"hidden_size":16,"num_hidden_layers":2,"initializer_range":0.5}"#;
        let config = Config::parse("config.json".as_ref(), text).unwrap();
        let spec = (families::family(&config).unwrap().read)(&config).unwrap();
        let mut model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        let family = families::by_name("mamba").unwrap();
        let adapter = Adapter::new(FirstStateConfig {});
        adapter.attach(&mut model, family, 0).unwrap();
        model.visit_mut(&mut |parameter| {
            if parameter.is_trainable() {
                parameter.set_data(vec![0.5; parameter.len()], &Device::flex());
            }
        });
        let model = model.frozen();
        let prompts = [
            vec![5, 9, 2],
            vec![7],
            vec![3, 4, 8, 1],
            vec![6],
            vec![1, 2, 3],
        ];
        let mut seen = vec![Vec::new(); prompts.len()];
        let together = decode(&model, &prompts, &options(0.0), &mut |row, token| {
            seen[row].push(token);
            true
        });
        for ((prompt, generated), seen) in prompts.iter().zip(together.unwrap()).zip(seen) {
            let alone = decode(
                &model,
                std::slice::from_ref(prompt),
                &options(0.0),
                &mut |_, _| true,
            )
            .unwrap();
            assert_eq!(generated, alone[0], "{prompt:?}");
            assert_eq!(generated.ids, seen, "{prompt:?}");
        }
    }

    /// A model whose rotary frequencies depend on the length of the text.
    fn model_scaled(scaling: &RotaryScaling) -> LanguageModel {
        let mut spec = ModelSpec::llama(61, 16, 2, 4, 2, 32, 64);
        spec.initializer_range = 0.5;
        for block in &mut spec.blocks {
            let MixerSpec::Attention(attention) = &mut block.mixer else {
                panic!()
            };
            let scaling = scaling.clone();
            attention.rotary = attention
                .rotary
                .clone()
                .map(|rotary| RotarySpec { scaling, ..rotary });
        }
        LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
    }

    fn long_rope() -> RotaryScaling {
        RotaryScaling::LongRope {
            short: vec![1.0, 1.5],
            long: vec![3.0, 40.0],
            original_context: 8,
            attention_factor: 1.2,
        }
    }

    #[test]
    fn keys_are_computed_anew_where_their_frequencies_change() {
        let model = model_scaled(&long_rope());
        assert_greedy_is_uncached(&model);
        let prompt = vec![5, 9, 2];
        let options = DecodeOptions {
            max_new_tokens: 12,
            ..options(0.0)
        };
        let greedy = decode(
            &model,
            std::slice::from_ref(&prompt),
            &options,
            &mut |_, _| true,
        )
        .unwrap();
        let beam = BeamOptions {
            beams: 1,
            max_new_tokens: 12,
            ..BeamOptions::default()
        };
        let found = beam_search(&model, &prompt, &beam, &mut |_| Ok(false)).unwrap();
        assert_eq!(found[0].ids, greedy[0].ids);
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let dynamic = RotaryScaling::Dynamic {
            factor: 4.0,
            original_context: 5,
        };
        assert_rows_are_independent(&model());
        assert_rows_are_independent(&model_scaled(&long_rope()));
        assert_rows_are_independent(&model_scaled(&dynamic));
    }

    fn assert_rows_are_independent(model: &LanguageModel) {
        for temperature in [0.0, 1.0] {
            let prompts = [vec![5, 9, 2, 7, 7, 1], vec![3], vec![8, 8, 4]];
            let together =
                decode(model, &prompts, &options(temperature), &mut |_, _| true).unwrap();
            for (i, prompt) in prompts.iter().enumerate() {
                let mut alone = options(temperature);
                alone.sampler.seed += i as u64;
                let alone = decode(model, std::slice::from_ref(prompt), &alone, &mut |_, _| {
                    true
                })
                .unwrap();
                assert_eq!(
                    alone[0], together[i],
                    "row {i} at temperature {temperature}"
                );
            }
        }
    }

    /// A model of six learned positions.
    fn short_model() -> LanguageModel {
        let text = r#"{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":61,"n_embd":16,"n_layer":2,
            "n_head":2,"n_positions":6,"initializer_range":0.5}"#;
        let config = Config::parse("config.json".as_ref(), text).unwrap();
        let spec = (families::family(&config).unwrap().read)(&config).unwrap();
        LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap()
    }

    #[test]
    fn rows_end_at_the_last_learned_position_each_for_itself() {
        let model = short_model();
        let prompts = [vec![5; 6], vec![5, 9], vec![7, 1, 2, 3]];
        let together = decode(&model, &prompts, &options(0.0), &mut |_, _| true).unwrap();
        for (prompt, generated) in prompts.iter().zip(&together) {
            let prompt = std::slice::from_ref(prompt);
            let alone = decode(&model, prompt, &options(0.0), &mut |_, _| true).unwrap();
            assert_eq!(generated, &alone[0], "{prompt:?}");
            assert_eq!(generated.ids.len(), 7 - prompt[0].len());
            assert_eq!(generated.finish, Finish::Context);
        }
    }

    #[test]
    fn a_prompt_beyond_the_learned_positions_is_an_error() {
        let prompts = [vec![5; 6], vec![5; 7]];
        let error = decode(&short_model(), &prompts, &options(0.0), &mut |_, _| true);
        assert_eq!(
            error.unwrap_err().to_string(),
            "prompt 2 has 7 tokens, but the model has learned 6 positions; shorten it"
        );
        let beams = BeamOptions {
            beams: 2,
            max_new_tokens: 4,
            ..BeamOptions::default()
        };
        assert!(beam_search(&short_model(), &prompts[1], &beams, &mut |_| Ok(false)).is_err());
    }

    #[test]
    fn end_tokens_end_and_forbidden_tokens_never_come() {
        let model = model();
        let first = decode(&model, &[vec![5]], &options(0.0), &mut |_, _| true).unwrap()[0].ids[0];
        let ending = DecodeOptions {
            end: vec![first],
            ..options(0.0)
        };
        let generated = decode(&model, &[vec![5]], &ending, &mut |_, _| true).unwrap();
        assert_eq!(
            (generated[0].ids.as_slice(), generated[0].finish),
            ([first].as_slice(), Finish::End)
        );
        let forbidding = DecodeOptions {
            forbidden: vec![first],
            ..options(0.0)
        };
        let generated = decode(&model, &[vec![5]], &forbidding, &mut |_, _| true).unwrap();
        assert!(!generated[0].ids.contains(&first));
    }
}
