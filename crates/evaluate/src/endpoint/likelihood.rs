//! Likelihoods from an endpoint: `/completions` repeats the prompt (`echo`) with the log-probability of each of its tokens.
//!
//! The server's tokenizer is not known here, so places in the text decide which tokens are the continuation's: all that reach beyond the
//! context, whose white space at the end belongs to the continuation, as in lm-evaluation-harness. Left out: texts without a context,
//! whose first token has no log-probability there, and so whole texts and `acc_mutual_info`.

use serde_json::{Value, json};

use super::{Endpoint, short};
use crate::{
    Error, Result,
    respondent::Response,
    tasks::{Item, Request, metric::Likelihood},
};

impl Endpoint {
    /// How likely the texts of an item are.
    pub(super) fn score(&self, item: &Item) -> Result<Response> {
        let texts: Vec<&str> = match &item.request {
            Request::Likelihood { target, .. } => vec![target],
            Request::Choice {
                continuations,
                alone: false,
                ..
            } => continuations.iter().map(String::as_str).collect(),
            _ => {
                return Err(Error::task(
                    "an endpoint gives no likelihood of a text without a context, as whole texts and `acc_mutual_info` need it",
                ));
            }
        };
        if self.chat {
            return Err(Error::task(
                "the chat interface of an endpoint gives no likelihoods; leave `--chat` out",
            ));
        }
        let found = texts
            .iter()
            .enumerate()
            .map(|(choice, text)| self.likelihood(&item.request.context(choice), text));
        Ok(Response::Likelihoods(found.collect::<Result<_>>()?))
    }

    fn likelihood(&self, context: &str, continuation: &str) -> Result<Likelihood> {
        let kept = context.trim_end().chars().count();
        if kept == 0 {
            return Err(Error::task(
                "an endpoint gives no likelihood of a text without a context before it",
            ));
        }
        let whole = format!("{context}{continuation}");
        let body = json!({
            "model": self.model,
            "prompt": whole,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "echo": true,
            "seed": self.seed % (1 << 31),
        });
        let url = format!("{}/completions", self.base);
        let response = self.post(&url, &body.to_string())?;
        let tokens = response.pointer("/choices/0/logprobs").and_then(tokens);
        let tokens = tokens.ok_or_else(|| {
            Error::task(format!(
                "{url} answered {} without tokens, token_logprobs, top_logprobs and text_offset of the prompt; likelihoods need a server that knows `echo` with `logprobs`",
                short(&response.to_string())
            ))
        })?;
        of_continuation(&tokens, kept, whole.chars().count()).ok_or_else(|| {
            Error::task(format!(
                "{url}: the tokens of the answer do not cover the prompt; is it longer than the model's context?"
            ))
        })
    }
}

/// A token of the repeated prompt.
struct Token<'a> {
    text: &'a str,
    /// Its first character's place in the text.
    offset: usize,
    /// None of the text's first one.
    log_probability: Option<f64>,
    /// The likeliest token in its place.
    likeliest: Option<&'a str>,
}

fn tokens(logprobs: &Value) -> Option<Vec<Token<'_>>> {
    let list = |key: &str| logprobs[key].as_array();
    let (texts, values) = (list("tokens")?, list("token_logprobs")?);
    let (tops, offsets) = (list("top_logprobs")?, list("text_offset")?);
    let token = |at: usize| {
        Some(Token {
            text: texts[at].as_str()?,
            offset: usize::try_from(offsets.get(at)?.as_u64()?).ok()?,
            log_probability: values.get(at)?.as_f64(),
            likeliest: tops.get(at).and_then(likeliest),
        })
    };
    (0..texts.len()).map(token).collect()
}

fn likeliest(top: &Value) -> Option<&str> {
    let entries = top.as_object()?.iter();
    let numbers = entries.filter_map(|(text, value)| Some((text, value.as_f64()?)));
    let best = numbers.max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(best.0)
}

/// The likelihood of what stands behind the first `kept` characters of a text of `length` ones; nothing where a token of it is missing.
fn of_continuation(tokens: &[Token<'_>], kept: usize, length: usize) -> Option<Likelihood> {
    let own: Vec<&Token<'_>> = tokens
        .iter()
        .enumerate()
        .filter(|(place, token)| {
            let end = tokens.get(place + 1).map_or(length, |next| next.offset);
            token.offset < length && end > kept
        })
        .map(|(_, token)| token)
        .collect();
    let values: Option<Vec<f64>> = own.iter().map(|token| token.log_probability).collect();
    let is_first = |token: &&Token<'_>| token.likeliest.is_some_and(|top| top == token.text);
    let covers = own.first().is_some_and(|first| first.offset <= kept);
    covers.then_some(())?;
    Some(Likelihood {
        log_probability: values?.iter().sum(),
        first_choice: own.iter().all(is_first),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "The sky is blue" and one token that was written behind it.
    fn logprobs() -> Value {
        json!({
            "tokens": ["The", " sky", " is", " bl", "ue", "."],
            "token_logprobs": [null, -3.0, -0.5, -0.25, -0.125, -1.0],
            "top_logprobs": [null, {" cat": -1.0}, {" is": -0.5}, {" bl": -0.25}, {"ue": -0.125}, {".": -1.0}],
            "text_offset": [0, 3, 7, 10, 13, 15],
        })
    }

    #[test]
    fn tokens_beyond_the_context_are_the_continuations() {
        let logprobs = logprobs();
        let tokens = tokens(&logprobs).unwrap();
        let of = |context: &str| of_continuation(&tokens, context.trim_end().len(), 15);
        let blue = of("The sky is").unwrap();
        assert_eq!((blue.log_probability, blue.first_choice), (-0.375, true));
        assert_eq!(
            of("The sky is ").unwrap(),
            blue,
            "white space belongs to the continuation"
        );
        assert_eq!(of("The sky is bl").unwrap().log_probability, -0.125);
        assert_eq!(
            of("The sky is b").unwrap().log_probability,
            -0.375,
            "a token over the border"
        );
        let more = of("The").unwrap();
        assert_eq!((more.log_probability, more.first_choice), (-3.875, false));
        assert_eq!(of("T"), None, "the first token has no log-probability");
        assert_eq!(
            of_continuation(&tokens[3..], 3, 15),
            None,
            "the beginning was cut off"
        );
    }
}
