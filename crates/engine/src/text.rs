//! Text in, text out: the decoding loop with a tokenizer, a chat template and stop strings.

use espalier_data::{record::Message, template::Conversation, tokenizer::Tokenizer};
use espalier_models::{model::LanguageModel, state_file::Prefix};

use crate::{
    Result,
    decode::{DecodeOptions, Finish, decode, decode_after},
    sampler::SamplerOptions,
    stop::{StopMatcher, Stopped},
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

impl TextModel {
    /// The tokens that end a turn: the model's end-of-sequence tokens, and the tokenizer's where the model names none.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut end = self.model.spec().eos.clone();
        let eos = self
            .tokenizer
            .special()
            .eos
            .as_deref()
            .and_then(|token| self.tokenizer.id(token));
        end.extend(eos.filter(|id| !end.contains(id)));
        end
    }

    /// Token ids of a conversation up to the assistant's turn.
    ///
    /// # Errors
    /// When the tokenizer has no chat template, or the template refuses the conversation.
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.tokenizer.template().ok_or_else(|| {
            espalier_data::Error::Template(
                "the tokenizer has none; tune the model on conversations first".into(),
            )
        })?;
        let rendered = template.render(&Conversation {
            messages,
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            special: self.tokenizer.special(),
            variables: serde_json::Map::new(),
        })?;
        Ok(self.tokenizer.encode(&rendered.text, false)?.ids)
    }

    /// Generates one text; `on_text` sees its pieces as soon as they are certain.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the model.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &TextOptions,
        on_text: &mut dyn FnMut(&str),
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
        on_text: &mut dyn FnMut(&str),
    ) -> Result<GeneratedText> {
        let decoding = self.decode_options(options);
        let (mut stream, mut stops) = (
            self.tokenizer.stream_after(prompt),
            StopMatcher::new(options.stops.clone()),
        );
        let (mut text, mut failure, mut stopped) = (String::new(), None, false);
        let mut emit = |piece: &str, text: &mut String| {
            text.push_str(piece);
            on_text(piece);
        };
        let mut on_token = |_, token| {
            if decoding.end.contains(&token) {
                return true;
            }
            match stream.push(token) {
                Ok(None) => true,
                Ok(Some(piece)) => match stops.push(&piece) {
                    Stopped::Emit(piece) => {
                        emit(&piece, &mut text);
                        true
                    }
                    Stopped::Stop(piece) => {
                        emit(&piece, &mut text);
                        stopped = true;
                        false
                    }
                },
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        };
        let generated = match prefix {
            Some(prefix) => decode_after(&self.model, prefix, prompt, &decoding, &mut on_token)?,
            None => decode(&self.model, &[prompt.to_vec()], &decoding, &mut on_token)?,
        };
        if let Some(error) = failure {
            return Err(error.into());
        }
        if !stopped {
            let rest = stream.finish()?.unwrap_or_default();
            let (Stopped::Emit(piece) | Stopped::Stop(piece)) = stops.push(&rest);
            emit(&piece, &mut text);
            emit(&stops.finish(), &mut text);
        }
        Ok(GeneratedText {
            text,
            tokens: generated[0].ids.len(),
            finish: generated[0].finish,
        })
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
        let generated = decode(
            &self.model,
            prompts,
            &self.decode_options(options),
            &mut |_, _| true,
        )?;
        let text = |(row, prompt): (crate::decode::Generated, &Vec<u32>)| {
            let text = self.tokenizer.decode_after(prompt, &row.ids)?;
            let mut stops = StopMatcher::new(options.stops.clone());
            let (Stopped::Emit(mut kept) | Stopped::Stop(mut kept)) = stops.push(&text);
            kept.push_str(&stops.finish());
            Ok(GeneratedText {
                text: kept,
                tokens: row.ids.len(),
                finish: row.finish,
            })
        };
        generated.into_iter().zip(prompts).map(text).collect()
    }

    fn decode_options(&self, options: &TextOptions) -> DecodeOptions {
        DecodeOptions {
            max_new_tokens: options.max_new_tokens,
            sampler: options.sampler.clone(),
            end: self.end_tokens(),
            forbidden: Vec::new(),
        }
    }
}
