//! Text in, text out: the decoding loop with a tokenizer, a chat template and stop strings.

use espalier_data::{encode::Encoder, record::Message, tokenizer::Tokenizer};
use espalier_models::{model::LanguageModel, state_file::Prefix};

use crate::{
    Error, Result,
    answer::AnswerText,
    beam::{BeamOptions, beam_search},
    decode::{DecodeOptions, Finish, Generated, decode, decode_after},
    sampler::SamplerOptions,
};

/// A model that speaks: its weights and its tokenizer.
#[derive(Debug, Clone)]
pub struct TextModel {
    /// The weights.
    pub model: LanguageModel,
    /// The text front end.
    pub tokenizer: Tokenizer,
}

/// Options of a text's generation.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Options of sampling.
    pub sampler: SamplerOptions,
    /// Strings at which generation ends; they are not part of the text.
    pub stops: Vec<String>,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedText {
    /// The text, without special tokens and stop strings.
    pub text: String,
    /// Number of generated tokens.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// The tokens that end a text or a turn: the model's end-of-sequence tokens, and the tokenizer's.
pub fn end_tokens(model: &LanguageModel, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ends = model.spec().eos.clone();
    let own = tokenizer.special().eos.as_deref();
    let own = own.and_then(|token| tokenizer.id(token));
    ends.extend(own.filter(|id| !ends.contains(id)));
    ends
}

impl TextModel {
    /// The tokens that end a turn.
    pub fn end_tokens(&self) -> Vec<u32> {
        end_tokens(&self.model, &self.tokenizer)
    }

    /// Token ids of a conversation up to the assistant's turn.
    ///
    /// # Errors
    /// When the tokenizer has no chat template, or the template refuses the conversation.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let encoder = Encoder::new(self.tokenizer.clone(), usize::MAX);
        Ok(encoder.prompt(messages, None)?)
    }

    /// Generates one text; `on_text` is called after every token, with the piece of text that became certain or with nothing, and
    /// returns whether to go on.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the model.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &TextOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<GeneratedText> {
        self.generate_after(None, prompt, options, on_text)
    }

    /// As [`TextModel::generate`], behind a text that was read before.
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn generate_after(
        &self,
        prefix: Option<&Prefix>,
        prompt: &[u32],
        options: &TextOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<GeneratedText> {
        let decoding = self.decode_options(options);
        let mut answer = Answer::new(self, prompt, options);
        let mut on_token = |_, token| answer.hear(token, &decoding.end, on_text);
        let generated = match prefix {
            Some(prefix) => decode_after(&self.model, prefix, prompt, &decoding, &mut on_token)?,
            None => decode(&self.model, &[prompt.to_vec()], &decoding, &mut on_token)?,
        };
        answer.finish(&generated[0], on_text)
    }

    /// Generates a text for each prompt, all at once; the texts are without special tokens.
    ///
    /// # Errors
    /// When a prompt is empty or does not fit the model.
    pub fn generate_batch(
        &self,
        prompts: &[Vec<u32>],
        options: &TextOptions,
    ) -> Result<Vec<GeneratedText>> {
        let decoding = self.decode_options(options);
        let mut answers: Vec<Answer> = prompts
            .iter()
            .map(|prompt| Answer::new(self, prompt, options))
            .collect();
        let unheard = &mut |_: &str| true;
        let generated = decode(&self.model, prompts, &decoding, &mut |row, token| {
            answers[row].hear(token, &decoding.end, unheard)
        })?;
        let answers = answers.into_iter().zip(&generated);
        answers
            .map(|(answer, row)| answer.finish(row, unheard))
            .collect()
    }

    /// The best continuation of a prompt by beam search, which end tokens and stop strings end; of the options of sampling only
    /// the repetition penalty and the rules have a meaning there. See [`BeamOptions`].
    ///
    /// # Errors
    /// As [`TextModel::generate`].
    pub fn search(
        &self,
        prompt: &[u32],
        options: &TextOptions,
        beams: usize,
        length_penalty: f64,
        early_stopping: bool,
    ) -> Result<GeneratedText> {
        let beams = BeamOptions {
            beams,
            max_new_tokens: options.max_new_tokens,
            length_penalty,
            end: self.end_tokens(),
            repetition_penalty: options.sampler.repetition_penalty,
            rules: options.sampler.rules.clone(),
            early_stopping,
        };
        let stops = options.stops.iter().filter(|stop| !stop.is_empty());
        let stops: Vec<&String> = stops.collect();
        let mut ends = |ids: &[u32]| match stops.is_empty() {
            true => Ok(false),
            false => {
                let text = self.tokenizer.decode_after(prompt, ids)?;
                Ok(stops.iter().any(|stop| text.contains(stop.as_str())))
            }
        };
        let found = beam_search(&self.model, prompt, &beams, &mut ends)?;
        let ids = found.into_iter().next().map_or(Vec::new(), |best| best.ids);
        let mut answer = Answer::new(self, prompt, options);
        let unheard = &mut |_: &str| true;
        for id in &ids {
            answer.hear(*id, &beams.end, unheard);
        }
        let finish = match ids.last() {
            Some(last) if beams.end.contains(last) => Finish::End,
            _ if ids.len() < options.max_new_tokens => Finish::Context,
            _ => Finish::Length,
        };
        answer.finish(&Generated { ids, finish }, unheard)
    }

    fn decode_options(&self, options: &TextOptions) -> DecodeOptions {
        DecodeOptions {
            max_new_tokens: options.max_new_tokens,
            sampler: options.sampler.clone(),
            end: self.end_tokens(),
        }
    }
}

/// A text that is being made of tokens, and who listens to it.
struct Answer {
    stream: AnswerText,
    text: String,
    failure: Option<Error>,
}

impl Answer {
    fn new(model: &TextModel, prompt: &[u32], options: &TextOptions) -> Self {
        Self {
            stream: AnswerText::new(&model.tokenizer, prompt, options.stops.clone()),
            text: String::new(),
            failure: None,
        }
    }

    /// Takes a token; whether more may come.
    fn hear(&mut self, token: u32, end: &[u32], on_text: &mut dyn FnMut(&str) -> bool) -> bool {
        if end.contains(&token) {
            return true;
        }
        match self.stream.push(token) {
            Ok(piece) => {
                let goes_on = self.emit(&piece.text, on_text);
                goes_on && !piece.stopped
            }
            Err(error) => {
                self.failure = Some(error);
                false
            }
        }
    }

    fn emit(&mut self, piece: &str, on_text: &mut dyn FnMut(&str) -> bool) -> bool {
        self.text.push_str(piece);
        on_text(piece)
    }

    /// The whole text, when no more tokens come.
    fn finish(
        mut self,
        generated: &Generated,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<GeneratedText> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if !self.stream.is_stopped() {
            let piece = self.stream.finish()?;
            self.emit(&piece.text, on_text);
        }
        Ok(GeneratedText {
            text: self.text,
            tokens: generated.ids.len(),
            finish: match self.stream.is_stopped() {
                true => Finish::Stopped,
                false => generated.finish,
            },
        })
    }
}
