//! The reward of a judge: a language model is asked in words, and a regular expression finds the score in its reply.
//!
//! The judge is a model folder, which answers greedily in this process, or an endpoint that takes OpenAI's chat requests. A reply
//! without a score is no opinion; where none of a batch has one, the pattern does not fit the judge and the run ends.

use burn::tensor::Device;
use espalier_data::record::Message;
use espalier_engine::{
    sampler::SamplerOptions,
    text::{TextModel, TextOptions},
};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Asked, Read, Reward, Source,
    endpoint::{Endpoint, EndpointOptions},
    failed, model,
    rules::compiled,
    shortened,
};
use crate::{
    Error, Result,
    error::{at_least, positive},
};

/// The options of a judge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeOptions {
    /// A model folder, or the name of an earlier stage; absent where `endpoint` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A server of OpenAI's chat completions; absent where `model` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointOptions>,
    /// The model that the endpoint is asked for, by its name there; given with `endpoint` alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint_model: String,
    /// What the judge is asked; `{prompt}` and `{answer}` stand for what it judges.
    #[serde(default = "usual_prompt")]
    pub prompt: String,
    /// A regular expression that finds the score in its reply, as its first group.
    #[serde(default = "usual_pattern")]
    pub pattern: String,
    /// What the score is divided by.
    #[serde(default = "usual_scale")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub scale: f64,
    /// Longest reply in tokens.
    #[serde(default = "usual_length")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: usize,
}

/// What a judge is asked where nothing else is said.
pub const USUAL_PROMPT: &str = "Rate the answer to the question from 0 (useless) to 10 (perfect). Question: {prompt}\nAnswer: {answer}\nReply with `Score: ` and the number.";

fn usual_prompt() -> String {
    USUAL_PROMPT.into()
}

fn usual_pattern() -> String {
    r"[Ss]core:\s*(-?\d+(?:\.\d+)?)".into()
}

fn usual_scale() -> f64 {
    10.0
}

fn usual_length() -> usize {
    64
}

impl Source for JudgeOptions {
    fn reads(&mut self) -> Vec<Read<'_>> {
        self.model.iter_mut().map(Read::Model).collect()
    }

    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(JudgeReward::load(self.clone(), device)?))
    }

    fn check(&self) -> Result<()> {
        let wrong = |key, reason: &str| {
            Err(Error::Option {
                key,
                reason: reason.into(),
            })
        };
        if self.model.is_some() == self.endpoint.is_some() {
            return wrong("judge", "give one of `model` and `endpoint`");
        }
        match (&self.endpoint, self.endpoint_model.is_empty()) {
            (Some(_), true) => {
                let reason = "the endpoint is asked for a model by its name; give it";
                return wrong("endpoint_model", reason);
            }
            (None, false) => {
                let reason = "is asked of an endpoint, and the judge is a folder; leave it out";
                return wrong("endpoint_model", reason);
            }
            _ => {}
        }
        if self.endpoint.as_ref().is_some_and(|e| e.answers.is_some()) {
            return wrong(
                "answers",
                "a judge is asked for one answer at a time; leave it out",
            );
        }
        if !self.prompt.contains("{answer}") {
            return wrong(
                "prompt",
                "the judge never sees the answer; put {answer} where it belongs",
            );
        }
        positive("scale", self.scale)?;
        at_least("max_new_tokens", self.max_new_tokens, 1)?;
        if compiled(&self.pattern)?.captures_len() < 2 {
            return wrong("pattern", "has no group; put parentheses around the number");
        }
        self.endpoint.as_ref().map_or(Ok(()), Source::check)
    }
}

impl JudgeOptions {
    fn question(&self, asked: &Asked<'_>) -> Vec<Message> {
        let text = question(&self.prompt, &asked.prompt(), asked.answer);
        vec![Message::user(text)]
    }
}

/// What a judge is asked, with prompt and answer in the places of `{prompt}` and `{answer}`.
pub fn question(asked: &str, prompt: &str, answer: &str) -> String {
    // In one pass, so that an answer that says {prompt} stays as it is.
    let (mut text, mut rest) = (String::new(), asked);
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [("{prompt}", prompt), ("{answer}", answer)];
        let (name, value) = known
            .into_iter()
            .find(|(name, _)| rest.starts_with(name))
            .unwrap_or(("{", "{"));
        text.push_str(value);
        rest = &rest[name.len()..];
    }
    text.push_str(rest);
    text
}

/// Who judges.
#[derive(Debug)]
enum Judge {
    Model(Box<TextModel>),
    Endpoint(Endpoint),
}

/// A judge.
#[derive(Debug)]
pub struct JudgeReward {
    options: JudgeOptions,
    pattern: Regex,
    judge: Judge,
}

/// Questions that a model answers at once.
const BATCH: usize = 64;

impl JudgeReward {
    /// # Errors
    /// When an option makes no sense, or the model cannot be loaded.
    pub(super) fn load(options: JudgeOptions, device: &Device) -> Result<Self> {
        options.check()?;
        let judge = match (&options.model, &options.endpoint) {
            (Some(path), _) => {
                let (model, tokenizer) = model::opened(path, device)?;
                Judge::Model(Box::new(TextModel { model, tokenizer }))
            }
            (None, Some(endpoint)) => Judge::Endpoint(Endpoint::new("judge", endpoint.clone())?),
            (None, None) => return Err(failed("judge", "give one of `model` and `endpoint`")),
        };
        Ok(Self {
            pattern: compiled(&options.pattern)?,
            options,
            judge,
        })
    }

    fn replies(&self, questions: &[Vec<Message>]) -> Result<Vec<String>> {
        match &self.judge {
            Judge::Model(model) => self.of_model(model, questions),
            Judge::Endpoint(endpoint) => {
                let bodies: Vec<Value> = questions.iter().map(|q| self.body(q)).collect();
                let responses = endpoint.post_all(&bodies)?;
                let reply = |response: &Value| reply_of(endpoint, response);
                responses.iter().map(reply).collect()
            }
        }
    }

    fn of_model(&self, model: &TextModel, questions: &[Vec<Message>]) -> Result<Vec<String>> {
        let options = TextOptions {
            max_new_tokens: self.options.max_new_tokens,
            sampler: SamplerOptions {
                temperature: 0.0,
                ..SamplerOptions::default()
            },
            stops: Vec::new(),
        };
        let mut replies = Vec::with_capacity(questions.len());
        for chunk in questions.chunks(BATCH) {
            let prompts = chunk.iter().map(|question| model.chat_prompt(question));
            let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
            let written = model.generate_batch(&prompts, &options)?;
            replies.extend(written.into_iter().map(|reply| reply.text));
        }
        Ok(replies)
    }

    /// What an endpoint is sent.
    fn body(&self, question: &[Message]) -> Value {
        json!({
            "model": self.options.endpoint_model,
            "messages": question,
            "max_tokens": self.options.max_new_tokens,
            "temperature": 0,
        })
    }

    fn found(&self, reply: &str) -> Option<f64> {
        let number = self.pattern.captures(reply)?.get(1)?.as_str();
        let number: f64 = number.parse().ok()?;
        Some(number / self.options.scale)
    }
}

/// The text of an endpoint's response.
fn reply_of(endpoint: &Endpoint, response: &Value) -> Result<String> {
    let text = response
        .pointer("/choices/0/message/content")
        .and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| {
        let response = shortened(&response.to_string());
        endpoint.failed(format!(
            "answered {response} where `choices` with a message's `content` is expected"
        ))
    })
}

impl Reward for JudgeReward {
    fn score(&mut self, answers: &[Asked<'_>]) -> Result<Vec<Option<f64>>> {
        let questions: Vec<_> = answers
            .iter()
            .map(|asked| self.options.question(asked))
            .collect();
        let replies = self.replies(&questions)?;
        let scores: Vec<_> = replies.iter().map(|reply| self.found(reply)).collect();
        match replies.first() {
            Some(first) if scores.iter().all(Option::is_none) => Err(failed(
                "judge",
                format!(
                    "`pattern` found no score in any of {} replies; the first: {:?}",
                    replies.len(),
                    shortened(first)
                ),
            )),
            _ => Ok(scores),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_data::{
        template::{ChatTemplate, PLAIN},
        tokenizer::{BpeOptions, Tokenizer},
    };
    use espalier_models::{model::LanguageModel, source::Seed, spec::ModelSpec};

    fn options(text: &str) -> JudgeOptions {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_question_holds_prompt_and_answer_once() {
        let options = options(r#"{"model": "m", "prompt": "Q {prompt} A {answer} {other} {"}"#);
        let messages = [Message::user("{answer}?")];
        let asked = Asked {
            messages: &messages,
            answer: "{prompt}!",
            tokens: 1,
            record: &Value::Null,
        };
        let question = options.question(&asked);
        assert_eq!(question[0].text(), "Q {answer}? A {prompt}! {other} {");
    }

    #[test]
    fn scores_are_found_and_scaled() {
        let options =
            options(r#"{"endpoint": {"url": "http://localhost/"}, "endpoint_model": "m"}"#);
        let judge = JudgeReward::load(options, &Device::flex()).unwrap();
        assert_eq!(judge.found("I think. Score: 7.5"), Some(0.75));
        assert_eq!(judge.found("score:10"), Some(1.0));
        assert_eq!(judge.found("seven"), None);
    }

    #[test]
    fn a_model_that_gives_no_score_ends_the_run() {
        let bytes = BpeOptions {
            vocabulary: 259,
            ..BpeOptions::default()
        };
        let tokenizer = Tokenizer::train_byte_level_bpe(std::iter::empty(), &bytes).unwrap();
        let spec = ModelSpec::llama(tokenizer.vocabulary_size(), 16, 2, 2, 1, 32, 64);
        let model = LanguageModel::build(spec, &mut Seed(3), &Device::flex()).unwrap();
        let options = options(r#"{"model": "m", "prompt": "{answer}", "max_new_tokens": 4}"#);
        let tokenizer = tokenizer.with_template(ChatTemplate::new(PLAIN).unwrap());
        let mut judge = JudgeReward {
            pattern: compiled(&options.pattern).unwrap(),
            options,
            judge: Judge::Model(Box::new(TextModel { model, tokenizer })),
        };
        let messages = [Message::user("?")];
        let asked = Asked {
            messages: &messages,
            answer: "x",
            tokens: 1,
            record: &Value::Null,
        };
        let error = judge.score(&[asked, asked]).unwrap_err().to_string();
        assert!(error.contains("no score in any of 2 replies"), "{error}");
    }

    #[test]
    fn senseless_judges_are_refused() {
        for (text, words) in [
            ("{}", "one of `model` and `endpoint`"),
            (
                r#"{"endpoint": {"url": "http://localhost/"}}"#,
                "`endpoint_model`: the endpoint is asked for a model",
            ),
            (
                r#"{"model": "m", "endpoint_model": "n"}"#,
                "`endpoint_model`: is asked of an endpoint",
            ),
            (
                r#"{"endpoint": {"url": "http://localhost/", "answers": 2}, "endpoint_model": "m"}"#,
                "one answer at a time",
            ),
            (
                r#"{"model": "m", "prompt": "well?"}"#,
                "never sees the answer",
            ),
            (r#"{"model": "m", "pattern": "\\d+"}"#, "has no group"),
            (r#"{"model": "m", "pattern": "("}"#, "unclosed group"),
            (r#"{"model": "m", "scale": 0}"#, "positive"),
        ] {
            let error = options(text).check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
